from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tracelib.data.collator import ChatProcessor
from tracelib.data.datasets import CandidateDataset, QueryDataset, RecordRenderer, TrainDataset
from tracelib.data.images import ImageError
from tracelib.data.jsonl import write_rows
from tracelib.data.layout import Layout
from tracelib.data.mbeir import MBEIRReader
from tracelib.data.rationales import RationaleRow, write_rationales
from tracelib.data.records import (
    MAX_CANDIDATE_NUMBER,
    MAX_QUERY_NUMBER,
    TASK_MODALITIES,
    encode_id,
)
from tracelib.prompts import Template
from tracelib.types import Candidate, Query, Rationale

EMB = "<|emb|>"
THOUGHT = Rationale("first the moon moves", "blue moon", "teacher")
POOL = {
    c.candidate_id: c
    for c in (
        Candidate("6:1", "A star.", None, "text"),
        Candidate("6:2", "", "moon.png", "image"),
        Candidate("6:3", "A heart.", "moon.png", "image,text"),
        Candidate("6:4", "A card.", None, "text"),
        Candidate("7:9", "Another card.", None, "text"),
    )
}
QUERIES = [
    Query(
        "5:1",
        "a_task0",
        0,
        f"{'moon ' * 5}moon.",
        None,
        "Find it.",
        ("6:2",),
        THOUGHT,
        1,
        ("6:4", "6:1"),
    ),
    Query("5:2", "a_task1", 1, "star.", None, "Find it.", ("6:1", "6:4"), None, 0, ("7:9",)),
    Query("5:3", "a_task4", 4, "", "moon.png", "Find it.", ("6:2",), None, None),
    Query("5:4", "a_task6", 6, "turn turn.", "moon.png", "Find it.", ("6:3",), None, 0, ("6:1",)),
]


def write_tree(root, queries=QUERIES):
    """Write the files that the reader makes these queries and the pool of."""
    layout = Layout(root)
    rows = [
        {
            "qid": q.query_id,
            "query_txt": q.text,
            "query_img_path": q.image_path,
            "query_modality": TASK_MODALITIES[q.task_id][0],
            "pos_cand_list": q.positive_ids,
            "neg_cand_list": q.negative_ids,
            "task_id": q.task_id,
        }
        for q in queries
    ]
    write_rows(layout.query("a", "train"), rows)
    pool = [
        {"did": c.candidate_id, "txt": c.text, "img_path": c.image_path, "modality": c.modality}
        for c in POOL.values()
    ]
    write_rows(layout.union_pool("train"), pool)
    thoughts = [
        RationaleRow(
            q.query_id,
            q.task_id,
            q.difficulty,
            q.rationale and q.rationale.reasoning,
            q.rationale and q.rationale.answer,
            None,
            q.rationale.source if q.rationale else "teacher",
            "someone",
        )
        for q in queries
        if q.difficulty is not None
    ]
    write_rationales(layout.rationales("a", "train"), thoughts)
    lines = ["\t".join((*m, "A", "5", "find it")) for m in TASK_MODALITIES.values()]
    layout.instructions.parent.mkdir(exist_ok=True)
    layout.instructions.write_text("\n".join(["header", *lines]))
    Image.new("RGB", (84, 56), (20, 60, 200)).save(root / "moon.png")
    return MBEIRReader(root)


@pytest.fixture(scope="module")
def processor(tiny_backbone):
    return ChatProcessor(tiny_backbone, EMB)


@pytest.fixture
def renderer(tmp_path, processor):
    write_tree(tmp_path)
    query_template = Template(system="Think.", user_by_task={6: "{text} {instruction}"})
    return RecordRenderer(tmp_path, processor, query_template, Template(), EMB, 64)


def decode(processor, inputs):
    """Return each row's text, and what of it is a target."""
    texts = []
    for ids, mask, labels in zip(
        inputs.input_ids, inputs.attention_mask, inputs.labels, strict=True
    ):
        decoded = processor.tokenizer.decode(ids[mask == 1])
        texts.append((decoded, processor.tokenizer.decode(labels[labels != -100])))
    return texts


