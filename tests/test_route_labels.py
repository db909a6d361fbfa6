"""The `route-labels` verb on a small fitted run, and a fit on what it wrote."""

import hashlib
import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tests.tiny import RECIPE, build, cut_scenes, read_metrics, write_recipe
from tracelib.cli import main
from tracelib.data.jsonl import read_rows
from tracelib.data.rationales import parse_rationale
from tracelib.models.gates import AlwaysGate, NeverGate
from tracelib.recipe import load_run

SEED = 3
HELD_OUT = 0.3


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("route") / "scenes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def args(root, tiny_backbone, folder):
    return [*write_recipe(folder, root, tiny_backbone), f"--seed_everything={SEED}"]


@pytest.fixture(scope="module")
def run(args, folder):
    """The folder of a run that held queries out."""
    main(["fit", *args, f"--data.held_out={HELD_OUT}"])
    return folder / "tiny" / "version_0"


def label(run, folder, *options):
    main(["route-labels", f"--run={run}", f"--store_dir={folder / 'embeddings'}", *options])


def read(path):
    return [row.fields for row in read_rows(path)]


@pytest.fixture(scope="module")
def rows(run, folder):
    label(run, folder)
    return read(run / "route_labels.jsonl")


def test_labelled_are_exactly_the_queries_that_the_fit_left_out(rows, run, args):
    _, data = build([*args, f"--data.held_out={HELD_OUT}"])
    trained = set(data.train_dataset.queries.query_ids)
    _, whole = build(args)
    labelled = {row["qid"] for row in rows}
    assert len(labelled) == len(rows)
    assert labelled == set(whole.train_dataset.queries.query_ids) - trained
    assert 20 < len(labelled) < 80
    _, other = build([*args[:-1], f"--data.held_out={HELD_OUT}"])  # another seed, another choice
    assert set(other.train_dataset.queries.query_ids) != trained


def embed(run, split="train"):
    """Return what is labelled, and its unit vectors, embedded one by one without a store."""
    module, data, _ = load_run(run)
    if split == "train":
        data.set_up_training_queries(data.held_out)
    else:
        data.setup("validate")
    module.encoder.prepare_inference()
    found = data.evaluation_sets[split]
    parts = [[i] for i in range(len(found.queries))], [[i] for i in range(len(found.candidates))]
    query_loader, candidate_loader = data.build_evaluation_loaders(split, *parts)
    queries = list(query_loader)
    with torch.no_grad():
        vectors = [
            torch.cat([module.embed_queries(batch, NeverGate()).embeddings for batch in queries]),
            torch.cat([module.embed_queries(batch, AlwaysGate()).embeddings for batch in queries]),
            torch.cat([module.embed_candidates(batch) for batch in candidate_loader]),
        ]
    return found, [functional.normalize(rows.double()) for rows in vectors]


def check_ranks(rows, found, vectors, get_pool):
    """Check each rank, which may be off by the candidates that nearly tie, and each margin."""
    direct, thought, candidates = vectors
    num_changed = 0
    for i, (row, query) in enumerate(zip(rows, found.queries, strict=True)):
        assert row["qid"] == query.query_id
        pool = get_pool(query)
        names = [c.candidate_id for c in found.candidates[pool.start : pool.stop]]
        is_positive = torch.tensor([name in query.positive_ids for name in names])
        margins = []
        for vector, rank in ((direct[i], row["rank_direct"]), (thought[i], *row["ranks_thought"])):
            scores = candidates[pool.start : pool.stop] @ vector
            best, others = scores[is_positive].max(), scores[~is_positive]
            assert (others > best + 1e-6).sum() < rank <= 1 + (others > best - 1e-6).sum()
            margins.append((best - others.max()).item())
        assert row["margin_utility"] == pytest.approx(margins[1] - margins[0], abs=1e-5)
        num_changed += row["rank_direct"] != row["ranks_thought"][0]
    assert num_changed > 3


def test_ranks_and_margins_are_those_of_embeddings_made_one_by_one(rows, run):
    found, vectors = embed(run)
    check_ranks(rows, found, vectors, lambda query: range(len(found.candidates)))


def test_labels_follow_from_what_is_written_beside_them(rows):
    for row in rows:
        gain, margin = row["rank_utility"], row["margin_utility"]
        ratio = (1 + row["rank_direct"]) / (1 + row["ranks_thought"][0])
        assert gain == pytest.approx(math.log2(ratio), abs=1e-6)
        settled = row["rank_direct"] == 1 and row["ranks_thought"] == [1]
        tied = -1 if settled and abs(margin) <= 0.05 else int(margin > 0.05)
        assert row["difficulty"] == (tied if gain == 0 else int(gain > 0))
        assert row["soft_target"] == pytest.approx(1 / (1 + math.exp(-gain)), abs=1e-6)
    assert len({row["difficulty"] for row in rows}) > 1


