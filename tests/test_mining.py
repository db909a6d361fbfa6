"""The `mine` verb on a small fitted run, and a fit on what it wrote."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.reference import hard_negatives as reference
from tests.tiny import build, cut_scenes, read_metrics, rewrite_rows, write_recipe
from tracelib.callbacks.stored_mining import mine_session, open_training_session
from tracelib.cli import main
from tracelib.data.jsonl import DataError, read_rows
from tracelib.data.layout import Layout
from tracelib.models.gates import AlwaysGate, NeverGate
from tracelib.recipe import load_run
from tracelib.retrieval.hard_negatives import MiningRule

NAME = "query/train/mbeir_scenes_train.jsonl"
COPY, FOREIGN, FOREIGN_COPY = "10:9000", "6:7", "6:8"
DEPTH, NUM_NEGATIVES = 12, 3


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    """Scenes with copies of the first positive, and with a positive in another data set."""
    root = cut_scenes(tiny_scenes, tmp_path_factory.mktemp("mine") / "scenes")
    path = Layout(root).query("scenes", "train")
    first = next(read_rows(path)).fields["pos_cand_list"]

    def add_candidates(rows):
        (own,) = (row for row in rows if row["did"] == first[0])
        foreign = {"did": FOREIGN, "txt": "a foreign word", "modality": "text"}
        return [*rows, {**own, "did": COPY}, {**own, "did": FOREIGN_COPY}, foreign]

    def add_positive(rows):
        rows[1]["pos_cand_list"].append(FOREIGN)
        return rows

    rewrite_rows(Layout(root).union_pool("train"), add_candidates)
    rewrite_rows(path, add_positive)
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def args(root, tiny_backbone, folder):
    options = ("--trainer.limit_val_batches=0", "--trainer.max_epochs=1", "--data.held_out=0.2")
    return [*write_recipe(folder, root, tiny_backbone), *options]


@pytest.fixture(scope="module")
def run(args, folder):
    """The folder of a fitted run, which always thinks."""
    main(["fit", *args])
    return folder / "tiny" / "version_0"


@pytest.fixture(scope="module")
def embedded(run):
    """The training records, and unit vectors of them embedded one by one, without a store."""
    module, data, _ = load_run(run)
    data.set_up_training_queries()
    module.encoder.prepare_inference()
    found = data.evaluation_sets["train"]
    parts = [[i] for i in range(len(found.queries))], [[i] for i in range(len(found.candidates))]
    query_loader, candidate_loader = data.build_evaluation_loaders("train", *parts)
    with torch.no_grad():
        queries = [module.embed_queries(batch, AlwaysGate()).embeddings for batch in query_loader]
        candidates = [module.embed_candidates(batch) for batch in candidate_loader]
    vectors = [functional.normalize(torch.cat(part).double()) for part in (queries, candidates)]
    return found, vectors[0] @ vectors[1].T


@pytest.fixture(scope="module")
def cap(embedded):
    """A cosine that some of the nearest candidates of most queries are above."""
    return round(embedded[1].topk(8, dim=1).values[:, -1].median().item(), 4)


def mine(run, folder, output, *options):
    main(
        [
            "mine",
            f"--run={run}",
            f"--store_dir={folder / 'embeddings'}",
            f"--output={output}",
            f"--depth={DEPTH}",
            f"--num_negatives={NUM_NEGATIVES}",
            *options,
        ]
    )
    return read(output / NAME), json.loads((output / "report.json").read_text())


def read(path):
    return [row.fields for row in read_rows(path)]


@pytest.fixture(scope="module")
def mined(run, folder, cap):
    """Rows and report by pool."""
    return {
        pool: mine(run, folder, run / pool, f"--pool={pool}", f"--max_similarity={cap}")
        for pool in ("local", "union")
    }


@pytest.mark.parametrize("pool", ["local", "union"])
def test_negatives_are_those_of_a_walk_down_each_ranking(mined, embedded, cap, pool):
    rows, report = mined[pool]
    found, scores = embedded
    candidates = list(found.candidates)
    place_of = {c.candidate_id: place for place, c in enumerate(candidates)}
    contents = [(c.text, c.image_path) for c in candidates]
    totals = np.zeros(3, dtype=int)
    for row, query, own in zip(rows, found.queries, scores, strict=True):
        assert row["qid"] == query.query_id
        positives = {contents[place_of[name]] for name in query.positive_ids}
        target = candidates[place_of[query.positive_ids[0]]].modality
        allowed = [
            (c.candidate_id.startswith("10:") and c.modality == target) or pool == "union"
            for c in candidates
        ]
        values = own[torch.tensor(allowed)]
        kept, *dropped = reference.mine(
            values.tolist(),
            [content for content, is_in in zip(contents, allowed, strict=True) if is_in],
            positives,
            DEPTH,
            cap,
            NUM_NEGATIVES,
        )
        negatives = [place_of[name] for name in row["neg_cand_list"]]
        assert all(allowed[place] for place in negatives)
        assert not positives & {contents[place] for place in negatives}
        assert len({contents[place] for place in negatives}) == len(negatives) == len(kept)
        # places may differ where cosines nearly tie
        assert own[negatives].tolist() == pytest.approx(values[kept].tolist(), abs=1e-6)
        totals += (len(kept), *dropped)
    summary = report["summary"]
    assert totals.tolist() == [
        summary[name] for name in ("num_negatives", "num_dropped_as_positive", "num_dropped_by_cap")
    ]
    assert (totals > 0).all()
    assert 0 < summary["num_with_all"] < summary["num_queries"] == len(rows)


def test_rows_are_those_of_the_data_but_for_their_negatives(mined, root, run):
    before = read(root / NAME)
    for pool, (rows, report) in mined.items():
        assert [list(row) for row in rows] == [list(row) for row in before]
        changed = [
            {name for name in new if new[name] != old[name]}
            for new, old in zip(rows, before, strict=True)
        ]
        assert set().union(*changed) == {"neg_cand_list"}
        digest = hashlib.sha256((run / pool / NAME).read_bytes()).hexdigest()
        assert report["provenance"]["rows_sha256"] == {NAME: digest}
    assert mined["local"][0] != mined["union"][0]


def test_the_report_says_where_the_rows_come_from_and_what_was_kept(mined, cap):
    for pool, (rows, report) in mined.items():
        provenance, summary = report["provenance"], report["summary"]
        rule = {"depth": DEPTH, "max_similarity": cap, "num_negatives": NUM_NEGATIVES}
        assert (provenance["pool"], provenance["rule"]) == (pool, rule)
        assert provenance["gate_settings"] == {"name": "always"}
        assert {"weights", "git_revision", "versions", "data_hashes", "config"} <= set(provenance)
        counts = [len(row["neg_cand_list"]) for row in rows]
        assert summary["num_without"] == counts.count(0)
        assert summary["num_with_all"] == counts.count(NUM_NEGATIVES)
        assert summary["num_with_fewer"] == sum(0 < count < NUM_NEGATIVES for count in counts)
        assert summary["mean_similarity"] <= cap
        tasks = {f"scenes_task{row['task_id']}" for row in rows}
        assert set(summary["columns"]) == tasks
        for name in ("num_queries", "num_negatives", "num_dropped_by_cap"):
            assert sum(row[name] for row in summary["columns"].values()) == summary[name]
        assert [row["max_similarity"] for row in summary["caps"]] == [0.7, 0.8, 0.9, 0.95, 1.0]


def test_the_same_bytes_from_a_whole_a_broken_and_an_empty_store(mined, run, folder, cap, tmp_path):
    options = ("--pool=union", f"--max_similarity={cap}")
    expected = [(run / "union" / NAME).read_bytes()]
    store = tmp_path / "embeddings"
    shutil.copytree(folder / "embeddings", store)
    files = sorted(store.rglob("*.npy"))
    before = [path.stat().st_mtime_ns for path in files]
    again = tmp_path / "again"

    def mine_again():
        mine(run, tmp_path, again, *options)
        return [(again / NAME).read_bytes()]

    assert mine_again() == expected
    assert [path.stat().st_mtime_ns for path in files] == before  # nothing was embedded
    paths = sorted(store.glob("*/train-*/*.npy"))
    assert len(paths) == 2
    for path in paths:  # killed amid the queries: a third of the rows are there
        rest = np.load(path)
        rest["checksum"][np.arange(len(rest)) % 3 > 0] = 0
        np.save(path.with_suffix(".partial.npy"), rest)
        path.unlink()
    assert mine_again() == expected
    assert sorted(store.rglob("*.npy")) == files
    shutil.rmtree(store)
    assert mine_again() == expected


@pytest.fixture(scope="module")
def session(run, folder, mined):
    """What the verb stored."""
    module, data, _ = load_run(run)
    data.set_up_training_queries()
    fingerprint = module.compute_fingerprint()
    module.encoder.prepare_inference()
    session = open_training_session(module, data, AlwaysGate(), folder / "embeddings", fingerprint)
    assert not session.queries.list_open_shards()
    return session


def name_candidates(session, negatives):
    """Return the names of each query's negatives."""
    names = session.found.candidates.format_ids(negatives.places.numpy())
    kept = (negatives.places >= 0).sum(1).tolist()
    return [ids[:count] for ids, count in zip(names, kept, strict=True)]


