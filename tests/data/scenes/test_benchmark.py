import json
import re
import shutil
import time
from collections import Counter
from dataclasses import replace

import pytest

from tracelib.data.images import load_image
from tracelib.data.mbeir import TASK_MODALITIES, MBEIRReader, check_positives
from tracelib.data.scenes.benchmark import scenes
from tracelib.data.scenes.queries import MIN_POOL_SIZE
from tracelib.types import Rationale

SIZES = {"num_train": 160, "num_val": 80, "num_test": 80}
COLUMNS = [f"scenes_task{task_id}" for task_id in TASK_MODALITIES]
TILE = re.compile(
    r"(?:red|orange|yellow|green|blue|purple) (?:circle|square|triangle|star|heart|moon)"
)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Small trees: `a` and `b` of the same seed, `c` of another."""
    folder = tmp_path_factory.mktemp("trees")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIN_POOL_SIZE, "val", 60)
        patch.setitem(MIN_POOL_SIZE, "test", 60)
        for name, seed in (("a", 0), ("b", 0), ("c", 1)):
            scenes(folder / name, seed, **SIZES)
    return folder


@pytest.fixture(scope="module")
def reader(trees, tmp_path_factory):
    return MBEIRReader(trees / "a", tmp_path_factory.mktemp("tables"))  # the tree stays as written


@pytest.fixture(scope="module")
def oracle_reader(trees, tmp_path_factory):
    return MBEIRReader(trees / "a", tmp_path_factory.mktemp("tables"), "rationales_oracle")


def read_bytes(root):
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_equal_seeds_give_equal_bytes_and_others_do_not(trees):
    first, again, other = (read_bytes(trees / name) for name in "abc")
    assert first == again
    same = [path for path in first.keys() & other.keys() if first[path] == other[path]]
    assert sorted(same) == [
        "instructions/query_instructions.tsv",
        "rationales_all/README.md",
        "rationales_oracle/README.md",
    ]


def test_the_temporary_folder_is_gone(trees):
    assert sorted(path.name for path in trees.iterdir()) == ["a", "b", "c"]


def test_the_layout_is_that_of_mbeir(trees):
    files = {path for path in read_bytes(trees / "a") if not path.startswith("mbeir_images/")}
    expected = {
        "README.md",
        "scenes.json",
        "rationales_all/README.md",
        "rationales_oracle/README.md",
        "instructions/query_instructions.tsv",
        "query/train/mbeir_scenes_train.jsonl",
        "qrels/train/mbeir_scenes_train_qrels.txt",
    }
    for split in ("train", "val", "test"):
        expected.add(f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl")
        expected.add(f"rationales/mbeir_scenes_{split}_rationales.jsonl")
        expected.add(f"rationales_all/mbeir_scenes_{split}_rationales.jsonl")
        expected.add(f"rationales_oracle/mbeir_scenes_{split}_rationales.jsonl")
        for column in COLUMNS if split != "train" else []:
            expected.add(f"cand_pool/local/mbeir_{column}_{split}_cand_pool.jsonl")
            expected.add(f"query/{split}/mbeir_{column}_{split}.jsonl")
            expected.add(f"qrels/{split}/mbeir_{column}_{split}_qrels.txt")
    assert files == expected


def test_the_reader_takes_the_tree(reader):
    queries = reader.read_queries("train")
    assert len(queries) == SIZES["num_train"]
    assert Counter(query.column for query in queries) == dict.fromkeys(COLUMNS, 20)
    check_positives(queries, reader.read_union_pool("train"), "union pool")
    for split in ("val", "test"):
        assert reader.columns(split) == COLUMNS
        for column in COLUMNS:
            queries = reader.read_queries(split, column)
            assert len(queries) == 10
            pool = reader.read_pool(split, column)
            check_positives(queries, pool, column)
            known = {candidate.candidate_id for candidate in pool}
            assert all(known.issuperset(query.negative_ids) for query in queries)
            assert {c.modality for c in pool} == {TASK_MODALITIES[queries[0].task_id][1]}


def test_ids_are_unique(reader):
    dids = [
        candidate.candidate_id
        for split in ("train", "val", "test")
        for candidate in reader.read_union_pool(split)
    ]
    assert len(set(dids)) == len(dids)
    for split in ("train", "val", "test"):
        qids = [query.query_id for query in reader.read_queries(split)]
        assert len(set(qids)) == len(qids)
        assert {row.query_id for row in reader.read_rationales(split)} == set(qids)


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_union_pool_is_the_local_pools_in_order(reader, split):
    local = [candidate for column in COLUMNS for candidate in reader.read_pool(split, column)]
    assert list(reader.read_union_pool(split)) == local


def test_the_position_in_a_pool_tells_nothing(reader):
    positions = []
    for column in COLUMNS:
        pool = reader.read_pool("test", column)
        position = {candidate.candidate_id: i for i, candidate in enumerate(pool)}
        for query in reader.read_queries("test", column):
            positions += [position[key] / len(pool) for key in query.positive_ids]
    assert sum(positions) / len(positions) == pytest.approx(0.5, abs=0.13)  # 4 standard errors
    assert positions != sorted(positions)


def test_train_qrels_repeat_the_positives(reader):
    positives = {query.query_id: query.positive_ids for query in reader.read_queries("train")}
    assert reader.read_qrels("train", "scenes") == positives


def test_every_picture_loads_and_is_used(trees, reader):
    used = set()
    for split in ("train", "val", "test"):
        used |= {query.image_path for query in reader.read_queries(split)}
        used |= {candidate.image_path for candidate in reader.read_union_pool(split)}
    used.discard(None)
    assert used == {path for path in read_bytes(trees / "a") if path.startswith("mbeir_images/")}
    for path in sorted(used)[::10]:
        assert min(load_image(trees / "a", path).size) >= 48


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_rationales_end_in_the_target_of_hard_queries_only(trees, reader, split):
    texts = {c.candidate_id: c.text for c in reader.read_union_pool(split)}
    num_hard, num_compared = 0, 0
    for query in reader.read_queries(split):
        steps = len(re.findall(r"\b[1-4] (?=swap|turn|mirror|flip|paint|make|copy)", query.text))
        assert query.difficulty == (steps > 1)
        if not query.difficulty:
            assert query.rationale is None
            continue
        num_hard += 1
        assert isinstance(query.rationale, Rationale)
        assert query.rationale.source == "teacher"
        assert query.rationale.answer.startswith(f"{steps} ")
        assert len(TILE.findall(query.rationale.reasoning)) == 4 * steps
        answer = TILE.findall(query.rationale.answer)
        target = TILE.findall(texts[query.positive_ids[0]].lower())
        if " below " in texts[query.positive_ids[0]]:
            target = [*target[2:], *target[:2]]
        if target:
            num_compared += 1
            assert answer == target
    factor = 2 if split == "train" else 1
    assert num_hard == factor * (3 * 3 + 3 * 7)
    assert num_compared == factor * (2 * 3 + 2 * 7)  # tasks 1, 2, 6 and 8 have words to compare


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_every_query_has_an_oracle_text_that_ends_in_its_target(reader, oracle_reader, split):
    texts = {c.candidate_id: c.text for c in reader.read_union_pool(split)}
    lengths = Counter()
    for query, taught in zip(
        oracle_reader.read_queries(split), reader.read_queries(split), strict=True
    ):
        assert query.rationale.source == "oracle"
        assert query.difficulty == taught.difficulty
        words = query.rationale.text
        if query.difficulty:
            assert words == taught.rationale.text
        # The form that the backbone reads cards in: numbered states, four tiles each.
        num_states = words.count(".")
        row = rf"{TILE.pattern} {TILE.pattern}"
        form = " ".join(rf"{number} {row} / {row}\." for number in range(num_states))
        assert re.fullmatch(form, words)
        assert len(TILE.findall(words)) == 4 * num_states
        lengths[num_states] += 1
        answer = TILE.findall(query.rationale.answer)
        target = TILE.findall(texts[query.positive_ids[0]].lower())
        if " below " in texts[query.positive_ids[0]]:
            target = [*target[2:], *target[:2]]
        assert target in ([], answer)
    assert set(lengths) == {1, 2, 3, 4, 5}


def test_texts_of_all_queries_are_there_from_a_teacher_too(trees, oracle_reader, tmp_path):
    reader = MBEIRReader(trees / "a", tmp_path, "rationales_all")
    for split in ("train", "val", "test"):
        taught, told = (list(r.read_rationales(split)) for r in (reader, oracle_reader))
        assert {row.source for row in taught} == {"teacher"}
        assert [replace(row, source="oracle") for row in taught] == told


def test_a_tree_of_old_gets_the_rationales_it_lacks(trees, tmp_path, capsys):
    shutil.copytree(trees / "b", tmp_path / "tree")
    for name in ("rationales_all", "rationales_oracle"):
        shutil.rmtree(tmp_path / "tree" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(MIN_POOL_SIZE, "val", 60)
        patch.setitem(MIN_POOL_SIZE, "test", 60)
        scenes(tmp_path / "tree", 0, **SIZES)
    assert "added rationales_all, rationales_oracle" in " ".join(capsys.readouterr().out.split())
    assert read_bytes(tmp_path / "tree") == read_bytes(trees / "a")


def test_task_4_finds_another_drawing(trees, reader):
    pictures = {c.candidate_id: c.image_path for c in reader.read_pool("test", "scenes_task4")}
    for query in reader.read_queries("test", "scenes_task4"):
        drawing, other = (
            trees / "a" / p for p in (query.image_path, pictures[query.positive_ids[0]])
        )
        assert drawing.read_bytes() != other.read_bytes()


def test_rationale_rows_name_their_writer(reader):
    rows = reader.read_rationales("val")
    assert {(row.teacher, row.source, row.confidence) for row in rows} == {
        ("scenes rules", "teacher", 1.0)
    }


def test_manifest_counts_what_is_there(trees, reader):
    manifest = json.loads((trees / "a" / "scenes.json").read_text())
    assert manifest["num_queries"] == {"train": 160, "val": 80, "test": 80}
    for split in ("val", "test"):
        for column in COLUMNS:
            size = manifest["num_candidates"][f"{column}_{split}"]
            assert size == len(reader.read_pool(split, column)) >= 60
    pictures = [path for path in read_bytes(trees / "a") if path.startswith("mbeir_images/")]
    assert sum(manifest["num_pictures"].values()) == len(pictures)


def test_a_finished_tree_is_left_alone(trees, capsys):
    before = {path: path.stat().st_mtime_ns for path in (trees / "a").rglob("*")}
    started = time.monotonic()
    scenes(trees / "a", 0, **SIZES)
    assert time.monotonic() - started < 0.5
    assert "holds this tree already" in " ".join(capsys.readouterr().out.split())
    assert before == {path: path.stat().st_mtime_ns for path in (trees / "a").rglob("*")}


def test_another_tree_is_never_overwritten(trees):
    with pytest.raises(ValueError, match=r"holds the tree of .*'seed': 0.* of .*'seed': 5"):
        scenes(trees / "a", 5, **SIZES)
    with pytest.raises(ValueError, match=r"'val': 80.*'val': 88"):
        scenes(trees / "a", 0, **{**SIZES, "num_val": 88})


def test_a_foreign_folder_is_never_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="is no Scenes tree"):
        scenes(tmp_path / "mine", 0, **SIZES)
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_train", 8), ("num_train", 0), ("num_val", 12), ("num_test", 8200), ("num_test", -8)],
)
def test_a_wrong_number_is_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}, no multiple of"):
        scenes(tmp_path / "tree", 0, **{**SIZES, name: value})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_build_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(MIN_POOL_SIZE, "val", 60)
    monkeypatch.setitem(MIN_POOL_SIZE, "test", None)  # breaks the last of the three splits
    with pytest.raises(TypeError):
        scenes(tmp_path / "tree", 0, **{**SIZES, "num_val": 8})
    assert list(tmp_path.iterdir()) == []
