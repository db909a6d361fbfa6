from __future__ import annotations

import dataclasses
import io
import logging
from collections import Counter

import pytest
import torch
from lightning import Trainer
from PIL import Image

from tests.tiny import make_facts
from tracelib.callbacks.gallery import Gallery, build_panel, build_rationale_table, choose_queries
from tracelib.retrieval.evaluation import QueryFacts


def build_facts(size: int = 120) -> QueryFacts:
    """Columns a, b, c in turn, every other query hard."""
    return make_facts(["abc"[i % 3] for i in range(size)], [i % 2 for i in range(size)])


def test_a_sample_is_spread():
    facts = build_facts()
    failed = torch.tensor([i % 5 != 0 for i in range(120)])
    chosen = choose_queries(facts, failed, range(120), 12, seed=0)
    assert len(set(chosen)) == 12
    assert Counter(facts.columns[i] for i in chosen) == {"a": 4, "b": 4, "c": 4}
    kinds = Counter((bool(failed[i]), int(facts.difficulty[i])) for i in chosen)
    assert set(kinds.values()) == {3}


def test_a_sample_is_fixed_by_its_seed():
    facts, failed = build_facts(), torch.zeros(120, dtype=torch.bool)
    first = choose_queries(facts, failed, range(120), 12, seed=0)
    assert choose_queries(facts, failed, range(120), 12, seed=0) == first
    assert choose_queries(facts, failed, range(120), 12, seed=1) != first


def test_successes_fill_in_for_failures():
    facts, failed = build_facts(), torch.zeros(120, dtype=torch.bool)
    failed[[3, 50]] = True
    chosen = choose_queries(facts, failed, range(120), 12, seed=0)
    assert len(chosen) == 12
    assert {3, 50} < set(chosen)


def test_a_sample_stays_within_its_places():
    facts, failed = build_facts(), torch.ones(120, dtype=torch.bool)
    assert choose_queries(facts, failed, [4, 9, 2], 12, seed=0) == [2, 4, 9]
    assert choose_queries(facts, failed, [], 12, seed=0) == []


def test_sheets_can_be_read_back(fit):
    tags = [f"gallery/val/{i}" for i in (1, 2, 3)]
    assert fit.events.Tags()["images"] == tags
    for tag in tags:
        (event,) = fit.events.Images(tag)
        image = Image.open(io.BytesIO(event.encoded_image_string))
        assert (event.step, image.width, image.height) == (4, 1100, event.height)


def test_the_table_can_be_read_back(fit):
    (event,) = fit.events.Tensors("rationales/val/text_summary")
    lines = event.tensor_proto.string_val[0].decode().splitlines()
    queries = fit.evaluation.evaluation_set.queries
    hard = [q for q in queries if q.difficulty == 1]
    assert len(lines) == 2 + min(16, len(hard))
    assert all(line.count("|") == 5 for line in lines)
    assert all(any(q.rationale.text in line for q in hard) for line in lines[2:])


def test_a_table_row_says_what_happened(fit):
    evaluation, tokenizer = fit.evaluation, fit.data.processor.tokenizer
    queries = evaluation.evaluation_set.queries
    places = [i for i, q in enumerate(queries) if q.difficulty == 1]
    right, bypassed, cut = places[:3]
    ids = [tokenizer.encode(q.rationale.text if q.rationale else "") for q in queries]
    ids[bypassed], ids[cut] = [], ids[cut][:3]
    thinks = torch.ones(len(queries), dtype=torch.bool)
    thinks[bypassed] = False
    thoughts = dataclasses.replace(
        evaluation.thoughts,
        thinks=thinks,
        rationale_token_ids=ids,
        is_forced=torch.arange(len(queries)) == cut,
        think_probability=torch.full((len(queries),), 0.25),
    )
    changed = dataclasses.replace(evaluation, thoughts=thoughts)
    table = build_rationale_table(changed, [right, bypassed, cut], fit.data).splitlines()[2:]
    outcomes = [row.split(" | ")[-1].removesuffix(" |") for row in table]
    assert outcomes == [
        f"thought in {len(ids[right])} tokens, embedding token reached, exact: yes, P(think) 0.25",
        "bypassed, answered at once, exact: no, P(think) 0.25",
        "thought in 3 tokens, cut off, embedding token appended, exact: no, P(think) 0.25",
    ]


def test_table_cells_are_only_text(fit):
    evaluation = fit.evaluation
    query = dataclasses.replace(
        evaluation.evaluation_set.queries[0], text="<b>|*a*\n_b_`", rationale=None
    )
    found = dataclasses.replace(evaluation.evaluation_set, queries=[query])
    changed = dataclasses.replace(evaluation, evaluation_set=found)
    (row,) = build_rationale_table(changed, [0], fit.data).splitlines()[2:]
    assert row.count("|") == 5
    assert "<b>" not in row
    assert "&#60;b>&#124;&#42;a&#42; &#95;b&#95;&#96;" in row
    assert "exact" not in row


def test_a_panel_shows_the_local_ranking(fit):
    evaluation = fit.evaluation
    candidates = evaluation.evaluation_set.candidates
    index = next(i for i, q in enumerate(evaluation.evaluation_set.queries) if q.image_path)
    places = evaluation.rankings["local"].places.clone()
    (gold,) = evaluation.facts.positives[index]
    others = [p for p in places[index].tolist() if p != gold]
    places[index, :4] = torch.tensor([others[0], others[1], gold, others[2]])
    ranking = dataclasses.replace(evaluation.rankings["local"], places=places)
    changed = dataclasses.replace(evaluation, rankings={"local": ranking})
    panel = build_panel(changed, index, 4, fit.data)
    assert panel.gold_rank == 3
    assert [result.is_hit for result in panel.results] == [False, False, True, False]
    assert [r.record.text for r in panel.results] == [
        candidates[p].text for p in places[index, :4].tolist()
    ]
    assert [r.score for r in panel.results] == ranking.scores[index, :4].tolist()
    assert panel.query.image is not None
    assert panel.gold.text == candidates[gold].text


def test_another_logger_is_told_once(caplog):
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False)
    gallery = Gallery()
    with caplog.at_level(logging.INFO):
        gallery.on_test_epoch_end(trainer, None)
        gallery.on_test_epoch_end(trainer, None)
    assert [r.message for r in caplog.records].count(
        "Gallery shows nothing: trainer.logger is no TensorBoardLogger"
    ) == 1


@pytest.mark.parametrize("arguments", [{"num_queries": -1}, {"top_k": 0}, {"top_k": 9}])
def test_arguments_have_ranges(arguments):
    (name,) = arguments
    with pytest.raises(ValueError, match=f"{name} is {arguments[name]}, "):
        Gallery(**arguments)
