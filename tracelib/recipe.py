"""A recipe is a YAML file over one module and one data module; a run is a fitted recipe."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import OmegaConf

from tracelib.callbacks.adapter_checkpoint import find_adapter as find_adapter
from tracelib.callbacks.adapter_checkpoint import find_checkpoint as find_checkpoint
from tracelib.callbacks.memory_guard import MemoryGuard
from tracelib.callbacks.run_checkpoint import RunCheckpoint
from tracelib.data.datamodule import MBEIRDataModule
from tracelib.models.adapter_file import read_adapter
from tracelib.module import RetrievalModule

_EXACT = {"allow_abbrev": False}
"""A key that is cut short is misspelt, not understood."""


class RecipeCLI(LightningCLI):
    """Lightning's command line over `RetrievalModule` and `MBEIRDataModule`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Save every run, guard its memory, and couple data to model."""
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(MemoryGuard, "memory_guard")
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("model.encoder.init_args.backbone", "data.backbone")
        parser.link_arguments("model.encoder.init_args.emb_token", "data.emb_token")
        parser.link_arguments("data.contrastive_rationale", "model.contrastive_rationale")

    def before_instantiate_classes(self) -> None:
        """Leave checkpoints out where `trainer.enable_checkpointing` is false."""
        config = self.config.get(self.subcommand, self.config) if self.subcommand else self.config
        if config.trainer.enable_checkpointing is False:
            self._parser(self.subcommand).callback_keys.remove("checkpoint")

    def before_test(self) -> None:
        """Say so when what is about to run was never trained."""
        if self.config[self.subcommand].ckpt_path is None:
            rank_zero_info("no --ckpt_path: adapter, embedding token and router are untrained")

    before_validate = before_test

    def before_predict(self) -> None:
        """Say the same, and keep predictions on disk only: a pool's need not fit in memory."""
        self.before_test()
        self.config_init[self.subcommand].return_predictions = False


class RecipeReader(RecipeCLI):
    """Parses and checks a recipe, and builds nothing: neither data nor weights need be there."""

    def instantiate_classes(self) -> None:
        """Leave the recipe at its words."""


def build_cli(
    args: list[str] | dict[str, Any] | None, run: bool, kind: type[RecipeCLI] = RecipeCLI
) -> RecipeCLI:
    """Parse a command line and build what it names; with `run`, also run its subcommand.

    Args:
        args: Arguments, or a recipe as a tree; None takes the process's own.
        run: Whether the arguments start with `fit`, `validate`, `test` or `predict`.
        kind: The command line to make.
    """
    # Lightning warns of arguments that come from Python; here they are meant to.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    return kind(
        RetrievalModule,
        MBEIRDataModule,
        args=args,
        run=run,
        seed_everything_default=0,
        auto_configure_optimizers=False,
        # Batches know the ranks already, and a sanity check would rank half a pool.
        # Loaders are made anew every epoch, so that a resumed run draws its epoch's batches.
        trainer_defaults={
            "use_distributed_sampler": False,
            "num_sanity_val_steps": 0,
            "reload_dataloaders_every_n_epochs": 1,
        },
        parser_kwargs={
            "parser_mode": "omegaconf",
            "prog": "python -m tracelib",
            **_EXACT,
            **dict.fromkeys(("fit", "validate", "test", "predict"), _EXACT),
        },
        save_config_kwargs={"overwrite": True},
        save_config_callback=SaveConfigCallback if run else None,
    )


def find_runs(folder: Path) -> list[Path]:
    """Return the runs below a folder that have a recipe and an adapter file, oldest first."""
    runs = [
        path.parent for path in folder.glob("**/config.yaml") if find_adapter(path.parent).exists()
    ]
    return sorted(runs, key=lambda run: find_adapter(run).stat().st_mtime)


def read_recipe(run: Path) -> dict[str, Any]:
    """Return the recipe of a fitted run.

    Raises:
        FileNotFoundError: The folder holds no recipe or no adapter file.
    """
    for path in (run / "config.yaml", find_adapter(run)):
        if not path.exists():
            raise FileNotFoundError(
                f"{run} is no finished run: {path.name} is missing (fit a recipe first)"
            )
    recipe: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))  # type: ignore[assignment]
    return recipe


def load_run(run: Path) -> tuple[RetrievalModule, MBEIRDataModule, dict[str, Any]]:
    """Load a fitted run: its module with the last adapter file, its data module, and its recipe.

    Raises:
        FileNotFoundError: The folder holds no recipe or no adapter file.
        ValueError: The adapter belongs to another backbone or recipe, or is damaged.
    """
    recipe = read_recipe(run)
    # The trainer of the saved recipe may ask for devices that are not here, and is not needed.
    parts = ("seed_everything", "model", "data")
    cli = build_cli({part: recipe[part] for part in parts}, run=False)
    module, data = cli.model, cli.datamodule
    assert isinstance(module, RetrievalModule)
    assert isinstance(data, MBEIRDataModule)
    expected, fingerprint = module.list_trained_weights(), module.encoder.fingerprint
    weights = read_adapter(find_adapter(run), expected, fingerprint)
    module.load_state_dict(weights, strict=False)
    return module.eval(), data, recipe
