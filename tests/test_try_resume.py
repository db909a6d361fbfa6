import json, torch, math
from pathlib import Path
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.interruptions import *
from tests.test_resume import crash, find_adapter, find_checkpoint, load_file, read_step
from tracelib.cli import main
RECIPE = Path(__file__).parents[1] / "configs" / "trace_scenes.yaml"
def test_shipped(tiny_scenes, tiny_backbone, tmp_path):
    def args(folder, **stop):
        options = {"config": RECIPE, "data.root": tiny_scenes, "data.contrastive_batch_size": 16, "data.task_mixing":"mixed", "checkpoint.every_n_steps": 2,
        "model.encoder.init_args.backbone": tiny_backbone, "model.encoder.init_args.lora.dropout": 0.1, "model.max_rationale_tokens": 4, "trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false", "trainer.limit_train_batches": 5, "trainer.log_every_n_steps": 1, "trainer.default_root_dir": folder, "trainer.logger.init_args.save_dir": folder}
        if stop: options["trainer.callbacks+"] = json.dumps({"class_path": CLASS_PATH, "init_args": stop})
        return [f"--{k}={v}" for k, v in options.items()]
    main(["fit", *args(tmp_path / "a")])
    crash("fit", *args(tmp_path / "b", step=3))
    a, b = (tmp_path / n / "trace_scenes" / "version_0" for n in "ab")
    set_stop(b, step=8); crash("resume", f"--run={b}")
    set_stop(b); main(["resume", f"--run={b}"])
    x, y = (load_file(find_adapter(r)) for r in (a, b))
    assert all(torch.equal(x[k], y[k]) for k in x)
    A, B = (EventAccumulator(str(r)).Reload() for r in (a, b))
    for tag in A.Tags()["scalars"]:
        p, q = ([(e.step, e.value) for e in c.Scalars(tag)] for c in (A, B))
        if p != q and "time" not in tag and "per_sec" not in tag and "seconds" not in tag: print("DIFF", tag, p, q)
    print(A.Tags()["images"] == B.Tags()["images"], sorted(p.name for p in b.iterdir()))
