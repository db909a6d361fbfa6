from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from tracelib.data.collator import ChatProcessor, Turn
from tracelib.prompts import Template

EMB = "<|emb|>"
SIZES = {(28, 28): 1, (84, 56): 6, (56, 84): 6, (140, 112): 20}
"""Merged patches of a picture of each width and height."""


@pytest.fixture(scope="module")
def processor(tiny_backbone):
    return ChatProcessor(tiny_backbone, EMB)


def make_turn(text, size=None, response=None, end="", system=""):
    images = [Image.new("RGB", size, (200, 30, 30))] if size else []
    messages = Template(system=system).build_messages(len(images), "Find it.", text, -1)
    return Turn(messages, images, response, end)


def get_row(inputs, row):
    return inputs.input_ids[row][inputs.attention_mask[row] == 1].tolist()


@pytest.mark.parametrize(
    "response", ["", "red star", " blank first", "\n", "star<|im_end|>", "é🙂"]
)
@pytest.mark.parametrize("size", [None, (84, 56)])
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_training_sequence_is_its_prompt_and_the_written_tokens(
    processor, response, size, system
):
    """Token for token, so what was trained is what is decoded."""
    turn = make_turn("a red star", size, response, EMB, system)
    prompt = processor([replace(turn, response=None, end="")])
    training = processor([turn])
    written = [
        *processor.tokenizer.encode(response, add_special_tokens=False),
        processor.emb_token_id,
    ]
    assert get_row(training, 0) == [*get_row(prompt, 0), *written]
    assert training.labels[0].tolist() == [-100] * prompt.input_ids.shape[1] + written
    assert (prompt.labels == -100).all()


def test_the_prompt_reads_as_the_template_says(processor):
    turn = make_turn("a red star", (28, 28), "yes", EMB, "Be brief.")
    assert processor.tokenizer.decode(get_row(processor([turn]), 0)) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
        "Find it. a red star<|im_end|>\n"
        f"<|im_start|>assistant\nyes{EMB}"
    )


def test_image_slots_hold_one_token_per_merged_patch(processor):
    turns = [make_turn("x", size) for size in SIZES]
    inputs = processor([make_turn("no picture"), *turns])
    is_image = inputs.input_ids == processor.image_token_id
    assert is_image.sum(-1).tolist() == [0, *SIZES.values()]
    assert torch.equal(inputs.mm_token_type_ids, is_image.long())
    grids = [(1, 2 * height // 28, 2 * width // 28) for width, height in SIZES]
    assert inputs.image_grid_thw.tolist() == [list(grid) for grid in grids]
    assert len(inputs.pixel_values) == 4 * sum(SIZES.values())
    alone = [processor([turn]).pixel_values for turn in turns]
    assert torch.equal(inputs.pixel_values, torch.cat(alone))


def test_two_pictures_of_one_turn_fill_their_slots_in_order(processor):
    images = [Image.new("RGB", size) for size in ((28, 28), (84, 56))]
    inputs = processor([Turn(Template().build_messages(2, "Compare.", "", -1), images)])
    start, end = processor.tokenizer.convert_tokens_to_ids(["<|vision_start|>", "<|vision_end|>"])
    ids = get_row(inputs, 0)
    runs = [ids.index(end, i) - i - 1 for i, token in enumerate(ids) if token == start]
    assert runs == [1, 6]


def test_without_pictures_there_are_no_pixels(processor):
    inputs = processor([make_turn("a"), make_turn("b")])
    assert (inputs.pixel_values, inputs.image_grid_thw) == (None, None)


def test_padding_side_moves_rows_and_changes_nothing_else(processor):
    turns = [make_turn("a", None, "b", EMB), make_turn("a longer text " * 3, (84, 56), "c", EMB)]
    right, left = processor(turns), processor(turns, "left")
    width = right.input_ids.shape[1]
    for row in range(2):
        length = int(right.attention_mask[row].sum())
        assert right.attention_mask[row].tolist() == [1] * length + [0] * (width - length)
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "labels"):
            rolled = getattr(right, name)[row].roll(width - length)
            assert torch.equal(getattr(left, name)[row], rolled), name
        assert get_row(left, row) == get_row(processor([turns[row]]), 0)
    padding = right.attention_mask == 0
    assert padding.any()
    assert (right.input_ids[padding] == processor.tokenizer.pad_token_id).all()
    assert (right.labels[padding] == -100).all()


@pytest.mark.parametrize("text", ["red star blue moon / red heart", "ünïcödé 🙂🙂 text", "x" * 50])
@pytest.mark.parametrize("max_tokens", [1, 5, 1000])
def test_truncate_keeps_the_first_tokens(processor, text, max_tokens):
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    cut = processor.truncate(text, max_tokens)
    if len(ids) <= max_tokens:
        assert cut == text
    else:
        assert cut == processor.tokenizer.decode(ids[:max_tokens])
        assert text.startswith(cut.rstrip("\ufffd"))
        assert len(cut) < len(text)


@pytest.mark.parametrize(
    ("limits", "expected"), [((None, None), 6), ((None, 784), 1), ((7840, None), 12)]
)
def test_pixel_limits_bound_the_merged_patches(tiny_backbone, limits, expected):
    processor = ChatProcessor(tiny_backbone, EMB, *limits)
    inputs = processor([make_turn("x", (84, 56))])
    assert int(inputs.mm_token_type_ids.sum()) == expected


def test_the_embedding_token_is_one_token_beyond_the_vocabulary(processor, tiny_backbone):
    plain = AutoTokenizer.from_pretrained(tiny_backbone)
    assert processor.emb_token_id == len(plain)
    assert processor.tokenizer.encode(f"a{EMB}b")[1] == processor.emb_token_id
    known = ["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>"]
    assert processor.tokenizer.convert_tokens_to_ids(known) == plain.convert_tokens_to_ids(known)
    assert all(len(processor.tokenizer.encode(token)) == 1 for token in known)
    again = ChatProcessor(tiny_backbone, "<|im_end|>")
    assert again.emb_token_id == plain.eos_token_id


def test_a_tokenizer_without_chat_template_is_refused(tiny_backbone, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        ChatProcessor(tmp_path, EMB)


def test_a_tokenizer_without_vision_tokens_is_refused(tiny_backbone, tmp_path):
    for path in tiny_backbone.iterdir():
        if path.suffix in (".json", ".jinja"):
            text = path.read_text().replace("<|image_pad|>", "<|other|>")
            (tmp_path / path.name).write_text(text)
    with pytest.raises(ValueError, match=r"has no .*image_pad"):
        ChatProcessor(tmp_path, EMB)
