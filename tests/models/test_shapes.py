import pytest

from tracelib.assets import EMBEDDED_BACKBONE
from tracelib.models.backbone import LoRA
from tracelib.models.shapes import (
    PUBLISHED_NAMES,
    build_random,
    find_most_image_tokens,
    read_config,
    read_published_config,
)

# As published with each checkpoint (for bfloat16 weights, half the `total_size` of its index).
PUBLISHED_PARAMETERS = {
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "Qwen/Qwen2-VL-7B-Instruct": 8_291_375_616,
    "Qwen/Qwen2.5-VL-3B-Instruct": 3_754_622_976,
    "Qwen/Qwen2.5-VL-7B-Instruct": 8_292_166_656,
    "Qwen/Qwen3-VL-4B-Instruct": 4_437_815_808,
    "Qwen/Qwen3-VL-8B-Instruct": 8_767_123_696,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": 2_246_784_880,
}


@pytest.mark.parametrize("name", PUBLISHED_NAMES)
def test_a_published_model_has_as_many_weights_as_its_checkpoint(name):
    model = build_random(read_published_config(name), None, True, "bfloat16", False)
    assert {weight.device.type for weight in model.parameters()} == {"meta"}
    assert sum(weight.numel() for weight in model.parameters()) == PUBLISHED_PARAMETERS[name]


def test_every_published_model_is_counted():
    assert set(PUBLISHED_NAMES) == set(PUBLISHED_PARAMETERS)


def test_configurations_are_made_anew():
    name = PUBLISHED_NAMES[0]
    read_published_config(name).get_text_config().rope_parameters.clear()
    assert "mrope_section" in read_published_config(name).get_text_config().rope_parameters


def test_a_folder_comes_before_what_is_published(tiny_backbone):
    assert read_config(str(tiny_backbone)).get_text_config().hidden_size == 32
    assert read_config(EMBEDDED_BACKBONE).get_text_config().hidden_size == 128
    assert read_config("Qwen/Qwen2.5-VL-7B-Instruct").get_text_config().hidden_size == 3584


def test_an_unknown_backbone_is_refused_by_name(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no hub is waited for
    with pytest.raises(
        ValueError, match=r"'no/such-model'.*Qwen/Qwen2.5-VL-7B.*encoder\.init_args"
    ):
        read_config("no/such-model")


def test_a_random_model_is_adapted_as_a_loaded_one(tiny_backbone):
    model = build_random(
        read_config(str(tiny_backbone)), LoRA(2, 4), True, "float32", False, device="cpu"
    )
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert any("merger" in name for name in trained)
    assert not any(".blocks." in name or "base_layer" in name for name in trained)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [(EMBEDDED_BACKBONE, 50_176 // 28**2), ("Qwen/Qwen2.5-VL-3B-Instruct", 12_845_056 // 28**2)],
)
def test_most_image_tokens_are_the_image_processors(backbone, expected):
    assert find_most_image_tokens(backbone, read_config(backbone)) == expected


def test_pictures_of_one_size_are_not_guessed():
    name = "HuggingFaceTB/SmolVLM2-2.2B-Instruct"
    with pytest.raises(ValueError, match=r"SmolVLM2.*set --image_tokens"):
        find_most_image_tokens(name, read_config(name))
