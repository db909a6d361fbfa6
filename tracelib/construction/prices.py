"""What the tokens of a recipe's teachers cost, by model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracelib.construction.assess import TeacherAssessor
from tracelib.construction.teachers.endpoint import EndpointTeacher
from tracelib.construction.teachers.price import Price
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


def find_dearest_price(teacher: Teacher) -> Price:
    """Return the highest price of a teacher's models, of nothing where none has one."""
    prices = find_prices(teacher).values()
    return max(prices, key=lambda price: price.compute_cost(1, 1), default=Price())
