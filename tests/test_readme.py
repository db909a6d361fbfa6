"""README tells the truth: its commands run, its paths exist, its file map is whole."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.tiny import cut_scenes, write_recipe
from tracelib.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.partition("#")[0].replace("\\\n", " ").strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def test_commands_are_found():
    assert "make quickstart" in COMMANDS
    assert "make test" in COMMANDS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_make_targets_exist(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if "-m tracelib" in c])
def test_tracelib_commands_parse(command, capsys, monkeypatch):
    """Runs each with --print_config or --help: the parser checks every option and value."""
    monkeypatch.chdir(ROOT)
    args = shlex.split(command.partition("-m tracelib")[2])
    if args == ["--help"]:
        main(args)
    else:
        with pytest.raises(SystemExit) as stop:
            main([*args, "--help" if "export-text" in args else "--print_config"])
        assert stop.value.code in (0, None)
    assert capsys.readouterr().out


def test_python_example_runs(tiny_scenes, tiny_backbone, tmp_path, capsys):
    args = write_recipe(tmp_path, cut_scenes(tiny_scenes, tmp_path / "scenes"), tiny_backbone)
    main(["fit", *args, "--trainer.limit_val_batches=0"])
    capsys.readouterr()
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    named = "runs/trace_scenes/version_0"
    assert named in example
    exec(example.replace(named, str(tmp_path / "tiny" / "version_0")), {})
    assert "tensor([" in capsys.readouterr().out


def test_paths_exist():
    paths = set(re.findall(r"`((?:tracelib|configs|experiments|tests)/[\w./]*)`", README))
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


def test_file_map_names_every_module():
    modules = {p.stem for p in (ROOT / "tracelib").rglob("*.py") if not p.stem.startswith("__")}
    table = README.partition("## Where things are")[2]
    in_pretraining = {p.stem for p in (ROOT / "tracelib/pretraining").glob("*.py")}
    missing = {m for m in modules - in_pretraining if not re.search(rf"\b{m}\b", table)}
    assert not missing
