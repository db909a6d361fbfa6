import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from tracelib.models.backbone import LoRA, compute_fingerprint, load_backbone
from tracelib.pretraining.blank import build_blank_backbone

RANK = 3
ADAPTER = LoRA(RANK, 2 * RANK)
HIDDEN, KEYS, MLP, LAYERS = 32, 16, 48, 2
LORA_NUMBERS = RANK * LAYERS * (2 * 2 * HIDDEN + 2 * (HIDDEN + KEYS) + 3 * (HIDDEN + MLP))
MERGED = 4 * 16  # four patches of the vision encoder's width
MERGER_NUMBERS = 16 + (MERGED * MERGED + MERGED) + (MERGED * HIDDEN + HIDDEN)


def load(folder, lora=ADAPTER, emb_token="<|emb|>", train_projector=True):
    return load_backbone(str(folder), emb_token, lora, train_projector, "float32", False)


def count_trained(model):
    """Return the trained numbers by part of the model."""
    counts = {"lora": 0, "merger": 0, "token": 0, "vision": 0, "rest": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = "lora" if "lora_" in name else "merger" if ".merger." in name else "rest"
            part = "token" if "trainable_tokens" in name else part
            part = "vision" if ".visual." in name and part != "merger" else part
            counts[part] += parameter.numel()
    return counts


@pytest.fixture
def backbone(tiny_backbone, tmp_path):
    """A copy of the tiny backbone to break."""
    return shutil.copytree(tiny_backbone, tmp_path / "backbone")


@pytest.fixture(scope="module")
def untied_backbone(tiny_backbone, tmp_path_factory):
    folder = shutil.copytree(tiny_backbone, tmp_path_factory.mktemp("untied") / "backbone")
    config = Qwen2_5_VLConfig.from_pretrained(folder)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    torch.manual_seed(1)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
    return folder


def change_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ["merger.mlp.0.weight", "layers.1.mlp.up_proj.weight"])
def test_a_backbone_that_lacks_a_weight_is_refused(backbone, name):
    def remove(weights):
        (key,) = (key for key in weights if key.endswith(name))
        del weights[key]

    load(backbone)
    change_weights(backbone, remove)
    with pytest.raises(ValueError, match=f"did not load cleanly.*missing_keys.*{name}"):
        load(backbone)


def test_a_backbone_with_a_weight_too_many_is_refused(backbone):
    change_weights(
        backbone, lambda w: w.update({"model.layers.7.mlp.up_proj.weight": torch.ones(2)})
    )
    with pytest.raises(ValueError, match=r"did not load cleanly.*unexpected_keys.*layers\.7\.mlp"):
        load(backbone)


def test_a_weight_of_another_shape_is_refused(backbone):
    change_weights(backbone, lambda w: w.update({next(iter(w)): torch.zeros(3, 3)}))
    with pytest.raises((ValueError, RuntimeError), match=r"shape|mismatch"):
        load(backbone)


@pytest.mark.parametrize("num_spare", [0, 16])
def test_the_embedding_token_takes_a_spare_row_or_adds_one(tiny_backbone, tmp_path, num_spare):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    folder = shutil.copytree(tiny_backbone, tmp_path / "backbone")
    blank = build_blank_backbone(
        tokenizer, 32, 48, 1, 4, 2, 16, 1, vocab_size=len(tokenizer) + num_spare
    )
    blank.save_pretrained(folder)
    old = blank.get_input_embeddings().weight.detach()
    model, emb_token_id = load(folder, lora=None)
    table = model.get_input_embeddings().weight
    assert emb_token_id == len(tokenizer)
    assert len(table) == len(tokenizer) + max(num_spare, 1)
    assert torch.equal(table[: len(tokenizer)], old[: len(tokenizer)])
    assert torch.allclose(table[emb_token_id], old[: len(tokenizer)].mean(0), atol=1e-7)
    assert model.get_output_embeddings().weight is table


def test_a_token_that_the_backbone_knows_keeps_its_row(tiny_backbone, tiny_model):
    model, emb_token_id = load(tiny_backbone, lora=None, emb_token="<|im_end|>")
    assert emb_token_id == AutoTokenizer.from_pretrained(tiny_backbone).eos_token_id
    row = model.get_input_embeddings().weight[emb_token_id]
    assert torch.equal(row, tiny_model().get_input_embeddings().weight[emb_token_id])


@pytest.mark.parametrize("train_projector", [True, False])
def test_trained_are_lora_merger_and_the_tokens_row(tiny_backbone, train_projector):
    model, _ = load(tiny_backbone, train_projector=train_projector)
    merger = MERGER_NUMBERS * train_projector
    expected = {"lora": LORA_NUMBERS, "merger": merger, "token": HIDDEN, "vision": 0, "rest": 0}
    assert count_trained(model) == expected


