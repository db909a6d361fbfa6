"""Every shipped recipe of `cot` builds, and its prompts are for every column of M-BEIR."""

import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from tests.construction.test_templates import QUERY
from tracelib.construction.assess import TeacherAssessor
from tracelib.construction.generate import GeneratePhase
from tracelib.construction.recipe import ConstructionRecipe
from tracelib.construction.templates import load_templates
from tracelib.data.layout import CANONICAL_COLUMNS
from tracelib.data.records import TASK_MODALITIES

pytest.importorskip("openai")
ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs/cot").glob("*.yaml"))
PROMPTS = ROOT / "configs/cot/templates"
FOLDERS = sorted({path.parent for path in (ROOT / "configs/cot").glob("*/**/*.yaml")})


@pytest.fixture(autouse=True)
def _in_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def build(path, *options):
    parser = ArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(ConstructionRecipe)
    values = parser.instantiate(parser.parse_args([f"--config={path}", *options]))
    values.pop("config")
    return ConstructionRecipe(**vars(values))


def list_queries():
    """A query of each column, with and without what its task may have."""
    for column in (*CANONICAL_COLUMNS, "own_task1", "own_task6"):
        dataset, _, task = column.partition("_task")
        query_modality, target_modality = TASK_MODALITIES[int(task)]
        yield QUERY.__class__(
            query_id="9:3",
            dataset=dataset,
            task_id=int(task),
            text="How tall is it?" if "text" in query_modality else "",
            image_path="mbeir_images/a.jpg" if "image" in query_modality else None,
            instruction="Find what is sought.",
            target_id="9:1",
            target_text="A tower of 300 metres." if "text" in target_modality else "",
            target_image_path="mbeir_images/b.jpg" if "image" in target_modality else None,
            source_caption=None,
            positive_ids=("9:1",),
        )


def show(messages):
    """What a teacher sees, pictures by their paths."""
    content = messages[-1]["content"]
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", part.get("path", "")) for part in content)


def test_there_are_recipes_and_prompts():
    assert {path.stem for path in RECIPES} >= {"mbeir", "scenes"}
    assert len(FOLDERS) >= 7
    names = {path.name for path in (PROMPTS / "generate/teacher").iterdir()}
    assert names == {path.name for path in (PROMPTS / "generate/oracle").iterdir()}
    assert len(names) == 8


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds(path):
    recipe = build(path, "--max_attempts=2")
    assert recipe.max_attempts == 2
    assert GeneratePhase(recipe.generate, recipe.assess).templates.templates
    assert recipe.verify.verifier is not None
    assert recipe.verify.min_confidence == 0.7


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_folder_of_prompts_is_read(folder):
    assert load_templates(folder).templates


def test_m_beir_follows_the_paper():
    recipe = build(ROOT / "configs/cot/mbeir.yaml")
    hard = {q.dataset for q in list_queries() if q.dataset != "own"
            and recipe.assess.assessors["paper"].find_difficulty(q)}  # fmt: skip
    assert hard == {"cirr", "fashioniq", "infoseek", "oven"}
    rules = recipe.rules
    assert (rules.min_reasoning_tokens, rules.max_reasoning_tokens) == (16, 256)
    assert (rules.min_answer_tokens, rules.max_answer_tokens) == (2, 64)
    assert recipe.generate.num_samples == 1
    assert list(recipe.assess.assessors) == ["paper"]  # nobody is asked what the paper has said


def test_m_beir_with_the_opinion_of_the_teacher(tmp_path):
    text = (ROOT / "configs/cot/mbeir.yaml").read_text()
    opinion = re.compile(r"^    # ((?:model:|  ).*)$", re.MULTILINE)
    assert len(opinion.findall(text)) == 4
    path = tmp_path / "mbeir.yaml"
    path.write_text(opinion.sub(r"    \1", text))
    recipe = build(path, "--assess.use=model")
    assert list(recipe.assess.assessors) == ["paper", "model"]
    model = recipe.assess.assessors["model"]
    assert isinstance(model, TeacherAssessor)
    assert (model.teacher.name, model.concurrency) == (recipe.generate.teacher.name, 256)


def test_m_beir_is_built_where_it_is_trained_on():
    build, *fits = (
        yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
        for name in ("cot/mbeir", "trace_qwen2_5_vl_7b_mbeir", "trace_qwen2_5_vl_3b_mbeir")
    )
    roots = {build["data"]["root"], *(fit["data"]["root"] for fit in fits)}
    teachers = (build["generate"]["teacher"], build["verify"]["verifier"]["init_args"]["teacher"])
    roots |= {teacher["init_args"]["picture_root"] for teacher in teachers}
    (root,) = roots
    assert f"tracelib download --root {root} " in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("source", ["teacher", "oracle"])
def test_each_column_is_asked_with_all_it_has_and_the_target_only_if_allowed(source):
    templates = load_templates(PROMPTS / "generate" / source)
    chosen = {}
    for query in list_queries():
        template = templates.choose(query)
        chosen[f"{query.dataset}_task{query.task_id}"] = template.name
        assert template.source == source
        shown = show(template.build_messages(query))
        assert query.instruction in shown
        assert query.text in shown
        assert (query.image_path or "") in shown
        for target in filter(None, (query.target_text, query.target_image_path)):
            assert (target in shown) == (source == "oracle")
        assert "<reasoning>...</reasoning><answer>...</answer>" in shown
        assert "{" not in shown
    assert chosen["cirr_task7"] == chosen["fashioniq_task7"] == "composed_edit"
    assert chosen["infoseek_task6"] == chosen["infoseek_task8"] == "knowledge_question"
    assert chosen["oven_task6"] == chosen["oven_task8"] == "entity"
    assert chosen["webqa_task1"] == chosen["webqa_task2"] == chosen["edis_task2"] == "multi_hop"
    assert (chosen["mscoco_task0"], chosen["mscoco_task3"]) == ("text_to_picture", "caption")
    assert chosen["nights_task4"] == "picture_to_picture"
    assert {chosen["own_task1"], chosen["own_task6"]} == {"general"}


def test_the_judge_sees_query_target_and_answer_and_the_assessor_no_target():
    judge, assess = load_templates(PROMPTS / "verify"), load_templates(PROMPTS / "assess")
    for query in list_queries():
        shown = show(judge.choose(query).build_messages(query, answer="Three hundred metres"))
        seen = (query.instruction, query.text, query.target_text, query.image_path)
        for part in (*seen, query.target_image_path, "Three hundred metres", '"confidence"'):
            assert (part or "") in shown
        assert ("Picture of the query" in shown) == (query.image_path is not None)
        asked = show(assess.choose(query).build_messages(query))
        assert query.text in asked
        assert "b.jpg" not in asked
        assert "300" not in asked
