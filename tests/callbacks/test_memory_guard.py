import re

import pytest

from tests.tiny import RECIPE
from tracelib.callbacks.memory_guard import (
    MemoryGuard,
    StepTooLargeError,
    read_available_memory,
)
from tracelib.recipe import build_cli

RESERVED = 1.0  # GiB that every estimate holds back


@pytest.fixture
def fit(tiny_backbone, tiny_scenes, tmp_path):
    """Call it to fit one step of the tiny recipe under a guard."""

    def run(limit_gb, **data):
        tree = {part: RECIPE[part] for part in ("model", "data")}
        encoder = {**tree["model"]["encoder"]["init_args"], "backbone": str(tiny_backbone)}
        tree["model"] = {
            **tree["model"],
            "encoder": {**tree["model"]["encoder"], "init_args": encoder},
        }
        tree["data"] = {**tree["data"], "root": str(tiny_scenes), **data}
        tree["trainer"] = {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 1,
            "limit_val_batches": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(tmp_path),
        }
        tree["memory_guard"] = {"limit_gb": limit_gb}
        cli = build_cli(tree, run=False)
        cli.trainer.fit(cli.model, cli.datamodule)
        return cli.trainer

    return run


def test_a_step_that_fits_is_told_of_in_one_line(fit, caplog):
    with caplog.at_level("INFO"):
        assert fit(None).global_step == 1
    lines = [record.message for record in caplog.records if "takes about" in record.message]
    assert len(lines) == 1
    assert re.search(r"a step of 16 queries, \d+ chunks all held, .* GiB of \d", lines[0])


def test_a_step_that_does_not_fit_stops_before_it_runs(fit):
    limit = RESERVED + 0.01
    with pytest.raises(StepTooLargeError, match=r"takes about .* of 1\.01: .*") as caught:
        fit(limit, contrastive_batch_size=128)
    size = int(re.search(r"data\.micro_batch_size (\d+) would fit", str(caught.value))[1])
    assert 1 <= size < 128
    assert fit(limit, contrastive_batch_size=128, micro_batch_size=size).global_step == 1


def test_what_can_never_fit_says_what_else_to_change(fit):
    with pytest.raises(ValueError, match=r"not even one sequence.*max_image_tokens.*quantization"):
        fit(RESERVED)


@pytest.mark.parametrize("limit", [0, -1.5])
def test_a_limit_must_be_above_zero(limit):
    with pytest.raises(ValueError, match=f"limit_gb is {limit}, must be above 0"):
        MemoryGuard(limit)


def test_available_memory_is_that_of_a_machine():
    assert 2**28 < read_available_memory() < 2**50
