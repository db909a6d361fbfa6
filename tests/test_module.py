import dataclasses
import json
import math
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.reference import losses as reference
from tests.tiny import build, cut_scenes, read_metrics, rewrite_rows, write_recipe
from tracelib.cli import main
from tracelib.data.datasets import TrainDataset
from tracelib.data.layout import Layout
from tracelib.models.backbone import compute_fingerprint
from tracelib.models.gates import AlwaysGate, NeverGate
from tracelib.recipe import build_cli, find_checkpoint, load_run

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")
ROWS = [0, 3, 5, 8, 21, 30, 31, 40, 47]
WEIGHTS = {"contrastive": 0.7, "lm": 0.3, "router": 2.0}
ARGS = [f"--model.{name}_weight={weight}" for name, weight in WEIGHTS.items()]


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("module") / "scenes")


@pytest.fixture(scope="module")
def args(root, tiny_backbone, tmp_path_factory):
    return write_recipe(tmp_path_factory.mktemp("recipe"), root, tiny_backbone)


@pytest.fixture(scope="module")
def fitted(root, tiny_backbone, tmp_path_factory):
    """What is left in memory after a fit, and its folder."""
    folder = tmp_path_factory.mktemp("fitted")
    args = write_recipe(folder, root, tiny_backbone)
    cli = build_cli(["fit", *args, "--model.warmup_fraction=0.5"], run=True)
    return cli, folder / "tiny" / "version_0"


def make(args, *settings):
    """Return a module whose adapter is not zero, and its data."""
    module, data = build([*args, *settings])
    torch.manual_seed(0)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return module.train(), data


def forget_rationale(root, folder, row):
    """Return a copy of the benchmark in which nobody has judged one of the train queries."""
    copy = shutil.copytree(root, folder / "scenes", copy_function=os.link)
    layout = Layout(copy)
    query_id = json.loads(layout.query("scenes", "train").read_text().splitlines()[row])["qid"]
    rewrite_rows(
        layout.rationales("scenes", "train"),
        lambda rows: [found for found in rows if found["qid"] != query_id],
    )
    return copy


def compute_gradients(module, loss):
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return {n: torch.zeros(()) if g is None else g for n, g in zip(trained, found, strict=True)}


def compare(gradients, expected):
    """Return the largest difference relative to the largest gradient, over all weights."""
    assert set(gradients) == set(expected)
    difference = max((gradients[n] - expected[n]).abs().max() for n in expected)
    return float(difference / max(g.abs().max() for g in expected.values()))


def compute_reference(module, data, rows, masks=True):
    """Return the joint loss of the rows, encoded one by one, by the formulas in float64."""
    singles = [data.train_dataset[[row]] for row in rows]
    queries = [module.encoder(single.query[0]) for single in singles]
    candidates = [module.encoder(single.candidate[0]) for single in singles]
    positives = [single.positive_ids[0].tolist() for single in singles]
    ids = [int(single.candidate_ids[0]) for single in singles]
    left_out = {
        (i, j)
        for i in range(len(ids))
        for j in range(len(ids))
        if i != j and ids[j] in positives[i]
    }
    assert left_out
    targets = torch.cat([output.lm_targets for output in [*queries, *candidates]]).tolist()
    losses = {
        "contrastive": reference.info_nce(
            torch.cat([output.embedding for output in queries]).double(),
            torch.cat([output.embedding for output in candidates]).double(),
            list(range(len(rows))),
            0.05,
            left_out if masks else frozenset(),
        ),
        "lm": reference.lm_loss(
            torch.cat([output.lm_logits for output in [*queries, *candidates]]).double(),
            targets,
            len(targets),
        ),
        "router": reference.router_loss(
            module.router(torch.cat([output.prompt_state for output in queries])).double(),
            [int(single.difficulty[0]) for single in singles],
        ),
    }
    return sum(WEIGHTS[name] * loss for name, loss in losses.items())


def test_joint_loss_is_the_weighted_sum_of_its_terms(args, root, tmp_path):
    """Values and gradients; where a query comes twice, its copy's positive is no negative."""
    module, data = make(args, *ARGS, f"--data.root={forget_rationale(root, tmp_path, ROWS[1])}")
    assert data.train_dataset.queries[ROWS[1]].difficulty is None
    rows = ROWS * 2
    loss = module.training_step(data.train_dataset[rows], 0)["loss"]
    expected = compute_reference(module, data, rows)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = compute_gradients(module, loss)
    assert compare(gradients, compute_gradients(module, expected)) < 1e-4
    unmasked = compute_reference(module, data, rows, masks=False)
    assert loss.item() != pytest.approx(unmasked.item(), rel=1e-3)
    assert compare(gradients, compute_gradients(module, unmasked)) > 1e-2


def test_hard_negatives_count_as_candidates(args):
    module, data = make(args, "--data.num_hard_negatives=1", "--model.lm_weight=0")
    batch = data.train_dataset[ROWS]
    assert len(batch.candidate_ids) > len(ROWS)
    with torch.no_grad():
        loss = module.training_step(batch, 0)["loss"]
        without = build([*args, "--model.lm_weight=0"])[1].train_dataset[ROWS]
        assert loss > module.training_step(without, 0)["loss"]


