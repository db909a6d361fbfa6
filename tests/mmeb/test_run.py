"""The verb on a small MMEB tree, with a run that the real command line fitted."""

import json
import math
import shutil

import pytest
import torch
from jsonargparse import auto_cli

from tests.tiny import cut_scenes, rewrite_adapter, write_recipe
from tests.tiny_mmeb import SUBSETS, make_rows, write_mmeb_eval, write_table
from tracelib.cli import main
from tracelib.data.jsonl import DataError
from tracelib.data.mmeb.reader import MMEBReader
from tracelib.mmeb.run import mmeb
from tracelib.recipe import load_run
from tracelib.retrieval.runs import read_results

METRICS = ("accuracy", "accuracy_strict", "think_rate", "tokens_per_query")


@pytest.fixture(scope="module")
def fitted(tiny_scenes, tiny_backbone, tmp_path_factory):
    """The folder of a fitted run that nobody evaluates."""
    folder = tmp_path_factory.mktemp("mmeb_run")
    root = cut_scenes(tiny_scenes, folder / "scenes")
    args = write_recipe(folder / "runs", root, tiny_backbone)
    main(["fit", *args, "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"])
    return folder / "runs" / "tiny" / "version_0"


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_mmeb_eval(tmp_path_factory.mktemp("mmeb_tree") / "eval")


@pytest.fixture
def run(fitted, tmp_path):
    return shutil.copytree(fitted, tmp_path / "tiny" / "version_0")


def call(root, run, *options):
    words = [f"--root={root}", f"--run={run}", *options]
    auto_cli(mmeb, args=words, as_positional=False, allow_abbrev=False)


def read(folder):
    return {
        path.stem: json.loads(path.read_text())
        for path in folder.glob("*.json")
        if path.stem != "results"
    }


def read_lines(folder, subset):
    return [json.loads(t) for t in (folder / f"{subset}_generated.jsonl").read_text().splitlines()]


def test_numbers_files_and_tables(root, run, capsys):
    call(root, run)
    folder, text = run / "mmeb" / "always", capsys.readouterr().out
    results = read(folder)
    assert set(results) == set(SUBSETS)
    for name, found in results.items():
        lines = read_lines(folder, name)
        assert len(lines) == found["num_queries"] == 6
        correct = [line["gold_rank"] == 1 for line in lines]
        assert correct == [line["prediction"] == 0 for line in lines]
        strict = [c and line["num_tied"] == 0 for c, line in zip(correct, lines, strict=True)]
        assert (found["num_correct"], found["num_correct_strict"]) == (sum(correct), sum(strict))
        assert found["accuracy"] == pytest.approx(sum(correct) / 6)
        assert found["accuracy_strict"] == pytest.approx(sum(strict) / 6)
        assert found["think_rate"] == 1
        assert 2 <= found["tokens_per_query"] <= 6
        assert found["num_forced"] == sum(line["is_forced"] for line in lines)
        assert all(line["rationale"] for line in lines)
        assert found["reading"]["query"]["lacks_rewrite"] is False
        assert len(found["provenance"]["weights"]) == 64
    assert results["WebQA"]["num_candidates"] == 5
    rows, provenance = read_results(folder / "results.json")
    assert all(math.isfinite(row.value) for row in rows)
    values = {(r.column, r.subset, r.metric): r.value for r in rows}
    assert {(r.run, r.gate, r.pool) for r in rows} == {("tiny", "always", "own")}
    for metric in METRICS:
        each = [values[f"mmeb/{name}", "all", metric] for name in SUBSETS]
        assert each == [results[name][metric] for name in SUBSETS]
        assert values["all", "all (6 of 36)", metric] == pytest.approx(sum(each) / 6)
    retrieval = [results[name]["accuracy"] for name in ("WebQA", "MSCOCO_t2i")]
    mean = values["all", "retrieval (2 of 12)", "accuracy"]
    assert mean == pytest.approx(sum(retrieval) / 2)
    assert len(provenance["data_hashes"]) == 7
    assert provenance["gate"] == {"name": "always"}
    assert "RGE-3B without reasoning" in text
    assert "30 of 36 subsets are missing: N24News" in text
    assert "WebQA: 6 queries, not the benchmark's 1,000" in text
    assert "WebQA, query texts: 6 of 6 had an image slot and no picture" in text


