"""Every verb through the command line, on a small benchmark with a tiny backbone."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
import yaml

from tests.tiny import cut_scenes, read_metrics, write_recipe
from tracelib.cli import VERBS, main
from tracelib.models.router import NUM_TASKS
from tracelib.recipe import find_checkpoint, find_runs
from tracelib.retrieval.runs import read_results

COLUMNS = [f"scenes_task{task}" for task in range(NUM_TASKS) if task != 5]
GATES = ["never", "always", "first_token", "head", "task_prior"]


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("cli") / "scenes")


@pytest.fixture(scope="module")
def make_args(root, tiny_backbone):
    def make(folder):
        args = write_recipe(folder, root, tiny_backbone)
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        # A user's own, beside the one that every run has.
        own = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"}
        recipe["trainer"]["callbacks"].append({**own, "init_args": {"save_top_k": -1}})
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return args

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def args(make_args, folder):
    return make_args(folder)


@pytest.fixture(scope="module")
def run(args, folder):
    """The folder of a fitted run."""
    main(["fit", *args])
    return folder / "tiny" / "version_0"


@pytest.fixture(scope="module")
def direct_run(args, folder, run):
    """A later run of another name, without rationales."""
    options = ("--data.rationale=none", "--model.router_weight=0", "--trainer.logger.name=direct")
    main(["fit", *args, *options])
    return folder / "direct" / "version_0"


@pytest.fixture(scope="module")
def evaluated(run, direct_run, folder):
    """Rows, provenance and folder of an evaluation of both runs."""
    table = folder / "page.md"
    table.write_text("before\n<!-- table -->\nold\n<!-- /table -->\nafter\n")
    main(["evaluate", f"--runs_folder={folder}", "--split=val", f"--table_in={table}"])
    written = run / "evaluation_val"
    rows, provenance = read_results(written / "results.json")
    assert provenance["split"] == "val"
    return rows, provenance, written


def drop_times(metrics):
    """Return what does not depend on the clock."""
    return {name: values for name, values in metrics.items() if "per_second" not in name}


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_names_every_verb_on_its_own_line(words, capsys):
    main(words)
    text = capsys.readouterr().out
    verbs = [line.split()[0] for line in text.splitlines() if line.startswith("  ")]
    assert verbs == ["fit", "validate", "test", "predict", *VERBS]
    assert f"{{fit,validate,test,predict,{','.join(VERBS)}}}" in text


@pytest.mark.parametrize("verb", [*VERBS, "fit"])
def test_help_of_a_verb_explains_its_options(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    expected = {
        "scenes": "--num_train",
        "pretrain": "--warmup_steps",
        "evaluate": "--gate.budget",
        "calibrate": "--labels",
        "route-labels": "--margin_epsilon",
        "fit-router": "--max_queries",
        "mine": "--max_similarity",
        "compare": "--num_resamples",
        "mmeb": "--query_rewrites",
        "resume": "--num_nodes",
        "plan": "--gpu",
        "mmeb-train": "--style",
        "check": "--pictures",
        "download": "--dry_run",
        "cot": "export-text",
    }
    assert expected.get(verb, "--data.rationale") in text
    assert text.startswith("usage: python -m tracelib ")


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--model.temprature=1", "model.temprature"),
        ("--data.batchsize=2", "data.batchsize"),
        ("--model.encoder.init_args.lora.rnk=2", "rnk"),
        ("--model.contrastive.init_args.temprature=1", "temprature"),
        ("--data.rationale=techer", "techer"),
        ("--trainer.max_epoch=2", "trainer.max_epoch"),
    ],
)
def test_a_misspelt_key_is_named(args, option, named, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *args, option])
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


def test_a_misspelt_key_in_a_recipe_is_named(make_args, tmp_path, capsys):
    args = make_args(tmp_path)
    path = tmp_path / "recipe.yaml"
    path.write_text(path.read_text().replace("max_rationale_tokens", "max_rationale_token"))
    with pytest.raises(SystemExit):
        main(["fit", *args])
    assert "model.max_rationale_token" in capsys.readouterr().err


def test_misspelt_verbs_and_options_of_verbs_are_named(capsys):
    with pytest.raises(SystemExit, match=r"no verb 'fitt'; there are fit, .*evaluate"):
        main(["fitt"])
    with pytest.raises(SystemExit):
        main(["evaluate", "--runs=x"])
    assert "--runs" in capsys.readouterr().err


def test_fit_leaves_recipe_metrics_and_checkpoint(run, folder):
    assert find_runs(folder)[0] == run
    recipe = yaml.safe_load((run / "config.yaml").read_text())
    assert recipe["model"]["max_rationale_tokens"] == 5
    logged = read_metrics(run)
    assert len(logged["train/loss"]) == 6
    assert len(logged["val/local/mean_recall"]) == 2
    for pool in ("local", "union"):
        names = {
            f"val/{pool}/{column}/recall@{k}" for column in COLUMNS for k in (1, 5, 10, 20, 50)
        }
        assert names <= set(logged)
        column_means = [logged[f"val/{pool}/{column}/recall@5"][1] for column in COLUMNS]
        mean = sum(column_means) / len(COLUMNS)
        assert logged[f"val/{pool}/mean_recall"][1] == pytest.approx(mean)
    assert logged["val/local/all_columns/recall@50"] == [1.0, 1.0]  # pools of 8, ranked whole
    assert logged["val/think_rate/all"] == [1.0, 1.0]
    losses = ("contrastive_loss", "lm_loss", "router_loss")
    total = [sum(logged[f"train/{name}"][step] for name in losses) for step in range(6)]
    assert logged["train/loss"] == pytest.approx(total, rel=1e-5)


def test_two_fits_with_one_seed_are_bit_identical(run, make_args, tmp_path):
    args = make_args(tmp_path)
    main(["fit", *args])
    again = tmp_path / "tiny" / "version_0"
    assert drop_times(read_metrics(again)) == drop_times(read_metrics(run))
    weights = [
        torch.load(find_checkpoint(r), weights_only=True)["state_dict"] for r in (again, run)
    ]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])
    main(["fit", *args, "--seed_everything=1"])  # the control
    other = read_metrics(tmp_path / "tiny" / "version_1")
    assert other["train/loss"] != read_metrics(run)["train/loss"]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_resumed_run_ends_as_the_uninterrupted_one(run, make_args, tmp_path, num_workers):
    """From the checkpoint of the first epoch, in a fresh folder; workers fetch ahead."""
    middle = run / "checkpoints" / "epoch=0-step=3.ckpt"
    settings = [f"--ckpt_path={middle}", f"--data.num_workers={num_workers}"]
    main(["fit", *make_args(tmp_path), *settings])
    resumed = tmp_path / "tiny" / "version_0"
    logged, expected = read_metrics(resumed), read_metrics(run)
    assert logged["train/loss"] == expected["train/loss"][3:]
    assert logged["val/union/mean_recall"] == expected["val/union/mean_recall"][1:]
    ours, theirs = (torch.load(find_checkpoint(r), weights_only=True) for r in (resumed, run))
    assert set(ours["state_dict"]) == set(theirs["state_dict"])
    for name, weight in theirs["state_dict"].items():
        assert torch.equal(ours["state_dict"][name], weight), name
    states = [c["optimizer_states"][0]["state"] for c in (ours, theirs)]
    for i, state in states[1].items():
        assert all(torch.equal(states[0][i][name], value) for name, value in state.items())
    first = torch.load(middle, weights_only=True)["state_dict"]
    assert any(not torch.equal(first[name], theirs["state_dict"][name]) for name in first)


def test_validate_repeats_the_fits_last_validation(args, run, folder):
    before = set((folder / "tiny").iterdir())
    main(["validate", *args, f"--ckpt_path={find_checkpoint(run)}"])
    (new,) = set((folder / "tiny").iterdir()) - before
    logged, expected = drop_times(read_metrics(new)), read_metrics(run)
    names = {name for name in logged if name.startswith("val/")}
    assert len(names) > 100
    assert {n: logged[n] for n in names} == {n: expected[n][-1:] for n in names}


def test_test_ranks_the_test_split(args, run, folder):
    before = set((folder / "tiny").iterdir())
    main(["test", *args, f"--ckpt_path={find_checkpoint(run)}"])
    (new,) = set((folder / "tiny").iterdir()) - before
    logged = read_metrics(new)
    assert {f"test/union/{column}/recall@5" for column in COLUMNS} <= set(logged)
    assert not any(name.startswith("val/") for name in logged)
    rows, provenance = read_results(new / "evaluation" / "always" / "results.json")
    values = {(row.column, row.pool, row.subset, row.metric): row.value for row in rows}
    for pool in ("local", "union"):
        mean = values["all", pool, "all", "headline"]
        assert logged[f"test/{pool}/mean_recall"] == [pytest.approx(mean)]
    assert provenance["split"] == "test"
    assert provenance["config"]["model"]["max_rationale_tokens"] == 5


@pytest.fixture(scope="module")
def predicted(make_args, run, tmp_path_factory):
    """Arguments, and the folder with the store and the log of a `predict`."""
    folder = tmp_path_factory.mktemp("predict")
    args = [*make_args(folder), f"--ckpt_path={find_checkpoint(run)}"]
    main(["predict", *args])
    return args, folder


def read_store(folder):
    paths = [path for path in (folder / "embeddings").rglob("*") if path.is_file()]
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def test_predict_fills_the_store_and_writes_rationales(predicted):
    _, folder = predicted
    rows = [np.load(path) for path in (folder / "embeddings").rglob("*.npy")]
    queries = [part for part in rows if "token_ids" in part.dtype.names]
    assert sum(map(len, queries)) == 32
    assert sum(map(len, rows)) == 32 + 64
    for part in rows:
        norms = np.linalg.norm(part["embedding"].astype(np.float64), axis=1)
        np.testing.assert_allclose(norms, 1, atol=1e-6)
    (path,) = folder.glob("tiny/version_*/rationales.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 32
    assert all(line["thinks"] and line["rationale"] for line in lines)


def test_test_after_predict_embeds_nothing(predicted):
    args, folder = predicted
    before = read_store(folder)
    main(["test", *args])
    assert read_store(folder) == before
    (path,) = folder.glob("tiny/version_*/evaluation/always/results.json")
    metrics = {row.metric for row in read_results(path)[0]}
    assert "recall@5" in metrics
    assert "queries_per_second" not in metrics  # nobody timed it now


@pytest.mark.parametrize(
    "option", ["limit_val_batches=2", "limit_val_batches=0.5", "fast_dev_run=1"]
)
def test_a_part_of_a_pool_is_not_evaluated(make_args, tmp_path, option):
    with pytest.raises(ValueError, match=r"trainer\.\w+ is .* whole pools have to be embedded"):
        main(["fit", *make_args(tmp_path), f"--trainer.{option}"])


def test_faiss_finds_what_the_exact_search_finds(predicted, tmp_path):
    args, _ = predicted
    name = "tracelib.callbacks.retrieval_evaluation.RetrievalEvaluation"
    callback = {"class_path": name, "init_args": {"search_backend": "faiss"}}
    place = [f"--trainer.logger.init_args.save_dir={tmp_path}"]
    main(["test", *args, *place, f"--trainer.callbacks={json.dumps([callback])}"])
    main(["test", *args, *place])
    found = [
        read_results(tmp_path / "tiny" / f"version_{i}" / "evaluation" / "always" / "results.json")[
            0
        ]
        for i in (0, 1)
    ]
    for ours, theirs in zip(*found, strict=True):
        assert ours.value == pytest.approx(theirs.value, abs=0.26)  # ties are FAISS's own


def test_all_prompts_are_asked_and_told_apart(make_args, tmp_path):
    main(["test", *make_args(tmp_path), "--data.prompt_policy=all"])
    folder = tmp_path / "tiny" / "version_0" / "evaluation" / "always"
    rows, provenance = read_results(folder / "results.json")
    subsets = {row.subset for row in rows if row.column == COLUMNS[0]}
    prompts = sorted(subset for subset in subsets if subset.startswith("prompt_"))
    assert len(prompts) > 1
    values = {(row.subset, row.metric): row.value for row in rows if row.column == COLUMNS[0]}
    of_prompts = [values[prompt, "recall@5"] for prompt in prompts]
    assert values["all", "recall@5"] == pytest.approx(sum(of_prompts) / len(prompts))
    assert provenance["prompt_policy"] == "all"
    assert len(list((folder / "run_files").glob(f"*{COLUMNS[0]}*prompt1_run.txt"))) == 2


def test_evaluate_shows_every_gate_of_the_newest_runs(evaluated):
    rows, provenance, folder = evaluated
    series = list(dict.fromkeys((row.run, row.gate) for row in rows))
    assert series == [*(("tiny", gate) for gate in GATES), ("direct", "never")]
    assert all(math.isfinite(row.value) for row in rows)
    assert set(provenance["config"]) == {"tiny", "direct"}
    assert provenance["config"]["tiny"]["data"]["rationale"] == "teacher"
    assert len(provenance["data_hashes"]) > 20
    text = (folder / "table.md").read_text()
    assert len(text.splitlines()) == 2 + len(series)
    assert (folder.parents[2] / "page.md").read_text() == (
        f"before\n<!-- table -->\n\n{text}\n<!-- /table -->\nafter\n"
    )
    lines = (folder / "always" / "results.tsv").read_text().splitlines()
    assert len(lines) == 1 + len(COLUMNS) * 5


def test_evaluate_agrees_with_the_fits_validation(evaluated, run):
    """The recipe's own gate; merging the adapter may swap a near tie."""
    logged = read_metrics(run)
    rows = {(r.run, r.gate, r.pool, r.column, r.subset, r.metric): r.value for r in evaluated[0]}
    for pool in ("local", "union"):
        for column in COLUMNS:
            value = rows["tiny", "always", pool, column, "all", "recall@5"]
            expected = logged[f"val/{pool}/{column}/recall@5"][-1]
            assert value == pytest.approx(expected, abs=0.26)  # one query of four
        mean = rows["tiny", "always", pool, "all", "all", "recall@5"]
        assert mean == pytest.approx(logged[f"val/{pool}/mean_recall"][-1], abs=0.05)