def test_length_chunks_change_neither_loss_nor_gradients(args):
    module, data = make(args)
    found = []
    for number in (1, 2, 4):
        d = data.train_dataset
        settings = {"micro_batch_size": number}
        chunked = TrainDataset(d.queries, d.pool, d.renderer, "teacher", **settings)[ROWS]
        held = dataclasses.replace(chunked, is_cached=False)
        loss = module.training_step(held, 0)["loss"]
        found.append((loss.item(), compute_gradients(module, loss)))
    for loss, gradients in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        assert compare(gradients, found[0][1]) < 1e-5


@pytest.mark.parametrize("stops", [True, False])
def test_router_gradient_reaches_the_backbone_only_when_configured(args, stops):
    off = ("--model.contrastive_weight=0", "--model.lm_weight=0")
    module, data = make(args, f"--model.router_stop_gradient={stops}", *off)
    loss = module.training_step(data.train_dataset[ROWS], 0)["loss"]
    reached = {n.partition(".")[0] for n, g in compute_gradients(module, loss).items() if g.any()}
    assert reached == ({"router"} if stops else {"router", "encoder"})


def test_without_router_weight_there_is_no_router(args):
    module, data = make(args, "--model.router_weight=0")
    assert module.router is None
    output = module.training_step(data.train_dataset[ROWS], 0)
    assert not output["router_logits"].any()


def test_a_loss_that_is_not_finite_is_refused(args):
    module, data = make(args)
    next(p for p in module.parameters() if p.requires_grad).data.fill_(torch.nan)
    with pytest.raises(ValueError, match="the loss is nan at step 0"):
        module.training_step(data.train_dataset[ROWS], 0)


def test_tasks_are_counted_and_give_the_prior(args):
    module, data = make(args)
    queries = data.train_dataset.queries
    with torch.no_grad():
        module.training_step(data.train_dataset[ROWS], 0)
        module.training_step(data.train_dataset[ROWS], 0)
    for task in range(9):
        known = [queries[i].difficulty for i in ROWS if queries[i].task_id == task]
        assert module.task_counts[task].tolist() == [2 * known.count(0), 2 * known.count(1)]
        expected = sum(known) / len(known) if known else 0
        assert module.get_task_prior(torch.tensor([task])).item() == pytest.approx(expected)


def test_schedule_warms_up_and_decays_to_zero(fitted):
    cli, _ = fitted
    (scale,) = cli.trainer.lr_scheduler_configs[0].scheduler.lr_lambdas
    half = [0.5 * (1 + math.cos(math.pi * step / 3)) for step in range(4)]
    assert [scale(step) for step in range(7)] == pytest.approx([1 / 3, 2 / 3, 1, *half])
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-9)


def test_a_fit_with_cached_gradients_is_the_plain_fit(fitted, root, tiny_backbone, tmp_path):
    """Lightning clears, clips and steps around gradients that are there before it asks for them."""
    args = write_recipe(tmp_path, root, tiny_backbone)
    settings = ["--model.warmup_fraction=0.5", "--data.micro_batch_size=5"]
    main(["fit", *args, *settings, "--trainer.limit_val_batches=0"])
    logged, expected = (read_metrics(run) for run in (tmp_path / "tiny" / "version_0", fitted[1]))
    losses = ["train/loss", "train/contrastive_loss", "train/lm_loss", "train/router_loss"]
    for name in losses:
        assert len(logged[name]) == 6
        assert logged[name] == pytest.approx(expected[name], rel=1e-3), name
    assert "train/collision_rate" in logged


def test_only_trained_weights_change_and_all_of_them_do(fitted, args):
    before = build(args)[0].state_dict()
    after = fitted[0].model
    for name, parameter in after.named_parameters():
        unchanged = torch.equal(parameter, before[name])
        assert unchanged != parameter.requires_grad, name


def test_checkpoint_holds_what_is_trained_and_nothing_else(fitted):
    cli, run = fitted
    checkpoint = torch.load(find_checkpoint(run), weights_only=True)
    trained = {name for name, p in cli.model.named_parameters() if p.requires_grad}
    assert set(checkpoint["state_dict"]) == trained | {"task_counts"}
    assert checkpoint["backbone_fingerprint"] == cli.model.encoder.fingerprint
    parts = ("lora_", "merger", "trainable_tokens", "router.layers")
    assert all(any(part in name for part in parts) for name in trained)
    assert {part for part in parts if any(part in name for name in trained)} == set(parts)


