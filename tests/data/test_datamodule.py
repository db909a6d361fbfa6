import json
import os
import shutil
from collections import Counter

import pytest
import torch

from tests.tiny import cut_scenes, rewrite_rows
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.data.jsonl import DataError
from tracelib.data.layout import Layout
from tracelib.types import CandidateBatch, QueryBatch

TASKS = (0, 1, 2, 3, 4, 6, 7, 8)


@pytest.fixture(scope="module")
def shared_root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("datamodule") / "scenes")


@pytest.fixture
def root(shared_root, tmp_path):
    """A copy of the tree to break, of links: write no file through."""
    return shutil.copytree(shared_root, tmp_path / "scenes", copy_function=os.link)


@pytest.fixture(scope="module")
def make(tiny_backbone):
    def make(root, stage="fit", **settings):
        data = MBEIRDataModule(root, str(tiny_backbone), num_workers=0, **settings)
        data.setup(stage)
        return data

    return make


def test_stages_read_the_splits_they_need(make, shared_root):
    for stage, splits in (
        ("fit", {"val"}),
        ("validate", {"val"}),
        ("test", {"test"}),
        ("predict", {"test"}),
    ):
        assert set(make(shared_root, stage).evaluation_sets) == splits


def test_evaluation_without_anybody_who_asks_is_refused(make, shared_root):
    with pytest.raises(ValueError, match="RetrievalEvaluation to trainer"):
        make(shared_root, "test").test_dataloader()


def test_a_stage_reads_nothing_else(make, root):
    for path in (*Layout(root).root.glob("*/train/*"), *Layout(root).root.glob("*/val/*")):
        path.unlink()
    make(root, "test")
    with pytest.raises(DataError, match="query/val: no query file"):
        make(root, "validate")


def test_the_up_sampled_file_is_read_where_asked(make, root):
    layout = Layout(root)
    path = layout.query("scenes", "train")
    for name in (path, layout.rationales("scenes", "train"), layout.instructions):
        content = name.read_text().replace('"qid": "10:', '"qid": "9:').replace("\t10\t", "\t9\t")
        name.unlink()
        name.write_text(content)
    layout.union_up_queries.parent.mkdir(parents=True)
    layout.union_up_queries.write_text(path.read_text() * 2)
    path.unlink()
    data = MBEIRDataModule(root, num_workers=0, train_file="union_up")
    with pytest.raises(DataError, match="no row for query '10:"):
        data.setup("fit")  # of the val split: these are Scenes'
    assert len(data.train_dataset) == 320
    assert set(data.train_dataset.queries.columns) == {f"mscoco_task{task}" for task in TASKS}


def test_tasks_too_small_for_a_batch_are_said_once(make, shared_root, caplog):
    tasks = (0, 1, 2, 3, 4, 6, 7, 8)
    names = ", ".join(f"task {task} (20)" for task in tasks)
    limit = "tasks of fewer than 21 train queries are never trained (data.task_mixing): "
    make(shared_root, contrastive_batch_size=21, task_mixing="one_task_per_batch")
    assert caplog.text.count(limit + names) == 1
    caplog.clear()
    make(shared_root, contrastive_batch_size=20, task_mixing="one_task_per_batch")
    make(shared_root, contrastive_batch_size=21)
    assert "never trained" not in caplog.text


def test_tables_are_kept_where_asked(make, root, tmp_path):
    shutil.rmtree(root / ".tracelib", ignore_errors=True)
    make(root, "validate", cache_dir=tmp_path / "tables")
    assert not (root / ".tracelib").exists()
    assert list((tmp_path / "tables").glob("scenes-*/query/val/*/manifest.json"))


def test_pools_are_places_in_the_union_pool(make, shared_root):
    data = make(shared_root, "validate")
    found = data.evaluation_sets["val"]
    assert list(found.pools) == [f"scenes_task{task}" for task in TASKS]
    assert [q.column for q in found.queries] == [c for c in found.pools for _ in range(4)]
    assert sorted(i for pool in found.pools.values() for i in pool) == list(
        range(len(found.candidates))
    )
    for column, pool in found.pools.items():
        ids = [found.candidates[i].candidate_id for i in pool]
        assert ids == [c.candidate_id for c in data.reader.read_pool("val", column)]
        for query in found.queries:
            assert (query.positive_ids[0] in ids) == (query.column == column)


