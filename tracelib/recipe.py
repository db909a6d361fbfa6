"""A recipe is a YAML file over one module and one data module; a run is a fitted recipe."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import OmegaConf

from tracelib.data.datamodule import MBEIRDataModule
from tracelib.module import RetrievalModule

_EXACT = {"allow_abbrev": False}
"""A key that is cut short is misspelt, not understood."""


class RecipeCLI(LightningCLI):
    """Lightning's command line over `RetrievalModule` and `MBEIRDataModule`."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Couple data to model: they must agree on backbone, embedding token and seed."""
        parser.link_arguments("seed_everything", "data.seed")
        parser.link_arguments("model.encoder.init_args.backbone", "data.backbone")
        parser.link_arguments("model.encoder.init_args.emb_token", "data.emb_token")

    def before_test(self) -> None:
        """Say so when what is about to run was never trained."""
        if self.config[self.subcommand].ckpt_path is None:
            rank_zero_info("no --ckpt_path: adapter, embedding token and router are untrained")

    before_validate = before_test

    def before_predict(self) -> None:
        """Say the same, and keep predictions on disk only: a pool's need not fit in memory."""
        self.before_test()
        self.config_init[self.subcommand].return_predictions = False


def build_cli(args: list[str] | dict[str, Any] | None, run: bool) -> RecipeCLI:
    """Parse a command line and build what it names; with `run`, also run its subcommand.

    Args:
        args: Arguments, or a recipe as a tree; None takes the process's own.
        run: Whether the arguments start with `fit`, `validate`, `test` or `predict`.
    """
    # Lightning warns of arguments that come from Python; here they are meant to.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    return RecipeCLI(
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
    """Return the runs below a folder that have a recipe and a last checkpoint, oldest first."""
    runs = [
        path.parent
        for path in folder.glob("**/config.yaml")
        if find_checkpoint(path.parent).exists()
    ]
    return sorted(runs, key=lambda run: find_checkpoint(run).stat().st_mtime)


def find_checkpoint(run: Path) -> Path:
    """Return the path of a run's last checkpoint."""
    return run / "checkpoints" / "last.ckpt"


def read_recipe(run: Path) -> dict[str, Any]:
    """Return the recipe of a fitted run.

    Raises:
        FileNotFoundError: The folder holds no recipe or no checkpoint.
    """
    for path in (run / "config.yaml", find_checkpoint(run)):
        if not path.exists():
            raise FileNotFoundError(
                f"{run} is no finished run: {path.name} is missing (fit a recipe first)"
            )
    recipe: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(run / "config.yaml"))  # type: ignore[assignment]
    return recipe


def load_run(run: Path) -> tuple[RetrievalModule, MBEIRDataModule, dict[str, Any]]:
    """Load a fitted run: its module with the last checkpoint, its data module, and its recipe.

    Raises:
        FileNotFoundError: The folder holds no recipe or no checkpoint.
        ValueError: The checkpoint belongs to another backbone or recipe.
    """
    recipe = read_recipe(run)
    # The trainer of the saved recipe may ask for devices that are not here, and is not needed.
    parts = ("seed_everything", "model", "data")
    cli = build_cli({part: recipe[part] for part in parts}, run=False)
    module, data = cli.model, cli.datamodule
    assert isinstance(module, RetrievalModule)
    assert isinstance(data, MBEIRDataModule)
    checkpoint = torch.load(find_checkpoint(run), map_location="cpu", weights_only=True)
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"], strict=False)
    return module.eval(), data, recipe
