"""The command line: Lightning's subcommands over a recipe, and the list of verbs."""

from __future__ import annotations

import inspect
import re
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

from jsonargparse import DefaultHelpFormatter, auto_cli

from tracelib.calibration import calibrate
from tracelib.comparison import compare
from tracelib.construction.command import cot
from tracelib.data.check.run import check
from tracelib.data.download.run import download
from tracelib.data.mmeb.train_tree import mmeb_train
from tracelib.data.scenes.benchmark import scenes
from tracelib.evaluation import evaluate
from tracelib.mining import mine
from tracelib.mmeb import mmeb
from tracelib.planning.run import plan
from tracelib.pretraining.run import pretrain
from tracelib.recipe import build_cli
from tracelib.resume import resume
from tracelib.route_labels import route_labels
from tracelib.router_fit import fit_router

VERBS: dict[str, Callable[..., Any]] = {
    verb.__name__.replace("_", "-"): verb
    for verb in (
        scenes,
        pretrain,
        resume,
        plan,
        evaluate,
        calibrate,
        route_labels,
        fit_router,
        mine,
        compare,
        mmeb,
        mmeb_train,
        check,
        download,
        cot,
    )
}

_SUBCOMMANDS = ("fit", "validate", "test", "predict")
_HELP = """usage: python -m tracelib {{fit,validate,test,predict,{verbs}}} [options]

Train, evaluate and use reason-then-embed retrievers.

a recipe, run by Lightning (options: python -m tracelib fit --help):
  fit          train:  python -m tracelib fit --config configs/trace_scenes.yaml
  validate     embed and rank the val split
  test         embed and rank the test split
  predict      embed the test split into the store and write rationales

other verbs (options: python -m tracelib VERB --help):
{lines}
"""


class _HelpFormatter(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the paragraphs of a description."""


def complete_flags(verb: Callable[..., Any], words: Sequence[str]) -> list[str]:
    """Return the words of a verb with `true` after each bare flag, an option that is true or false.

    >>> complete_flags(download, ["--dry_run", "--images", "false"])
    ['--dry_run=true', '--images', 'false']
    >>> complete_flags(download, [])
    []
    """
    parameters = inspect.signature(verb).parameters.values()
    flags = {f"--{parameter.name}" for parameter in parameters if type(parameter.default) is bool}
    return [
        f"{word}=true" if word in flags and following.startswith("-") else word
        for word, following in zip_longest(words, words[1:], fillvalue="-")
    ]


def main(args: list[str] | None = None) -> None:
    """Run a command line.

    Args:
        args: Arguments after the program's name; None takes the process's own.
    """
    words = sys.argv[1:] if args is None else args
    if words and words[0] in VERBS:
        prog = f"python -m tracelib {words[0]}"
        verb = VERBS[words[0]]
        options = words[1:]
        if verb is cot:  # it has subcommands of its own
            cot(options)
            return
        if verb is plan:  # a file of options is --config to jsonargparse, the recipe is to people
            options = [re.sub("^--config(?=$|=)", "--recipe", word) for word in options]
        auto_cli(
            verb,
            args=complete_flags(verb, options),
            as_positional=words[0] == compare.__name__,
            allow_abbrev=False,
            prog=prog,
            description=inspect.cleandoc(verb.__doc__ or "").partition("\nArgs:")[0].strip(),
            formatter_class=_HelpFormatter,
        )
    elif not words or words[0] in ("-h", "--help"):
        lines = "\n".join(
            f"  {name:12} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()
        )
        sys.stdout.write(_HELP.format(verbs=",".join(VERBS), lines=lines))
    elif words[0].startswith("-") or words[0] in _SUBCOMMANDS:
        build_cli(args, run=True)
    else:
        known = ", ".join((*_SUBCOMMANDS, *VERBS))
        sys.exit(f"tracelib: no verb {words[0]!r}; there are {known}")
