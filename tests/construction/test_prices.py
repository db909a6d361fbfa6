"""Prices of teachers: by model, and what a cost is at most."""

import pytest

from tracelib.construction.journal.progress import Progress
from tracelib.construction.phase_outcome import Counts
from tracelib.construction.prices import find_prices, find_teacher_price
from tracelib.construction.progress_display import describe_progress
from tracelib.construction.teachers.endpoint import EndpointTeacher
from tracelib.construction.teachers.offline import OfflineTeacher
from tracelib.construction.teachers.price import Price, TeacherPrice
from tracelib.construction.teachers.routed import RoutedTeacher

pytest.importorskip("openai")
READS, SEES = Price(4.0, 1.0), Price(1.0, 8.0)


def make(model, price=Price()):
    return EndpointTeacher("http://127.0.0.1:9/v1", model, price=price)


def test_one_teacher_has_its_price(tmp_path):
    assert find_teacher_price(make("large", SEES)) == TeacherPrice(SEES, is_bound=False)
    file = OfflineTeacher(tmp_path / "requests.jsonl", tmp_path / "replies.jsonl", "large")
    assert find_teacher_price(file) == TeacherPrice(Price(), is_bound=False)
    assert find_prices(file) == {}


def test_two_teachers_cost_the_highest_of_each_at_most():
    both = RoutedTeacher(make("reads", READS), make("sees", SEES))
    assert find_prices(both) == {"reads": READS, "sees": SEES}
    assert find_teacher_price(both) == TeacherPrice(Price(4.0, 8.0), is_bound=True)
    half_free = RoutedTeacher(make("reads"), make("sees", SEES))
    assert find_teacher_price(half_free) == TeacherPrice(SEES, is_bound=True)
    alike = RoutedTeacher(make("reads", SEES), make("sees", SEES))
    assert find_teacher_price(alike) == TeacherPrice(SEES, is_bound=False)


def test_progress_says_where_a_cost_is_a_bound():
    progress, counts = Progress(900, 0, 0, 90, 10, 0), Counts(100, 2, 40_000, 12_000)
    for is_bound, cost in ((True, "cost at most 0.10,"), (False, "cost 0.10,")):
        price = TeacherPrice(Price(1.0, 5.0), is_bound)
        assert cost in describe_progress(progress, counts, 100, 10.0, price)
    assert "cost" not in describe_progress(progress, counts, 100, 10.0, TeacherPrice())
