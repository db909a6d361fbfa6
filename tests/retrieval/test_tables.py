from tracelib.retrieval.runs import ResultRow
from tracelib.retrieval.tables import render_markdown


def row(gate, metric, value, subset="all", pool="local", column="all"):
    return ResultRow("a_run", gate, column, pool, subset, metric, value)


def test_a_line_per_gate_with_means_only():
    rows = [
        row("never", "recall@1", 0.25, "easy"),
        row("never", "recall@5", 0.5, "easy"),
        row("never", "recall@5", 0.125, pool="union"),
        row("never", "recall@1", 0.99, "easy", column="scenes_task0"),
        row("always", "queries_per_second", 1234.5),
        row("always", "tokens_per_query", 3.25),
    ]
    text = render_markdown(rows)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    header, never, always = lines[0], lines[2], lines[3]
    assert dict(zip(header, never, strict=True))["easy R@1, 5"] == "0.250, 0.500"
    assert dict(zip(header, never, strict=True))["union R@5"] == "0.125"
    assert dict(zip(header, never, strict=True))["queries/s"] == "-"
    assert dict(zip(header, always, strict=True))["queries/s"] == "1,234"
    assert dict(zip(header, always, strict=True))["tokens/query"] == "3.2"
    assert "0.990" not in text