def test_a_reloaded_run_gives_identical_embeddings(fitted, args):
    cli, run = fitted
    module, data, recipe = load_run(run)
    assert recipe["model"]["warmup_fraction"] == 0.5
    data.setup("test")
    loaders = data.build_evaluation_loaders("test", [[0, 1, 2]], [[0, 9, 17, 40]])
    queries, candidates = (next(iter(loader)) for loader in loaders)
    trained = cli.model.eval()
    assert module.task_counts.sum() == trained.task_counts.sum() == 6 * 16
    with torch.no_grad():
        for gate in (NeverGate(), AlwaysGate()):
            output = module.embed_queries(queries, gate)
            expected = trained.embed_queries(queries, gate)
            assert torch.equal(output.embeddings, expected.embeddings)
            assert torch.equal(output.think_probability, expected.think_probability)
            assert output.rationale_token_ids == expected.rationale_token_ids
        expected = trained.embed_candidates(candidates)
        assert torch.equal(module.embed_candidates(candidates), expected)
        untrained = build(args)[0].eval()
        assert not torch.allclose(untrained.embed_candidates(candidates), expected, atol=1e-2)


def test_a_checkpoint_of_another_backbone_is_refused(fitted, args, tiny_backbone, tmp_path):
    _, run = fitted
    other = shutil.copytree(tiny_backbone, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    next(iter(weights.values())).flatten()[:1].add_(1)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    prints = [compute_fingerprint(str(folder)) for folder in (tiny_backbone, other)]
    place = f"--model.encoder.init_args.backbone={other}"
    with pytest.raises(
        ValueError, match="trained on backbone {}, the recipe loads {}".format(*prints)
    ):
        main(["validate", *args, place, f"--ckpt_path={find_checkpoint(run)}"])


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("--model.router_weight=0", r"has unexpected \['router"),
        ("--model.encoder.init_args.train_projector=false", r"has unexpected \[.*merger"),
        (
            "--model.contrastive.init_args.learn_temperature=true",
            r"lacks \['contrastive.log_scale'",
        ),
    ],
)
def test_a_checkpoint_of_another_recipe_is_refused(fitted, args, setting, complaint):
    _, run = fitted
    with pytest.raises(ValueError, match=complaint):
        main(["test", *args, setting, f"--ckpt_path={find_checkpoint(run)}"])


def copy_train_to_val(root):
    """Leave two train queries of each task and one prompt; ask the same queries in val."""
    layout = Layout(root)
    train, pool = layout.query("scenes", "train"), layout.union_pool("train")
    kept: list[dict] = []

    def choose(rows):
        for task in {row["task_id"]: 0 for row in rows}:
            kept.extend([row for row in rows if row["task_id"] == task][:2])
        return kept

    rewrite_rows(train, choose)
    wanted = {i for row in kept for i in row["pos_cand_list"]}
    rewrite_rows(pool, lambda rows: [row for row in rows if row["did"] in wanted])
    for column in layout.find_stems("val"):
        queries = [row for row in kept if column.endswith(f"task{row['task_id']}")]
        ids = [row["pos_cand_list"][0] for row in queries]
        rewrite_rows(layout.query(column, "val"), lambda _, queries=queries: queries)
        shutil.copy(pool, layout.pool(column, "val"))
        rewrite_rows(
            layout.pool(column, "val"), lambda rows, ids=ids: [r for r in rows if r["did"] in ids]
        )
        qrels = layout.qrels(column, "val")
        qrels.unlink()
        lines = [f"{row['qid']} 0 {row['pos_cand_list'][0]} 1 {row['task_id']}" for row in queries]
        qrels.write_text("\n".join(lines))
    table = layout.instructions.read_text().splitlines()
    layout.instructions.unlink()
    layout.instructions.write_text("\n".join("\t".join(row.split("\t")[:5]) for row in table))
    rationales, ids = layout.rationales("scenes", "train"), {row["qid"] for row in kept}
    rewrite_rows(rationales, lambda rows: [row for row in rows if row["qid"] in ids])
    layout.rationales("scenes", "val").unlink()
    shutil.copy(rationales, layout.rationales("scenes", "val"))


def test_an_overfit_run_finds_every_target(root, tiny_backbone, tmp_path):
    """16 queries of all tasks against the union of their targets."""
    copy_train_to_val(shutil.copytree(root, tmp_path / "scenes"))
    args = write_recipe(tmp_path / "runs", tmp_path / "scenes", tiny_backbone)
    epochs = 60
    settings = {
        "data.rationale": "none",
        "model.gate": "tracelib.models.gates.FirstTokenGate",
        "trainer.max_epochs": epochs,
        "trainer.check_val_every_n_epoch": epochs,
    }
    main(["fit", *args, *(f"--{name}={value}" for name, value in settings.items())])
    logged = read_metrics(tmp_path / "runs" / "tiny" / "version_0")
    assert logged["val/union/all_columns/recall@1"] == [1.0]
    assert logged["val/local/mean_recall"] == [1.0]
    assert logged["val/think_rate/all"] == [0.0]
    assert logged["train/loss"][-1] < 0.1 * logged["train/loss"][0]


def test_a_head_gate_without_router_is_refused(args):
    with pytest.raises(ValueError, match=r"HeadGate, but model\.router_weight 0"):
        build([*args, "--model.gate=tracelib.models.gates.HeadGate", "--model.router_weight=0"])