def test_evaluate_reports_what_each_gate_does(evaluated):
    rows = {
        (row.run, row.gate, row.subset, row.metric): row.value
        for row in evaluated[0]
        if row.column == "all" and row.pool == "local"
    }
    assert rows["tiny", "never", "all", "think_rate"] == 0
    assert rows["tiny", "never", "all", "tokens_per_query"] == 1
    assert rows["tiny", "always", "all", "think_rate"] == 1
    assert 2 <= rows["tiny", "always", "all", "tokens_per_query"] <= 6
    assert rows["tiny", "task_prior", "all", "think_rate"] == 3 / 8  # tasks 6, 7 and 8 are hard
    assert 0 <= rows["tiny", "head", "all", "router_auroc"] <= 1
    assert rows["tiny", "always", "hard", "exact_rationale"] == 0
    assert ("direct", "never", "all", "router_auroc") not in rows


def test_run_files_hold_the_rankings(evaluated, root):
    folder = evaluated[2]
    assert {path.parent.name for path in folder.glob("*/results.json")} == set(GATES)
    local = folder / "never" / "run_files" / "mbeir_scenes_task3_single_pool_val_k8_run.txt"
    union = folder / "never" / "run_files" / "mbeir_scenes_task3_union_pool_val_k50_run.txt"
    for path, depth in ((local, 8), (union, 50)):
        lines = [line.split() for line in path.read_text().splitlines()]
        assert [int(line[3]) for line in lines] == list(range(1, depth + 1)) * 4
    pool = root / "cand_pool" / "local" / "mbeir_scenes_task3_val_cand_pool.jsonl"
    ids = {json.loads(line)["did"] for line in pool.read_text().splitlines()}
    assert {line.split()[2] for line in local.read_text().splitlines()} == ids


