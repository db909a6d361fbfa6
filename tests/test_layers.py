"""The architecture, as a test: who may import whom, and how large and how named a module may be."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path.relative_to(ROOT) for path in ROOT.glob("tracelib/**/*.py"))
LAYERS = (
    {"types", "prompts", "distributed", "assets"},
    {"losses", "metrics"},
    {"retrieval"},
    {"models", "data"},
    {"joint_step", "own_thoughts"},
    {"module"},
    {"callbacks"},
    {
        "pretraining",
        "planning",
        "construction",
        "evaluation",
        "calibration",
        "fitted_run",
        "routing_report",
        "comparison",
        "mmeb",
        "recipe",
        "resume",
        "route_labels",
        "router_fit",
        "mining",
        "cli",
        "__main__",
    },
)
LAYER_OF = {room: number for number, rooms in enumerate(LAYERS) for room in rooms}
TOP = len(LAYERS) - 1
HUGGING_FACE_ROOMS = ("tracelib.models", "tracelib.data.collator", "tracelib.pretraining")
OWNERS = {
    "transformers": HUGGING_FACE_ROOMS,
    "peft": HUGGING_FACE_ROOMS,
    "torch.distributed": ("tracelib.distributed",),
}
FOREIGN = ("experiments/", "configs/")
TEXTS = ("_HELP", "_CARD")
MAX_LINES = 350
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}


def is_inside(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


def iterate_imports(path: Path, tree: ast.Module) -> Iterator[str]:
    """Yield the dotted name of everything imported, wherever in the module and in whatever form."""
    package = path.parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.distributed":
            yield "torch.distributed"


def iterate_strings(tree: ast.Module) -> Iterator[str]:
    """Yield every string but docstrings and the texts for people, `_HELP` and `_CARD`."""
    for_people = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in TEXTS
        if is_text or isinstance(node, ast.Expr):
            for_people.add(id(node.value))
    for node in ast.walk(tree):
        is_string = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if is_string and id(node) not in for_people:
            yield node.value


def may_import(room: str, other: str) -> bool:
    if room == other:
        return True
    if room in ("joint_step", "own_thoughts", "module") and other == "data":
        return False
    return LAYER_OF[other] < LAYER_OF[room] or LAYER_OF[room] == TOP == LAYER_OF[other]


def find_violations(path: Path, source: str) -> list[str]:
    """Return what a module of tracelib does against the architecture, one line each."""
    tree = ast.parse(source)
    name = ".".join(path.with_suffix("").parts)
    room = path.with_suffix("").parts[1]
    if room != "__init__" and room not in LAYER_OF:
        return [f"{path}: room {room!r} is in no layer"]
    found = []
    for imported in iterate_imports(path, tree):
        package, other = (*imported.split("."), "")[:2]
        other = other if package == "tracelib" else ""
        if other and (room == "__init__" or other not in LAYER_OF or not may_import(room, other)):
            found.append(f"{path}: {room} imports {imported}")
        for library, owners in OWNERS.items():
            if is_inside(imported, library) and not any(is_inside(name, own) for own in owners):
                found.append(f"{path}: {library} is only for {', '.join(owners)}")
    for text in iterate_strings(tree):
        found += [f"{path}: names {folder}" for folder in FOREIGN if folder in text]
    if source.count("\n") > MAX_LINES:
        found.append(f"{path}: {source.count(chr(10))} lines, at most {MAX_LINES}")
    if VAGUE_NAMES & set(path.with_suffix("").parts):
        found.append(f"{path}: a name that says nothing")
    return found


@pytest.mark.parametrize("path", FILES, ids=str)
def test_module_keeps_the_architecture(path):
    assert find_violations(path, (ROOT / path).read_text()) == []


def test_every_layer_is_looked_at():
    seen = {LAYER_OF.get(path.with_suffix("").parts[1]) for path in FILES}
    assert set(range(TOP + 1)) <= seen


def test_no_test_file_has_a_vague_name():
    names = {part for path in (ROOT / "tests").rglob("*.py") for part in path.stem.split("_")}
    assert "conftest" in names
    assert not names & VAGUE_NAMES


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("losses/a.py", "from tracelib.models.encoder import Encoder", "losses imports"),
        ("losses/a.py", "from tracelib.metrics import recall", "losses imports"),
        ("losses/a.py", "def f():\n    import tracelib.module", "losses imports"),
        ("losses/a.py", "from ..module import RetrievalModule", "losses imports"),
        ("losses/a.py", "from .. import module", "losses imports"),
        ("data/scenes/a.py", "from tracelib import models", "data imports"),
        ("models/a.py", "import tracelib.data.collator as c", "models imports"),
        ("module.py", "from tracelib.data.collator import Turn", "module imports"),
        ("callbacks/a.py", "from tracelib.evaluation import run", "callbacks imports"),
        ("types.py", "from .prompts import Messages", "types imports"),
        ("__init__.py", "from tracelib.types import Query", "__init__ imports"),
        ("cli.py", "from tracelib.novelty import new", "cli imports"),
        ("novelty.py", "", "in no layer"),
        ("retrieval/a.py", "from transformers.utils import logging", "transformers is only"),
        ("data/a.py", "import peft", "peft is only"),
        ("data/collators.py", "import transformers", "transformers is only"),
        ("metrics/a.py", "from torch import distributed as dist", "torch.distributed is only"),
        ("losses/a.py", "import torch\nx = torch.distributed.get_rank()", "torch.distributed is"),
        ("cli.py", "print(f'see configs/{name}.yaml')", "names configs/"),
        ("cli.py", "_HELP = 'see'\nPATH = 'configs/a.yaml'", "names configs/"),
        ("cli.py", "x = 1\n" * 351, "351 lines"),
        ("data/utils.py", "", "says nothing"),
        ("data/misc/a.py", "", "says nothing"),
    ],
)
def test_violation_is_found(path, source, expected):
    assert [expected in line for line in find_violations(Path("tracelib", path), source)] == [True]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data/scenes/a.py", "from ..mbeir import read\nfrom . import world"),
        ("data/collator.py", '"""See configs/."""\nimport transformers'),
        ("module.py", "from tracelib.models.encoder import Encoder"),
        ("cli.py", "from tracelib.evaluation import evaluate\nimport tracelib"),
        ("cli.py", "_HELP = 'see configs/'"),
        ("metrics/a.py", "import torchmetrics\nimport torch.nn.functional\nx = 1\n" + "\n" * 347),
    ],
)
def test_what_is_allowed_is_not_reported(path, source):
    assert find_violations(Path("tracelib", path), source) == []
