import dataclasses
import random

import pytest
import torch

from tests.reference.chunking import find_best_cost
from tests.tiny import build, cut_scenes, write_recipe
from tracelib.data.micro_batches import form_chunks
from tracelib.joint_step import JointStep, LossWeights

ROWS = [0, 3, 5, 8, 21, 30, 31, 40, 47, 3]


def count_padded(lengths, chunks):
    return sum(len(chunk) * max(lengths[i] for i in chunk) for chunk in chunks)


def name_rows(lengths):
    return [f"row {i}" for i in range(len(lengths))]


@pytest.mark.parametrize("limits", [(3, None), (None, 40), (3, 40), (2, 20), (1, None), (9, 999)])
@pytest.mark.parametrize("seed", range(4))
def test_no_split_within_the_limits_is_better(limits, seed):
    lengths = random.Random(seed).choices(range(2, 21), k=7)
    chunks = form_chunks(lengths, name_rows(lengths), *limits)
    assert sorted(i for chunk in chunks for i in chunk) == list(range(7))
    assert max(map(len, chunks)) <= (limits[0] or 7)
    assert max(count_padded(lengths, [chunk]) for chunk in chunks) <= (limits[1] or 999)
    found = len(chunks), count_padded(lengths, chunks)
    assert found == find_best_cost(lengths, None, *limits)


@pytest.mark.parametrize("lengths", [[5], [4, 4, 4], [1, 9], [3, 3, 9, 8, 2, 9, 7], [9, 1, 1, 1]])
def test_without_a_limit_at_most_two_chunks_have_the_least_padding(lengths):
    chunks = form_chunks(lengths, name_rows(lengths))
    assert (count_padded(lengths, chunks), len(chunks)) == find_best_cost(lengths, 2)


def test_rows_are_in_one_order_whatever_order_they_come_in():
    lengths = random.Random(0).choices(range(2, 9), k=40)
    names = [f"{i:02}" for i in range(40)]
    pairs = list(zip(lengths, names, strict=True))
    expected = None
    for seed in range(3):
        random.Random(seed).shuffle(pairs)
        mixed_lengths, mixed_names = map(list, zip(*pairs, strict=True))
        chunks = form_chunks(mixed_lengths, mixed_names, 7, 40)
        found = [[mixed_names[i] for i in chunk] for chunk in chunks]
        assert found == (expected or found)
        expected = found
    order = [pair for chunk in expected for name in chunk for pair in pairs if pair[1] == name]
    assert order == sorted(pairs)


def test_a_row_that_no_chunk_can_hold_is_named():
    with pytest.raises(
        ValueError,
        match=r"query 'b' has 90 tokens.*at most 50: raise data\.micro_batch_tokens.*"
        r"data\.max_text_tokens or data\.max_image_tokens",
    ):
        form_chunks([9, 90, 8], ["query 'a'", "query 'b'", "query 'c'"], None, 50)


@pytest.fixture(scope="module")
def recipe(tiny_scenes, tiny_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("micro_batches")
    root = cut_scenes(tiny_scenes, folder / "scenes")
    return [*write_recipe(folder, root, tiny_backbone), "--data.num_hard_negatives=2"]


def test_losses_do_not_depend_on_chunks(recipe):
    """Also of a query that comes twice, and of hard negatives, which not all queries have."""
    module, data = build(recipe)
    step = JointStep(module.encoder, module.router, module.contrastive, LossWeights(1, 1, 1))
    dataset, found = data.train_dataset, []

    def compute(batch):
        held = dataclasses.replace(batch, is_cached=False)
        with torch.no_grad():
            losses = step.run(held, lambda loss: None).losses
        return {name: loss.item() for name, loss in losses.items()}

    expected = compute(dataset[ROWS])
    for size, tokens, rows in ((1, None, ROWS), (4, None, ROWS[::-1]), (None, 300, ROWS)):
        dataset.micro_batch_size, dataset.micro_batch_tokens = size, tokens
        batch = dataset[rows]
        assert batch.is_cached
        chunks = [*batch.query, *batch.candidate]
        assert max(len(chunk.input_ids) for chunk in chunks) <= (size or 99)
        assert max(chunk.input_ids.numel() for chunk in chunks) <= (tokens or 9999)
        found.append(len(batch.query))
        losses = compute(batch)
        assert losses.keys() == {"contrastive_loss", "lm_loss", "router_loss"}
        assert losses == pytest.approx(expected, rel=1e-5)
    assert found[:2] == [10, 3]
    rolled = {"targets": batch.targets.roll(1), "positive_ids": batch.positive_ids.roll(1, 0)}
    wrong = dataclasses.replace(batch, **rolled)
    assert compute(wrong)["contrastive_loss"] != pytest.approx(
        expected["contrastive_loss"], rel=1e-3
    )
    wrong = dataclasses.replace(batch, difficulty=batch.difficulty.roll(1))
    assert compute(wrong)["router_loss"] != pytest.approx(expected["router_loss"], rel=1e-3)


def test_chunks_of_one_length_waste_less_than_chunks_as_drawn(recipe):
    _, data = build(recipe)
    dataset = data.train_dataset
    dataset.micro_batch_size = 8
    batch = dataset[list(range(64))]

    def measure_waste(chunks):
        num_real = sum(int(chunk.attention_mask.sum()) for chunk in chunks)
        return 1 - num_real / sum(chunk.input_ids.numel() for chunk in chunks)

    queries = dataset.queries[:64]
    turns = [dataset.renderer.render_query(query, query.rationale) for query in queries]
    drawn = [dataset.renderer.processor(turns[i : i + 8]) for i in range(0, 64, 8)]
    assert measure_waste(batch.query) < 0.15
    assert measure_waste(drawn) > 0.4