def test_compare_reads_what_evaluate_wrote(evaluated, run, direct_run, tmp_path, capsys):
    path = tmp_path / "comparison.json"
    main(["compare", str(direct_run), str(run), "--split=val", f"--json_file={path}"])
    assert "scenes_task3" in capsys.readouterr().out
    compared = json.loads(path.read_text())
    assert (compared["a"]["gate"], compared["b"]["gate"]) == ("never", "always")
    rows = {(r["column"], r["pool"]): r for r in compared["rows"]}
    assert len(rows) == 2 * (len(COLUMNS) + 1)


def test_compare_refuses_other_prompts(evaluated, run, direct_run, tmp_path):
    other = shutil.copytree(direct_run, tmp_path / "other")
    path = other / "evaluation_val" / "never" / "results.json"
    path.write_text(path.read_text().replace('"prompt_policy": "fixed"', '"prompt_policy": "all"'))
    with pytest.raises(ValueError, match="prompt_policy is 'fixed' in A and 'all' in B"):
        main(["compare", str(run), str(other), "--split=val"])


def test_evaluate_takes_a_thinking_run_without_router(args, folder, run, tmp_path):
    main(["fit", *args, "--model.router_weight=0", f"--trainer.logger.save_dir={tmp_path}"])
    routerless = tmp_path / "tiny" / "version_0"
    main(["evaluate", f"--run={routerless}", f"--runs_folder={tmp_path}"])
    rows, _ = read_results(routerless / "evaluation" / "results.json")
    assert set(row.gate for row in rows) == set(GATES) - {"head"}


