"""The command line: Lightning's subcommands over a recipe, and the list of verbs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from jsonargparse import auto_cli

from tracelib.comparison import compare
from tracelib.data.check.run import check
from tracelib.data.download.run import download
from tracelib.data.scenes.benchmark import scenes
from tracelib.evaluation import evaluate
from tracelib.mmeb import mmeb
from tracelib.pretraining.run import pretrain
from tracelib.recipe import build_cli

VERBS: dict[str, Callable[..., Any]] = {
    verb.__name__: verb
    for verb in (scenes, pretrain, evaluate, compare, mmeb, check, download)
}

_SUBCOMMANDS = ("fit", "validate", "test", "predict")
_HELP = """usage: python -m tracelib {{fit,validate,test,predict,{verbs}}} [options]

Train, evaluate and use reason-then-embed retrievers.

a recipe, run by Lightning (options: python -m tracelib fit --help):
  fit       train:  python -m tracelib fit --config configs/trace_scenes.yaml
  validate  embed and rank the val split
  test      embed and rank the test split
  predict   embed the test split into the store and write rationales

other verbs (options: python -m tracelib VERB --help):
{lines}
"""


def main(args: list[str] | None = None) -> None:
    """Run a command line.

    Args:
        args: Arguments after the program's name; None takes the process's own.
    """
    words = sys.argv[1:] if args is None else args
    if words and words[0] in VERBS:
        prog = f"python -m tracelib {words[0]}"
        auto_cli(
            VERBS[words[0]],
            args=words[1:],
            as_positional=words[0] == compare.__name__,
            allow_abbrev=False,
            prog=prog,
        )
    elif not words or words[0] in ("-h", "--help"):
        lines = "\n".join(
            f"  {name:9} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()
        )
        sys.stdout.write(_HELP.format(verbs=",".join(VERBS), lines=lines))
    elif words[0].startswith("-") or words[0] in _SUBCOMMANDS:
        build_cli(args, run=True)
    else:
        known = ", ".join((*_SUBCOMMANDS, *VERBS))
        sys.exit(f"tracelib: no verb {words[0]!r}; there are {known}")
