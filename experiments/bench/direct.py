"""Measures direct training against sentence-transformers' trainer with cached in-batch loss.

python experiments/bench/direct.py [--batch_size 256] [--micro_batch_size 32] [--tuning lora]

Text pairs of Scenes (captions and passages), the embedded backbone's language model, float32. Both
sides train with cached gradients at the same contrastive batch and micro-batch, optimizer, clipping
and LoRA (ours also trains the embedding token's row), tokenize while they train, and read the state
of the last token. Theirs is used as documented: `SentenceTransformerTrainer` with
`CachedMultipleNegativesRankingLoss`. Before anything is timed, embeddings of the same texts must
agree within 1e-4, and so must the loss of a batch.

`samples_ratio` is of pairs per second, ours by theirs, steps after the first two, data loading
included; each run is a process of its own, the sides take turns, and medians are compared.
`memory_ratio` is of the peaks of these processes, ours by theirs; `memory_growth_ratio` leaves out
what each held with model and data loaded.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import tempfile
from pathlib import Path
from typing import Literal

import torch
from direct_ours import build_ours
from jsonargparse import auto_cli
from recipe_steps import build_recipe
from report import Row, make_row, print_rows, write_rows
from text_pairs import export_text_model, read_pairs, write_text_tree
from text_training import Measured, TextTraining, run_side

_LIMITS = {"samples_ratio": ">= 1", "memory_ratio": "<= 1"}
_MAX_DIFFERENCE = 1e-4


def bench_direct(
    config: Path = Path("configs/direct_scenes.yaml"),
    root: Path = Path("data/scenes"),
    tuning: Literal["lora", "full"] = "lora",
    batch_size: int = 256,
    micro_batch_size: int = 32,
    num_steps: int = 12,
    num_threads: int = 2,
    num_runs: int = 3,
) -> list[Row]:
    """Measure, print the rows and write them to direct.json.

    Args:
        config: Our recipe.
        root: The Scenes tree that text pairs are taken from.
        tuning: What both sides train: `lora` as in the recipe, `full` for all of the language
            model.
        batch_size: Pairs of a step.
        micro_batch_size: Most sequences encoded at once.
        num_steps: Steps of a run, at least 4.
        num_threads: Threads of both sides.
        num_runs: Runs of each side, of which the median counts.

    Raises:
        ModuleNotFoundError: sentence-transformers is missing.
    """
    options = dict(locals())
    if importlib.util.find_spec("sentence_transformers") is None:
        raise ModuleNotFoundError("sentence-transformers is missing: pip install -e '.[bench]'")
    torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory() as folder:
        sizes = (batch_size, micro_batch_size, num_steps, num_threads)
        training = write_training(config, root, Path(folder), tuning, *sizes)
        checked = check_sides(training)
        scripts = ("direct_ours.py", "direct_theirs.py")
        runs = [[run_side(script, training) for script in scripts] for _ in range(num_runs)]
    values = compare_runs([ours for ours, _ in runs], [theirs for _, theirs in runs]) | checked
    rows = [make_row("direct", k, v, _LIMITS.get(k, "")) for k, v in values.items()]
    print_rows(rows)
    write_rows("direct", rows, options)
    return rows


def write_training(
    config: Path,
    root: Path,
    folder: Path,
    tuning: Literal["lora", "full"],
    batch_size: int,
    micro_batch_size: int,
    num_steps: int,
    num_threads: int,
) -> TextTraining:
    """Write pairs and text model to a folder; return training as the recipe has it."""
    write_text_tree(root, folder / "tree")
    recipe, _ = build_recipe(config, {"data.root": folder / "tree"})
    lora = recipe.encoder.lora if tuning == "lora" else None
    (group,) = recipe.optimizer(recipe.parameters()).param_groups
    settings = {"data.root": folder / "tree", "model.encoder.init_args.lora": "null"}
    whole, data = build_recipe(config, settings)
    export_text_model(whole.encoder, data.processor.tokenizer, folder / "text_model")
    (folder / "pairs.json").write_text(json.dumps(read_pairs(data)))
    return TextTraining(
        folder=str(folder),
        config=str(config),
        lora_rank=None if lora is None else lora.rank,
        lora_alpha=0 if lora is None else lora.alpha,
        learning_rate=group["lr"],
        weight_decay=group["weight_decay"],
        temperature=recipe.contrastive.temperature,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        num_steps=num_steps,
        num_threads=num_threads,
    )


def check_sides(training: TextTraining) -> dict[str, float]:
    """Check that both sides do the same with a batch.

    Returns:
        The largest difference of embeddings, the difference of losses relative to one, and how many
        parameters each side trains.

    Raises:
        ValueError: A difference is over 1e-4.
    """
    from direct_theirs import build_loss, build_theirs  # only where its package is

    cli = build_ours(training)
    cli.datamodule.setup("fit")
    module, dataset = cli.model, cli.datamodule.train_dataset
    model = build_theirs(training)
    pairs = json.loads((Path(training.folder) / "pairs.json").read_text())
    places = list(range(training.batch_size))
    alone = [dataset[[place]] for place in places]
    chunks = [batch.query[0] for batch in alone] + [batch.candidate[0] for batch in alone]
    with torch.no_grad():
        features = [model.preprocess(side[: training.batch_size]) for side in pairs.values()]
        parts = [model(dict(feature))["sentence_embedding"] for feature in features]
        difference = torch.cat([module.encoder.embed(chunk) for chunk in chunks]) - torch.cat(parts)
        their_loss = build_loss(training, model).calculate_loss([[part] for part in parts]).item()
    output = module.joint_step.run(dataset[places], torch.autograd.backward)
    our_loss = output.losses["contrastive_loss"].item()
    values = {
        "embedding_difference": difference.abs().max().item(),
        "loss_difference": abs(our_loss - their_loss) / abs(their_loss),
    }
    if max(values.values()) > _MAX_DIFFERENCE:
        raise ValueError(f"the sides disagree, so times mean nothing: {values}")
    for name, side in (("trained_parameters", module), ("their_trained_parameters", model)):
        values[name] = float(sum(p.numel() for p in side.parameters() if p.requires_grad))
    return values


def compare_runs(ours: list[Measured], theirs: list[Measured]) -> dict[str, float]:
    """Return ratios of the medians, and what they are made of.

    >>> compare_runs([Measured(30, 1e6, 5e6)], [Measured(20, 2e6, 10e6)])["samples_ratio"]
    1.5
    """
    medians = [
        (
            statistics.median(run.samples_per_second for run in side),
            statistics.median(run.peak for run in side),
            statistics.median(run.peak - run.held for run in side),
        )
        for side in (ours, theirs)
    ]
    (rate, peak, growth), (their_rate, their_peak, their_growth) = medians
    return {
        "samples_ratio": rate / their_rate,
        "memory_ratio": peak / their_peak,
        "memory_growth_ratio": growth / their_growth,
        "samples_per_second": rate,
        "their_samples_per_second": their_rate,
        "peak_mb": peak / 1e6,
        "their_peak_mb": their_peak / 1e6,
    }


if __name__ == "__main__":
    auto_cli(bench_direct)
