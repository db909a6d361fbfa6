import json
from pathlib import Path
from typing import get_args

import pytest
import yaml

from tests.tiny import write_recipe
from tracelib.cli import main
from tracelib.planning.gpus import GPUS
from tracelib.planning.run import GPUName, plan, read_recipe_words
from tracelib.planning.step import MBEIR_COT_QUERIES, count_devices

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(p for p in CONFIGS.glob("*.yaml") if "model" in yaml.safe_load(p.read_text()))
OVERLAYS = sorted((CONFIGS / "overlays").glob("*.yaml"))
SEVEN = CONFIGS / "trace_qwen2_5_vl_7b_mbeir.yaml"


def run_plan(tmp_path, *words):
    path = tmp_path / "plan.json"
    main(["plan", *map(str, words), f"--json_file={path}"])
    return json.loads(path.read_text())


def test_the_7b_recipe_trains_what_the_paper_says(tmp_path, capsys):
    found = run_plan(tmp_path, "--config", SEVEN, "--gpu=H20-96GB", "--num_gpus=16")
    hidden, keys, mlp, layers, rank = 3584, 512, 18_944, 28, 128
    widths = 2 * 2 * hidden + 2 * (hidden + keys) + 3 * (hidden + mlp)
    merged = 4 * 1280
    expected = {
        "vision": 0,
        "projector": 1280 + (merged + 1) * merged + (merged + 1) * hidden,
        "language_model": 0,
        "lora": layers * rank * widths,
        "embedding_rows": 2 * hidden,  # of token table and head, which are not tied
        "router": 2 * hidden + (hidden + 1) * 64 + 65,
    }
    assert expected["lora"] == 322_961_408
    parameters = found["parameters"]
    assert {k: v["trainable"] for k, v in parameters.items() if k != "total"} == expected
    assert parameters["total"]["trainable"] == sum(expected.values())
    backbone = ("vision", "projector", "language_model")
    assert sum(parameters[part]["total"] for part in backbone) == 8_292_166_656
    assert found["records"]["num_queries"] == MBEIR_COT_QUERIES
    assert found["num_steps"] == MBEIR_COT_QUERIES // 1024
    printed = capsys.readouterr().out
    assert "322,961,408" in printed
    assert "16 x H20-96GB at 35% of 148 TFLOP/s" in printed


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_plan(path, tmp_path):
    found = run_plan(tmp_path, "--config", path)
    assert 0 < found["parameters"]["total"]["trainable"] < found["parameters"]["total"]["total"]
    assert found["gpu_hours"] > 0
    assert found["num_gpus"] == count_devices(read_recipe_words(path).trainer)


def test_a_plan_is_its_formulas(tmp_path):
    found = run_plan(
        tmp_path,
        *("--config", SEVEN, "--gpu=A100-80GB", "--num_gpus=8", "--micro_batch_size=4"),
        *("--query_tokens=100", "--candidate_tokens=50", "--image_tokens=200"),
        *("--rationale_tokens=60", "--candidate_images=0", "--num_queries=10240"),
        *("--utilization=0.5", "--hours=2"),
    )
    step = found["step"]
    assert step["num_tokens"] == 128 * (100 + 200 + 60 + 1 + 50 + 1)
    assert (step["num_chunks"], step["is_cached"]) == (64, True)
    assert step["largest_chunk"] == {
        "num_sequences": 4,
        "width": 361,
        "num_targets": 4 * 61,
        "num_image_tokens": 800,
        "num_images": 4,
    }
    assert found["num_steps"] == 10
    assert found["step_seconds"] == pytest.approx(found["flops"]["total"] / (0.5 * 312e12))
    assert found["gpu_hours"] == pytest.approx(found["step_seconds"] * 10 * 8 / 3600)
    assert found["tokens_per_second"] == pytest.approx(step["num_tokens"] * 8 * 10 / 7200)
    assert found["fits"] == (found["memory"]["total"] <= 80 * 2**30)


