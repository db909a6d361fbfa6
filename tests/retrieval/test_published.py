import pytest

from tracelib.retrieval.columns import MBEIR_COLUMNS
from tracelib.retrieval.published import PUBLISHED, render_published_table
from tracelib.retrieval.runs import ResultRow, mean_over_columns

# What the constants are checked against: each column's cells of the five full rows side by side.
CELLS = """
visualnews_task0 .421 .4284 .4254 .2305 .2265
mscoco_task0 .823 .8084 .7173 .7955 .6695
fashion200k_task0 .305 .1803 .1786 .2612 .2600
webqa_task1 .878 .8387 .8342 .7866 .7796
edis_task2 .641 .5319 .5251 .5051 .4968
webqa_task2 .825 .7853 .7762 .7845 .7718
visualnews_task3 .412 .4261 .3867 .2290 .2095
mscoco_task3 .913 .9202 .9160 .9086 .8972
fashion200k_task3 .332 .1810 .1806 .2849 .2727
nights_task4 .336 .3175 .3170 .3189 .3189
oven_task6 .574 .4600 .3960 .4261 .3949
infoseek_task6 .558 .2723 .2222 .2354 .1999
fashioniq_task7 .364 .2455 .2425 .2944 .2902
cirr_task7 .573 .4532 .4384 .5034 .4827
oven_task8 .785 .6888 .6019 .5625 .5603
infoseek_task8 .671 .4906 .4435 .3057 .2623
"""
SERIES = (
    ("TRACE, Qwen2.5-VL-7B", "local"),
    ("UniIR CLIP-SF, large", "local"),
    ("UniIR CLIP-SF, large", "union"),
    ("UniIR BLIP-FF, large", "local"),
    ("UniIR BLIP-FF, large", "union"),
)
FULL = {(result.system, result.pool): result for result in PUBLISHED if result.values}


def make_rows(columns, run="mine", pool="local", value=0.25):
    rows = [ResultRow(run, "never", name, pool, "all", "headline", value) for name in columns]
    return rows + mean_over_columns(rows)


def read_tables(text):
    """Return the cells of each line below the two headings, by pool and system."""
    found, pool = {}, ""
    for line in text.splitlines():
        if line.startswith("### "):
            pool = line.split()[1]
        elif line.startswith("|"):
            system, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            found[pool, system] = cells
    return found


def test_cells_are_those_published():
    lines = [line.split() for line in CELLS.split("\n")[1:-1]]
    assert tuple(line[0] for line in lines) == MBEIR_COLUMNS
    assert set(FULL) == set(SERIES)
    for place, key in enumerate(SERIES, 1):
        assert FULL[key].values == tuple(float(line[place]) for line in lines)


def test_vectors_average_to_the_published_means():
    means = {key: round(FULL[key].mean, 4) for key in SERIES[1:]}
    assert list(means.values()) == [0.5018, 0.4751, 0.4645, 0.4433]
    assert round(100 * FULL[SERIES[0]].mean, 1) == 58.8
    rows = [
        ResultRow(key[0], "none", column, key[1], "all", "headline", value)
        for key in SERIES
        for column, value in zip(MBEIR_COLUMNS, FULL[key].values, strict=True)
    ]
    assert [round(row.value, 4) for row in mean_over_columns(rows)[1:]] == list(means.values())


def test_every_result_has_a_mean_and_a_source():
    assert len({(result.system, result.pool) for result in PUBLISHED}) == len(PUBLISHED)
    for result in PUBLISHED:
        assert len(result.values) in (0, 16)
        assert (result.reported_mean is None) == bool(result.values)
        assert 0.4 < result.mean < 0.7
        assert result.source


def test_run_stands_beside_the_published_rows():
    rows = make_rows(MBEIR_COLUMNS) + make_rows(MBEIR_COLUMNS, pool="union", value=0.125)
    tables = read_tables(render_published_table(rows))
    assert tables["local", "system"] == [*MBEIR_COLUMNS, "mean", "source"]
    assert tables["local", "mine, never"] == ["25.0"] * 17 + ["this run"]
    assert tables["union", "mine, never"] == ["12.5"] * 17 + ["this run"]
    trace = tables["local", "TRACE, Qwen2.5-VL-7B"]
    assert (trace[0], trace[-2], trace[-1]) == ("42.1", "58.8", "TRACE paper")
    assert tables["union", "LamRA-Ret, Qwen2-VL-7B"] == ["-"] * 16 + ["54.9", "LamRA paper"]
    assert ("union", "TRACE, Qwen2.5-VL-7B") not in tables
    assert {len(cells) for cells in tables.values()} == {18}


def test_run_on_some_columns_has_no_mean():
    tables = read_tables(render_published_table(make_rows(["cirr_task7"])))
    cells = dict(zip(tables["local", "system"], tables["local", "mine, never"], strict=True))
    assert cells["cirr_task7"] == "25.0"
    assert {cells[column] for column in (*MBEIR_COLUMNS[:13], "mean")} == {"-"}


@pytest.mark.parametrize(
    ("columns", "split", "message"),
    [
        (["scenes_task0", "cirr_task7"], "test", "sixteen columns, and these are of scenes_task0."),
        (list(MBEIR_COLUMNS), "val", "test split, and these are of split val."),
    ],
)
def test_what_cannot_be_compared_is_shown_alone(columns, split, message):
    text = render_published_table(make_rows(columns), split)
    assert message in text
    assert "TRACE" not in text
    tables = read_tables(text)
    assert tables["local", "system"] == [*columns, "mean", "source"]
    assert tables["local", "mine, never"] == ["25.0"] * (len(columns) + 1) + ["this run"]


def test_other_metrics_and_subsets_have_no_place():
    rows = make_rows(MBEIR_COLUMNS)
    more = [
        ResultRow("mine", "never", "cirr_task7", "local", "hard", "headline", 0.99),
        ResultRow("mine", "never", "cirr_task7", "local", "all", "recall@50", 0.99),
    ]
    assert render_published_table(rows + more) == render_published_table(rows)
    with pytest.raises(ValueError, match="no row of the metric 'headline'"):
        render_published_table(more)