def test_blocks_and_chunks_change_nothing(mined, session, cap):
    rule = MiningRule(DEPTH, cap, NUM_NEGATIVES)
    for pool, (rows, _) in mined.items():
        shares = []
        negatives = mine_session(
            session, pool, rule, torch.device("cpu"), shares.append, query_block=37, chunk_size=11
        )
        assert [row["neg_cand_list"] for row in rows] == name_candidates(session, negatives)
        assert shares == sorted(shares)
        assert shares[-1] == 1
        assert len(shares) > 20


def test_without_limits_all_are_negatives_but_what_shows_a_positive(session):
    found = session.found
    candidates = {c.candidate_id: (c.text, c.image_path) for c in found.candidates}
    rule = MiningRule(500, 1.0, 500)
    every = mine_session(session, "union", rule, torch.device("cpu"), lambda share: None)
    shown = set(candidates.values())
    for query, names in zip(found.queries, name_candidates(session, every), strict=True):
        positives = {candidates[name] for name in query.positive_ids}
        negatives = [candidates[name] for name in names]
        assert set(negatives) == shown - positives
        assert len(set(negatives)) == len(negatives)
    local = mine_session(session, "local", rule, torch.device("cpu"), lambda share: None)
    assert FOREIGN not in {name for names in name_candidates(session, local) for name in names}