@pytest.mark.parametrize("size", [5, 12])
def test_evaluation_batches_are_those_asked_for(make, shared_root, size):
    data = make(shared_root, "test", eval_batch_size=3, eval_window=2)
    found = data.evaluation_sets["test"]
    asked = [
        [list(range(len(records)))[start::size] for start in range(size)]
        for records in (found.queries, found.candidates)
    ]
    data.plan_evaluation = lambda split: tuple(asked) if split == "test" else ([], [])
    loaders = data.test_dataloader()
    for loader, records in zip(loaders, (found.queries, found.candidates), strict=True):
        batches = list(loader)
        assert isinstance(batches[0], QueryBatch) == (records is found.queries)
        assert [batch.indices.tolist() for batch in batches] == asked[records is not found.queries]
        for batch in batches:
            if isinstance(batch, CandidateBatch):
                assert len(batch.inputs.input_ids) == len(batch.indices)
            else:
                sizes = [len(part.input_ids) for part in batch.inputs]
                assert max(sizes) <= 3  # read at once, whatever is asked for
                assert sum(sizes) == len(batch.indices)
                assert torch.equal(batch.query_ids, torch.from_numpy(records.ids[batch.indices]))
                tasks = torch.from_numpy(records.task_ids[batch.indices])
                assert torch.equal(batch.task_ids, tasks.long())


@pytest.mark.parametrize(
    "name",
    [
        "contrastive_batch_size",
        "micro_batch_size",
        "micro_batch_tokens",
        "eval_batch_size",
        "eval_window",
    ],
)
def test_a_size_below_one_is_refused(make, shared_root, name):
    with pytest.raises(ValueError, match=rf"{name} is 0, must be at least 1 \(data\.{name}\)"):
        make(shared_root, **{name: 0})


def test_training_batches(make, shared_root):
    data = make(shared_root, contrastive_batch_size=16, num_hard_negatives=1)
    batches = list(data.train_dataloader())
    assert len(batches) == 160 // 16
    assert any(len(set(batch.task_ids.tolist())) > 2 for batch in batches)
    known = {c.candidate_id for c in data.reader.read_union_pool("train")}
    for batch in batches:
        ids = [f"{i // 10**7}:{i % 10**7}" for i in batch.candidate_ids.tolist()]
        assert set(ids) <= known
        assert 16 <= len(ids) <= 32
    assert any(len(batch.candidate_ids) > 16 for batch in batches)
    one_task = make(shared_root, contrastive_batch_size=16, task_mixing="one_task_per_batch")
    assert all(len(set(batch.task_ids.tolist())) == 1 for batch in one_task.train_dataloader())


def test_training_draws_prompts_and_evaluation_takes_the_first(make, shared_root):
    data = make(shared_root)
    chosen = {q.instruction for q in data.train_dataset.queries if q.task_id == 3}
    assert len(chosen) > 1
    fixed = {q.instruction for q in data.evaluation_sets["val"].queries if q.task_id == 3}
    assert fixed == {"Find the caption of this picture."}
    other = [q.instruction for q in make(shared_root, seed=1).train_dataset.queries]
    assert other != [q.instruction for q in data.train_dataset.queries]


def test_without_rationales_every_target_is_the_embedding_token(make, shared_root):
    counts = {}
    for policy in ("none", "teacher"):
        data = make(shared_root, rationale=policy, contrastive_batch_size=160)
        (batch,) = data.train_dataloader()
        targets = [int((row != -100).sum()) for chunk in batch.query for row in chunk.labels]
        counts[policy] = sum(number > 1 for number in targets)
        assert min(targets) == 1
    hard = sum(q.rationale is not None for q in data.train_dataset.queries)
    assert counts == {"none": 0, "teacher": hard}
    assert hard > 10


