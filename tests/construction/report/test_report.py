import io
import json
import shutil

import pytest
import yaml
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.construction.report.written_work import make_recipe, write_work
from tracelib.construction.journal.work_folder import Journal
from tracelib.construction.output import OutputSettings, write_output
from tracelib.construction.queries import QuerySettings, SourceQueries
from tracelib.construction.report.report import write_report
from tracelib.construction.report.tables import print_summary

CONFIG = {"work": "/somewhere/private/work", "generate": {"num_samples": 2}}


@pytest.fixture(scope="module")
def built(tiny_scenes, tmp_path_factory):
    """A reported build: recipe, queries, counts of its output, and summary."""
    folder = tmp_path_factory.mktemp("report")
    root = shutil.copytree(tiny_scenes, folder / "scenes")
    queries = SourceQueries(QuerySettings(root))
    recipe = make_recipe(root, folder / "work")
    with write_work(folder / "work", queries) as work:
        counts = write_output(recipe, queries, work)
        summary = write_report(recipe, queries, work, CONFIG)
    return recipe, queries, counts, summary


@pytest.fixture(scope="module")
def card(built):
    recipe = built[0]
    return (recipe.data.root / recipe.output.folder / "README.md").read_text(encoding="utf-8")


def read_table(card, heading):
    """Return the rows of the first table below a heading."""
    lines = card.split(f"## {heading}", 1)[1].split("\n## ")[0].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows[2:]]


def test_the_numbers_are_those_of_the_output(built):
    _, _, counts, summary = built
    found = summary.datasets["scenes"]
    assert found.num_kept == counts.num_reasoned["scenes"]
    assert found.num_direct == counts.num_direct["scenes"]
    assert {("scenes", *rule): count for rule, count in found.rules.items()} == counts.num_drops


def test_the_json_has_all_numbers_and_where_they_come_from(built):
    recipe, _, _, summary = built
    content = json.loads((recipe.work / "report.json").read_text())
    assert content["summary"] == json.loads(json.dumps(summary.to_json()))
    provenance = content["provenance"]
    assert provenance["config"] == {"work": "work", "generate": {"num_samples": 2}}
    assert "query/train/mbeir_scenes_train.jsonl" in provenance["data_hashes"]
    assert "/somewhere" not in json.dumps(content)


def test_the_card_names_its_files_and_counts(built, card):
    recipe, _, _, summary = built
    header, _, text = card.removeprefix("---\n").partition("---\n")
    for entry in yaml.safe_load(header)["configs"]:
        for file in entry["data_files"]:
            assert (recipe.data.root / recipe.output.folder / file["path"]).is_file()
    assert "104 rows, 24 of them with a rationale, from 160 queries" in text
    assert read_table(card, "Rows") == [["scenes", "160", "80", "80", "80", "24", "56"]]
    states = read_table(card, "Samples by phase")
    assert states[1] == ["scenes, generate", "16", "0", "16", "112", "0", "16"]
    drops = {row[0].replace("\\", ""): int(row[1]) for row in read_table(card, "Why samples were")}
    assert drops == {f"{phase}, {rule}": n for (phase, rule), n in summary.count_rules().items()}
    assert read_table(card, "Agreement")[0][:4] == ["rule, judge", "160", "0.9000", "0.8000"]
    bars = read_table(card, "Verifier confidence")
    assert [bar[:3] for bar in bars if bar[1] != "0"][1] == ["74 to 75", "48", "24"]
    assert "created_utc" not in card
    assert "/somewhere" not in card


def test_the_same_work_folder_gives_the_same_files(built, card):
    recipe, queries, _, summary = built
    sheet = (recipe.work / "sample_sheet.html").read_bytes()
    with Journal(recipe.work) as work:
        again = write_report(recipe, queries, work, CONFIG)
    assert again.to_json() == summary.to_json()
    assert (recipe.work / "sample_sheet.html").read_bytes() == sheet
    path = recipe.data.root / recipe.output.folder / "README.md"
    assert path.read_text(encoding="utf-8") == card


def test_the_sheet_has_every_kind_and_its_pictures(built):
    sheet = (built[0].work / "sample_sheet.html").read_text(encoding="utf-8")
    for verdict in ("kept", "dropped", "quarantined", "unanswered", "direct"):
        assert f'<article class="card {verdict}"' in sheet
    assert sheet.count("data:image/png;base64,") > 20
    assert "this picture cannot be read" not in sheet
    assert "<script>alert" not in sheet
    assert len(sheet.encode()) < 5_000_000


def test_tensorboard_has_one_log_of_counts_lengths_and_samples(built):
    recipe, _, _, summary = built
    folder = recipe.work / "tensorboard"
    assert len(list(folder.iterdir())) == 1
    log = EventAccumulator(str(folder), size_guidance={"histograms": 0, "images": 0})
    log.Reload()
    assert log.Scalars("counts/num_kept")[0].value == 24
    assert log.Scalars("drops/filter/answer_tokens")[0].value == 16
    histogram = log.Histograms("Reasoning_tokens/all")[0].histogram_value
    every = summary.reasoning_tokens[0]
    assert (histogram.num, histogram.min, histogram.max) == (96, 40, 41)
    assert (histogram.sum, histogram.sum_squares) == every.sum_powers()
    assert sum(histogram.bucket) == 96
    images = log.Images("samples/kept/scenes")
    assert len(images) == 3
    assert images[0].width == 1100


def test_the_tables_say_what_came_of_it(built):
    console = Console(file=io.StringIO(), width=140)
    print_summary(console, built[3])
    text = console.file.getvalue()
    for words in (
        "rows by data set",
        "samples by phase",
        "drops by rule",
        "what was asked (whole replies)",
    ):
        assert words in text
    for words in ("repeated_ngrams", "rule, judge", "0.800", "16 quarantined in generate"):
        assert words in text


def test_a_report_of_nothing_is_no_error(built, tmp_path):
    _, queries, _, _ = built
    (tmp_path / "here").mkdir()
    output = OutputSettings("rationales_none")
    recipe = make_recipe(queries.root, tmp_path / "here" / "work", output=output)
    with Journal(recipe.work) as work:
        summary = write_report(recipe, queries, work, {})
    assert summary.count("num_rows") == 0
    print_summary(Console(file=io.StringIO()), summary)
    assert (recipe.work / "sample_sheet.html").is_file()
