import math

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.reference.losses import info_nce
from tracelib.losses.contrastive import InfoNCELoss


def make_batch(num_queries=5, num_candidates=9, dim=7):
    queries = torch.randn(num_queries, dim, requires_grad=True)
    candidates = torch.randn(num_candidates, dim, requires_grad=True)
    return queries, candidates, torch.randint(num_candidates, (num_queries,))


def compute_with_gradients(loss, queries, candidates):
    return loss.item(), *torch.autograd.grad(loss, (queries, candidates))


def assert_same(found, expected):
    assert found[0] == pytest.approx(float(expected[0]), rel=1e-5)
    for gradient, slow in zip(found[1:], expected[1:], strict=True):
        assert torch.allclose(gradient.double(), slow.double(), atol=1e-5)


@pytest.mark.parametrize("num_candidates", [1, 2, 10])
def test_identical_embeddings_give_log_of_the_candidates(num_candidates):
    loss = InfoNCELoss()(
        torch.ones(3, 4), torch.ones(num_candidates, 4), torch.zeros(3, dtype=torch.long)
    )
    assert loss.item() == pytest.approx(math.log(num_candidates), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("length", [1.0, 17.0])
def test_orthogonal_embeddings_give_the_formula(temperature, length):
    loss = InfoNCELoss(temperature)(length * torch.eye(6)[:2], torch.eye(6), torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(math.log1p(5 * math.exp(-1 / temperature)), abs=1e-6)


@pytest.mark.parametrize("learn_temperature", [False, True])
def test_agrees_with_float64_on_values_and_gradients(learn_temperature):
    queries, candidates, targets = make_batch()
    loss = InfoNCELoss(0.2, learn_temperature)(queries, candidates, targets)
    slow_inputs = queries.double(), candidates.double()
    slow = info_nce(*slow_inputs, targets.tolist(), 0.2)
    expected = compute_with_gradients(slow, *slow_inputs)
    assert_same(compute_with_gradients(loss, queries, candidates), expected)


def make_ids(num_queries=5, num_candidates=9):
    """Targets, ids with copies and foreign positives, and the pairs that these leave out."""
    targets = torch.randint(num_candidates, (num_queries,))
    candidate_ids = torch.randint(4, (num_candidates,)) * 10
    own = candidate_ids[targets]
    other = torch.where(torch.arange(num_queries) % 2 == 0, candidate_ids[0], -1)
    positive_ids = torch.stack([other, own, torch.full_like(own, 77)], dim=1)
    pairs = {
        (row, column)
        for row in range(num_queries)
        for column in range(num_candidates)
        if candidate_ids[column] in positive_ids[row] and column != targets[row]
    }
    return targets, positive_ids, candidate_ids, pairs


def test_false_negatives_are_left_out():
    queries, candidates, _ = make_batch()
    targets, *ids, pairs = make_ids()
    assert 5 < len(pairs) < 35
    slow_inputs = queries.double(), candidates.double()
    slow = info_nce(*slow_inputs, targets.tolist(), 0.2, left_out=pairs)
    expected = compute_with_gradients(slow, *slow_inputs)
    loss = InfoNCELoss(0.2)
    found = compute_with_gradients(loss(queries, candidates, targets, *ids), queries, candidates)
    assert_same(found, expected)
    unmasked = loss(queries, candidates, targets)  # the negative control
    assert unmasked.item() > found[0] + 1e-3


@pytest.mark.parametrize("chunk_size", [1, 3, 4, 11, 12])
@pytest.mark.parametrize("learn_temperature", [False, True])
def test_chunks_change_nothing(chunk_size, learn_temperature):
    queries, candidates, _ = make_batch(11, 20)
    targets, *ids, pairs = make_ids(11, 20)
    loss = InfoNCELoss(0.2, learn_temperature, chunk_size)
    inputs = [queries, candidates, *loss.parameters()]
    value = loss(queries, candidates, targets, *ids)
    gradients = torch.autograd.grad(value, inputs)
    slow_inputs = queries.double(), candidates.double()
    scale = torch.tensor(math.log(5), dtype=torch.float64, requires_grad=True)
    slow = info_nce(*slow_inputs, targets.tolist(), 1 / scale.exp(), left_out=pairs)
    expected = torch.autograd.grad(slow, [*slow_inputs, scale][: len(inputs)])
    assert_same((value.item(), *gradients), (slow.item(), *expected))
    (unmasked,) = torch.autograd.grad(loss(queries, candidates, targets), queries)
    assert (unmasked - expected[0]).abs().max() > 1e-3  # the negative control


def test_masking_a_column_equals_removing_it():
    queries, candidates, _ = make_batch()
    targets = torch.tensor([0, 1, 2, 3, 0])
    candidate_ids = torch.arange(9)
    positive_ids = torch.stack([targets, torch.full_like(targets, 8)], dim=1)
    loss = InfoNCELoss()
    value, query_gradient, gradient = compute_with_gradients(
        loss(queries, candidates, targets, positive_ids, candidate_ids), queries, candidates
    )
    removed = loss(queries, candidates[:8], targets)
    assert_same(
        (value, query_gradient, gradient), compute_with_gradients(removed, queries, candidates)
    )
    assert gradient[8].abs().max() == 0
    assert gradient[:8].abs().max() > 0


def test_everything_masked_but_the_target_gives_zero():
    queries, candidates, targets = make_batch()
    ids = torch.zeros(5, 1, dtype=torch.long), torch.zeros(9, dtype=torch.long)
    found = compute_with_gradients(
        InfoNCELoss()(queries, candidates, targets, *ids), queries, candidates
    )
    assert found[0] == 0
    assert all(torch.equal(g, torch.zeros_like(g)) for g in found[1:])


@pytest.mark.parametrize(("chunk_size", "is_whole"), [(8, False), (64, True)])
def test_logits_and_mask_of_all_pairs_are_never_held(chunk_size, is_whole):
    """Sizes of what autograd keeps, and of all that is computed, forward and backward."""
    queries, candidates, _ = make_batch(64, 96)
    targets, *ids, _ = make_ids(64, 96)
    kept, made = {}, []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            made.extend(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))
            return result

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() // tensor.itemsize
        return tensor

    with Recorder():
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = InfoNCELoss(chunk_size=chunk_size)(queries, candidates, targets, *ids)
        loss.backward()
    assert (max(kept.values()) >= 64 * 96) == is_whole
    assert (max(made) >= 64 * 96) == is_whole
    if not is_whole:
        assert sum(kept.values()) < 64 * 96  # nor in parts, side by side


def test_mean_is_over_queries():
    queries, candidates, targets = make_batch()
    loss = InfoNCELoss()
    parts = [loss(queries[i : i + 1], candidates, targets[i : i + 1]) for i in range(5)]
    assert loss(queries, candidates, targets).item() == pytest.approx(sum(parts).item() / 5)


def test_gradients_of_two_halves_average_to_the_whole():
    queries, candidates, targets = make_batch(num_queries=6)
    loss = InfoNCELoss()
    whole = compute_with_gradients(loss(queries, candidates, targets), queries, candidates)
    halves = (
        loss(queries[:3], candidates, targets[:3]) + loss(queries[3:], candidates, targets[3:])
    ) / 2
    assert_same(compute_with_gradients(halves, queries, candidates), whole)


def test_autocast_does_not_round_the_scores():
    queries, candidates, targets = make_batch(dim=64)
    loss = InfoNCELoss()
    expected = loss(queries, candidates, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (functional.normalize(queries) @ candidates.T).dtype == torch.bfloat16
        found = loss(queries, candidates, targets)
    assert found.item() == expected.item()


def test_low_precision_embeddings_give_a_float32_loss():
    queries, candidates, targets = make_batch()
    low = queries.bfloat16(), candidates.bfloat16()
    loss = InfoNCELoss()(*low, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        InfoNCELoss()(low[0].float(), low[1].float(), targets).item()
    )


def test_learned_temperature_starts_at_the_given_one_and_moves():
    queries, candidates, targets = make_batch()
    fixed, learned = InfoNCELoss(0.2), InfoNCELoss(0.2, learn_temperature=True)
    assert list(fixed.parameters()) == []
    loss = learned(queries, candidates, targets)
    assert loss.item() == pytest.approx(fixed(queries, candidates, targets).item(), rel=1e-6)
    loss.backward()
    step = 1e-3  # scale * exp(step)
    up = InfoNCELoss(0.2 * math.exp(-step))(queries.double(), candidates.double(), targets)
    down = InfoNCELoss(0.2 * math.exp(step))(queries.double(), candidates.double(), targets)
    slope = (up - down).item() / (2 * step)
    assert learned.log_scale.grad.item() == pytest.approx(slope, rel=1e-2)


@pytest.mark.parametrize("target", [-1, 9, -100])
def test_target_out_of_range_is_named(target):
    queries, candidates, targets = make_batch()
    targets[3] = target
    with pytest.raises(ValueError, match=f"query row 3 is {target}; allowed 0 .. 8"):
        InfoNCELoss()(queries, candidates, targets)


def test_a_target_that_is_no_positive_is_named():
    queries, candidates, targets = make_batch()
    candidate_ids = torch.arange(9) + 20
    positive_ids = torch.stack([candidate_ids[targets], torch.full_like(targets, -1)], dim=1)
    positive_ids[2, 0] = 5
    with pytest.raises(ValueError, match=rf"query row 2 has candidate id {20 + targets[2]}, .*5"):
        InfoNCELoss()(queries, candidates, targets, positive_ids, candidate_ids)


def test_negative_candidate_ids_are_named():
    """They would meet the padding of positives."""
    queries, candidates, targets = make_batch()
    candidate_ids = torch.arange(9) - 1
    with pytest.raises(ValueError, match="candidate id of row 0 is -1"):
        InfoNCELoss()(queries, candidates, targets, torch.arange(5)[:, None], candidate_ids)


def test_ids_of_one_side_are_refused():
    queries, candidates, targets = make_batch()
    with pytest.raises(ValueError, match="both or none"):
        InfoNCELoss()(queries, candidates, targets, positive_ids=targets[:, None])
    with pytest.raises(ValueError, match="both or none"):
        InfoNCELoss()(queries, candidates, targets, candidate_ids=torch.arange(9))


@pytest.mark.parametrize(
    ("query_shape", "candidate_shape", "num_targets", "id_shapes", "message"),
    [
        ((5, 7), (9, 6), 5, ((5, 1), (9,)), r"candidates \(9, 6\)"),
        ((5, 7), (9, 7), 4, ((5, 1), (9,)), r"targets \(4,\)"),
        ((0, 7), (9, 7), 0, ((0, 1), (9,)), "Q >= 1"),
        ((5, 7), (9, 7), 5, ((9, 1), (9,)), r"positive_ids \(9, 1\)"),
        ((5, 7), (9, 7), 5, ((5,), (9,)), r"positive_ids \(5,\)"),
        ((5, 7), (9, 7), 5, ((5, 1), (5,)), r"candidate_ids \(5,\); expected .* C = 9"),
    ],
)
def test_shapes_are_checked(query_shape, candidate_shape, num_targets, id_shapes, message):
    targets = torch.zeros(num_targets, dtype=torch.long)
    ids = [torch.zeros(shape, dtype=torch.long) for shape in id_shapes]
    with pytest.raises(ValueError, match=message):
        InfoNCELoss()(torch.randn(query_shape), torch.randn(candidate_shape), targets, *ids)


@pytest.mark.parametrize("chunk_size", [0, -1])
def test_chunk_size_is_checked(chunk_size):
    with pytest.raises(ValueError, match=r"model\.contrastive\.init_args\.chunk_size"):
        InfoNCELoss(chunk_size=chunk_size)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_is_checked(temperature):
    with pytest.raises(ValueError, match=r"above 0 .*\.contrastive\.init_args\.temp"):
        InfoNCELoss(temperature)
