"""The language model that is taken out of a backbone, as transformers loads it from its folder."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from tracelib.construction.text_backbone import export_text

CHAT = [
    {"role": "system", "content": "Work step by step."},
    {"role": "user", "content": "a red star and 12 blue moons: 1 turn clockwise, 2 paint.\n17"},
]


@pytest.fixture(scope="module")
def text_folder(tiny_backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "model"
    export_text(folder, str(tiny_backbone))
    return folder


def test_both_models_are_one_function_of_a_text(tiny_backbone, text_folder):
    whole, alone = (AutoTokenizer.from_pretrained(path) for path in (tiny_backbone, text_folder))
    ids = alone.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt")
    assert whole.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"] == (
        ids["input_ids"][0].tolist()
    )
    model = AutoModelForCausalLM.from_pretrained(text_folder).eval()
    backbone = AutoModelForImageTextToText.from_pretrained(tiny_backbone).eval()
    with torch.no_grad():
        logits, expected = model(**ids).logits, backbone(**ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert model.generation_config.eos_token_id == backbone.generation_config.eos_token_id


def test_tokenizer_is_read_back_as_it_was(tiny_backbone, text_folder):
    states = [
        AutoTokenizer.from_pretrained(path).backend_tokenizer.to_str()
        for path in (tiny_backbone, text_folder)
    ]
    assert states[0] == states[1]


def test_temperature_is_heeded_and_no_token_is_left_out(text_folder):
    config = AutoModelForCausalLM.from_pretrained(text_folder).generation_config
    assert config.do_sample
    assert (config.temperature, config.top_k, config.top_p) == (1.0, 0, 1.0)


def test_same_model_is_left_alone_and_another_is_refused(tiny_backbone, text_folder, tmp_path):
    written = (text_folder / "model.safetensors").stat().st_mtime_ns
    export_text(text_folder, str(tiny_backbone))
    assert (text_folder / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="take another --output"):
        export_text(text_folder)
    (tmp_path / "notes").mkdir()
    with pytest.raises(ValueError, match="holds something else"):
        export_text(tmp_path / "notes", str(tiny_backbone))


def test_other_family_is_refused_and_leaves_nothing(other_backbone, tmp_path):
    with pytest.raises(ValueError, match="is a qwen3_vl; a language model can be"):
        export_text(tmp_path / "model", str(other_backbone("qwen3_vl")))
    assert list(tmp_path.iterdir()) == []


def test_windowed_attention_is_refused(tiny_backbone, tmp_path):
    folder = tmp_path / "windowed"
    shutil.copytree(tiny_backbone, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["layer_types"][1] = "sliding_attention"
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"layers of \['full_attention', 'sliding_attention'\]"):
        export_text(tmp_path / "model", str(folder))


def test_qwen2_vl_is_exported_too(other_backbone, tmp_path):
    folder = other_backbone("qwen2_vl")
    export_text(tmp_path / "model", str(folder))
    ids = torch.arange(10, 40)[None]
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()(ids).logits
        expected = AutoModelForImageTextToText.from_pretrained(folder).eval()(ids).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
