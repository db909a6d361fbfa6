"""The shipped recipe for Scenes: its prompts are in the backbone's language, its rules fit."""

import asyncio
import json
import re
from pathlib import Path

import pytest
import yaml

from tracelib.construction.filtering import load_token_counter
from tracelib.construction.queries import QuerySettings, SourceQueries
from tracelib.construction.rules.rationale_check import Facts, RuleLimits, check_rationale
from tracelib.construction.teachers.in_process import EngineTeacher
from tracelib.construction.teachers.teacher import Request
from tracelib.construction.templates import load_templates
from tracelib.construction.verifiers.caption import CaptionVerifier

CONFIGS = Path(__file__).parents[2] / "configs" / "cot"
TEMPLATES = CONFIGS / "scenes_templates"


@pytest.fixture(scope="module")
def recipe():
    return yaml.safe_load((CONFIGS / "scenes.yaml").read_text())


@pytest.fixture(scope="module")
def queries(tiny_scenes, tmp_path_factory):
    return SourceQueries(
        QuerySettings(tiny_scenes, cache_dir=tmp_path_factory.mktemp("scenes_tables"))
    )


@pytest.fixture(scope="module")
def references(tiny_scenes):
    path = tiny_scenes / "rationales/mbeir_scenes_train_rationales.jsonl"
    return {row["qid"]: row for row in map(json.loads, path.read_text().splitlines())}


def ask(root, requests):
    async def run():
        async with EngineTeacher("embedded", root, device="cpu") as teacher:
            return await asyncio.gather(*map(teacher.ask, requests))

    return asyncio.run(run())


def tag(reference):
    return f"<reasoning>{reference['reasoning']}</reasoning><answer>{reference['answer']}</answer>"


def test_replies_become_the_reference_rationales(tiny_scenes, queries, references, recipe):
    hard = [query for query in queries if references[query.query_id]["difficulty"]]
    templates = load_templates(TEMPLATES / "generate")
    limit = recipe["generate"]["max_tokens"]
    replies = ask(
        tiny_scenes,
        [Request(q.query_id, templates.choose(q).build_messages(q), limit, 0.0, 0) for q in hard],
    )
    right = [
        templates.choose(query).canonicalize(reply.text) == tag(references[query.query_id])
        for query, reply in zip(hard, replies, strict=True)
    ]
    assert sum(right) >= 0.95 * len(right) > 30


def test_number_of_states_tells_the_difficulty(tiny_scenes, queries, references, recipe):
    options = recipe["assess"]["assessors"]["steps"]["init_args"]
    templates = load_templates(TEMPLATES / "assess")
    replies = ask(
        tiny_scenes,
        [
            Request(
                q.query_id, templates.choose(q).build_messages(q), options["max_tokens"], 0.0, 0
            )
            for q in queries
        ],
    )
    for query, reply in zip(queries, replies, strict=True):
        is_hard, is_easy = (
            bool(re.search(options[name], reply.text)) for name in ("hard_pattern", "easy_pattern")
        )
        assert (is_hard, is_easy) == (bool(references[query.query_id]["difficulty"]), not is_hard)


def test_targets_are_described_in_the_words_of_an_answer(tiny_scenes, queries, references, recipe):
    options = recipe["verify"]["verifier"]["init_args"]
    verifier = CaptionVerifier(
        EngineTeacher("embedded", tiny_scenes, device="cpu"),
        TEMPLATES / "verify",
        options["strip_pattern"],
        max_tokens=options["max_tokens"],
    )
    hard = [query for query in queries if references[query.query_id]["difficulty"]]
    replies = ask(tiny_scenes, [verifier.build_request(q.query_id, q, "", "") for q in hard])
    answers = [references[query.query_id]["answer"] for query in hard]
    verdicts = [
        (
            verifier.read_reply(reply, query, answer),
            verifier.read_reply(reply, query, answer.replace("star", "moon", 1)),
            "star" in answer,
        )
        for reply, query, answer in zip(replies, hard, answers, strict=True)
    ]
    assert sum(right.is_consistent for right, _, _ in verdicts) >= 0.95 * len(verdicts)
    assert not any(wrong.is_consistent for _, wrong, is_wrong in verdicts if is_wrong)


def test_rules_keep_every_reference(queries, references, recipe):
    limits = RuleLimits(**recipe["rules"])
    count_tokens = load_token_counter(recipe["filter"]["tokenizer"])
    templates = load_templates(TEMPLATES / "generate")
    for query in queries:
        if not references[query.query_id]["difficulty"]:
            continue
        template = templates.choose(query)
        facts = Facts(
            query_text=query.text,
            instruction=query.instruction,
            source_caption=query.source_caption,
            target_text=query.target_text or None,
            target_id=query.target_id,
            source=template.source,
            task_id=query.task_id,
            prompt=f"{template.system} {template.user}",
        )
        text = tag(references[query.query_id])
        assert check_rationale(text, facts, limits, count_tokens) == []
        no_step = text.replace("0 ", "<b>0</b> ", 1)
        assert check_rationale(no_step, facts, limits, count_tokens) != []
