from __future__ import annotations

import pytest
from tensorboard.plugins.hparams import metadata


def read_hyperparameters(events) -> dict[str, object]:
    content = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    found = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in found.items()}


def test_hyperparameters_are_those_of_the_objects(fit):
    assert read_hyperparameters(fit.events) == {
        "recipe": "trace_scenes",
        "rationale": "teacher",
        "gate": "head",
        "contrastive_weight": 1.0,
        "lm_weight": 1.0,
        "router_weight": 1.0,
        "temperature": 0.05,
        "lora_rank": 16,
        "read_offset": -1,
        "contrastive_batch_size": 8,
        "num_steps": 4,
        "learning_rate": 0.002,
        "seed": 10.0,
    }


def test_the_tab_has_a_column_for_each_metric(fit):
    content = fit.events.PluginTagToContent("hparams")["_hparams_/experiment"]
    columns = metadata.parse_experiment_plugin_data(content).metric_infos
    assert {column.name.tag for column in columns} == {
        "hp/recall@5",
        "hp/mean_recall",
        "hp/think_rate",
        "hp/queries_per_second",
    }


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("recall@5", "recall@5"),
        ("mean_recall", "recall@5"),  # the depth of every Scenes column
        ("think_rate", "think_rate"),
        ("queries_per_second", "queries_per_second"),
    ],
)
def test_metrics_follow_the_local_pool_of_all_columns(fit, name, metric):
    rows = [
        row.value
        for row in fit.evaluation.rows
        if (row.column, row.pool, row.subset, row.metric) == ("all", "local", "all", metric)
    ]
    assert len(rows) == 1
    assert fit.read_scalars(f"hp/{name}") == pytest.approx([0.0, rows[0]], rel=1e-5)