def test_rows_are_rationale_rows_of_the_models_own_thoughts(rows, run):
    for row, parsed in zip(
        rows, map(parse_rationale, read_rows(run / "route_labels.jsonl")), strict=True
    ):
        assert (parsed.source, parsed.difficulty) == ("self", row["difficulty"])
        assert row["teacher"].startswith("tiny ")
        assert row["split"] == "train"
        assert 1 <= row["num_tokens"] <= RECIPE["model"]["max_rationale_tokens"]


def test_beside_the_rows_is_where_they_come_from(rows, run):
    content = json.loads((run / "route_labels.json").read_text())
    provenance, summary = content["provenance"], content["summary"]
    text = (run / "route_labels.jsonl").read_bytes()
    assert provenance["rows_sha256"] == hashlib.sha256(text).hexdigest()
    assert provenance["config"]["data"]["held_out"] == HELD_OUT
    assert provenance["rule"] == {"cost_weight": 0, "margin_epsilon": 0.05, "temperature": 1}
    assert provenance["sampling"] == {"temperature": 0, "num_samples": 1, "seed": SEED}
    assert {"weights", "git_revision", "versions", "data_hashes"} <= set(provenance)
    counts = summary["annotated"]
    assert sum(counts[a]["think"] for a in counts) == sum(row["difficulty"] == 1 for row in rows)
    assert summary["num_queries"] == len(rows)


def test_the_same_bytes_from_a_whole_a_broken_and_an_empty_store(rows, run, folder, tmp_path):
    expected = (run / "route_labels.jsonl").read_bytes()
    output, store = tmp_path / "again.jsonl", tmp_path / "embeddings"
    shutil.copytree(folder / "embeddings", store)
    files = sorted(store.rglob("*.npy"))
    before = [path.stat().st_mtime_ns for path in files]
    label(run, tmp_path, f"--output={output}")
    assert output.read_bytes() == expected
    assert [path.stat().st_mtime_ns for path in files] == before  # nothing was embedded
    for number, path in enumerate(sorted(store.glob("*/train-*/*.npy"))):
        if number % 2:
            path.unlink()
        else:
            rest = np.load(path)
            rest["checksum"][::3] = 0
            np.save(path.with_suffix(".partial.npy"), rest)
            path.unlink()
    label(run, tmp_path, f"--output={output}")
    assert output.read_bytes() == expected
    shutil.rmtree(store)
    label(run, tmp_path, f"--output={output}")
    assert output.read_bytes() == expected


def test_a_cost_turns_labels_to_direct(rows, run, folder, tmp_path):
    label(run, folder, f"--output={tmp_path / 'a.jsonl'}", "--cost_weight=100")
    assert {row["difficulty"] for row in read(tmp_path / "a.jsonl")} == {0}


def test_samples_are_averaged(rows, run, folder, tmp_path):
    options = ("--num_samples=3", "--temperature=1", f"--output={tmp_path / 'a.jsonl'}")
    label(run, folder, *options)
    sampled = read(tmp_path / "a.jsonl")
    assert [row["qid"] for row in sampled] == [row["qid"] for row in rows]
    assert [row["rank_direct"] for row in sampled] == [row["rank_direct"] for row in rows]
    assert any(len(set(row["ranks_thought"])) > 1 for row in sampled)
    assert len({row["reasoning"] for row in sampled}) > len(sampled) // 2
    for row in sampled:
        gains = [math.log2((1 + row["rank_direct"]) / (1 + rank)) for rank in row["ranks_thought"]]
        assert row["rank_utility"] == pytest.approx(sum(gains) / 3, abs=1e-6)


def test_val_queries_are_ranked_in_their_local_pools(run, folder):
    label(run, folder, "--split=val")
    rows = read(run / "route_labels_val.jsonl")
    found, vectors = embed(run, "val")
    check_ranks(rows, found, vectors, lambda query: found.pools[query.column])
    assert {row["split"] for row in rows} == {"val"}
    evaluated = {path.name for path in (folder / "embeddings" / "queries").glob("scenes_task0-*")}
    main(["evaluate", f"--run={run}", f"--runs_folder={folder}", "--split=val"])
    after = {path.name for path in (folder / "embeddings" / "queries").glob("scenes_task0-*")}
    assert evaluated < after  # never and always were there already
    assert len(after) - len(evaluated) <= 3


