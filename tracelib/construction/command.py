"""The `cot` verb: builds M-BEIR-CoT from any M-BEIR tree, with any teacher."""

from __future__ import annotations

import asyncio
import inspect
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from tracelib.construction.build import Build, Step
from tracelib.construction.dry_run import estimate_build, print_estimate
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.progress_display import ProgressDisplay
from tracelib.construction.queries import SourceQueries
from tracelib.construction.recipe import ConstructionRecipe
from tracelib.construction.text_backbone import export_text

_STEPS: dict[str, tuple[Step, ...]] = {
    "build": ("assess", "generate", "filter"),
    "assess": ("assess",),
    "generate": ("generate",),
    "filter": ("filter",),
    "report": (),
}
_HELP = {
    "build": "Run all phases, then write the rows and the report.",
    "assess": "Say of each query whether it needs thought.",
    "generate": "Have a teacher write rationales of the queries that do.",
    "filter": "Judge the rationales by the rules and the verifier.",
    "report": "Write the rows and the report of what is there.",
}
_WRITES = ("build", "report")
_EXPORT = "export-text"


def cot(words: Sequence[str]) -> None:
    """Build M-BEIR-CoT: ask teachers for rationales, filter them, and write rows that `fit` takes.

    Every row goes to the work folder as soon as it is there. A build that was stopped, however, or
    whose recipe was changed, goes on where it was, and asks again for what changed alone.

    Args:
        words: Subcommand and options.

    Raises:
        ValueError: Something is wrong with the recipe, the data, the work folder or a teacher.
    """
    parser = _make_parser()
    config = parser.parse_args(list(words))
    name = str(config.subcommand)
    if name == _EXPORT:
        export_text(**vars(config[name]))
        return
    recipe, plain = _build_recipe(parser, config)
    if config[name].get("dry_run"):
        found = estimate_build(recipe, SourceQueries(recipe.data))
        print_estimate(Console(), found, recipe.estimate)
    else:
        _run(name, recipe, plain)


def read_recipe(name: str, words: Sequence[str]) -> tuple[ConstructionRecipe, dict[str, Any]]:
    """Return the recipe of a command line, and its options as plain values.

    Args:
        name: The subcommand.
        words: Its options.
    """
    parser = _make_parser()
    return _build_recipe(parser, parser.parse_args([name, *words]))


def _run(name: str, recipe: ConstructionRecipe, config: dict[str, Any]) -> None:
    console, queries = Console(), SourceQueries(recipe.data)
    with _stop_on_signals(recipe.work), Journal(recipe.work) as work:
        build = Build(recipe, queries, work)
        with ProgressDisplay(console) as display:
            asyncio.run(build.run(_STEPS[name], display))
        if name in _WRITES:
            build.write(config, console)
        for note in work.list_notes():  # of the journals that all this has opened
            console.print(note, highlight=False, soft_wrap=True)


@contextmanager
def _stop_on_signals(folder: Path) -> Iterator[None]:
    """End with one line at SIGINT and SIGTERM, when all that is open is closed."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as error:
        number = error.args[0] if error.args else signal.SIGINT
        sys.stderr.write(
            f"tracelib: stopped; {folder} keeps what is done: the same command goes on\n"
        )
        sys.exit(128 + number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_parser() -> ArgumentParser:
    about = inspect.cleandoc(cot.__doc__ or "").partition("\nArgs:")[0].strip()
    parser = ArgumentParser(prog="python -m tracelib cot", description=about, allow_abbrev=False)
    subcommands = parser.add_subcommands(required=True)
    for name, purpose in _HELP.items():
        usage = f"python -m tracelib cot {name} --config FILE [options]"
        part = ArgumentParser(usage=usage, description=purpose, allow_abbrev=False)
        part.add_argument("--config", action="config", help="The recipe, a YAML file.")
        part.add_class_arguments(ConstructionRecipe)
        if name == "build":
            part.add_argument(
                "--dry_run",
                action="store_true",
                help="Print requests, tokens, cost and hours of each phase, and ask nobody.",
            )
        subcommands.add_subcommand(name, part, help=purpose)
    export = ArgumentParser(allow_abbrev=False)
    export.add_function_arguments(export_text)
    subcommands.add_subcommand(_EXPORT, export, help=(export_text.__doc__ or "").splitlines()[0])
    return parser


def _build_recipe(
    parser: ArgumentParser, config: Namespace
) -> tuple[ConstructionRecipe, dict[str, Any]]:
    name = str(config.subcommand)
    plain = yaml.safe_load(parser.dump(config))[name]
    made = parser.instantiate(config)[name]
    fields = inspect.signature(ConstructionRecipe).parameters
    recipe = ConstructionRecipe(**{field: made[field] for field in fields})
    return recipe, {field: plain[field] for field in fields if field in plain}