def test_accuracy_is_that_of_embeddings_computed_one_by_one(root, run):
    """Against a plain loop: one record a forward pass, cosines by torch, no merging, no batches."""
    call(root, run, "--gate=NeverGate")
    module, data, _ = load_run(run)
    for name in ("RefCOCO", "ImageNet-1K"):
        subset = MMEBReader(root).read_eval(name)
        processor = data.processor
        renderer = type(data.renderer)(**{**vars(data.renderer), "root": root / "images"})
        with torch.no_grad():
            candidates = torch.cat(
                [
                    module.encoder(processor([renderer.render_candidate(c)])).embedding
                    for c in subset.candidates
                ]
            ).double()
            queries = []
            for query in subset.queries:
                inputs = processor([renderer.render_prompt(query)], "left")
                positions = module.encoder.compute_positions(inputs)[0]
                queries.append(module.encoder.run_backbone(inputs, positions)[:, -1])
        queries = torch.cat(queries).double()
        lines = read_lines(run / "mmeb" / "never", name)
        for i, line in enumerate(lines):
            own = subset.places[subset.offsets[i] : subset.offsets[i + 1]]
            scores = torch.cosine_similarity(queries[i][None], candidates[own])
            assert scores.diff().abs().min() > 1e-5  # no near tie that rounding could turn
            assert line["prediction"] == int(scores.argmax())
            assert line["gold_rank"] == 1 + int((scores > scores[0]).sum())
            assert line["rationale"] == ""


def test_a_run_is_repeatable_whatever_the_batches(root, run, fitted, tmp_path):
    call(root, run)
    other = shutil.copytree(fitted, tmp_path / "other" / "version_0")
    config = other / "config.yaml"
    text = config.read_text().replace("eval_batch_size: 12", "eval_batch_size: 4")
    config.write_text(text.replace("num_workers: 0", "num_workers: 1"))
    subsets = ["ImageNet-1K", "RefCOCO"]
    call(root, other, f"--subsets=[{','.join(subsets)}]")
    first, second = (read(r / "mmeb" / "always") for r in (run, other))
    for name in subsets:
        ours, theirs = first[name], second[name]
        assert ours.pop("provenance") != theirs.pop("provenance")
        assert ours == theirs
        assert read_lines(run / "mmeb" / "always", name) == read_lines(
            other / "mmeb" / "always", name
        )


def test_an_interrupted_evaluation_goes_on(root, run):
    folder = run / "mmeb" / "always"
    call(root, run, "--subsets=[WebQA]")
    assert set(read(folder)) == {"WebQA"}
    call(root, run)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    rows, _ = read_results(folder / "results.json")
    # What is there is taken as it is: a mark in it survives; what is missing is made again.
    (folder / "RefCOCO.json").unlink()
    marked = json.loads(contents["WebQA.json"]) | {"num_correct": -1}
    (folder / "WebQA.json").write_text(json.dumps(marked) + "\n")
    call(root, run)
    again = {path.name: path.read_bytes() for path in folder.iterdir()}
    changed = {name for name in contents if again[name] != contents[name]}
    assert changed - {"results.json"} == {"WebQA.json"}  # the mark; results hold the time
    assert read_results(folder / "results.json")[0] == rows


def test_other_data_rewrites_and_gates_are_evaluated_anew(root, run, tmp_path, capsys):
    tree = shutil.copytree(root, tmp_path / "tree")
    folder = run / "mmeb" / "always"
    call(tree, run, "--subsets=[WebQA,RefCOCO]")
    first = read(folder)
    write_table(tree / "WebQA" / "test-00001-of-00002.parquet", make_rows("WebQA", 5)[2:])
    call(tree, run, "--subsets=[WebQA,RefCOCO]")
    second = read(folder)
    assert second["RefCOCO"] == first["RefCOCO"]
    assert (first["WebQA"]["num_queries"], second["WebQA"]["num_queries"]) == (6, 5)
    rules = tmp_path / "q.yaml"
    rules.write_text("RefCOCO:\n  original: portion\n  replacement: region of the picture\n")
    call(tree, run, "--subsets=[RefCOCO]", f"--query_rewrites={rules}")
    third = read(folder)["RefCOCO"]
    hashes = [found["provenance"]["query_rewrites"] for found in (second["RefCOCO"], third)]
    assert hashes[0] == ""
    assert len(hashes[1]) == 64
    call(tree, run, "--subsets=[RefCOCO]", "--gate=NeverGate")
    fourth = read(run / "mmeb" / "never")["RefCOCO"]
    assert (fourth["think_rate"], fourth["tokens_per_query"]) == (0, 1)
    assert read(folder)["RefCOCO"] == third


