"""MMEB's pairs in M-BEIR's layout: each comes back as it was, and a recipe trains on them."""

import json

import pytest

from tests.tiny import write_recipe
from tests.tiny_mmeb import SLOT, write_mmeb_train, write_table
from tracelib.cli import main
from tracelib.data.jsonl import DataError
from tracelib.data.mbeir import MBEIRReader
from tracelib.data.mmeb.reader import MMEBReader
from tracelib.data.mmeb.subsets import TRAIN_SUBSETS
from tracelib.data.mmeb.train_lines import FIRST_DATASET_ID
from tracelib.data.mmeb.train_tree import mmeb_train

NUM_ROWS = 24
NUM_VAL = 2  # a tenth of the rows
IDS = {name: FIRST_DATASET_ID + TRAIN_SUBSETS.index(name) for name in ("ImageNet_1K", "WebQA")}


@pytest.fixture
def root(tmp_path):
    return write_mmeb_train(tmp_path / "train", NUM_ROWS)


def write_rationales(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_rationale(subset, number):
    words = {"reasoning": f"because {number}", "answer": "it is", "teacher": "me"}
    return {"qid": f"{subset}:{number}", **words}


def read(root, split, **options):
    return MBEIRReader(root, texts="verbatim", **options).read_queries(split)


def test_every_pair_comes_back_as_it_was(root, tmp_path):
    suffix = tmp_path / "rewrites.yaml"
    suffix.write_text("WebQA: {suffix_add: ' Now'}\n")
    mmeb_train(root, query_rewrites=suffix)
    mmeb = MMEBReader(root, query_rewrites=suffix)
    reader = MBEIRReader(root, texts="verbatim")
    found = {}
    for split in ("train", "val"):
        queries = reader.read_queries(split)
        pools = (
            [reader.read_pool(split, c) for c in dict.fromkeys(queries.columns)]
            if (split == "val")
            else [reader.read_union_pool("train")]
        )
        candidates = {c.candidate_id: c for pool in pools for c in pool}
        assert len(candidates) == sum(map(len, pools))
        for query in queries:
            found[query.query_id] = query, candidates, split
    num_by_split = {"train": 0, "val": 0}
    for name, dataset_id in IDS.items():
        pairs = mmeb.read_train(name, "original")
        for number in range(1, NUM_ROWS + 1):
            pair = pairs[number - 1]
            query, candidates, split = found.pop(f"{dataset_id}:{number}")
            num_by_split[split] += 1
            assert query.text == pair.query.text
            assert query.text.endswith(" Now\n" if name == "WebQA" else "\n")
            assert query.instruction == ""
            assert query.task_id == pair.query.task_id
            assert query.column == f"mmeb_{name}_task{query.task_id}"
            assert query.image_path == (pair.query.image_path and f"images/{pair.query.image_path}")
            ids = [*query.positive_ids, *query.negative_ids]
            for key, candidate in zip(ids, [pair.positive, *pair.negatives], strict=True):
                image_path = candidate.image_path and f"images/{candidate.image_path}"
                expected = (candidate.text, image_path, candidate.modality)
                got = candidates[key]
                assert (got.text, got.image_path, got.modality) == expected
                if image_path:
                    assert (root / image_path).is_file()
    assert not found
    assert num_by_split == {"train": 2 * (NUM_ROWS - NUM_VAL), "val": 2 * NUM_VAL}


def test_the_train_pool_holds_what_train_pairs_name_and_val_has_ids_of_its_own(tmp_path):
    root = write_mmeb_train(tmp_path, num_rows=5)  # WebQA: each candidate once, one pair in val
    mmeb_train(root)
    reader = MBEIRReader(root, texts="verbatim")
    named = {key for q in read(root, "train") for key in (*q.positive_ids, *q.negative_ids)}
    ids = {candidate.candidate_id for candidate in reader.read_union_pool("train")}
    assert ids == named
    assert len([key for key in ids if key.startswith(f"{IDS['WebQA']}:")]) == 4
    val = [c.candidate_id for name in reader.columns("val") for c in reader.read_pool("val", name)]
    assert len(val) == len(set(val)) == 3  # two positives and a negative
    assert ids.isdisjoint(val)


def test_long_texts_and_pictures_alone_survive(tmp_path):
    root, words = write_mmeb_train(tmp_path), "why? " * 2000
    row = {"qry": words, "qry_image_path": "", "pos_text": SLOT, "pos_image_path": "WebQA/red.png"}
    for path in (root / "WebQA").iterdir():
        path.unlink()
    write_table(root / "WebQA" / "original-00000-of-00001.parquet", [row, row])
    mmeb_train(root, subsets=["WebQA"])
    (query,) = read(root, "train")
    assert (query.text, query.task_id) == (f"{words}\n", 0)
    (target,) = MBEIRReader(root, texts="verbatim").read_union_pool("train")
    assert (target.text, target.modality) == ("", "image")
    row |= {"qry": "", "qry_image_path": "WebQA/red.png", "pos_text": "Name it"}
    write_table(root / "WebQA" / "original-00000-of-00001.parquet", [row, row])
    with pytest.raises(DataError, match=r"query WebQA:2: a picture without text .*query_rewrites"):
        mmeb_train(root, subsets=["WebQA"])


def test_formatted_texts_would_differ(root):
    mmeb_train(root, subsets=["ImageNet_1K"])
    pools = [
        MBEIRReader(root, texts=form).read_union_pool("train") for form in ("verbatim", "formatted")
    ]
    texts = [{candidate.text for candidate in pool} for pool in pools]
    assert texts == [
        {f"{name}\n" for name in ("red", "green", "blue", "black", "white")},
        {f"{name}." for name in ("Red", "Green", "Blue", "Black", "White")},
    ]
    sources = [MBEIRReader(root, texts=f).read_sources("val") for f in ("verbatim", "formatted")]
    for column, digests in sources[0].items():  # or embeddings would be shared
        assert digests[0] != sources[1][column][0]
        assert digests[2] != sources[1][column][2]


def test_rationales_find_their_queries(root, tmp_path):
    rows = [make_rationale(name, n) for name in IDS for n in range(1, NUM_ROWS)]
    rows[0]["difficulty"] = 1
    mmeb_train(root, rationales=write_rationales(tmp_path / "rationales.jsonl", rows))
    written = {row["qid"]: row for row in rows}
    for split in ("train", "val"):
        for query in read(root, split, rationale_folder="rationales_oracle"):
            dataset_id, number = map(int, query.query_id.split(":"))
            row = written.get(f"{TRAIN_SUBSETS[dataset_id - FIRST_DATASET_ID]}:{number}")
            if row is None:
                assert query.rationale is None
                continue
            assert query.rationale.text == f"because {number} it is"
            assert query.rationale.source == "oracle"
            assert query.difficulty == row.get("difficulty")


def test_what_is_written_is_kept_and_what_is_of_other_options_goes(root):
    mmeb_train(root)
    queries = root / "query" / "train" / "mbeir_mmeb_WebQA_train.jsonl"
    pool = root / "cand_pool" / "global" / "mbeir_union_train_cand_pool.jsonl"
    times = [path.stat().st_mtime_ns for path in (queries, pool)]
    pool.unlink()  # as if it had been interrupted
    mmeb_train(root)
    assert queries.stat().st_mtime_ns == times[0]
    assert pool.stat().st_mtime_ns > times[1]
    mmeb_train(root, subsets=["ImageNet_1K"])
    assert not queries.exists()
    assert {query.column for query in read(root, "train")} == {"mmeb_ImageNet_1K_task6"}
    mmeb_train(root, style="diverse_instruction")
    assert {query.text for query in read(root, "train")} == {"Name it\n"}


def test_an_interrupted_write_leaves_no_half_file(root, monkeypatch):
    monkeypatch.setattr("tracelib.data.mmeb.train_lines._format_line", lambda fields: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        mmeb_train(root)
    folders = ("query", "cand_pool", "qrels", "instructions")
    assert not [path for name in folders for path in (root / name).rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (make_rationale("CIRR", 1), r":1: qid 'CIRR:1' is not SUBSET:ROW with one of \['Im"),
        (make_rationale("WebQA", 25), r":1: row '25' of WebQA is not in 1 \.\. 24"),
        (make_rationale("WebQA", "x"), r":1: row 'x' of WebQA"),
        ({"qid": "WebQA:1", "teacher": "me", "answer": "a"}, r":1: difficulty -1, reasoning ''"),
    ],
)
def test_a_wrong_rationale_is_named(root, tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        mmeb_train(root, rationales=write_rationales(tmp_path / "rationales.jsonl", [row]))
    assert not list(root.glob("rationales_oracle/*"))


def test_wrong_options_are_named(root, tmp_path):
    with pytest.raises(DataError, match="num_val is 0, must be at least 1"):
        mmeb_train(root, num_val=0)
    with pytest.raises(DataError, match=r"images_root .* is not below .*; move the pictures"):
        mmeb_train(root, images_root=tmp_path)
    with pytest.raises(DataError, match=r"no <subset>/original-\*\.parquet is there"):
        mmeb_train(tmp_path)
    assert not (root / "query").exists()


def test_rge_trains_on_it(root, tmp_path, tiny_backbone):
    rows = [make_rationale(name, n) for name in IDS for n in range(1, NUM_ROWS + 1)]
    path = write_rationales(tmp_path / "rationales.jsonl", rows)
    main(["mmeb-train", f"--root={root}", f"--rationales={path}"])
    args = write_recipe(tmp_path / "run", root, tiny_backbone)
    main(
        [
            "fit",
            *args,
            "--data.texts=verbatim",
            "--data.rationale=oracle",
            "--data.contrastive_rationale=self",
            "--data.rationale_folder=rationales_oracle",
            "--data.num_hard_negatives=1",
            "--model.encoder.init_args.read_offset=0",
            "--model.router_weight=0",
            "--model.rollout.max_tokens=4",
            "--trainer.max_epochs=1",
            "--trainer.limit_train_batches=2",
        ]
    )
    assert list((tmp_path / "run").rglob("last.ckpt"))
