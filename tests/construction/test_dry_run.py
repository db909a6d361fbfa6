"""What a dry run reckons with: closed forms, and a recipe over a real tree."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from tests.construction.tiny_build import NUM_QUERIES, write_build
from tracelib.cli import main
from tracelib.construction.command import read_recipe
from tracelib.construction.dry_run import estimate_build, print_estimate
from tracelib.construction.estimate import EstimateSettings, estimate_phase
from tracelib.construction.queries import SourceQueries
from tracelib.construction.teachers.budget import RateLimits
from tracelib.construction.teachers.endpoint import EndpointTeacher
from tracelib.construction.teachers.offline import OfflineTeacher
from tracelib.construction.teachers.picture_parts import estimate_prompt_tokens
from tracelib.construction.teachers.price import Price, TeacherPrice
from tracelib.construction.teachers.routed import RoutedTeacher

pytest.importorskip("openai")
NOWHERE = "http://127.0.0.1:9/v1"  # nobody listens there, and nobody has to
PRICE = TeacherPrice(Price(2.0, 10.0))


@pytest.fixture
def args(tmp_path, tiny_scenes):
    return write_build(tmp_path, tiny_scenes, NOWHERE)


def estimate(args, *options):
    recipe, _ = read_recipe("build", [*args, *options])
    return estimate_build(recipe, SourceQueries(recipe.data)), recipe


def get_phases(found):
    return {phase.phase: phase for phase in found.phases}


def test_a_phase_is_requests_by_length_price_and_speed():
    settings = EstimateSettings(tokens_per_second=20, first_token_seconds=2)
    found = estimate_phase("verify", 7200, 100, 40, 16, PRICE, settings)
    assert (found.prompt_tokens, found.completion_tokens) == (720_000, 288_000)
    assert found.cost == pytest.approx(1.44 + 2.88)
    assert found.hours == pytest.approx(7200 * 4 / 16 / 3600)
    # A phase of fewer requests than may be in flight takes as long as one.
    assert estimate_phase("verify", 3, 1, 40, 16, PRICE, settings).hours * 3600 == 4


def test_expected_requests_where_only_a_teacher_can_tell(args):
    options = ("--estimate.hard_share=0.25", "--estimate.filter_pass_share=0.5")
    found, _ = estimate(args, *options, "--estimate.verify_pass_share=0.8")
    phases = get_phases(found)
    assert list(phases) == ["assess: teacher", "generate", "verify"]  # a rule asks nobody
    requests = [phase.num_requests for phase in found.phases]
    assert requests == [NUM_QUERIES, NUM_QUERIES / 4 * 2, NUM_QUERIES / 4]
    assert (found.num_hard, found.is_hard_known) == (NUM_QUERIES / 4, False)
    assert found.num_kept == round(NUM_QUERIES / 4 * (1 - 0.6**2))
    generate = phases["generate"]
    assert generate.completion_tokens == 200 * generate.num_requests
    assert generate.cost == pytest.approx(
        (generate.prompt_tokens + 4 * generate.completion_tokens) / 1e6
    )


def test_what_a_rule_decides_is_counted(args):
    found, recipe = estimate(args, "--assess.use=rule", "--generate.max_tokens=50")
    hard = [query for query in SourceQueries(recipe.data) if ", 2 " in query.text]
    assert 0 < len(hard) < NUM_QUERIES
    assert (found.num_hard, found.is_hard_known) == (len(hard), True)
    generate = get_phases(found)["generate"]
    assert generate.num_requests == 2 * len(hard)
    assert generate.completion_tokens == 50 * generate.num_requests  # no longer than allowed
    lengths = [
        estimate_prompt_tokens(
            [
                {"role": "system", "content": "GENERATE"},
                {
                    "role": "user",
                    "content": [
                        *([{"type": "image_path", "path": ""}] if query.image_path else []),
                        {"type": "text", "text": f"{query.instruction} {query.text}"},
                    ],
                },
            ]
        )
        for query in hard
    ]
    assert generate.prompt_tokens == pytest.approx(2 * sum(lengths), abs=2 * len(hard))
    both, _ = estimate(args, "--assess.use=rule", "--generate.difficulties=[0,1]")
    assert get_phases(both)["generate"].num_requests == 2 * NUM_QUERIES


def test_a_part_of_the_prompts_stands_for_all(args):
    whole, _ = estimate(args)
    part, _ = estimate(args, "--estimate.num_rendered=8")
    for phase, other in zip(whole.phases, part.phases, strict=True):
        assert other.num_requests == phase.num_requests
        assert other.prompt_tokens == pytest.approx(phase.prompt_tokens, rel=0.3)
        assert other.prompt_tokens != phase.prompt_tokens


def make_endpoint(concurrency, price=Price()):
    return EndpointTeacher(NOWHERE, "large", limits=RateLimits(concurrency), price=price)


def estimate_by(args, teacher, concurrency):
    """The phase that writes, by another teacher."""
    recipe, _ = read_recipe("build", args)
    generate = replace(recipe.generate, teacher=teacher, concurrency=concurrency)
    found = estimate_build(replace(recipe, generate=generate), SourceQueries(recipe.data))
    return get_phases(found)["generate"], found


def test_in_flight_is_what_phase_and_endpoint_both_allow(args, tmp_path):
    few, _ = estimate_by(args, make_endpoint(2), 8)
    more, _ = estimate_by(args, make_endpoint(8), 8)
    assert (few.concurrency, more.concurrency) == (2, 8)
    assert few.hours == pytest.approx(4 * more.hours)
    assert estimate_by(args, make_endpoint(8), 2)[0].hours == few.hours
    # Of two teachers the one that takes fewer counts; a file has no limit of its own.
    file = OfflineTeacher(tmp_path / "requests.jsonl", tmp_path / "replies.jsonl", "large")
    for routed in (
        RoutedTeacher(make_endpoint(8), make_endpoint(2)),
        RoutedTeacher(make_endpoint(2), file),
    ):
        assert estimate_by(args, routed, 8)[0] == few
    assert estimate_by(args, file, 8)[0].hours == more.hours


def test_cost_of_models_of_several_prices_is_a_bound(args):
    reads, sees = Price(4.0, 1.0), Price(1.0, 8.0)
    routed = RoutedTeacher(make_endpoint(8, reads), make_endpoint(8, sees))
    phase, found = estimate_by(args, routed, 8)
    highest = Price(4.0, 8.0)  # neither model's alone would be a bound
    assert phase.cost == highest.compute_cost(phase.prompt_tokens, phase.completion_tokens)
    shown = show(found)
    assert f"at most {phase.cost:,.2f}" in shown
    assert f"at most {sum(phase.cost for phase in found.phases):,.2f}" in shown
    same, found = estimate_by(
        args, RoutedTeacher(make_endpoint(8, sees), make_endpoint(8, sees)), 8
    )
    assert same.cost == sees.compute_cost(same.prompt_tokens, same.completion_tokens)
    assert "at most" not in show(found)


def show(found):
    console = Console(file=io.StringIO(), width=120)
    print_estimate(console, found, EstimateSettings())
    return console.file.getvalue()


def test_price_is_the_estimates_own_or_the_teachers(args):
    own, _ = estimate(args)
    given, _ = estimate(args, "--estimate.price.per_million_prompt_tokens=2")
    for phase, other in zip(own.phases, given.phases, strict=True):
        assert phase.cost > 0
        assert other.cost == pytest.approx(phase.prompt_tokens * 2e-6)


def test_without_a_verifier_there_is_no_phase_for_it(args):
    found, _ = estimate(args, "--verify.verifier=null")
    assert list(get_phases(found)) == ["assess: teacher", "generate"]


def test_dry_run_prints_and_leaves_nothing(args, tmp_path, capsys):
    main(["cot", "build", *args, "--dry_run"])
    text = capsys.readouterr().out
    assert f"dry run: {NUM_QUERIES} queries, nobody is asked" in text
    for word in ("assess: teacher", "generate", "verify", "total", "16 hard queries (estimate."):
        assert word in text
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("hard_share", 1.1, "0 .. 1"),
        ("filter_pass_share", -0.1, "0 .. 1"),
        ("verify_pass_share", 2.0, "0 .. 1"),
        ("tokens_per_second", 0.0, "above 0"),
        ("first_token_seconds", -1.0, "0 and above"),
        ("assess_tokens", 0, "1 and above"),
        ("generate_tokens", 0, "1 and above"),
        ("verify_tokens", 0, "1 and above"),
        ("num_rendered", 0, "1 and above"),
    ],
)
def test_impossible_number_is_named(name, value, allowed):
    with pytest.raises(ValueError, match=rf"estimate.{name} is {value}; allowed {allowed}"):
        EstimateSettings(**{name: value})
