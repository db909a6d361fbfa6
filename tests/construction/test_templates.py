"""Templates: slots, choice, and the form of replies."""

from dataclasses import replace

import pytest

from tracelib.construction.queries import SourceQuery
from tracelib.construction.templates import PromptTemplate, TemplateSet, load_templates

QUERY = SourceQuery(
    query_id="9:3",
    dataset="cirr",
    task_id=7,
    text="Make it {red}.",
    image_path="mbeir_images/a.jpg",
    instruction="Find the picture.",
    target_id="9:1",
    target_text="A red car.",
    target_image_path="mbeir_images/b.jpg",
    source_caption=None,
    positive_ids=("9:1",),
)
PICTURE = {"type": "image_path", "path": "mbeir_images/a.jpg"}


def test_texts_and_pictures_come_where_their_slots_are():
    template = PromptTemplate("a", " Think. ", "{query_image}\nTask: {instruction}\n  {query}\nGo.")
    assert template.build_messages(QUERY) == [
        {"role": "system", "content": "Think."},
        {
            "role": "user",
            "content": [
                PICTURE,
                {"type": "text", "text": "Task: Find the picture.\n  Make it {red}.\nGo."},
            ],
        },
    ]


def test_what_is_not_there_leaves_no_line_and_no_part():
    template = PromptTemplate("a", "", "See {query_image}:\nQuery: {query}\n{instruction} {query}")
    bare = replace(QUERY, image_path=None, text="")
    assert template.build_messages(bare) == [{"role": "user", "content": "Find the picture."}]


def test_pictures_and_texts_may_alternate():
    template = PromptTemplate(
        "a", "", "From {query_image} to {target_image} by {query}", source="oracle"
    )
    assert template.build_messages(QUERY)[0]["content"] == [
        {"type": "text", "text": "From"},
        PICTURE,
        {"type": "text", "text": "to"},
        {"type": "image_path", "path": "mbeir_images/b.jpg"},
        {"type": "text", "text": "by Make it {red}."},
    ]


def test_what_fills_a_slot_is_not_filled_again():
    template = PromptTemplate("a", "", "{query} {answer} {target}", source="oracle")
    query = replace(QUERY, text="{answer}", target_text="{query}")
    messages = template.build_messages(query, answer="{target}")
    assert messages[0]["content"] == "{answer} {target} {query}"


def test_braces_of_json_stay():
    template = PromptTemplate("a", "", 'Say {"difficulty": 0} about {query}')
    assert template.build_messages(QUERY)[0]["content"] == (
        'Say {"difficulty": 0} about Make it {red}.'
    )


@pytest.mark.parametrize("slot", ["{target}", "{target_image}"])
def test_a_teacher_must_not_see_the_target(slot):
    with pytest.raises(ValueError, match="must not see the target"):
        PromptTemplate("a", "", f"{{query}} {slot}")
    assert PromptTemplate("a", "", f"{{query}} {slot}", source="oracle").source == "oracle"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": "{qery}"}, "slot {qery}; there are {instruction}"),
        ({"user": " "}, "user is empty"),
        ({"source": "self"}, "source 'self' is none of"),
        ({"tasks": (5,)}, "tasks has 5"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"reply": "(?P<reasoning>.*"}, "neither 'tagged' nor a regular expression"),
        ({"reply": "(?P<reasoning>.*)"}, "needs the groups"),
    ],
)
def test_bad_values_are_named(changes, message):
    with pytest.raises(ValueError, match="(?s).*" + message.replace("(", r"\(")):
        PromptTemplate(**{"name": "a", "system": "", "user": "{query}", **changes})


def test_replies_of_another_form_are_rewritten_and_others_left_alone():
    pattern = r"(?P<reasoning>.+)\n(?P<answer>\d .+)"
    template = PromptTemplate("a", "", "{query}", reply=pattern)
    assert template.canonicalize("0 red star\n1 a blue star / moon \n") == (
        "<reasoning>0 red star</reasoning><answer>1 a blue star / moon</answer>"
    )
    assert template.canonicalize("no idea\n") == "no idea\n"
    tagged = replace(template, reply="tagged")
    assert tagged.canonicalize(" <answer>x</answer> ") == " <answer>x</answer> "


def test_a_data_set_beats_a_task_beats_all():
    templates = [
        PromptTemplate("all", "", "{query}"),
        PromptTemplate("task", "", "{query}", tasks=(7, 8)),
        PromptTemplate("cirr", "", "{query}", datasets=("cirr",)),
        PromptTemplate("both", "", "{query}", datasets=("cirr",), tasks=(8,)),
    ]
    chosen = TemplateSet(templates, "folder")
    names = [chosen.choose(replace(QUERY, dataset=d, task_id=t)).name for d in ("cirr", "edis")
             for t in (2, 7, 8)]  # fmt: skip
    assert names == ["cirr", "cirr", "both", "all", "task", "task"]
    with pytest.raises(ValueError, match=r"no template for data set 'cirr', task 3.*'task'"):
        TemplateSet(templates[1:2], "folder").choose(replace(QUERY, task_id=3))
    twins = [templates[1], replace(templates[1], name="twin")]
    with pytest.raises(ValueError, match=r"\['task', 'twin'\] fit .* equally well"):
        TemplateSet(twins, "folder").choose(QUERY)
    with pytest.raises(ValueError, match="2 templates are named 'task'"):
        TemplateSet([templates[1]] * 2, "folder")


def test_a_folder_is_read_and_its_mistakes_named(tmp_path):
    with pytest.raises(ValueError, match="no template here"):
        load_templates(tmp_path)
    path = tmp_path / "edit.yaml"
    path.write_text("user: |\n  {query}\ntasks: [7]\nmax_tokens: 9\n")
    (template,) = load_templates(tmp_path).templates
    assert template == PromptTemplate("edit", "", "{query}\n", tasks=(7,), max_tokens=9)
    for text, message in (
        ("usr: a", "no field 'usr'"),
        ("- a", "no mapping"),
        ("user: [", "no YAML"),
        ("user: 7", "user 7 is no text"),
        ("user: a\ntasks: 7", "tasks 7 is no list of int"),
        ("user: a\ntasks: ['7']", "is no list of int"),
        ("user: a\nmax_tokens: many", "max_tokens 'many'"),
        ("user: '{target}'", "must not see the target"),
        ("system: a", "user is empty"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=f"edit.yaml: .*{message}"):
            load_templates(tmp_path)


def test_the_digest_is_of_what_a_reply_depends_on():
    template = PromptTemplate("a", "s", "{query}", tasks=(7,))
    assert replace(template, tasks=(8,), datasets=("cirr",)).sha == template.sha
    changes = [{"name": "b"}, {"system": ""}, {"user": "{query}!"}, {"source": "oracle"}]
    changes += [{"reply": "(?P<reasoning>.)(?P<answer>.)"}, {"max_tokens": 3}]
    shas = {replace(template, **change).sha for change in changes}
    assert len(shas | {template.sha}) == 7
