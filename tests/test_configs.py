"""Every shipped YAML builds what it names."""

from pathlib import Path

import pytest
import yaml

from tracelib.pretraining.run import pretrain
from tracelib.recipe import build_cli

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
RECIPES = [path for path in CONFIGS if "model" in yaml.safe_load(path.read_text())]
LOCAL = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.accelerator=cpu"]


def test_there_are_recipes():
    names = {path.stem for path in RECIPES}
    assert names >= {"trace_scenes", "direct_scenes", "trace_qwen2_5_vl_7b_mbeir"}
    assert {p.stem for p in CONFIGS} - {p.stem for p in RECIPES} == {"pretrain_scenes"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds(path, tiny_backbone, tiny_scenes):
    recipe = yaml.safe_load(path.read_text())
    encoder = recipe["model"]["encoder"]["init_args"]
    settings = [f"--data.root={tiny_scenes}", *LOCAL, "--trainer.strategy=auto"]
    settings += ["--trainer.precision=32-true", "--model.encoder.init_args.dtype=float32"]
    if encoder["backbone"] != "embedded":
        settings.append(f"--model.encoder.init_args.backbone={tiny_backbone}")
    cli = build_cli(["--config", str(path), *settings], run=False)
    rank = encoder["lora"]["rank"]
    sizes = {p.shape[0] for n, p in cli.model.named_parameters() if "lora_A" in n}
    assert sizes == {rank}
    assert cli.model.contrastive_weight == 1.0
    assert (cli.model.router is None) == (recipe["data"]["rationale"] == "none")
    assert cli.datamodule.batch_size == recipe["data"]["batch_size"]


def test_the_pretraining_recipe_names_the_verbs_options():
    settings = yaml.safe_load((CONFIGS[0].parent / "pretrain_scenes.yaml").read_text())
    assert set(settings) == set(pretrain.__annotations__) - {"return"}
