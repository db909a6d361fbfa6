"""Every shipped YAML builds what it names."""

import re
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import ModelParallelStrategy

from tests.tiny_backbones import SMOL_SLOT
from tracelib.models.backbone import LoRA
from tracelib.models.shapes import build_random, read_published_config
from tracelib.pretraining.run import pretrain
from tracelib.recipe import build_cli

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
RECIPES = [path for path in CONFIGS if "model" in yaml.safe_load(path.read_text())]
OVERLAYS = CONFIGS[0].parent / "overlays"
RECIPE_7B = CONFIGS[0].parent / "trace_qwen2_5_vl_7b_mbeir.yaml"
BACKBONES = {
    "qwen2_vl_2b": ("qwen2_vl", "Qwen/Qwen2-VL-2B-Instruct"),
    "qwen2_vl_7b": ("qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct"),
    "qwen3_vl_4b": ("qwen3_vl", "Qwen/Qwen3-VL-4B-Instruct"),
    "qwen3_vl_8b": ("qwen3_vl", "Qwen/Qwen3-VL-8B-Instruct"),
    "smolvlm2_2b": ("smolvlm", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
}
"""Family and backbone of each overlay that changes it."""
WHOLE = ["--trainer.precision=32-true", "--model.encoder.init_args.dtype=float32"]
LOCAL = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.accelerator=cpu"]


def test_there_are_recipes():
    names = {path.stem for path in RECIPES}
    assert names >= {"trace_scenes", "direct_scenes", "trace_qwen2_5_vl_7b_mbeir"}
    assert {p.stem for p in CONFIGS} - {p.stem for p in RECIPES} == {"pretrain_scenes"}
    overlays = {path.stem: path.read_text() for path in OVERLAYS.iterdir()}
    assert set(overlays) == {*BACKBONES, "one_gpu", "fsdp", "debug", "easy_thoughts"}
    assert all(len(text.splitlines()) <= 10 for text in overlays.values())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds(path, tiny_backbone, tiny_scenes):
    recipe = yaml.safe_load(path.read_text())
    encoder = recipe["model"]["encoder"]["init_args"]
    settings = [f"--data.root={tiny_scenes}", *LOCAL, "--trainer.strategy=auto", *WHOLE]
    if encoder["backbone"] != "embedded":
        settings.append(f"--model.encoder.init_args.backbone={tiny_backbone}")
    cli = build_cli(["--config", str(path), *settings], run=False)
    rank = encoder["lora"]["rank"]
    sizes = {p.shape[0] for n, p in cli.model.named_parameters() if "lora_A" in n}
    assert sizes == {rank}
    assert cli.model.joint_step.weights.contrastive == 1.0
    assert (cli.model.router is None) == (recipe["model"].get("router_weight", 1.0) == 0)
    assert cli.datamodule.contrastive_batch_size == recipe["data"]["contrastive_batch_size"]


@pytest.fixture
def build_with_overlay(tiny_backbone, tiny_scenes, other_backbone):
    """Call it for the parts of the 7B recipe with an overlay, on a tiny backbone of its family."""

    def build(overlay, family, settings):
        folder = other_backbone(family) if family else tiny_backbone
        files = [f"--config={RECIPE_7B}", f"--config={OVERLAYS / overlay}.yaml"]
        places = [f"--data.root={tiny_scenes}", f"--model.encoder.init_args.backbone={folder}"]
        return build_cli([*files, *places, *WHOLE, *settings], run=False)

    return build


@pytest.mark.parametrize("overlay", BACKBONES)
def test_an_overlay_changes_the_backbone_and_what_it_needs(build_with_overlay, overlay):
    family, name = BACKBONES[overlay]
    written = yaml.safe_load((OVERLAYS / f"{overlay}.yaml").read_text())
    assert written["model"]["encoder"]["init_args"]["backbone"] == name
    settings = [*LOCAL, "--trainer.strategy=auto"]
    if family == "smolvlm":  # the tiny one's pictures have fewer tokens
        settings.append(f"--data.image_slot.num_tokens={SMOL_SLOT.num_tokens}")
    cli = build_with_overlay(overlay, family, settings)
    assert cli.model.encoder.lora.rank == 128
    assert cli.datamodule.processor.pictures.max_image_tokens == 300
    slot = cli.datamodule.processor.pictures.slot
    assert slot == (SMOL_SLOT if family == "smolvlm" else None)


def test_smolvlm2_s_pictures_are_as_many_tokens_as_its_patches_make():
    slot = yaml.safe_load((OVERLAYS / "smolvlm2_2b.yaml").read_text())["data"]["image_slot"]
    assert slot["num_tokens"] == (384 // 14) ** 2 // 3**2


def test_one_gpu_keeps_the_global_batch(build_with_overlay):
    cli = build_with_overlay("one_gpu", "", ["--trainer.accelerator=cpu"])
    assert (cli.trainer.world_size, cli.datamodule.contrastive_batch_size) == (1, 1024)
    assert cli.datamodule.micro_batch_size == 16


def test_fsdp_shards_and_saves_whole_weights(build_with_overlay):
    cli = build_with_overlay("fsdp", "", LOCAL)
    assert isinstance(cli.trainer.strategy, ModelParallelStrategy)
    assert cli.trainer.strategy._save_distributed_checkpoint is False
    assert cli.trainer.limit_val_batches == 0


def test_some_easy_queries_think_under_easy_thoughts(tiny_scenes):
    files = [
        f"--config={CONFIGS[0].parent / name}.yaml"
        for name in ("trace_scenes", "overlays/easy_thoughts")
    ]
    cli = build_cli([*files, f"--data.root={tiny_scenes}", *LOCAL], run=False)
    cli.datamodule.setup("fit")
    dataset = cli.datamodule.train_dataset
    easy = [place for place, query in enumerate(dataset.queries) if query.difficulty == 0]
    chunks = dataset[easy].query
    num_thoughts = sum(int(((chunk.labels != -100).sum(-1) > 1).sum()) for chunk in chunks)
    assert 0.15 < num_thoughts / len(easy) < 0.35


def test_debug_is_two_steps_on_the_cpu(build_with_overlay):
    cli = build_with_overlay("debug", "", [])
    assert isinstance(cli.trainer.accelerator, CPUAccelerator)
    assert (cli.trainer.max_steps, cli.trainer.world_size) == (2, 1)


def test_the_7b_recipe_trains_lora_the_merger_and_the_tokens_rows():
    """Names and counts on the published shape: 28 layers of 3584, no weights needed."""
    encoder = yaml.safe_load(RECIPE_7B.read_text())["model"]["encoder"]["init_args"]
    lora = LoRA(encoder["lora"]["rank"], encoder["lora"]["alpha"])
    config = read_published_config(encoder["backbone"])
    model = build_random(config, lora, encoder["train_projector"], encoder["dtype"], False)
    counts = {}
    for name, parameter in model.get_base_model().named_parameters():
        if parameter.requires_grad:
            kind = re.sub(r"layers\.\d+\.", "layers.*.", name)
            number, total = counts.get(kind, (0, 0))
            counts[kind] = number + 1, total + parameter.numel()
    hidden, keys, mlp, merged, layers = 3584, 4 * 128, 18_944, 4 * 1280, 28
    linear = {
        **dict.fromkeys(("self_attn.q_proj", "self_attn.o_proj"), (hidden, hidden)),
        **dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), (hidden, keys)),
        **dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (hidden, mlp)),
        "mlp.down_proj": (mlp, hidden),
    }
    expected = {}
    for name, (width, out) in linear.items():
        part = f"model.language_model.layers.*.{name}"
        expected[f"{part}.lora_A.default.weight"] = layers, layers * 128 * width
        expected[f"{part}.lora_B.default.weight"] = layers, layers * 128 * out
    merger = {
        "ln_q.weight": 1280,
        "mlp.0.weight": merged**2,
        "mlp.0.bias": merged,
        "mlp.2.weight": merged * hidden,
        "mlp.2.bias": hidden,
    }
    expected |= {f"model.visual.merger.{name}": (1, size) for name, size in merger.items()}
    for table in ("model.language_model.embed_tokens", "lm_head"):
        expected[f"{table}.token_adapter.trainable_tokens_delta.default"] = 1, hidden
    assert counts == expected
    assert sum(total for _, total in counts.values()) == 367_543_040


def test_the_pretraining_recipe_names_the_verbs_options():
    settings = yaml.safe_load((CONFIGS[0].parent / "pretrain_scenes.yaml").read_text())
    assert set(settings) == set(pretrain.__annotations__) - {"return"}
