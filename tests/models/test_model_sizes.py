import pytest

from tracelib.models.backbone import LoRA
from tracelib.models.backbone_parts import PROJECTOR, find_projectors
from tracelib.models.encoder import Encoder
from tracelib.models.model_sizes import PARTS, PartSize, measure_model
from tracelib.models.shapes import build_random, read_config, read_published_config

PAPER = LoRA()
QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"


def measure(config, lora=PAPER, dtype="bfloat16", train_projector=True):
    model = build_random(config, lora, train_projector, dtype, True)
    return measure_model(model, find_projectors(model, PROJECTOR))


def sum_parameters(model, is_counted=lambda weight: True):
    return sum(weight.numel() for weight in model.parameters() if is_counted(weight))


@pytest.mark.parametrize("lora", [None, LoRA(16, 32)])
@pytest.mark.parametrize("train_projector", [True, False])
def test_weights_counted_without_any_are_those_of_the_loaded_model(lora, train_projector):
    encoder = Encoder(lora=lora, train_projector=train_projector)
    size = measure(read_config("embedded"), lora, "float32", train_projector)
    assert size == measure_model(encoder.model, encoder.projectors)
    assert size.total.parameters == sum_parameters(encoder.model)
    assert size.total.trainable == sum_parameters(encoder.model, lambda w: w.requires_grad)
    assert size.total.weight_bytes == 4 * size.total.parameters
    assert tuple(size.parts) == PARTS


def test_sizes_of_the_7b_shape_are_its_closed_forms():
    size = measure(read_published_config(QWEN))
    layer = 2 * 3584**2 + 2 * 3584 * 512 + 3 * 3584 * 18_944
    vision_block = 4 * 1280**2 + 3 * 1280 * 3420
    assert size.language.matrix_weights == 28 * layer
    assert size.language.adapter_ranks == 28 * 7 * 128
    assert size.language.adapter_inputs == 28 * (6 * 3584 + 18_944)
    assert size.vision.matrix_weights == 32 * vision_block + 1280 * 3 * 2 * 14 * 14
    assert size.vision.projector_weights == 5120**2 + 5120 * 3584
    assert (size.vision.full_blocks, size.vision.window_blocks) == (4, 28)
    assert size.vision.window_patches == 8 * 8
    assert size.parts["language_model"].weight_bytes == 2 * size.parts["language_model"].parameters
    assert size.parts["lora"].weight_bytes == 4 * size.parts["lora"].parameters  # float32


def test_norms_of_heads_and_deep_states_are_seen():
    size = measure(read_published_config("Qwen/Qwen3-VL-4B-Instruct"))
    assert size.language.query_width == 32 * 128 != size.language.hidden
    assert size.language.normalised_width == 2 * 2560 + (32 + 8) * 128
    assert size.vision.num_projectors == 4
    assert size.vision.window_blocks == 0


def test_fewer_bits_shrink_frozen_matrices_alone():
    size = measure(read_published_config(QWEN))
    small = size.quantize(4)
    matrices = size.language.matrix_weights + size.vision.matrix_weights
    assert size.total.weight_bytes - small.total.weight_bytes == matrices * 2 - matrices // 2
    assert small.total.parameters == size.total.parameters
    assert small.parts["lora"] == size.parts["lora"]


def test_parts_add_up():
    assert PartSize() + PartSize(3, 2, 12, 8) == PartSize(3, 2, 12, 8)