def test_smaller_chunks_take_less_memory_and_one_more_forward_pass(tmp_path):
    plain, small = (
        run_plan(tmp_path, "--config", SEVEN, f"--micro_batch_size={size}") for size in (64, 2)
    )
    assert small["memory"]["total"] < plain["memory"]["total"] / 1.5
    assert small["flops"] == plain["flops"]


def test_an_overlay_changes_the_plan(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {encoder: {init_args: {lora: {rank: 64}}}}\n")
    found = run_plan(tmp_path, "--config", SEVEN, "--overlay", overlay)
    assert found["parameters"]["lora"]["trainable"] == 322_961_408 // 2


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_has_a_plan(overlay, tmp_path):
    found = run_plan(tmp_path, "--config", SEVEN, "--overlay", overlay)
    assert found["gpu_hours"] > 0


def test_shared_weights_are_shared_within_a_node(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    weights = []
    for strategy in ("ddp", "fsdp", "lightning.pytorch.strategies.ModelParallelStrategy"):
        is_class = "." in strategy
        value = {"class_path": strategy} if is_class else strategy
        overlay.write_text(yaml.safe_dump({"trainer": {"strategy": value}}))
        found = run_plan(tmp_path, "--config", SEVEN, "--overlay", overlay)
        weights.append(found["memory"]["weights"])
        assert (found["memory"]["buckets"] > 0) == (strategy == "ddp")
    assert weights == [weights[0], weights[0] // 16, weights[0] // 8]


def test_own_thoughts_are_written_and_read(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model: {rollout: {max_tokens: 40}}\ndata: {contrastive_rationale: self}\n")
    words = ("--config", SEVEN, "--num_gpus=16")
    plain, own = run_plan(tmp_path, *words), run_plan(tmp_path, *words, "--overlay", overlay)
    assert own["step"]["num_tokens"] - plain["step"]["num_tokens"] == 64 * 41
    assert plain["flops"]["writing"] == 0 < own["flops"]["writing"]


def test_an_unknown_key_is_refused(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(SEVEN.read_text().replace("num_workers:", "num_workes:"))
    with pytest.raises(SystemExit):
        main(["plan", f"--config={recipe}"])
    assert "num_workes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_gpus": 7}, "7 devices cannot share 1024 queries"),
        ({"utilization": 1.5}, "utilization is 1.5, allowed above 0"),
        ({"hours": 0.0}, "hours is 0.0, must be above 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0, must be above 0"),
        ({"image_tokens": -1}, "image_tokens is -1, must be at least 0"),
    ],
)
def test_a_number_out_of_range_is_refused(option, message):
    with pytest.raises(ValueError, match=message):
        plan(SEVEN, **option)


def test_training_queries_are_counted_where_they_are(tmp_path, tiny_backbone, tiny_scenes):
    recipe = write_recipe(tmp_path, tiny_scenes, tiny_backbone)[0].removeprefix("--config=")
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        yaml.safe_dump(
            {
                "model": {"encoder": {"init_args": {"backbone": str(tiny_backbone)}}},
                "data": {"root": str(tiny_scenes)},
                "trainer": {"logger": False},
            }
        )
    )
    words = ("--config", recipe, "--overlay", overlay, "--query_tokens=20", "--measure")
    found = run_plan(tmp_path, *words, "--candidate_tokens=10")
    assert found["records"]["num_queries"] == 160
    assert found["num_steps"] == 2 * (160 // 16)
    measured = found["measured"]
    assert measured["planned_flops"] == pytest.approx(measured["flops"], rel=0.05)
    if measured["device"] == "cpu":
        assert measured["planned_bytes"] == pytest.approx(measured["num_bytes"], rel=0.05)
    assert measured["seconds"] > 0


def test_every_gpu_can_be_named():
    assert set(get_args(GPUName)) == set(GPUS)
