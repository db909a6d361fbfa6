"""A fit that was stopped goes on in its folder and ends, to the bit, as one that was left alone."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.interruptions import CLASS_PATH, StoppedError, set_stop
from tests.tiny import cut_scenes, read_metrics, write_recipe
from tracelib.cli import main
from tracelib.recipe import find_adapter, find_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
REPOSITORY = Path(__file__).parents[1]
LOGGERS = ("CSVLogger", "TensorBoardLogger")
SETTINGS = [
    "--model.encoder.init_args.lora.dropout=0.1",  # shows a wrong random state
    "--data.num_hard_negatives=1",
    "--data.num_workers=1",  # fetches ahead
    "--checkpoint.every_n_steps=2",
    "--trainer.limit_train_batches=5",
]
NUM_STEPS = 10


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("resume") / "scenes")


@pytest.fixture(scope="module")
def make_args(root, tiny_backbone):
    def make(folder, *settings, **stop):
        """Return the arguments of a fit, whose run is `folder`/tiny/version_0."""
        arguments = write_recipe(folder, root, tiny_backbone)
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
        place = {"save_dir": str(folder), "name": "tiny", "version": 0}
        recipe["trainer"]["logger"] = [
            {"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": place}
            for kind in LOGGERS
        ]
        if stop:
            recipe["trainer"]["callbacks"].append({"class_path": CLASS_PATH, "init_args": stop})
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        return [*arguments[:-1], *SETTINGS, *settings]

    return make


@pytest.fixture(scope="module")
def whole(make_args, tmp_path_factory):
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    main(["fit", *make_args(folder)])
    return folder / "tiny" / "version_0"


def crash(*words):
    with pytest.raises(StoppedError):
        main([*words])


def start(folder, *words):
    with (folder / "log.txt").open("a") as log:  # a pipe would outlive a killed process
        return subprocess.Popen(
            [sys.executable, "-m", "tracelib", *words],
            cwd=REPOSITORY,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def read_step(run):
    return torch.load(find_checkpoint(run), weights_only=True)["global_step"]


def read_logged(run):
    """Return what a run logged, less what is about its speed."""
    speeds = ("per_second", "seconds")
    return {n: v for n, v in read_metrics(run).items() if not any(s in n for s in speeds)}


def check_same(run, whole):
    """Check logs, weights and optimizer of a stopped run; nothing is left of the stops."""
    assert read_logged(run) == read_logged(whole)
    ours, theirs = (load_file(find_adapter(r)) for r in (run, whole))
    assert set(ours) == set(theirs)
    assert [name for name in theirs if not torch.equal(ours[name], theirs[name])] == []
    mine, other = (torch.load(find_checkpoint(r), weights_only=True) for r in (run, whole))
    for key in ("optimizer_states", "lr_schedulers", "epoch", "global_step"):
        torch.testing.assert_close(mine[key], other[key], rtol=0, atol=0)
    files = [
        {str(p.relative_to(r)) for p in r.rglob("*") if "tfevents" not in p.name}
        for r in (run, whole)
    ]
    assert files[0] == files[1]


def check_same_events(run, whole):
    curves = [EventAccumulator(str(r)).Reload() for r in (run, whole)]
    for tag in ("train/loss", "val/local/mean_recall"):
        ours, theirs = ([(e.step, e.value) for e in c.Scalars(tag)] for c in curves)
        assert ours == theirs, tag
    assert len(curves[0].Scalars("train/loss")) == NUM_STEPS


def test_crashes_change_nothing(make_args, whole, tmp_path, recwarn):
    """Amid an epoch, in a validation (SIGTERM), after it, in the next epoch, in the last one."""
    run = tmp_path / "tiny" / "version_0"
    crash("fit", *make_args(tmp_path, step=3))
    assert read_step(run) == 2
    assert find_adapter(run).exists()
    set_stop(run, step=5, moment="validation", how="terminate_one")
    with pytest.raises(SystemExit) as stop:
        main(["resume", f"--run={run}"])
    assert stop.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert read_step(run) == 5
    for step, moment, saved in ((5, "validated", 5), (9, "step", 8), (10, "validation", 10)):
        set_stop(run, step=step, moment=moment)
        crash("resume", f"--run={run}")
        assert read_step(run) == saved
    set_stop(run)
    main(["resume", f"--run={run}"])
    check_same(run, whole)
    check_same_events(run, whole)
    assert not [w for w in recwarn if "resumable" in str(w.message)]
    other = read_metrics(run)["train/loss"]
    assert len(set(other)) == NUM_STEPS  # the control: steps can be told apart


def test_a_killed_and_a_terminated_fit_go_on(make_args, whole, tmp_path):
    """kill -9 amid an epoch, then SIGTERM to every process: that step is finished and saved."""
    run = tmp_path / "tiny" / "version_0"
    fit = start(tmp_path, "fit", *make_args(tmp_path, step=3, how="kill"))
    assert fit.wait(timeout=240) == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
    assert read_step(run) == 2
    set_stop(run, step=7, how="terminate")
    resumed = start(tmp_path, "resume", f"--run={run}")
    assert resumed.wait(timeout=240) == 128 + signal.SIGTERM, (tmp_path / "log.txt").read_text()
    assert read_step(run) == 7
    hint = f"stopped after step 7, which is saved; go on with python -m tracelib resume --run {run}"
    assert hint in (tmp_path / "log.txt").read_text()
    set_stop(run)
    main(["resume", f"--run={run}"])
    check_same(run, whole)


@pytest.mark.parametrize(
    "settings",
    [
        ["--trainer.max_steps=8", "--trainer.max_epochs=-1"],
        ["--trainer.accumulate_grad_batches=2", "--data.num_workers=0"],
        ["--trainer.val_check_interval=2"],
    ],
    ids=["max_steps", "accumulated", "validation_amid_epochs"],
)
@pytest.mark.slow
def test_other_ways_to_count_resume_too(make_args, tmp_path, settings):
    runs = [tmp_path / name / "tiny" / "version_0" for name in ("whole", "cut")]
    main(["fit", *make_args(tmp_path / "whole", *settings)])
    last = read_step(runs[0])
    crash("fit", *make_args(tmp_path / "cut", *settings, step=3))
    for step in range(4, last):
        set_stop(runs[1], step=step, moment="step")
        crash("resume", f"--run={runs[1]}")
    set_stop(runs[1])
    main(["resume", f"--run={runs[1]}"])
    check_same(runs[1], runs[0])


@pytest.mark.slow
def test_fit_goes_on_elsewhere_from_a_checkpoint(make_args, whole, tmp_path):
    """In a folder of its own, whose logs begin where the other's end."""
    crash("fit", *make_args(tmp_path / "cut", "--trainer.limit_val_batches=0", step=3))
    checkpoint = find_checkpoint(tmp_path / "cut" / "tiny" / "version_0")
    main(["fit", *make_args(tmp_path / "new"), f"--ckpt_path={checkpoint}"])
    run = tmp_path / "new" / "tiny" / "version_0"
    assert read_metrics(run)["train/loss"] == read_metrics(whole)["train/loss"][2:]
    ours, theirs = (load_file(find_adapter(r)) for r in (run, whole))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_what_cannot_be_resumed_is_refused(make_args, whole, tmp_path):
    with pytest.raises(ValueError, match=r"last.ckpt is finished: trainer.max_epochs is 2"):
        main(["resume", f"--run={whole}"])
    with pytest.raises(FileNotFoundError, match=r"config.yaml is missing: fit one"):
        main(["resume", f"--run={tmp_path}"])
    crash("fit", *make_args(tmp_path, "--trainer.limit_val_batches=0", step=1))
    run = tmp_path / "tiny" / "version_0"
    with pytest.raises(FileNotFoundError, match=r"last.ckpt is missing: .* fit it anew"):
        main(["resume", f"--run={run}"])


