"""What the tokens of a recipe's teachers cost, by model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelib.construction.assess import TeacherAssessor
from tracelib.construction.teachers.endpoint import EndpointTeacher
from tracelib.construction.teachers.price import Price, TeacherPrice
from tracelib.construction.teachers.routed import RoutedTeacher
from tracelib.construction.teachers.teacher import Teacher

if TYPE_CHECKING:
    from tracelib.construction.recipe import ConstructionRecipe


def find_prices(teacher: Teacher) -> dict[str, Price]:
    """Return the price of each model that a teacher asks, by the name that replies carry.

    A model without a price, such as one in this process, is not among them.
    """
    if isinstance(teacher, RoutedTeacher):
        return {**find_prices(teacher.text), **find_prices(teacher.pictures)}
    if isinstance(teacher, EndpointTeacher) and teacher.price != Price():
        return {teacher.served_model: teacher.price}
    return {}


def find_recipe_prices(recipe: ConstructionRecipe) -> dict[str, Price]:
    """Return the prices of all teachers of a recipe, as `find_prices` does."""
    verifier = recipe.verify.verifier
    teachers = [recipe.generate.teacher, *([verifier.teacher] if verifier is not None else [])]
    for assessor in recipe.assess.assessors.values():
        teachers += [assessor.teacher] if isinstance(assessor, TeacherAssessor) else []
    return {name: price for t in teachers for name, price in find_prices(t).items()}


def find_teacher_price(teacher: Teacher) -> TeacherPrice:
    """Return the price of a teacher's tokens, of nothing where none of its models has one."""
    prices = _list_prices(teacher)
    highest = Price(
        max(price.per_million_prompt_tokens for price in prices),
        max(price.per_million_completion_tokens for price in prices),
    )
    return TeacherPrice(highest, is_bound=len(prices) > 1)


def _list_prices(teacher: Teacher) -> set[Price]:
    if isinstance(teacher, RoutedTeacher):
        return _list_prices(teacher.text) | _list_prices(teacher.pictures)
    return {teacher.price if isinstance(teacher, EndpointTeacher) else Price()}
