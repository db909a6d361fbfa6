"""`python -m tracelib` in its own process, and what every verb's options share."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import tracelib
from tracelib.cli import VERBS, complete_flags, main


@pytest.fixture
def run_module(tmp_path, monkeypatch, capsys):
    """Return what does here what `python -m tracelib` does: its status, and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(words):
        monkeypatch.setattr(sys, "argv", ["tracelib", *words])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(Path(tracelib.__file__).with_name("__main__.py")), {}, "__main__")
        status, (out, err) = stopped.value.code, capsys.readouterr()
        # a process prints what it is told to exit with, and its status is 1
        return (1, out, f"{err}{status}\n") if isinstance(status, str) else (status, out, err)

    return run


@pytest.mark.parametrize(
    ("words", "status", "line"),
    [
        (["check", "--root=nowhere"], 1, "tracelib: nowhere is no folder; name a data root"),
        (
            ["download", "--root=x", "--columns=[cirr]"],
            1,
            "tracelib: --columns: M-BEIR has no cirr",
        ),
        (["download", "--root=x", "--dry_run=maybe"], 2, "error: "),
    ],
)
def test_what_a_verb_finds_wrong_is_one_line(words, status, line, run_module):
    code, out, err = run_module(words)
    assert (code, out) == (status, "")
    assert line in err
    assert "Traceback" not in err
    if status == 1:
        assert err.startswith(line)
        assert err.count("\n") == 1


def test_in_a_process_of_its_own_it_is_the_same(run_module):
    words = ["check", "--root=nowhere"]
    done = subprocess.run(
        [sys.executable, "-m", "tracelib", *words], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == run_module(words)


def test_what_a_recipe_raises_keeps_its_traceback(tmp_path):
    """The control: a fault of training is for whoever mends it."""
    code = "import sys, runpy, tracelib.cli as c\n"
    code += "def fail(*args, **options): raise ValueError('bad batch')\n"
    code += "c.build_cli = fail\nsys.argv = ['tracelib', 'fit']\n"
    code += "runpy.run_module('tracelib', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ValueError: bad batch\n")


def test_a_bare_flag_is_true(tmp_path, capsys):
    assert complete_flags(VERBS["check"], ["--fresh", "--root", "x"]) == [
        "--fresh=true",
        "--root",
        "x",
    ]
    assert complete_flags(VERBS["check"], ["--root", "x", "--fresh"])[-1] == "--fresh=true"
    for words in (["--fresh", "false"], ["--fresh=false"], ["--pictures", "none"]):
        assert complete_flags(VERBS["check"], words) == words
    with pytest.raises(SystemExit):
        main(["check", f"--root={tmp_path}", "--num_workers=0", "--fresh", "--pictures", "none"])
    report = json.loads((tmp_path / ".tracelib/check/report.json").read_text())
    assert report["picture_mode"] == "none"


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_has_its_whole_description(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out.partition("\noptions:")[0]
    docstring = (VERBS[verb].__doc__ or "").partition("Args:")[0]
    assert " ".join(docstring.split()) in " ".join(text.split())


@pytest.mark.parametrize("value", ["", "1"])
def test_a_traceback_is_there_for_who_asks(run_module, tmp_path, monkeypatch, value):
    monkeypatch.setenv("TRACELIB_TRACEBACK", value)
    words = ["evaluate", "--runs_folder", str(tmp_path)]
    if value:
        with pytest.raises(FileNotFoundError, match="holds no finished run"):
            run_module(words)
    else:
        code, _, err = run_module(words)
        assert (code, "holds no finished run" in err) == (1, True)
