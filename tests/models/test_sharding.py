from dataclasses import replace

import pytest
import torch

from tests.tiny import write_recipe
from tracelib.models.sharding import join_chunks
from tracelib.recipe import build_cli
from tracelib.types import TrainBatch


def make_batch(processor, turns, **settings):
    empty = torch.zeros(0)
    ids = torch.arange(len(turns))
    chunks = [processor(turns[:3]), processor(turns[3:])]
    return TrainBatch(
        query=chunks,
        candidate=chunks[::-1],
        task_ids=empty,
        query_ids=ids,
        difficulty=empty,
        targets=ids,
        positive_ids=ids[:, None],
        candidate_ids=ids,
        **{"is_cached": False, **settings},
    )


def test_joined_chunks_have_the_same_rows(make_encoder, processor, answered):
    encoder = make_encoder()
    batch = make_batch(processor, answered)
    joined = join_chunks(batch)
    assert joined.targets is batch.targets
    for chunks, (whole,) in ((batch.query, joined.query), (batch.candidate, joined.candidate)):
        with torch.no_grad():
            apart, together = [encoder(chunk) for chunk in chunks], encoder(whole)
        for name in ("embedding", "prompt_state", "lm_logits", "lm_targets"):
            expected = torch.cat([getattr(output, name) for output in apart])
            assert torch.allclose(getattr(together, name), expected, rtol=1e-4, atol=1e-4), name
    text = [turn for turn in answered if not turn.images]
    (whole,) = join_chunks(replace(batch, query=[processor(text)])).query
    assert (whole.pixel_values, whole.image_grid_thw) == (None, None)


def test_chunks_that_are_held_one_at_a_time_are_refused(processor, answered):
    with pytest.raises(ValueError, match=r"numbers of chunks differ: set data\.micro_batch_size"):
        join_chunks(make_batch(processor, answered, is_cached=True))


@pytest.mark.parametrize(
    ("stage", "settings", "change"),
    [
        ("test", [], "evaluate with trainer.strategy ddp"),
        ("fit", [], "set trainer.limit_val_batches to 0"),
        (
            "fit",
            ["--trainer.limit_val_batches=0", "--data.contrastive_rationale=self"],
            "set data.contrastive_rationale to annotated",
        ),
        (
            "fit",
            [
                "--trainer.limit_val_batches=0",
                "--model.contrastive.init_args.learn_temperature=true",
            ],
            "set learn_temperature to false",
        ),
    ],
)
def test_what_sharded_devices_cannot_do_is_refused(
    tiny_scenes, tiny_backbone, tmp_path, stage, settings, change
):
    arguments = [*write_recipe(tmp_path, tiny_scenes, tiny_backbone), *settings]
    cli = build_cli(arguments, run=False)
    cli.model.trainer = cli.trainer
    cli.trainer.state.fn = stage
    cli.model.configure_model()  # without a mesh there is nothing to do
    cli.model._device_mesh = "a mesh"
    with pytest.raises(ValueError, match=f"weights are sharded over devices: {change}"):
        cli.model.configure_model()