def test_files_without_a_report_are_left_when_writing_fails(run, folder, tmp_path, cap):
    mine(run, folder, tmp_path)
    (tmp_path / NAME).unlink()
    (tmp_path / NAME).mkdir()
    with pytest.raises(OSError, match=NAME):
        mine(run, folder, tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_a_fit_trains_on_what_was_mined(mined, run, args, folder):
    rows, _ = mined["local"]
    lists = {row["qid"]: row["neg_cand_list"] for row in rows}
    options = [*args, "--data.num_hard_negatives=2"]
    with_mined = [*options, f"--data.mined_negatives={run / 'local'}"]
    _, data = build(with_mined)
    for query in data.train_dataset.queries:
        assert list(query.negative_ids) == lists[query.query_id]
    assert len(data.train_dataset) < len(rows)  # the rest is held out
    batch = data.train_dataset[[0, 1, 2, 3]]
    numbers = set(batch.candidate_ids.tolist())
    for number in batch.query_ids.tolist():
        for name in lists[f"{number // 500_000}:{number % 500_000}"][:2]:
            dataset, _, rest = name.partition(":")
            assert int(dataset) * 10_000_000 + int(rest) in numbers
    losses = []
    for name, chosen in (("given", options), ("mined", with_mined)):
        main(["fit", *chosen, f"--trainer.logger.name={name}"])
        losses.append(read_metrics(folder / name / "version_0")["train/contrastive_loss"])
    assert losses[0] != losses[1]
    # and its run can be mined in turn
    again, report = mine(folder / "mined" / "version_0", folder, folder / "second")
    assert [row["qid"] for row in again] == [row["qid"] for row in rows]
    assert report["provenance"]["weights"] != mined["local"][1]["provenance"]["weights"]


def test_a_gate_may_be_named(mined, run, folder, tmp_path):
    rows, report = mine(run, folder, tmp_path, "--gate=never", "--max_similarity=1")
    assert report["provenance"]["gate_settings"] == NeverGate().describe()
    assert report["summary"]["num_with_all"] == len(rows)
    assert report["summary"]["caps"][-1]["share_with_all"] == 1
    with pytest.raises(ValueError, match=r"gate is 'never mind'; .* asked under \['never', 'alw"):
        mine(run, folder, tmp_path, "--gate=never mind")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max_similarity=1.5"], r"max_similarity is 1\.5, allowed -1 \.\. 1"),
        (["--num_negatives=13"], r"num_negatives is 13, allowed 1 \.\. 12"),
        (["--output=ROOT"], r"is data\.root, whose query files it would replace"),
        (["--run=nowhere"], "nowhere is no .* run"),
    ],
)
def test_bad_options_are_named(run, folder, root, tmp_path, options, message):
    options = [option.replace("ROOT", str(root)) for option in options]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        mine(run, folder, tmp_path, *options)


def test_mined_negatives_that_would_not_be_used_or_are_not_there_are_refused(args, tmp_path):
    named = [*args, f"--data.mined_negatives={tmp_path}"]
    with pytest.raises(ValueError, match=r"data\.num_hard_negatives is 0, so none would be used"):
        build(named)
    with pytest.raises(DataError, match=r"report\.json is missing"):
        build([*named, "--data.num_hard_negatives=1"])
