import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.callbacks.test_think_curve_report import make_sides
from tracelib.callbacks.line_chart import SIZE
from tracelib.callbacks.routing_charts import draw_reliability, draw_think_curves, write_charts
from tracelib.callbacks.think_curve_report import trace_gates
from tracelib.metrics.reliability import bin_probabilities


@pytest.fixture
def curves():
    return trace_gates(*make_sides(), 0.1, 0.3)


def test_every_pool_has_its_pictures(curves):
    pictures = draw_think_curves("val", curves)
    assert set(pictures) == {
        f"{name}_{pool}"
        for name in ("think_curve", "recall_by_speed")
        for pool in ("local", "union")
    }
    assert len({picture.tobytes() for picture in pictures.values()}) == 4
    assert {picture.size for picture in pictures.values()} == {SIZE}


def test_speed_is_drawn_only_where_it_was_measured():
    assert set(draw_think_curves("val", trace_gates(*make_sides()))) == {
        "think_curve_local",
        "think_curve_union",
    }


def test_pictures_and_numbers_reach_files_and_tensorboard(curves, tmp_path):
    bins = bin_probabilities(torch.rand(50), torch.randint(0, 2, (50,)))
    pictures = draw_think_curves("val", curves) | {
        "reliability": draw_reliability("val", {"raw": bins})
    }
    write_charts(tmp_path / "deep" / "charts", tmp_path, "val", pictures, {"ece": 0.25})
    written = sorted(path.name for path in (tmp_path / "deep" / "charts").iterdir())
    assert written == sorted(f"{name}.png" for name in pictures)
    with Image.open(tmp_path / "deep" / "charts" / "reliability.png") as picture:
        assert picture.tobytes() == pictures["reliability"].tobytes()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["images"]) == {f"routing/val/{name}" for name in pictures}
    assert events.Scalars("routing/val/ece")[0].value == 0.25