def test_an_untied_backbone_trains_the_row_of_the_head_too(untied_backbone):
    model, _ = load(untied_backbone)
    assert count_trained(model)["token"] == 2 * HIDDEN


def test_without_lora_all_of_the_language_model_is_trained(tiny_backbone):
    model, _ = load(tiny_backbone, lora=None)
    counts = count_trained(model)
    assert counts["rest"] == sum(p.numel() for p in model.model.language_model.parameters())
    assert (counts["lora"], counts["merger"], counts["vision"]) == (0, MERGER_NUMBERS, 0)
    assert not any(p.requires_grad for p in model.model.visual.blocks.parameters())


def test_a_projector_of_another_name_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match=r"no module .* is called '\.\*resampler'"):
        load_backbone(
            str(tiny_backbone), "<|emb|>", ADAPTER, True, "float32", False, projector=".*resampler"
        )


def quantize(folder, quantization, lora=ADAPTER):
    return load_backbone(
        str(folder), "<|emb|>", lora, True, "float32", False, quantization=quantization
    )[0]


def test_quantized_weights_need_an_adapter(tiny_backbone):
    with pytest.raises(ValueError, match=r"4bit leaves nothing to train without an adapter"):
        quantize(tiny_backbone, "4bit", None)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_quantization_says_what_to_install(tiny_backbone):
    with pytest.raises(ValueError, match=r"8bit needs bitsandbytes.*pip install bitsandbytes"):
        quantize(tiny_backbone, "8bit")


@pytest.mark.parametrize(("quantization", "dtype"), [("8bit", torch.int8), ("4bit", torch.uint8)])
def test_quantized_is_what_is_frozen(tiny_backbone, quantization, dtype):
    """Trained are the same weights, in the same type; the matrices of layers and blocks are not."""
    pytest.importorskip("bitsandbytes")
    model = quantize(tiny_backbone, quantization)
    assert count_trained(model) == count_trained(load(tiny_backbone)[0])
    for name, parameter in model.named_parameters():
        is_layer = name.endswith(("proj.base_layer.weight", "qkv.weight", "attn.proj.weight"))
        assert not is_layer or parameter.dtype == dtype, name
        assert parameter.dtype == torch.float32 or not parameter.requires_grad


def test_fingerprint_changes_with_a_weight_or_the_configuration(backbone):
    prints = [compute_fingerprint(str(backbone))]
    assert compute_fingerprint(str(backbone)) == prints[0]
    change_weights(backbone, lambda w: next(iter(w.values())).flatten()[:1].add_(1))
    prints.append(compute_fingerprint(str(backbone)))
    config = json.loads((backbone / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    (backbone / "config.json").write_text(json.dumps(config))
    prints.append(compute_fingerprint(str(backbone)))
    assert len(set(prints)) == 3


def test_a_configuration_of_the_hubs_form_loads(tiny_backbone, tmp_path):
    """The hub's Qwen2.5-VL says only at the top whether embeddings are tied."""
    folder = tmp_path / "backbone"
    shutil.copytree(tiny_backbone, folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"].pop("tie_word_embeddings", None)
    (folder / "config.json").write_text(json.dumps(config))
    model, _ = load_backbone(str(folder), "<|emb|>", LoRA(2, 4), True, "float32", False)
    rows = [n for n, p in model.named_parameters() if p.requires_grad and "token" in n]
    assert len(rows) == 1


def test_dora_learns_sizes_and_the_gaussian_start_is_one(tiny_backbone, tiny_model):
    plain, _ = load(tiny_backbone)
    rank = 16  # numbers enough to tell the distributions apart
    model, _ = load(tiny_backbone, LoRA(rank, 64, dora=True, gaussian_init=True))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    sizes = [p for name, p in trained.items() if "lora_magnitude_vector" in name]
    assert len(sizes) == 7 * LAYERS
    assert not any("lora_magnitude_vector" in name for name, _ in plain.named_parameters())
    first = torch.cat([p.detach().flatten() for name, p in trained.items() if "lora_A" in name])
    assert first.std() == pytest.approx(1 / rank, rel=0.05)
    assert first.abs().max() > 3 / rank  # no uniform distribution reaches so far
    ids = torch.tensor([[3, 5, 8]])
    with torch.no_grad():
        found, expected = model.eval()(input_ids=ids).logits, tiny_model()(input_ids=ids).logits
    known = expected.shape[-1] - 16  # the last rows are spare, one of them the embedding token's
    torch.testing.assert_close(found[..., :known], expected[..., :known], atol=1e-4, rtol=1e-4)
