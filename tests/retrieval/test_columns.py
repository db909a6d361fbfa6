import pytest

from tracelib.retrieval.columns import (
    MBEIR_COLUMNS,
    TASK_NAMES,
    canonical_place,
    headline_k,
    read_task_id,
)


def test_sixteen_columns_in_task_order():
    assert len(set(MBEIR_COLUMNS)) == 16
    tasks = [read_task_id(column) for column in MBEIR_COLUMNS]
    assert tasks == sorted(tasks)
    assert set(tasks) == set(TASK_NAMES) == {0, 1, 2, 3, 4, 6, 7, 8}
    assert [canonical_place(column) for column in MBEIR_COLUMNS] == list(range(16))
    assert canonical_place("scenes_task0") == 16


def test_three_columns_are_reported_at_ten():
    deep = [column for column in MBEIR_COLUMNS if headline_k(column) == 10]
    assert deep == ["fashion200k_task0", "fashion200k_task3", "fashioniq_task7"]
    assert {headline_k(column) for column in (*MBEIR_COLUMNS, "scenes_task0")} == {5, 10}


@pytest.mark.parametrize("column", ["oven", "oven_task5", "oven_task9", "oven_task", "oven_taskx"])
def test_column_without_a_task_is_refused(column):
    with pytest.raises(ValueError, match=f"'{column}' must end in _task<id>"):
        read_task_id(column)
