import json
from dataclasses import replace

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from tests.tiny_backbones import SMOL_SETTINGS, SMOL_SLOT
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


def copy_backbone(source, folder, change):
    """Copy all but the weights, each text changed."""
    for path in source.iterdir():
        if path.suffix in (".json", ".jinja"):
            (folder / path.name).write_text(change(path.name, path.read_text()))
    return folder


def test_a_template_without_image_token_is_refused(tiny_backbone, tmp_path):
    def change(name, text):
        return text.replace("<|image_pad|>", "") if name.endswith("jinja") else text

    folder = copy_backbone(tiny_backbone, tmp_path, change)
    message = r"chat template of backbone .* writes <\|image_pad\|> 0 times for 1 pictures"
    with pytest.raises(ValueError, match=message):
        ChatProcessor(folder, EMB)


def test_a_configuration_without_image_token_is_refused(tiny_backbone, tmp_path):
    def change(name, text):
        return json.dumps({"model_type": "qwen2"}) if name == "config.json" else text

    with pytest.raises(ValueError, match=r"config\.json of backbone .* has no image_token_id"):
        ChatProcessor(copy_backbone(tiny_backbone, tmp_path, change), EMB)


def test_a_backbone_with_pictures_of_one_size(other_backbone):
    """The slot's texts stand around its image tokens, and no text smuggles in another."""
    folder = other_backbone("smolvlm")
    processor = ChatProcessor(folder, EMB, image_slot=SMOL_SLOT, image_processor=SMOL_SETTINGS)
    turn = make_turn("a <image> star", (84, 56), "red <image>", EMB, "Be brief.")
    inputs = processor([turn, make_turn("x", (28, 28)), make_turn("y")])
    assert processor.tokenizer.decode(get_row(inputs, 0)) == (
        "<|im_start|>System: Be brief.<end_of_utterance>\n"
        "User: <fake_token_around_image><global-img><image><image><image><image>"
        "<fake_token_around_image>Find it. a   star<end_of_utterance>\nAssistant:red  <|emb|>"
    )
    assert (inputs.input_ids == processor.image_token_id).sum(-1).tolist() == [4, 4, 0]
    assert torch.equal(inputs.mm_token_type_ids, (inputs.input_ids == processor.image_token_id) * 1)
    assert (inputs.pixel_values.shape, inputs.image_grid_thw) == ((2, 1, 3, 32, 32), None)
    alone = [processor([make_turn("x", size)]).pixel_values for size in ((84, 56), (28, 28))]
    assert torch.equal(inputs.pixel_values, torch.cat(alone))


def test_the_digest_feels_what_becomes_of_a_picture(tiny_backbone):
    processors = [
        ChatProcessor(tiny_backbone, EMB),
        ChatProcessor(tiny_backbone, EMB, max_image_tokens=4),
        ChatProcessor(tiny_backbone, EMB, min_image_tokens=4),
        ChatProcessor(tiny_backbone, EMB, image_processor={"do_normalize": False}),
    ]
    digests = {processor.compute_digest() for processor in processors}
    assert len(digests) == len(processors)
    assert processors[0].compute_digest() == ChatProcessor(tiny_backbone, EMB).compute_digest()