def make_dataset(renderer, rationale="teacher", queries=QUERIES, **settings):
    reader = write_tree(renderer.root, queries)
    table = reader.read_queries("train")
    assert list(table) == queries
    return TrainDataset(table, reader.read_union_pool("train"), renderer, rationale, **settings)


def test_integer_ids_do_not_collide():
    ids = ["5:1", "5:9999999", "6:1", "0:1", "10:1", "1:1"]
    assert len({candidate_id_to_int(i) for i in ids}) == len(ids)


def candidate_id_to_int(name):
    return encode_id(name, MAX_CANDIDATE_NUMBER)


def test_a_query_is_its_prompt_its_rationale_and_the_embedding_token(renderer, processor):
    turns = [renderer.render_query(q, q.rationale) for q in QUERIES]
    texts = decode(processor, processor(turns))
    prompts = decode(processor, processor([renderer.render_prompt(q) for q in QUERIES]))
    written = [f"first the moon moves blue moon{EMB}", EMB, EMB, EMB]
    assert [target for _, target in texts] == written
    assert [text for text, _ in texts] == [
        p + w for (p, _), w in zip(prompts, written, strict=True)
    ]
    assert "Find it. moon moon" in texts[0][0]
    assert "turn turn. Find it." in texts[3][0]  # the template of its task
    assert [text.count("<|image_pad|>") for text, _ in texts] == [0, 0, 6, 6]


def test_a_candidate_has_its_text_picture_and_the_embedding_token(renderer, processor):
    turns = [renderer.render_candidate(c) for c in POOL.values()]
    texts = decode(processor, processor(turns))
    assert [target for _, target in texts] == [EMB] * 5
    assert [text.count("<|image_pad|>") for text, _ in texts] == [0, 6, 6, 0, 0]
    assert "A heart." in texts[2][0]
    assert "Think." not in texts[2][0]  # the query's template is not the candidate's


def test_a_long_text_is_cut_and_the_embedding_token_survives(tmp_path, processor):
    renderer = RecordRenderer(tmp_path, processor, Template(), Template(), EMB, 4)
    long = "red star blue moon " * 50
    turns = [
        renderer.render_query(replace(QUERIES[1], text=long), None),
        renderer.render_candidate(replace(POOL["6:1"], text=long)),
    ]
    inputs = processor(turns)
    assert inputs.input_ids.shape[1] < 40
    assert [target for _, target in decode(processor, inputs)] == [EMB, EMB]


def decode_chunks(processor, chunks):
    return [row for chunk in chunks for row in decode(processor, chunk)]


def test_a_batch_pairs_each_query_with_its_positive(renderer, processor):
    """Both sides are in the order of their lengths; the targets tell who belongs to whom."""
    batch = make_dataset(renderer)[[2, 0, 1, 3]]
    queries = [text for text, _ in decode_chunks(processor, batch.query)]
    marks = {0: "Find it. moon", 1: "Find it. star", 3: "turn turn", 2: "Find it.<|im_end|>"}
    order = [next(i for i, mark in marks.items() if mark in text) for text in queries]
    rows = [QUERIES[i] for i in order]
    assert sorted(order) == [0, 1, 2, 3]
    assert order[-1] == 0  # the longest with its rationale comes last
    assert batch.task_ids.tolist() == [q.task_id for q in rows]
    assert batch.query_ids.tolist() == [encode_id(q.query_id, MAX_QUERY_NUMBER) for q in rows]
    assert batch.difficulty.tolist() == [-1 if q.difficulty is None else q.difficulty for q in rows]
    found = batch.candidate_ids[batch.targets]
    assert found.tolist() == [candidate_id_to_int(q.positive_ids[0]) for q in rows]
    assert batch.targets.tolist() != [0, 1, 2, 3]
    candidates = [text for text, _ in decode_chunks(processor, batch.candidate)]
    for query, place in zip(rows, batch.targets.tolist(), strict=True):
        assert POOL[query.positive_ids[0]].text in candidates[place]
    for chunks in (batch.query, batch.candidate):
        lengths = [int(row.sum()) for chunk in chunks for row in chunk.attention_mask]
        assert lengths == sorted(lengths)
    assert not batch.is_cached


