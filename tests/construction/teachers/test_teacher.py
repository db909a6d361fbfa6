"""What makes the replies of a teacher stale."""

from pathlib import Path

import pytest

from tracelib.construction.teachers.in_process import EngineTeacher
from tracelib.construction.teachers.offline import OfflineTeacher
from tracelib.construction.teachers.routed import RoutedTeacher


def make_endpoint(**options):
    pytest.importorskip("openai")
    from tracelib.construction.teachers.endpoint import EndpointTeacher

    return EndpointTeacher("http://none/v1", "large", **options)


def make_offline(**options):
    return OfflineTeacher(Path("asked.jsonl"), Path("answered.jsonl"), "large", **options)


@pytest.mark.parametrize("make", [make_endpoint, make_offline])
def test_further_fields_are_in_the_key_in_any_order(make):
    assert make().key == make(extra_fields={}).key == "large"
    fields = [{"top_p": 0.9}, {"top_p": 0.8}, {"temperature": 0.9}]
    fields.append({"chat_template_kwargs": {"enable_thinking": False}})
    keys = {make(extra_fields=extra).key for extra in fields}
    assert len(keys | {"large"}) == 5
    one, other = {"top_p": 0.9, "top_k": 5}, {"top_k": 5, "top_p": 0.9}
    assert make(extra_fields=one).key == make(extra_fields=other).key


def test_what_does_not_change_replies_is_not_in_the_key():
    changed = make_endpoint(picture_root=Path("elsewhere"), timeout_seconds=9.0)
    assert changed.key == make_endpoint().key


def test_the_way_a_model_runs_is_in_its_key():
    assert EngineTeacher().key == EngineTeacher(batch_size=2, device="cpu").key == "embedded"
    changes = ({"dtype": "bfloat16"}, {"max_image_tokens": 64}, {"end_token": "</s>"})
    both = {"dtype": "bfloat16", "max_image_tokens": 64}
    keys = {EngineTeacher(**change).key for change in (*changes, both)}
    assert len(keys | {"embedded"}) == 5


def test_a_routed_teacher_has_the_keys_of_both():
    plain, hot = make_offline(), make_offline(extra_fields={"temperature": 1.0})
    assert RoutedTeacher(plain, plain).key == "large"
    assert len({RoutedTeacher(*pair).key for pair in ((plain, hot), (hot, plain), (hot, hot))}) == 3
    assert RoutedTeacher(plain, hot).key == f"large | {hot.key}"