def test_a_router_is_fitted_on_the_labels(rows, run, args, folder):
    path = run / "route_labels.jsonl"
    known = {row["qid"]: row for row in rows}
    losses = []
    for targets in ("hard", "soft"):
        options = [*args, f"--data.route_labels={path}", f"--data.route_targets={targets}"]
        _, data = build(options)
        dataset = data.train_dataset
        assert len(dataset) == 160
        batch = dataset[list(range(160))]
        key = "difficulty" if targets == "hard" else "soft_target"
        expected = sorted(known[q][key] if q in known else -1 for q in dataset.queries.query_ids)
        assert sorted(batch.difficulty.tolist()) == pytest.approx(expected)
        for place, query in enumerate(dataset.queries):
            value = dataset[[place]].difficulty.item()
            row = known.get(query.query_id)
            assert value == pytest.approx(row[key] if row else -1)
        main(["fit", *options, f"--trainer.logger.name={targets}"])
        losses.append(read_metrics(folder / targets / "version_0")["train/router_loss"])
    assert losses[0] != losses[1]


def test_rationales_stay_as_annotated(rows, run, args):
    _, plain = build(args)
    _, labelled = build([*args, f"--data.route_labels={run / 'route_labels.jsonl'}"])
    batches = [data.train_dataset[list(range(24))] for data in (plain, labelled)]
    for ours, theirs in zip(*(batch.query for batch in batches), strict=True):
        assert torch.equal(ours.labels, theirs.labels)
    assert not torch.equal(batches[0].difficulty, batches[1].difficulty)


def test_labels_of_queries_that_are_not_trained_on_are_refused(rows, run, args):
    path = run / "route_labels.jsonl"
    with pytest.raises(ValueError, match=r"no label for any of the .*data\.held_out is 0\.3"):
        build([*args, f"--data.held_out={HELD_OUT}", f"--data.route_labels={path}"])


