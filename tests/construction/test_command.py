"""The verb's own words: what is wrong is said in a line, and what was stopped can go on."""

import subprocess
import sys

import pytest
import yaml

from tests.construction.tiny_build import serve, write_build
from tests.tiny import cut_scenes
from tracelib.cli import main
from tracelib.construction.command import read_recipe
from tracelib.construction.journal.journal_row import JournalError
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.phase_driver import TeacherDownError

pytest.importorskip("openai")
NOWHERE = "http://127.0.0.1:9/v1"


@pytest.fixture(scope="module")
def root(tiny_scenes, tmp_path_factory):
    return cut_scenes(tiny_scenes, tmp_path_factory.mktemp("command") / "scenes")


@pytest.fixture
def args(tmp_path, root):
    retry = {"max_attempts": 1}
    return write_build(tmp_path, root, NOWHERE, retry=retry)


def test_help_lists_the_subcommands(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["cot", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for name in ("build", "assess", "generate", "filter", "report", "export-text"):
        assert f"\n    {name} " in text
    with pytest.raises(SystemExit):
        main(["cot", "build", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m tracelib cot build --config FILE [options]")
    assert "--verify.min_confidence" in text
    assert "--dry_run" in text


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--generate.temprature=1", "generate.temprature"),
        ("--generate.teacher.init_args.modle=x", "modle"),
        ("--data.max_queries=many", "data.max_queries"),
        ("--rules.min_answer_token=1", "rules.min_answer_token"),
    ],
)
def test_a_misspelt_option_is_named(args, option, named, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["cot", "build", *args, option])
    assert stop.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--verify.min_confidence=2"], r"verify.min_confidence is 2.0; allowed 0 .. 1"),
        (["--assess.use=nobody"], r"assess.use is 'nobody'; it must be one of"),
        (["--data.root=nowhere"], "nowhere"),
        (["--data.datasets=[cirr]"], r"data.datasets has 'cirr'; split 'train' of .* \['scenes'\]"),
        (["--generate.templates=nowhere"], "nowhere: no template here"),
        (["--filter.tokenizer=nowhere"], r"'nowhere' is no folder .*filter.tokenizer"),
        (["--output.folder=.."], r"no folder below .*output.folder"),
        (["--output.folder=rationales"], r"holds rationales already.* another output.folder"),
        (["--max_attempts=0"], "max_attempts is 0; allowed 1"),
    ],
)
def test_what_is_wrong_is_said_before_anybody_is_asked(args, options, message, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(["cot", "build", *args, *options])


def test_a_teacher_that_is_not_there_stops_the_build_and_costs_no_attempt(args, tmp_path):
    with pytest.raises(TeacherDownError, match=r"one after another.*connection: http.*run again"):
        main(["cot", "build", *args])
    assert (tmp_path / "work" / "assess.jsonl").read_bytes() == b""


def test_a_work_folder_has_one_user(args, tmp_path):
    with Journal(tmp_path / "work"), pytest.raises(JournalError, match="is in use by process"):
        main(["cot", "build", *args])


def test_the_recipe_is_kept_as_it_was_given(args, root):
    recipe, plain = read_recipe("build", [*args, "--generate.num_samples=3"])
    assert recipe.generate.num_samples == plain["generate"]["num_samples"] == 3
    assert plain["data"]["root"] == str(root)
    assert plain["assess"]["assessors"]["rule"]["init_args"]["hard_query_pattern"] == ", 2 "
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


def test_a_report_can_be_had_at_any_time(args, tmp_path, root, capsys):
    main(["cot", "report", *args, "--output.folder=early"])
    assert "0 rows, 0 with a rationale" in capsys.readouterr().out
    with serve() as url:
        write_build(tmp_path, root, url)
        main(["cot", "assess", *args])
    main(["cot", "report", *args, "--output.folder=early"])
    text = capsys.readouterr().out
    assert ", 0 with a rationale" in text
    assert "0 rows, 0 with" not in text


def test_a_report_tells_of_torn_lines(args, tmp_path, capsys):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "generate.jsonl").write_bytes(b'{"torn')
    main(["cot", "report", *args])
    assert "generate: 1 torn line of 6 bytes was cut" in capsys.readouterr().out


@pytest.mark.slow
def test_an_error_is_one_line_in_a_process_of_its_own(args):
    command = [sys.executable, "-m", "tracelib", "cot", "build", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("tracelib: teacher 'stub': ")
    assert done.stderr.count("\n") == 1