def test_evaluate_tells_two_runs_of_one_recipe_apart(args, run, tmp_path):
    for version in (0, 1):
        shutil.copytree(run, tmp_path / "tiny" / f"version_{version}")
    folders = [tmp_path / "tiny" / f"version_{version}" for version in (1, 0)]
    runs = f"--runs_folder={tmp_path}"
    main(["evaluate", f"--run={folders[0]}", f"--against={folders[1]}", runs])
    rows, provenance = read_results(folders[0] / "evaluation" / "results.json")
    names = list(dict.fromkeys(row.run for row in rows))
    assert names == ["tiny/version_1", "tiny/version_0"]
    assert set(provenance["config"]) == set(names)


def test_evaluate_without_a_run_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no finished run: fit one"):
        main(["evaluate", f"--runs_folder={tmp_path}"])
    with pytest.raises(FileNotFoundError, match=r"config\.yaml is missing"):
        main(["evaluate", f"--run={tmp_path}"])


def test_a_page_without_a_place_for_the_table_is_refused(run, direct_run, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no marks")
    runs = f"--runs_folder={tmp_path}"
    with pytest.raises(ValueError, match="has no place for the table"):
        main(["evaluate", f"--run={run}", f"--against={direct_run}", f"--table_in={page}", runs])


def test_an_untrained_validation_is_said_to_be(args, run, caplog):
    with caplog.at_level("INFO"):
        main(["validate", *args])
        assert "no --ckpt_path" in caplog.text
        caplog.clear()
        main(["validate", *args, f"--ckpt_path={find_checkpoint(run)}"])
        assert "no --ckpt_path" not in caplog.text
