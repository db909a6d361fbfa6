"""What a build would ask for, worked out without asking anyone: requests, tokens, cost, hours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from tracelib.construction.assess import TeacherAssessor
from tracelib.construction.estimate import EstimateSettings, PhaseEstimate, estimate_phase
from tracelib.construction.generate import GeneratePhase
from tracelib.construction.prices import find_teacher_price
from tracelib.construction.queries import SourceQueries, SourceQuery
from tracelib.construction.teachers.endpoint import EndpointTeacher
from tracelib.construction.teachers.picture_parts import estimate_prompt_tokens
from tracelib.construction.teachers.price import Price, TeacherPrice, format_cost
from tracelib.construction.teachers.routed import RoutedTeacher
from tracelib.construction.teachers.teacher import Request, Teacher

if TYPE_CHECKING:
    from tracelib.construction.recipe import ConstructionRecipe

_TABLE_WIDTH = 100
_WORD = "word "  # as long as a token is taken to be


@dataclass(frozen=True)
class BuildEstimate:
    """What a build would ask for and come to.

    Args:
        num_queries: Queries of the build.
        num_hard: Those that need thought.
        is_hard_known: Whether `num_hard` was counted, and not taken from `estimate.hard_share`.
        num_kept: Rationales that filter and verifier are expected to keep, one per query.
        phases: The phases that ask a teacher, in order.
    """

    num_queries: int
    num_hard: int
    is_hard_known: bool
    num_kept: int
    phases: tuple[PhaseEstimate, ...]


def estimate_build(recipe: ConstructionRecipe, queries: SourceQueries) -> BuildEstimate:
    """Work out what a build asks for, from its queries and their prompts.

    Every query is read; pictures are not, and nobody is asked. What a work folder holds already is
    not taken off.

    Args:
        recipe: The build.
        queries: Its queries.

    Raises:
        ValueError: A query has no template, or the assessor in use cannot judge its data set.
    """
    settings, num_samples = recipe.estimate, recipe.generate.num_samples
    ruler = _Ruler(recipe)
    use = recipe.assess.assessors[recipe.assess.use]
    step = -(-len(queries) // settings.num_rendered)
    num_hard = num_generated = 0.0
    is_hard_known = True
    for place, query in enumerate(queries):
        difficulty = use.find_difficulty(query)
        is_hard_known &= difficulty is not None
        hard = settings.hard_share if difficulty is None else float(difficulty)
        generated = sum((1 - hard, hard)[wanted] for wanted in set(recipe.generate.difficulties))
        num_hard, num_generated = num_hard + hard, num_generated + generated
        if place % step == 0:
            ruler.measure(query, generated)
    pass_share = settings.filter_pass_share
    num_requests = {name: float(len(queries)) for name in ruler.assessors}
    num_requests |= {"generate": num_generated * num_samples}
    if recipe.verify.verifier is not None:
        num_requests["verify"] = num_requests["generate"] * pass_share
        pass_share *= settings.verify_pass_share
    num_kept = num_generated * (1 - (1 - pass_share) ** num_samples)
    phases = tuple(ruler.estimate(name, round(number)) for name, number in num_requests.items())
    return BuildEstimate(len(queries), round(num_hard), is_hard_known, round(num_kept), phases)


class _Ruler:
    """Measures the requests of each phase of a recipe.

    Args:
        recipe: The recipe.
    """

    def __init__(self, recipe: ConstructionRecipe) -> None:
        self._settings, self._verifier = recipe.estimate, recipe.verify.verifier
        self._generate = GeneratePhase(recipe.generate, recipe.assess)
        self.assessors = {
            f"assess: {name}": assessor
            for name, assessor in recipe.assess.assessors.items()
            if isinstance(assessor, TeacherAssessor)
        }
        self._asked: dict[str, tuple[Teacher, int]] = {
            **{name: (asked.teacher, asked.concurrency) for name, asked in self.assessors.items()},
            "generate": (recipe.generate.teacher, recipe.generate.concurrency),
        }
        if self._verifier is not None:
            self._asked["verify"] = self._verifier.teacher, recipe.verify.concurrency
        self._totals = {name: (0.0, 0.0, 0.0) for name in self._asked}
        half = _WORD * (self._settings.generate_tokens // 2)
        self._thought = half, half

    def measure(self, query: SourceQuery, generated: float) -> None:
        """Measure the requests about a query, those for rationales by their expected number."""
        settings = self._settings
        for name, assessor in self.assessors.items():
            self._add(name, assessor.build_request("", query), settings.assess_tokens, 1.0)
        if not generated:
            return
        request = self._generate.build_request(query, 0)
        self._add("generate", request, settings.generate_tokens, generated)
        if self._verifier is not None:
            request = self._verifier.build_request("", query, *self._thought)
            self._add("verify", request, settings.verify_tokens, generated)

    def estimate(self, phase: str, num_requests: int) -> PhaseEstimate:
        """Return what so many requests of a phase come to."""
        weight, *totals = self._totals[phase]
        prompt_tokens, reply_tokens = (total / max(weight, 1e-9) for total in totals)
        teacher, concurrency = self._asked[phase]
        stated = self._settings.price
        return estimate_phase(
            phase,
            num_requests,
            prompt_tokens,
            reply_tokens,
            _find_concurrency(teacher, concurrency),
            find_teacher_price(teacher) if stated is None else TeacherPrice(stated),
            self._settings,
        )

    def _add(self, phase: str, request: Request, reply_tokens: int, weight: float) -> None:
        lengths = estimate_prompt_tokens(request.messages), min(reply_tokens, request.max_tokens)
        sums = zip(self._totals[phase], (1, *lengths), strict=True)
        self._totals[phase] = tuple(total + weight * length for total, length in sums)  # type: ignore[assignment]


def _find_concurrency(teacher: Teacher, concurrency: int) -> int:
    """Return how many requests of a phase are in flight at most, by phase and endpoint.

    Of two teachers the one that takes fewer counts for all requests, so that the hours are not too
    few whoever gets most of them.
    """
    if isinstance(teacher, RoutedTeacher):
        both = (teacher.text, teacher.pictures)
        return min(_find_concurrency(one, concurrency) for one in both)
    if isinstance(teacher, EndpointTeacher):
        return min(teacher.limits.concurrency, concurrency)
    return concurrency


def print_estimate(console: Console, estimate: BuildEstimate, settings: EstimateSettings) -> None:
    """Print what a build would come to, and what that takes for granted."""
    table = Table(title=f"dry run: {estimate.num_queries:,} queries, nobody is asked")
    table.add_column("phase")
    for heading in ("requests", "prompt tokens", "reply tokens", "in flight", "cost", "hours"):
        table.add_column(heading, justify="right")
    for phase in estimate.phases:
        table.add_row(
            phase.phase,
            *(f"{n:,}" for n in (phase.num_requests, phase.prompt_tokens, phase.completion_tokens)),
            f"{phase.concurrency:,}",
            format_cost(phase.cost, phase.is_cost_bound),
            f"{phase.hours:,.2f}",
        )
    table.add_section()
    sums = [
        sum(getattr(phase, name) for phase in estimate.phases)
        for name in ("num_requests", "prompt_tokens", "completion_tokens", "cost", "hours")
    ]
    cost = format_cost(sums[3], any(phase.is_cost_bound for phase in estimate.phases))
    table.add_row("total", *(f"{n:,}" for n in sums[:3]), "", cost, f"{sums[4]:,.2f}")
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(table)
    how = "counted" if estimate.is_hard_known else "estimate.hard_share"
    for line in (
        f"{estimate.num_hard:,} hard queries ({how}); about {estimate.num_kept:,} rationales kept "
        f"at pass shares {settings.filter_pass_share:g} and {settings.verify_pass_share:g}",
        f"{settings.tokens_per_second:g} tokens a second for a request, the first after "
        f"{settings.first_token_seconds:g} s; {describe_price(settings.price)}; without retries "
        "and limits per minute, and prompts measured by their letters and pictures",
    ):
        console.print(line, highlight=False)


def describe_price(price: Price | None) -> str:
    """Return what the cost is by.

    >>> describe_price(Price(0.5, 2.0))
    '0.5 per million prompt tokens and 2 per million reply tokens'
    """
    if price is None:
        return "prices as the teachers have them"
    prompt, reply = price.per_million_prompt_tokens, price.per_million_completion_tokens
    return f"{prompt:g} per million prompt tokens and {reply:g} per million reply tokens"