def test_all_positives_are_named_so_that_none_becomes_a_negative(renderer):
    batch = make_dataset(renderer)[[1, 0]]
    positives = {tuple(row) for row in batch.positive_ids.tolist()}
    assert positives == {(60000001, 60000004), (60000002, -1)}


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, []),
        (1, [60000004, 70000009, 60000001]),
        (2, [60000004, 60000001, 70000009, 60000001]),
    ],
)
def test_hard_negatives_are_candidates_too(renderer, processor, number, expected):
    batch = make_dataset(renderer, num_hard_negatives=number)[[0, 1, 3]]
    texts = [text for text, _ in decode_chunks(processor, batch.candidate)]
    names = {candidate_id_to_int(name): candidate for name, candidate in POOL.items()}
    assert len(texts) == len(batch.candidate_ids) == 3 + len(expected)
    for text, number in zip(texts, batch.candidate_ids.tolist(), strict=True):
        assert names[number].text in text
        assert ("<|image_pad|>" in text) == (names[number].image_path is not None)
    found = batch.candidate_ids.tolist()
    for place in sorted(batch.targets.tolist(), reverse=True):
        assert found.pop(place) in batch.positive_ids
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("rationale", "contrastive", "written"),
    [("none", "annotated", False), ("teacher", "annotated", True), ("oracle", "self", True)],
)
def test_policy_decides_what_comes_before_the_embedding_token(
    renderer, processor, rationale, contrastive, written
):
    batch = make_dataset(renderer, rationale, contrastive_rationale=contrastive)[[0, 1]]
    targets = [target for _, target in decode_chunks(processor, batch.query)]
    assert sorted(targets) == sorted([THOUGHT.text * written + EMB, EMB])


def test_some_easy_queries_keep_their_rationale(renderer, processor):
    """Only those of difficulty 0 may lose it, and a batch's order does not matter."""
    easy = replace(QUERIES[1], rationale=THOUGHT)
    queries = [QUERIES[0], easy, QUERIES[2], replace(QUERIES[3], rationale=THOUGHT)]
    kept = np.array([False, False, False, True])
    dataset = make_dataset(renderer, queries=queries, easy_rationales=kept)
    for places, written in (([0, 1, 2, 3], [1, 0, 0, 1]), ([3, 1], [1, 0])):
        targets = [target for _, target in decode_chunks(processor, dataset[places].query)]
        assert sorted(targets) == sorted(THOUGHT.text * is_written + EMB for is_written in written)


@pytest.mark.parametrize(
    ("settings", "num_chunks"),
    [
        ({"micro_batch_size": 4}, (1, 2)),
        ({"micro_batch_size": 1}, (4, 7)),
        ({"micro_batch_size": 3}, (2, 3)),
        ({"micro_batch_tokens": 60}, (4, 3)),
        ({"micro_batch_tokens": 60, "micro_batch_size": 1}, (4, 7)),
    ],
)
def test_micro_batches_hold_the_same_rows_within_their_limits(
    renderer, processor, settings, num_chunks
):
    whole = make_dataset(renderer, num_hard_negatives=1)[[0, 1, 2, 3]]
    batch = make_dataset(renderer, num_hard_negatives=1, **settings)[[3, 1, 0, 2]]
    assert batch.is_cached
    assert (len(batch.query), len(batch.candidate)) == num_chunks
    for side in ("query", "candidate"):
        chunks = getattr(batch, side)
        assert decode_chunks(processor, chunks) == decode_chunks(processor, getattr(whole, side))
        for chunk in chunks:
            assert len(chunk.input_ids) <= settings.get("micro_batch_size", 99)
            assert chunk.input_ids.numel() <= settings.get("micro_batch_tokens", 999)
            num_pictures = 0 if chunk.image_grid_thw is None else len(chunk.image_grid_thw)
            assert int(chunk.mm_token_type_ids.sum()) == 6 * num_pictures
    for name in ("task_ids", "query_ids", "targets", "difficulty", "positive_ids", "candidate_ids"):
        assert torch.equal(getattr(batch, name), getattr(whole, name)), name


