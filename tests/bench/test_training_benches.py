"""The benches of training steps: what they compare is equal, and their rows are there."""

import contextlib
import dataclasses

import pytest
import torch
import yaml

from tests.tiny import RECIPE
from tracelib.assets import EMBEDDED_BACKBONE
from tracelib.models.shapes import read_config
from tracelib.models.vision_memory import VisionMemory

LIMITS = {
    "gradcache/step_time_ratio": "<= 1.4",
    "gradcache/memory_ratio": "<= 1.25",
    "direct/samples_ratio": ">= 1",
    "direct/memory_ratio": "<= 1",
    "rge/step_time_ratio": "<= 2.5",
    "rge/cached_step_time_ratio": "<= 1.6",
    "profile/loading_share": "<= 0.05",
}


@pytest.fixture
def config(tiny_backbone, tiny_scenes, tmp_path):
    recipe = yaml.safe_load(yaml.safe_dump(RECIPE))
    recipe["model"]["encoder"]["init_args"]["backbone"] = str(tiny_backbone)
    recipe["data"]["root"] = str(tiny_scenes)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def make_direct(config):
    """Return the recipe without rationales."""
    return add(
        config,
        model={"lm_weight": 0.0, "router_weight": 0.0},
        data={"rationale": "none"},
    )


def check_rows(rows, bench):
    """All rows are of one bench, and its limits stand beside the values they are of."""
    stated = {f"{row['bench']}/{row['metric']}": row["against"] for row in rows}
    assert {row["bench"] for row in rows} == {bench}
    assert {n: limit for n, limit in LIMITS.items() if n.startswith(f"{bench}/")}.items() <= (
        stated.items()
    )


@pytest.fixture
def written(load_script, monkeypatch, tmp_path):
    """Where benches that are run in this process write."""
    monkeypatch.setattr(load_script("report"), "_FOLDER", tmp_path)
    return tmp_path


def test_gradcache_compares_equal_steps(config, tiny_scenes, load_script):
    gradcache = load_script("gradcache")
    values = gradcache.compare_steps(config, tiny_scenes, 8, 3, 1)
    assert values["step_time_ratio"] > 0
    assert 0 < values["worst_gradient_difference"] < 1e-5
    held, peak = gradcache.measure_steps(config, tiny_scenes, 8, 3, 1)
    assert 0 < held < peak


def test_steps_of_other_queries_are_not_timed(config, tiny_scenes, load_script):
    steps, gradcache = load_script("recipe_steps"), load_script("gradcache")
    module, data = steps.build_recipe(config, gradcache.set_batch(tiny_scenes, 8, None))
    step = steps.RecipeStep(module)
    before = {name: p.clone() for name, p in step.trained.items()}
    with pytest.raises(ValueError, match="the steps disagree, so times mean nothing"):
        step.compare(data.train_dataset[[0, 1, 2]], data.train_dataset[[0, 1, 3]])
    assert all(torch.equal(p, before[name]) for name, p in step.trained.items())
    step.take(data.train_dataset[[0, 1, 2]])
    assert not all(torch.equal(p, before[name]) for name, p in step.trained.items())


def test_both_sides_of_direct_training_embed_alike(config, tiny_scenes, load_script, tmp_path):
    pytest.importorskip("sentence_transformers")
    direct, config = load_script("direct"), make_direct(config)
    for tuning in ("lora", "full"):
        folder = tmp_path / tuning
        folder.mkdir()
        training = direct.write_training(config, tiny_scenes, folder, tuning, 6, 4, 4, 1)
        values = direct.check_sides(training)
        assert max(values["embedding_difference"], values["loss_difference"]) < 1e-5
        extra = values["trained_parameters"] - values["their_trained_parameters"]
        assert extra == (32 if tuning == "lora" else 0)  # the embedding token's row
    with pytest.raises(ValueError, match="the sides disagree"):
        direct.check_sides(dataclasses.replace(training, temperature=0.7))


def test_rge_steps_think_as_long_as_rationales_are(config, tiny_scenes, load_script, written):
    rge_config = add(config, data={"rationale": "oracle", "contrastive_rationale": "self"})
    rows = load_script("rge").bench_rge(rge_config, config, tiny_scenes, 4, 1, 1)
    values = {row["metric"]: row["value"] for row in rows}
    assert abs(values["thought_tokens"] - values["rationale_tokens"]) <= 1
    assert values["step_time_ratio"] > values["cached_step_time_ratio"] > 0
    check_rows(rows, "rge")
    assert (written / "rge.json").exists()


def add(config, **parts):
    """Return the recipe with changed values, in a file beside it."""
    recipe = yaml.safe_load(config.read_text())
    for part, values in parts.items():
        recipe[part] |= values
    path = config.with_name("changed.yaml")
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_profile_shares_add_up_and_pictures_are_read_once(
    config, tiny_scenes, load_script, micro_batch_size, written
):
    profile = load_script("step_profile")
    rows = profile.bench_step(
        config, tiny_scenes, "embedded", 8, micro_batch_size, num_threads=1, num_steps=3
    )
    check_rows(rows, "profile")
    values = {row["metric"]: row["value"] for row in rows}
    shares = {f"{part}_share": values[f"{part}_share"] for part in profile.PARTS}
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0
    assert values["vision_passes"] == 1
    assert values["gflops_per_second"] > 0
    assert (written / "step_profile-embedded-cpu.json").exists()


def test_a_tower_that_is_read_twice_is_reported(config, load_script, monkeypatch):
    profile, steps = load_script("step_profile"), load_script("recipe_steps")
    module, data = steps.build_recipe(config, {"data.contrastive_batch_size": 8})
    batch = data.train_dataset[list(range(8))]
    twice = dataclasses.replace(batch, is_cached=True)
    monkeypatch.setattr(VisionMemory, "share", lambda *args: contextlib.nullcontext())
    with pytest.raises(ValueError, match=r"read each picture \{2\.0\} times a step"):
        profile.profile_steps(module, iter([twice] * 4), 1)


def test_a_random_backbone_trains_on_the_recipes_pictures(config, load_script, tmp_path):
    profile, steps = load_script("step_profile"), load_script("recipe_steps")
    folder = tmp_path / "random"
    profile.write_random_backbone(read_config(EMBEDDED_BACKBONE), folder, "float32", "cpu")
    settings = {
        "data.contrastive_batch_size": 8,
        "model.encoder.init_args.backbone": folder,
        "model.encoder.init_args.gradient_checkpointing": "true",
    }
    module, data = steps.build_recipe(config, settings)
    batch = data.train_dataset[list(range(8))]
    assert any(chunk.pixel_values is not None for chunk in (*batch.query, *batch.candidate))
    assert profile.profile_steps(module, iter([batch] * 4), 1)["vision_passes"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bench", "sizes"),
    [
        ("gradcache", {"small_batch_size": 4, "large_batch_size": 8}),
        ("direct", {"num_steps": 4}),
    ],
)
def test_training_benches_from_the_command_line(bench, sizes, config, tiny_scenes, run_script):
    if bench == "direct":
        pytest.importorskip("sentence_transformers")
        config = make_direct(config)
    shared = {"config": config, "root": tiny_scenes, "num_threads": 1, "num_runs": 1}
    sizes = {"batch_size": 8, "micro_batch_size": 3} | sizes
    report, output = run_script(f"{bench}.py", f"{bench}.json", **shared, **sizes)
    check_rows(report["rows"], bench)
    assert all(row["value"] > 0 for row in report["rows"] if "ratio" in row["metric"])
    assert "memory_ratio" in output