def test_what_cannot_be_labelled_is_refused_with_a_way_out(run, args, folder, tmp_path):
    copy = tmp_path / "tiny" / "version_0"
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()

    def change(old, new):
        assert old in config
        (copy / "config.yaml").write_text(config.replace(old, new))

    change(f"held_out: {HELD_OUT}", "held_out: 0.0")
    with pytest.raises(ValueError, match=r"--data\.held_out=0\.2, .*--split=val.*--share=1$"):
        label(copy, folder)
    change(f"held_out: {HELD_OUT}", "held_out: 1.0e-9")
    with pytest.raises(ValueError, match="none of 160 training queries is in a share"):
        label(copy, folder)
    change("rationale: teacher", "rationale: none")
    with pytest.raises(ValueError, match="fitted without rationales"):
        label(copy, folder)
    change("prompt_policy: fixed", "prompt_policy: all")
    with pytest.raises(ValueError, match=r"data\.prompt_policy all"):
        label(copy, folder, "--split=val")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--margin_epsilon=-1", "margin_epsilon is -1"),
        ("--target_temperature=0", "temperature is 0"),
        ("--num_samples=2", "at temperature 0 are all the same"),
        ("--output=labels.json", r"must end in \.jsonl"),
        ("--run=nowhere", "nowhere is no finished run"),
    ],
)
def test_bad_options_are_named(run, folder, option, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        label(run, folder, option)


def fit_router(run, *options):
    main(["fit-router", f"--run={run}", *options])


@pytest.fixture(scope="module")
def routed(run, rows):
    """The run with a router fitted to its rows."""
    fit_router(run)
    return run.parent.with_name("tiny_router") / run.name


def test_share_reaches_beyond_what_was_held_out(rows, run, folder, tmp_path):
    path = tmp_path / "all.jsonl"
    label(run, folder, "--share=1", f"--output={path}")
    every = {row["qid"]: row for row in read(path)}
    assert len(every) == 160
    # those held out are labelled alike
    numbers = ("rank_direct", "ranks_thought", "difficulty")
    for row in rows:
        assert [every[row["qid"]][name] for name in numbers] == [row[name] for name in numbers]
    assert json.loads(path.with_suffix(".json").read_text())["provenance"]["share"] == 1.0


def test_only_the_router_is_another(run, routed):
    before, after = (load_run(folder)[0].list_trained_weights() for folder in (run, routed))
    same = {name for name in before if not name.startswith("router.")}
    assert same == {name for name in after if not name.startswith("router.")}
    assert all(torch.equal(before[name], after[name]) for name in same)
    assert {name for name in after if name not in same} == {
        "router.layers.0.weight",
        "router.layers.0.bias",
        "router.layers.1.weight",
        "router.layers.1.bias",
    }


def test_router_is_the_best_linear_one_of_prompt_states(rows, run, routed):
    module, data, _ = load_run(routed)
    data.set_up_training_queries(data.held_out)
    module.encoder.prepare_inference()
    queries = data.evaluation_sets["train"].queries
    loader = data.build_evaluation_loaders("train", [[i] for i in range(len(queries))], [])[0]
    with torch.no_grad():
        outputs = [module.embed_queries(batch, AlwaysGate()) for batch in loader]
    states = torch.cat([output.direct_embeddings for output in outputs])
    soft = {row["qid"]: row["soft_target"] for row in rows}
    target = torch.tensor([soft[query_id] for query_id in queries.query_ids]).double()
    last = module.router.layers[1].double()
    inputs = functional.layer_norm(states.double(), states.shape[1:])
    probability = torch.sigmoid(last(inputs)[:, 0])
    assert torch.allclose(
        probability.float(), torch.cat([o.think_probability for o in outputs]), atol=1e-5
    )
    # where a logistic regression with a penalty is at its best
    slope = ((probability - target)[:, None] * inputs).mean(0) + 2e-4 * last.weight[0]
    assert slope.abs().max() < 1e-6
    assert (probability - target).mean().abs() < 1e-6
    report = json.loads((routed / "router_fit.json").read_text())
    entropy = functional.binary_cross_entropy(probability, target).item()
    found = report["on_the_queries_it_was_fitted_to"]
    assert found["new"]["cross_entropy"] == pytest.approx(entropy, abs=1e-6)
    assert found["new"]["cross_entropy"] < found["none"]["cross_entropy"]
    metadata = []
    for path in (run, routed):
        with safe_open(path / "adapter.safetensors", "pt") as file:
            metadata.append(file.metadata())
    assert metadata[0] == metadata[1]
    assert report["num_queries"] == len(rows)
    digest = hashlib.sha256((run / "route_labels.jsonl").read_bytes()).hexdigest()
    assert report["labels_sha256"] == digest


def test_fitting_the_router_twice_gives_the_same(run, routed, tmp_path):
    fit_router(run, f"--output={tmp_path / 'again'}")
    first, second = (load_run(folder)[0].state_dict() for folder in (routed, tmp_path / "again"))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    fit_router(run, f"--output={tmp_path / 'few'}", "--max_queries=20")
    report = json.loads((tmp_path / "few" / "router_fit.json").read_text())
    assert report["num_queries"] == 20


def test_a_run_without_a_router_gets_one(run, folder, tmp_path):
    copy = tmp_path / "bare" / "version_0"
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()
    assert "router_weight: 1.0" in config
    (copy / "config.yaml").write_text(config.replace("router_weight: 1.0", "router_weight: 0.0"))
    weights = load_file(copy / "adapter.safetensors")
    with safe_open(copy / "adapter.safetensors", "pt") as file:
        metadata = file.metadata()
    kept = {name: weight for name, weight in weights.items() if not name.startswith("router.")}
    save_file(kept, copy / "adapter.safetensors", metadata)
    assert load_run(copy)[0].router is None
    with pytest.raises(ValueError, match=r"is not said to be of this run's weights"):
        fit_router(copy)  # another model, if only by its router
    label(copy, folder)
    fit_router(copy)
    assert load_run(tmp_path / "bare_router" / "version_0")[0].router is not None
    report = json.loads((tmp_path / "bare_router" / "version_0" / "router_fit.json").read_text())
    assert set(report["on_the_queries_it_was_fitted_to"]) == {"none", "new"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "is a run already: name another folder with --output"),
        (("--output={new}", "--max_queries=1"), "max_queries is 1, allowed 2"),
        (("--output={new}", "--weight_decay=-1"), r"weight_decay is -1"),
        (("--output={new}", "--labels={new}/none.jsonl"), r"by none\.json beside it"),
        (("--output={new}", "--labels={empty}"), "has 0 labels, all alike"),
        (("--output={new}", "--labels={alike}"), "has 2 labels, all alike"),
        (("--output={new}", "--run=nowhere"), "nowhere is no finished run"),
    ],
)
def test_what_is_no_router_fit_is_refused(run, routed, rows, tmp_path, options, message):
    alike = tmp_path / "alike.jsonl"
    lines = [json.dumps({**row, "soft_target": 0.5}) for row in rows[:2]]
    alike.write_text("\n".join(lines) + "\n")
    empty = tmp_path / "empty.jsonl"
    empty.write_text(json.dumps({**rows[0], "soft_target": -1}) + "\n")
    for path in (alike, empty):
        shutil.copy(run / "route_labels.json", path.with_suffix(".json"))
    names = {"new": tmp_path / "new", "alike": alike, "empty": empty}
    options = [option.format(**names) for option in options]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fit_router(run, *options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_share_is_a_share_of_the_training_queries(run, folder, share):
    with pytest.raises(ValueError, match=f"share is {share}.* of the train split"):
        label(run, folder, f"--share={share}")
    with pytest.raises(ValueError, match=r"share is 0\.5 of the val split"):
        label(run, folder, "--share=0.5", "--split=val")
