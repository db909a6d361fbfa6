"""MMEB's means and its table beside published numbers."""

import pytest
from rich.console import Console

from tracelib.data.mmeb.subsets import GROUPS
from tracelib.mmeb.table import PUBLISHED, build_mmeb_table, build_subset_table, mean_over_groups


def render(table, capsys):
    Console(width=160).print(table)
    return capsys.readouterr().out


def test_means_weigh_subsets_alike():
    values = {name: i / 36 for i, name in enumerate(GROUPS["all"])}
    means = {mean.group: mean for mean in mean_over_groups(values)}
    assert list(means) == list(GROUPS)
    for group, members in GROUPS.items():
        expected = sum(values[name] for name in members) / len(members)
        assert means[group].value == pytest.approx(expected)
        assert (means[group].label, means[group].missing) == (group, ())
    # The mean of all is of subsets, not of groups.
    by_group = sum(means[g].value for g in list(GROUPS)[:4]) / 4
    assert means["all"].value != pytest.approx(by_group)


def test_incomplete_means_say_so():
    means = mean_over_groups({"WebQA": 0.25, "OVEN": 0.75})
    assert [(m.label, m.value) for m in means] == [
        ("retrieval (2 of 12)", 0.5),
        ("in_distribution (1 of 20)", 0.25),
        ("out_of_distribution (1 of 16)", 0.75),
        ("all (2 of 36)", 0.5),
    ]
    assert len(means[-1].missing) == 34
    assert not {"WebQA", "OVEN"} & set(means[-1].missing)


def test_unknown_subsets_are_refused():
    with pytest.raises(ValueError, match=r"\['WebQa'\]; there are ImageNet-1K"):
        mean_over_groups({"WebQa": 0.5})


def test_published_rows_are_consistent():
    """Where all groups are given, their means weighted by subsets are the mean over all."""
    sizes = [len(members) for members in GROUPS.values()]
    complete = [row for row in PUBLISHED.values() if row[0] is not None]
    assert len(complete) == 4
    for row in complete:
        by_task = sum(n * value for n, value in zip(sizes[:4], row[:4], strict=True)) / 36
        assert by_task == pytest.approx(row[6], abs=0.1)
        if row[4] is not None:
            assert (20 * row[4] + 16 * row[5]) / 36 == pytest.approx(row[6], abs=0.1)


def test_table_has_own_rows_and_published_ones(capsys):
    means = mean_over_groups(dict.fromkeys(GROUPS["all"], 0.5) | {"GQA": 1.0})
    text = render(build_mmeb_table({"ours": means, "part": mean_over_groups({"GQA": 1})}), capsys)
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if "│" in line}
    assert [cell.strip() for cell in lines["ours"].split("│")[2:9]] == [
        *("50.0", "55.0", "50.0", "50.0", "50.0", "53.1", "51.4")
    ]
    assert [cell.strip() for cell in lines["part"].split("│")[2:9]] == [
        *("-", "100.0 (1/10)", "-", "-", "-", "100.0 (1/16)", "100.0 (1/36)")
    ]
    assert [cell.strip() for cell in lines["RGE-3B"].split("│")[2:9]] == [
        *("64.4", "67.8", "70.2", "90.1", "75.3", "63.7", "70.1")
    ]
    assert "arXiv 2511.16150" in text


def test_subset_table(capsys):
    numbers = {"accuracy": 0.5, "accuracy_strict": 0.25, "think_rate": 1.0}
    found = numbers | {"num_queries": 1000, "tokens_per_query": 3.25}
    text = render(build_subset_table("run, always", {"GQA": found}), capsys)
    row = next(line for line in text.splitlines() if "GQA" in line)
    assert [cell.strip() for cell in row.split("│")[2:7]] == [
        "50.0",
        "25.0",
        "1,000",
        "1.000",
        "3.2",
    ]