def test_oracle_rationales_are_refused_as_what_embeddings_are_read_after(make, root):
    path = Layout(root).rationales("scenes", "train")
    rewrite_rows(path, lambda rows: [{**row, "source": "oracle"} for row in rows])
    with pytest.raises(
        ValueError, match=r"have seen their target.*contrastive_rationale to 'self'"
    ):
        make(root, rationale="teacher")
    make(root, rationale="none")
    data = make(root, rationale="oracle", contrastive_rationale="self", contrastive_batch_size=160)
    (batch,) = data.train_dataloader()
    targets = [int((row != -100).sum()) for chunk in batch.query for row in chunk.labels]
    assert max(targets) > 1  # the text of the language-modelling loss is still there


def test_settings_of_tasks_and_micro_batches_reach_the_batches(make, shared_root):
    data = make(
        shared_root,
        contrastive_batch_size=16,
        task_weights={0: 0.0, 7: 1e9},
        mixing_temperature=1e3,
        micro_batch_size=3,
        micro_batch_tokens=400,
    )
    batches = list(data.train_dataloader())
    counts = Counter(task for batch in batches for task in batch.task_ids.tolist())
    assert len(batches) == 10
    assert counts.keys() == {1, 2, 3, 4, 6, 7, 8}
    assert max(counts.values()) - min(counts.values()) <= 2
    assert all(batch.is_cached for batch in batches)
    chunks = [chunk for batch in batches for chunk in (*batch.query, *batch.candidate)]
    assert max(len(chunk.input_ids) for chunk in chunks) == 3
    assert max(chunk.input_ids.numel() for chunk in chunks) <= 400
    weighted = make(shared_root, contrastive_batch_size=16, task_weights={7: 1e9})
    assert {t for batch in weighted.train_dataloader() for t in batch.task_ids.tolist()} == {7}


def test_an_unknown_positive_is_named(make, root):
    path = Layout(root).query("scenes", "train")
    rewrite_rows(path, lambda rows: [{**rows[0], "pos_cand_list": ["10:999999"]}, *rows[1:]])
    qid = json.loads(path.read_text().splitlines()[0])["qid"]
    with pytest.raises(DataError, match=f"no candidate '10:999999', a positive of query '{qid}'"):
        make(root)


@pytest.mark.parametrize(
    "text",
    [
        "<|image_pad|> card <|im_end|>",
        "card <|vision_start|><|image_pad|><|vision_end|>",
        "card <|emb|>",
        "card <|im_end\r|> more",
    ],
)
def test_a_record_cannot_inject_control_tokens(make, root, text):
    """Special tokens are those of template, pictures and end, whatever a text says."""

    def count(data):
        (batch,) = data.train_dataloader()
        special = sorted(data.processor.tokenizer.all_special_ids)
        pad = data.processor.tokenizer.pad_token_id
        inputs = [*batch.query, *batch.candidate]
        return [sum(int((x.input_ids == i).sum()) for x in inputs) for i in special if i != pad]

    settings = {"rationale": "none", "contrastive_batch_size": 160}
    expected = count(make(root, **settings))
    assert min(expected) > 100
    layout = Layout(root)
    change = {"query_txt": text}
    rewrite_rows(
        layout.query("scenes", "train"),
        lambda rows: [{**r, **(change if r["query_txt"] else {})} for r in rows],
    )
    rewrite_rows(
        layout.union_pool("train"),
        lambda rows: [{**r, "txt": text if r["txt"] else r["txt"]} for r in rows],
    )
    assert count(make(root, **settings)) == expected


@pytest.mark.gpu
def test_page_locked_sequences_reach_the_device_whole(make, shared_root):
    data = make(shared_root, contrastive_batch_size=16, micro_batch_size=4)
    batch = next(iter(data.train_dataloader()))
    pinned = batch.pin_memory()
    for chunk, copy in zip(batch.query, pinned.query, strict=True):
        assert copy.input_ids.is_pinned()
        assert torch.equal(copy.to("cuda").input_ids.cpu(), chunk.input_ids)
