"""The formulas against what torch counts and what autograd keeps, on a real Scenes step."""

import dataclasses

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from tests.tiny import RECIPE
from tracelib.callbacks.memory_guard import measure_module, shape_batch
from tracelib.models.backbone import LoRA
from tracelib.models.backbone_parts import PROJECTOR, find_projectors
from tracelib.models.cost import count_flops, estimate_activations, estimate_memory
from tracelib.models.model_sizes import measure_model
from tracelib.models.shapes import build_random, read_config
from tracelib.models.step_shape import ChunkShape, StepShape
from tracelib.planning.measurement import CPU_ATTENTION, estimate_saved
from tracelib.planning.saved_tensors import SavedTensorMeter
from tracelib.recipe import build_cli

ENCODER = "model.encoder.init_args"
VARIANTS = {
    "plain": [],
    "cached": ["--data.micro_batch_size=5"],
    "tokens": ["--data.micro_batch_tokens=400"],
    "all_trained": [f"--{ENCODER}.lora=null"],
    "checkpointed": [f"--{ENCODER}.gradient_checkpointing=true"],
    "eager": [f"--{ENCODER}.attention=eager"],
    "frozen_projector": [f"--{ENCODER}.train_projector=false"],
    "half": [f"--{ENCODER}.dtype=bfloat16"],
}


@pytest.fixture(scope="module")
def recipe(tiny_scenes, tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(yaml.safe_dump({part: RECIPE[part] for part in ("model", "data")}))
    return [f"--config={path}", f"--data.root={tiny_scenes}", "--data.max_image_tokens=64"]


def run_step(recipe, variant):
    """Return module, batch and shape of a step, its operations, and the most that it kept."""
    cli = build_cli([*recipe, *VARIANTS[variant]], run=False)
    cli.datamodule.setup("fit")
    batch = next(iter(cli.datamodule.train_dataloader()))
    module = cli.model.train()
    step = shape_batch(module, batch, "bf16-mixed" if variant == "half" else "32-true", 1)
    meter = SavedTensorMeter(module.parameters())
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, meter:
        with torch.autocast("cpu", torch.bfloat16, enabled=variant == "half"):
            loss = module.joint_step.run(batch, torch.autograd.backward).loss
        loss.backward()
    return measure_module(module), step, counter.get_total_flops(), meter.peak_bytes


RARE = ("tokens", "eager", "frozen_projector")


@pytest.mark.parametrize(
    "variant", [pytest.param(v, marks=[pytest.mark.slow] * (v in RARE)) for v in VARIANTS]
)
def test_a_step_costs_what_the_formulas_say(recipe, variant):
    model, step, flops, kept = run_step(recipe, variant)
    assert step.is_cached == (variant in ("cached", "tokens"))
    # The frozen vision encoder, a sixteenth of it, runs forward once and never backward.
    assert count_flops(model, step).total == pytest.approx(flops, rel=0.02)
    assert estimate_saved(model, step) == pytest.approx(kept, rel=0.05)


def build_step(**changes):
    chunks = (ChunkShape(8, 50, 8, 160, 8), ChunkShape(8, 100, 400, 160, 8))
    return dataclasses.replace(StepShape(chunks, 8, 8, False, False, 4), **changes)


@pytest.fixture(scope="module")
def small():
    model = build_random(read_config("embedded"), LoRA(16, 32), True, "float32", False)
    return measure_model(model, find_projectors(model, PROJECTOR))


def test_attention_and_matrices_are_their_closed_forms(small):
    flops = count_flops(small, build_step())
    tokens, pairs = 8 * 150, 8 * (50**2 + 100**2)
    weights = 4 * (4 * 128**2 + 3 * 128 * 384)
    adapters = 4 * 16 * (4 * 2 * 128 + 3 * (128 + 384))
    projector, head = 320 * (384 * 384 + 384 * 128), 408 * 1024 * 128
    attention = 4 * 4 * 128 * pairs
    assert flops.forward == 2 * (tokens * (weights + adapters) + projector + head) + attention
    assert flops.backward == (
        tokens * (2 * weights + 4 * adapters) + 4 * projector + 4 * head + attention * 5 // 2
    )
    patches, blocks = 1280, 2 * (4 * 96**2 + 3 * 96 * 192)
    seen = 80 + 64  # a picture of 80 patches, a window of 64
    assert flops.vision == 2 * patches * (blocks + 96 * 1176) + 4 * patches * seen * 96
    assert flops.contrastive == 6 * 8 * 8 * 128
    assert flops.checkpointing == flops.cached_gradients == flops.writing == 0


def test_what_saves_memory_costs_a_forward_pass(small):
    plain, cached = (count_flops(small, build_step(is_cached=c)) for c in (False, True))
    checkpointed = count_flops(small, build_step(is_checkpointed=True))
    head = 2 * 408 * 1024 * 128
    assert cached.total - plain.total == cached.cached_gradients == plain.forward - head
    projector = 2 * 320 * (384 * 384 + 384 * 128)
    assert checkpointed.total - plain.total == plain.forward - head - projector
    assert plain.vision == cached.vision == checkpointed.vision


def test_memory_of_weights_and_their_state_is_exact(small):
    memory = estimate_memory(small, build_step())
    trained = small.total.trainable
    assert memory.weights == 4 * small.total.parameters
    assert (memory.gradients, memory.optimizer, memory.buckets) == (4 * trained, 8 * trained, 0)
    assert estimate_memory(small, build_step(), num_devices=2).buckets == 4 * trained
    sharded = estimate_memory(small, build_step(), num_devices=4, num_shards=2)
    assert (sharded.weights, sharded.buckets) == (2 * small.total.parameters, 0)
    assert sharded.optimizer == 4 * trained
    assert memory.total == sum(dataclasses.astuple(memory))


def test_chunks_one_at_a_time_hold_the_largest(small):
    step = build_step()
    held, cached = estimate_memory(small, step), estimate_memory(small, step.split(8))
    sizes = [estimate_activations(small, step, chunk) for chunk in step.chunks]
    assert held.activations == sum(sizes)
    assert cached.activations == max(sizes) == sizes[1]
    assert cached.vision_outputs == 320 * 4 * 96 * 4 > held.vision_outputs == 0
    finer = estimate_memory(small, step.split(2))
    assert finer.activations == pytest.approx(cached.activations / 4, rel=0.01)


def test_splitting_a_step_loses_nothing():
    step = build_step()
    parts = step.split(3)
    assert parts.is_cached
    assert [chunk.num_sequences for chunk in parts.chunks] == [3, 3, 2] * 2
    assert parts.num_tokens == step.num_tokens
    assert sum(chunk.num_targets for chunk in parts.chunks) == 408
