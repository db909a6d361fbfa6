"""What a phase comes to at a stated price and speed."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tracelib.construction.teachers.price import Price, TeacherPrice

_SHARES = ("hard_share", "filter_pass_share", "verify_pass_share")


@dataclass(frozen=True)
class EstimateSettings:
    """What a dry run takes for granted.

    Args:
        price: Price of the tokens in every phase; null takes the highest of the phase's teacher.
        tokens_per_second: Tokens a second that a teacher writes for one request while all of a
            phase's requests are in flight, above 0.
        first_token_seconds: Seconds from a request to the first token of its reply, 0 and above.
        hard_share: Share of the queries that are hard, 0 .. 1, where only a teacher can tell.
        assess_tokens: Tokens of an assessor's reply, 1 and above.
        generate_tokens: Tokens of a rationale, 1 and above.
        verify_tokens: Tokens of a verifier's reply, 1 and above.
        filter_pass_share: Share of the samples that pass the rules, 0 .. 1.
        verify_pass_share: Share of the samples that the verifier keeps, 0 .. 1.
        num_rendered: Queries at most whose prompts are measured, 1 and above; the others are taken
            to be as long.

    Raises:
        ValueError: A number is out of its range.
    """

    price: Price | None = None
    tokens_per_second: float = 30.0
    first_token_seconds: float = 1.0
    hard_share: float = 0.5
    assess_tokens: int = 60
    generate_tokens: int = 200
    verify_tokens: int = 60
    filter_pass_share: float = 0.9
    verify_pass_share: float = 0.8
    num_rendered: int = 20_000

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _SHARES:
                is_allowed, allowed = 0 <= value <= 1, "0 .. 1"
            elif field.name == "tokens_per_second":
                is_allowed, allowed = value > 0, "above 0"
            elif field.name == "first_token_seconds":
                is_allowed, allowed = value >= 0, "0 and above"
            elif field.type == "int":
                is_allowed, allowed = value >= 1, "1 and above"
            else:
                continue
            if not is_allowed:
                raise ValueError(f"estimate.{field.name} is {value}; allowed {allowed}")


@dataclass(frozen=True)
class PhaseEstimate:
    """What a phase would ask for.

    Args:
        phase: Its name.
        num_requests: Requests.
        prompt_tokens: Tokens of the requests.
        completion_tokens: Tokens of the replies.
        concurrency: Requests in flight, as many as phase and teacher both allow.
        cost: What the tokens cost, in the price's currency.
        is_cost_bound: Whether they may cost less, as `TeacherPrice` has it.
        hours: How long it takes.
    """

    phase: str
    num_requests: int
    prompt_tokens: int
    completion_tokens: int
    concurrency: int
    cost: float
    is_cost_bound: bool
    hours: float


def estimate_phase(
    phase: str,
    num_requests: int,
    prompt_tokens: float,
    reply_tokens: float,
    concurrency: int,
    price: TeacherPrice,
    settings: EstimateSettings,
) -> PhaseEstimate:
    """Return what a phase asks for.

    Args:
        phase: Its name.
        num_requests: Requests.
        prompt_tokens: Tokens of a request on average.
        reply_tokens: Tokens of a reply on average.
        concurrency: Requests in flight.
        price: Price of the tokens.
        settings: The speed.

    >>> settings = EstimateSettings(tokens_per_second=50, first_token_seconds=1)
    >>> price = TeacherPrice(Price(1.0, 4.0))
    >>> found = estimate_phase("generate", 36_000, 500, 200, 10, price, settings)
    >>> found.cost, found.hours
    (46.8, 5.0)
    """
    totals = round(num_requests * prompt_tokens), round(num_requests * reply_tokens)
    seconds = settings.first_token_seconds + reply_tokens / settings.tokens_per_second
    return PhaseEstimate(
        phase,
        num_requests,
        *totals,
        concurrency,
        price.price.compute_cost(*totals),
        price.is_bound,
        num_requests * seconds / min(concurrency, max(num_requests, 1)) / 3600,
    )