@pytest.mark.slow
def test_five_kills_at_random_moments_change_nothing(make_args, tmp_path):
    settings = ["--trainer.limit_train_batches=1.0", "--data.contrastive_batch_size=4"]
    main(["fit", *make_args(tmp_path / "whole", *settings)])
    rng, words, num_kills = random.Random(0), ["fit", *make_args(tmp_path, *settings)], 0
    run = tmp_path / "tiny" / "version_0"
    for _ in range(5):
        before = count_saves(run)
        process = start(tmp_path, *words)
        while process.poll() is None and count_saves(run) == before:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        num_kills += process.wait() == -signal.SIGKILL
        words = ["resume", f"--run={run}"]
    assert num_kills == 5
    main(words)
    check_same(run, tmp_path / "whole" / "tiny" / "version_0")


def count_saves(run):
    path = find_checkpoint(run)
    return path.stat().st_mtime_ns if path.exists() else 0


DDP = ["--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.limit_val_batches=0"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["terminate", "terminate_one"])
def test_two_processes_stop_together(make_args, tmp_path, how):
    """Whether all processes are told, or the one that is not the first."""
    runs = [tmp_path / name / "tiny" / "version_0" for name in ("whole", "cut")]
    left = start(tmp_path, "fit", *make_args(tmp_path / "whole", *DDP))
    assert left.wait(timeout=240) == 0, (tmp_path / "log.txt").read_text()
    cut = start(tmp_path, "fit", *make_args(tmp_path / "cut", *DDP, step=3, how=how))
    assert cut.wait(timeout=240) == 128 + signal.SIGTERM, (tmp_path / "log.txt").read_text()
    assert 3 <= read_step(runs[1]) <= 4  # a step may begin before the word has gone round
    set_stop(runs[1])
    resumed = start(tmp_path, "resume", f"--run={runs[1]}")
    assert resumed.wait(timeout=240) == 0, (tmp_path / "log.txt").read_text()
    check_same(runs[1], runs[0])


@pytest.mark.slow
def test_one_process_goes_on_for_two(make_args, whole, tmp_path):
    """Equal up to rounding and each rank's own dropout, which is off here."""
    settings = [*DDP, "--model.encoder.init_args.lora.dropout=0"]
    runs = [tmp_path / name / "tiny" / "version_0" for name in ("whole", "cut")]
    main(["fit", *make_args(tmp_path / "whole", settings[-2], settings[-1])])
    cut = start(tmp_path, "fit", *make_args(tmp_path / "cut", *settings, step=3, how="terminate"))
    assert cut.wait(timeout=240) == 128 + signal.SIGTERM, (tmp_path / "log.txt").read_text()
    set_stop(runs[1])
    main(["resume", f"--run={runs[1]}", "--devices=1"])
    found, expected = (read_metrics(run)["train/loss"] for run in runs[::-1])
    assert found == pytest.approx(expected, rel=1e-3)