def test_pictures_wait_for_the_model_as_bytes(renderer, processor):
    """Most of a large batch's memory is its pictures."""
    (chunk,) = make_dataset(renderer, micro_batch_size=2)[[2, 3]].query
    read = processor([renderer.render_query(q, q.rationale) for q in QUERIES[2:]])
    assert (chunk.pixel_values.dtype, read.pixel_values.dtype) == (torch.uint8, torch.float32)
    assert torch.equal(chunk.to("cpu").unpack().pixel_values, read.pixel_values)


def test_a_record_longer_than_a_micro_batch_is_named(renderer):
    dataset = make_dataset(renderer, micro_batch_tokens=30)
    with pytest.raises(ValueError, match=r"query '5:1' has \d+ tokens.* at most 30: raise data\."):
        dataset[[0, 1]]


def test_prompts_are_padded_left_and_know_their_place(renderer, processor):
    dataset = QueryDataset(MBEIRReader(renderer.root).read_queries("train"), renderer, 2)
    batch = dataset[[3, 0]]
    assert batch.indices.tolist() == [3, 0]
    assert batch.task_ids.tolist() == [6, 0]
    assert batch.query_ids.tolist() == [encode_id(f"5:{n}", MAX_QUERY_NUMBER) for n in (4, 1)]
    assert batch.query_ids.dtype == torch.int64
    (inputs,) = batch.inputs
    assert inputs.attention_mask[:, -1].tolist() == [1, 1]
    assert not inputs.attention_mask.all()
    assert (inputs.labels == -100).all()
    assert EMB not in "".join(text for text, _ in decode(processor, inputs))


@pytest.mark.parametrize(
    ("part_size", "sizes"), [(1, [1, 1, 1, 1]), (2, [2, 2]), (3, [2, 2]), (4, [4]), (9, [4])]
)
def test_prompts_come_in_parts_of_one_size_and_order(renderer, processor, part_size, sizes):
    dataset = QueryDataset(MBEIRReader(renderer.root).read_queries("train"), renderer, part_size)
    order = [2, 0, 3, 1]
    parts = dataset[order].inputs
    assert [len(part.input_ids) for part in parts] == sizes
    found = [row for part in parts for row in decode(processor, part)]
    assert found == [decode(processor, dataset[[i]].inputs[0])[0] for i in order]
    for part in parts:  # each as long as its own longest prompt, with its own pictures only
        assert part.attention_mask[:, 0].any()
        num_pictures = sum(QUERIES[order.pop(0)].image_path is not None for _ in part.input_ids)
        assert num_pictures == (0 if part.image_grid_thw is None else len(part.image_grid_thw))


def test_candidates_know_their_place(renderer, processor):
    pool = MBEIRReader(renderer.root).read_union_pool("train")
    batch = CandidateDataset(pool, renderer)[[4, 2]]
    assert batch.indices.tolist() == [4, 2]
    assert "Another card." in decode(processor, batch.inputs)[0][0]


def test_a_broken_picture_names_its_record(renderer):
    dataset = make_dataset(renderer)
    (renderer.root / "moon.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"moon\.png: .* \(the picture of query '5:3'\)"):
        dataset[[2]]
    with pytest.raises(ImageError, match=r"moon\.png: .* \(the picture of candidate '6:2'\)"):
        dataset[[0]]
