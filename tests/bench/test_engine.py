"""The engine's bench: its sides agree on models that stop early, late and never."""

import dataclasses

import pytest
import torch

from tests.tiny import rewrite_adapter, write_recipe
from tracelib.cli import main
from tracelib.data.collator import ChatProcessor
from tracelib.data.datasets import RecordRenderer
from tracelib.data.mbeir import MBEIRReader
from tracelib.models.encoder import Encoder
from tracelib.models.engine import ReasoningEngine
from tracelib.models.gates import FirstTokenGate
from tracelib.prompts import Template
from tracelib.recipe import load_run
from tracelib.types import EncoderInput

NUM_QUERIES = 12


@pytest.fixture
def prompts(tiny_scenes, tiny_backbone):
    """One-row prompts, some with a picture and some without, and how to make a batch of them."""
    processor = ChatProcessor(tiny_backbone)
    renderer = RecordRenderer(tiny_scenes, processor, Template(), Template(), "<|emb|>", 64)
    queries = MBEIRReader(tiny_scenes).read_evaluation_set("test").queries
    turns = [renderer.render_prompt(q) for q in queries.take(range(0, 60, 60 // NUM_QUERIES))]
    return [processor([turn], "left") for turn in turns], processor(turns, "left"), processor


@torch.no_grad()
def find_eager_row(encoder, batch):
    """Return a row for the embedding token that is the likeliest after some of these prompts."""
    states = encoder.run_backbone(batch, encoder.compute_positions(batch)[0])[:, -1]
    mean = states.mean(0)
    row = torch.linalg.svd(states - mean).Vh[0]
    row = row - mean * (row @ mean) / (mean @ mean)
    return 100 * row / row.norm()


def embed_with_all(decode_loops, encoder, prompts, batch, limit, pad_token_id):
    """Return thoughts and states of engine, padded loop, compacted loop and batch-1 loop."""
    count = len(prompts)
    engine = ReasoningEngine(encoder, None, limit, decode_batch_size=3)
    output = engine.embed_queries(
        [batch], FirstTokenGate(), torch.zeros(count), torch.arange(count)
    )
    loop = decode_loops.DecodeLoop(encoder, limit, pad_token_id)
    alone = [loop.embed_alone(prompt) for prompt in prompts]
    return (
        output,
        (output.rationale_token_ids, output.embeddings),
        loop.embed_batch(batch),
        loop.embed_compacted(batch),
        ([thought for thought, _ in alone], torch.stack([state for _, state in alone])),
    )


@pytest.mark.parametrize("read_offset", [-1, 0])
def test_all_sides_agree_on_pictures_and_any_length(
    read_offset, prompts, tiny_backbone, load_script
):
    rows, batch, processor = prompts
    encoder = Encoder(str(tiny_backbone), read_offset=read_offset).eval()
    limit, pad = 6, processor.tokenizer.pad_token_id
    with torch.no_grad():
        embedding = encoder.model.get_input_embeddings().weight
        embedding[encoder.emb_token_id] = find_eager_row(encoder, batch)
    output, ours, *theirs = embed_with_all(
        load_script("decode_loops"), encoder, rows, batch, limit, pad
    )
    lengths = {len(thought) for thought in ours[0]}
    assert {0, limit} < lengths
    assert output.is_forced.any()
    for thoughts, states in theirs:
        assert thoughts == ours[0]
        torch.testing.assert_close(states, ours[1], rtol=0, atol=1e-4)


def test_joined_prompts_are_the_processors_own_batch(prompts, load_script):
    rows, batch, processor = prompts
    join_prompts = load_script("query_sources").join_prompts
    joined = join_prompts(rows, processor.tokenizer.pad_token_id)
    assert batch.pixel_values is not None
    assert sum(row.pixel_values is None for row in rows) > 0
    for field in dataclasses.fields(EncoderInput):
        torch.testing.assert_close(getattr(joined, field.name), getattr(batch, field.name))


def test_random_weights_count_down_and_feel_the_prompt(load_script):
    sources = load_script("query_sources")
    sizes = sources.Sizes(64, 96, 2, 4, 2, 128)
    source = sources.CountdownSource(sizes, "float32", "cpu", 12, 1 / 2, (4, 9), (2, 7)).load()
    with torch.no_grad():
        for layer in source.encoder.model.model.language_model.layers:
            for weight in layer.parameters():
                weight.mul_(4 if weight.ndim > 1 else 1)
    prompts = source.read_prompts(range(12))
    assert [p.input_ids.tolist() for p in source.read_prompts([7])] == [
        prompts[7].input_ids.tolist()
    ]
    batch = sources.join_prompts(prompts, source.pad_token_id)
    _, ours, *theirs = embed_with_all(
        load_script("decode_loops"), source.encoder, prompts, batch, 7, source.pad_token_id
    )
    lengths = [int(prompt.input_ids[0, -1]) - 1 for prompt in prompts]
    assert len(set(lengths[:6])) > 2
    assert lengths[6:] == [0] * 6
    assert ours[0] == [list(range(length, 0, -1)) for length in lengths]
    for thoughts, states in theirs:
        assert thoughts == ours[0]
        torch.testing.assert_close(states, ours[1], rtol=0, atol=1e-4)
    spread = torch.pdist(ours[1][6:])  # all read the same last token
    assert spread.min() > 1e-2


def test_ratios_are_of_rates_and_the_mix_is_per_query(load_script):
    rates = {"think_all": 10.0, "direct": 40.0, "easy": 30.0, "natural_mix": 16.0}
    rates |= {"loop_think_all": 2.0, "loop_natural_mix": 4.0}
    rates |= {"generate_think_all": 5.0, "generate_natural_mix": 8.0, "mix_20": 20.0}
    rates |= {"compacted_think_all": 8.0, "compacted_natural_mix": 5.0}
    rates |= {"natural_mix_thinking": 8.0, "natural_mix_direct": 16.0}
    rates |= {"mix_20_thinking": 5.0, "mix_20_direct": 20.0}
    shares = {"natural_mix": 0.5, "mix_20": 0.2}
    assert load_script("engine_sides").compare_rates(rates, shares) == {
        "think_all_ratio": 5,
        "natural_mix_ratio": 4,
        "generate_ratio": 2,
        "think_all_generate_ratio": 2,
        "compacted_ratio": 3.2,
        "think_all_compacted_ratio": 1.25,
        "easy_fraction": 0.75,
        "mix_fraction": 1,
        "mix_own_fraction": 1.5,
        "mix_20_fraction": 0.8,
        "mix_20_own_fraction": pytest.approx(1.6),
    }


def test_a_set_is_spread_over_the_lengths_of_thoughts(load_script):
    sides = load_script("engine_sides")
    prompt = load_script("query_sources").build_text_prompt([1, 2])
    queries = [sides.TimedQuery(i, prompt, (0,) * (9 - i)) for i in range(10)]
    assert [len(query.thought) for query in sides.spread(queries, 5)] == [1, 3, 5, 7, 9]
    repeated = [len(query.thought) for query in sides.spread(queries, 25)]
    assert sorted(repeated.count(length) for length in range(10)) == [2] * 5 + [3] * 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_measures_every_side_of_one_model(load_script, dtype):
    sources, sides = load_script("query_sources"), load_script("engine_sides")
    sizes = sources.Sizes(64, 96, 2, 4, 2, 128)
    source = sources.CountdownSource(sizes, dtype, "cpu", 20, 1 / 2, (4, 9), (2, 7))
    found = sides.EngineSides(source.load(), 4, 3, num_queries=8, num_looped=4)
    assert (len(found.hard), len(found.easy)) == (8, 8)
    assert found.mixed_shares == {"natural_mix": 0.5, "mix_10": 1 / 8, "mix_50": 0.5}
    for name, queries in found.looped.items():
        assert sum(bool(query.thought) for query in queries) == {"hard": 4, "mix": 2}[name]
    checked = found.check_outputs()
    assert checked["equal_thoughts"] == 1
    assert 0 < checked["worst_difference"] < (1e-4 if dtype == "float32" else 0.1)
    drift = found.compare_bfloat16()
    assert bool(drift) == (dtype == "float32")
    if drift:
        assert drift["bfloat16_equal_thoughts"] == 1
        assert 0.99 < drift["bfloat16_worst_cosine"] < 1 - 1e-7
    runs = found.time_sides(num_runs=2)
    assert len(runs) == 2
    mixes = ("natural_mix", "mix_10", "mix_50")
    for rates in runs:
        assert set(rates) == {
            *("think_all", "easy", "direct"),
            *(mix + half for mix in mixes for half in ("", "_thinking", "_direct")),
            *("generate_think_all", "generate_natural_mix", "loop_think_all", "loop_natural_mix"),
            *("compacted_think_all", "compacted_natural_mix"),
        }
        assert min(rates.values()) > 0
    places = [query.place for query in found.hard]
    for side in ("engine", "generate"):
        held, peak = load_script("engine").measure_side(side, source, places, 4, 3, 1)
        assert 0 < held <= peak


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sides_that_disagree_are_not_timed(load_script, dtype):
    sources, sides = load_script("query_sources"), load_script("engine_sides")
    sizes = sources.Sizes(64, 96, 2, 4, 2, 128)
    source = sources.CountdownSource(sizes, dtype, "cpu", 8, 1 / 2, (4, 9), (2, 7)).load()
    found = sides.EngineSides(source, 4, 3, num_queries=4, num_looped=1)
    found.loop = dataclasses.replace(found.loop, max_rationale_tokens=1)
    with pytest.raises(ValueError, match="engine and loops disagree"):
        found.check_outputs()


@pytest.mark.slow
def test_engine_bench_from_the_command_line(tiny_scenes, tiny_backbone, tmp_path, run_script):
    main(["fit", *write_recipe(tmp_path, tiny_scenes, tiny_backbone)])
    run = tmp_path / "tiny" / "version_0"
    module, data, _ = load_run(run)
    data.setup("test")
    turns = [data.renderer.render_prompt(q) for q in data.evaluation_sets["test"].queries]
    row = find_eager_row(module.encoder, data.processor(turns, "left"))
    rewrite_adapter(
        run,
        lambda ws: {n: row.view_as(w) if "trainable_tokens" in n else w for n, w in ws.items()},
    )
    report, output = run_script(
        "engine.py",
        "engine-embedded-cpu-float32.json",
        dtype="float32",
        runs_folder=tmp_path,
        num_queries=8,
        num_looped=2,
        batch_size=4,
        decode_batch_size=4,
        num_threads=1,
        num_runs=1,
    )
    values = {row["metric"]: row["value"] for row in report["rows"]}
    limits = {row["metric"]: row["against"] for row in report["rows"]}
    assert values["equal_thoughts"] == 1
    assert values["worst_difference"] < 1e-4
    assert 0 < values["think_share"] < 1
    assert 1 <= values["shortest_thought"] <= values["longest_thought"] <= 5
    assert all(value > 0 for name, value in values.items() if name.endswith("_per_second"))
    assert 0.5 < values["memory_ratio"] < 2
    assert -1 <= values["bfloat16_worst_cosine"] <= values["bfloat16_mean_cosine"] <= 1 + 1e-6
    assert (limits["think_all_ratio"], limits["memory_ratio"]) == (">= 25", "<= 1.1")
    assert "mix_fraction" in output


def test_a_model_that_always_thinks_has_nothing_to_compare(load_script):
    sources, sides = load_script("query_sources"), load_script("engine_sides")
    sizes = sources.Sizes(64, 96, 1, 4, 2, 128)
    source = sources.CountdownSource(sizes, "float32", "cpu", 4, 1.0, (4, 5), (2, 3)).load()
    with pytest.raises(ValueError, match="100% of 4 queries think"):
        sides.EngineSides(source, 2, 2, 4, 1)