def test_what_decides_an_embedding_is_part_of_what_is_resumed(root, run, tmp_path, monkeypatch):
    folder = run / "mmeb" / "always"
    call(root, run, "--subsets=[RefCOCO]")
    provenance = read(folder)["RefCOCO"]["provenance"]
    names = ("dtype", "images_root", "format_version")
    assert [provenance[name] for name in names] == ["torch.float32", "images", 1]
    shutil.copytree(root / "images", tmp_path / "pictures")
    changes = (("images_root", "pictures"), ("format_version", 2))
    for (name, value), option in zip(
        changes, ([f"--images_root={tmp_path / 'pictures'}"], []), strict=True
    ):
        if name == "format_version":
            monkeypatch.setattr("tracelib.mmeb.run.FORMAT_VERSION", 2)
        marked = read(folder)["RefCOCO"] | {"num_correct": -1}
        (folder / "RefCOCO.json").write_text(json.dumps(marked) + "\n")
        call(root, run, "--subsets=[RefCOCO]", *option)
        again = read(folder)["RefCOCO"]
        assert again["num_correct"] >= 0
        assert str(again["provenance"][name]).endswith(str(value))


def test_rewrites_that_match_nothing_are_reported(root, run, tmp_path, capsys):
    queries, candidates = tmp_path / "q.yaml", tmp_path / "c.yaml"
    queries.write_text(
        'WebQA:\n  original: "a misspelt instruction"\n  replacement: "another"\n'
        'ImageNet-1K:\n  original: "Represent"\n  replacement: "Identify"\n'
    )
    candidates.write_text('HatefulMemes:\n  value_map: {"Yes": "It is."}\n')
    call(
        root,
        run,
        "--subsets=[WebQA,ImageNet-1K,HatefulMemes]",
        f"--query_rewrites={queries}",
        f"--candidate_rewrites={candidates}",
    )
    text = capsys.readouterr().out
    assert "WebQA, query texts: original of query_rewrites left 6 of 6 alone" in text
    left = "HatefulMemes, candidate texts: value_map of candidate_rewrites left 1 of 2 alone"
    assert left in text
    assert "HatefulMemes, query texts: no rewrite in query_rewrites" in text
    assert "WebQA, candidate texts: no rewrite in candidate_rewrites" in text
    assert "ImageNet-1K, query texts: original" not in text
    found = read(run / "mmeb" / "always")["WebQA"]["reading"]
    assert found["query"]["num_unmatched"] == {"original": 6}
    assert found["candidate"]["lacks_rewrite"] is True


def test_a_tie_with_the_gold_candidate_is_a_miss_in_strict_accuracy(root, run, tmp_path):
    tree = shutil.copytree(root, tmp_path / "tree")
    rows = make_rows("RefCOCO", 3)
    for row in rows:  # nothing but copies of the gold one
        row["tgt_img_path"] = row["tgt_img_path"][:1] * 3
    write_table(tree / "RefCOCO" / "test-00000-of-00001.parquet", rows)
    call(tree, run, "--subsets=[RefCOCO]", "--gate=NeverGate")
    found = read(run / "mmeb" / "never")["RefCOCO"]
    assert (found["accuracy"], found["accuracy_strict"]) == (1, 0)
    assert [line["num_tied"] for line in read_lines(run / "mmeb" / "never", "RefCOCO")] == [2] * 3


def test_mistakes_are_named_before_anything_runs(root, run, tmp_path, capsys):
    with pytest.raises(DataError, match="'WebQa' is unknown"):
        call(root, run, "--subsets=[WebQa]")
    with pytest.raises(DataError, match="no such folder"):
        call(tmp_path / "nowhere", run)
    with pytest.raises(FileNotFoundError, match="holds no finished run"):
        mmeb(root, runs_folder=tmp_path / "none")
    with pytest.raises(SystemExit):
        call(root, run, "--gate=SometimesGate")
    assert "SometimesGate" in capsys.readouterr().err
    assert not (run / "mmeb").exists()


def test_a_gate_without_its_router_is_refused(root, run):
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("router_weight: 1.0", "router_weight: 0.0"))
    rewrite_adapter(
        run, lambda ws: {name: w for name, w in ws.items() if not name.startswith("router.")}
    )
    with pytest.raises(ValueError, match=r"gate 'head' asks a router and .* has none"):
        call(root, run, "--gate=HeadGate")
