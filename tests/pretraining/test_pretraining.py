import json
import random
import re
import shutil
from dataclasses import replace

import lightning
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from tracelib.data.collator import IGNORED_LABEL, ChatProcessor
from tracelib.data.scenes.world import COLOURS, MAX_CHAIN_LENGTH, SHAPES, Scene
from tracelib.models.backbone import compute_fingerprint, load_backbone
from tracelib.pretraining.blank import SPECIAL_TOKENS, build_blank_backbone, train_tokenizer
from tracelib.pretraining.data import END, PretrainingDataModule, sample_turn
from tracelib.pretraining.module import PretrainingModule
from tracelib.pretraining.run import pretrain

SETTINGS = {
    "num_epochs": 2,
    "steps_per_epoch": 2,
    "batch_size": 4,
    "warmup_steps": 1,
    "val_size": 2,
}


@pytest.fixture(scope="module", autouse=True)
def one_tokenizer_thread():
    """Training a tokenizer on several threads takes minutes where other work keeps them waiting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        yield


@pytest.fixture(scope="module")
def processor(tiny_backbone):
    return ChatProcessor(tiny_backbone, END)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("pretrained")
    pretrain(folder, **SETTINGS)
    return folder


def read_scenes(text):
    """Return the scenes that a text spells out as four tiles."""
    tiles = re.findall(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", text)
    assert len(tiles) % 4 == 0
    return [Scene(tuple(tiles[i : i + 4])) for i in range(0, len(tiles), 4)]


TEXTS = [
    "red star blue moon / red heart green circle",
    "ÄÖ ß  é\u0301 \u200b naïve",
    "日本語 العربية 한국어",
    "🙂👩‍👩‍👧 \U0001f600",
    "tabs\tand\nlines\r\n  blanks ",
    "a" * 300,
    '"<|" and "|>" <b>',
    "",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_any_text_survives_the_tokenizer(processor, text):
    ids = processor.tokenizer.encode(text, add_special_tokens=False)
    assert processor.tokenizer.decode(ids) == text


def test_random_unicode_survives_the_tokenizer(processor):
    rng = random.Random(0)
    points = [i for i in range(1, 0x110000) if not 0xD800 <= i < 0xE000]
    for _ in range(50):
        text = "".join(map(chr, rng.choices(points, k=20)))
        ids = processor.tokenizer.encode(text, add_special_tokens=False)
        assert processor.tokenizer.decode(ids) == text


def test_the_tokenizer_is_a_function_of_its_seed():
    vocabularies = [train_tokenizer(seed, 380, 100).get_vocab() for seed in (0, 0, 1)]
    assert vocabularies[0] == vocabularies[1]
    assert vocabularies[0] != vocabularies[2]
    assert all(vocabularies[0][token] == i for i, token in enumerate(SPECIAL_TOKENS))


@pytest.mark.parametrize("split", ["train", "val", "test"])
@pytest.mark.parametrize("length", range(MAX_CHAIN_LENGTH + 1))
def test_turns_use_scenes_of_their_split_only(split, length):
    """All states stand in the response; the card of the prompt is the first of them."""
    seen = 0
    for seed in range(40):
        turn = sample_turn(random.Random(seed), length, split)
        scenes = read_scenes(turn.response)
        assert len(scenes) >= max(1, length)
        assert {scene.split for scene in scenes} == {split}
        seen += len(turn.images)
    assert 5 < seen < 35  # pictures as well as words


def test_training_and_validation_batches_do_not_mix_splits(tiny_backbone, processor):
    data = PretrainingDataModule(tiny_backbone, 0, 8, 3, val_size=6, num_workers=0)
    for loader, split in ((data.train_dataloader(), "train"), (data.val_dataloader(), "val")):
        texts = [
            processor.tokenizer.decode(row[row != IGNORED_LABEL])
            for batch in loader
            for row in batch.labels
        ]
        assert len(texts) > 20
        assert all(text.endswith(END) for text in texts)
        assert {scene.split for text in texts for scene in read_scenes(text)} == {split}


def test_batches_are_the_same_from_a_worker(tiny_backbone):
    found = [
        [batch.input_ids for batch in data.train_dataloader()]
        for data in (PretrainingDataModule(tiny_backbone, 0, 4, 2, num_workers=n) for n in (0, 1))
    ]
    assert len(found[0]) == 2
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_validation_batches_hold_one_chain_length_each(tiny_backbone, processor):
    data = PretrainingDataModule(tiny_backbone, 0, 8, 3, val_size=6, num_workers=0)
    sizes = [float((batch.labels != IGNORED_LABEL).sum()) for batch in data.val_dataloader()]
    assert len(sizes) == MAX_CHAIN_LENGTH + 1
    assert sizes[1:] == sorted(sizes[1:])


class Batches(lightning.LightningDataModule):
    """Given batches, for the real trainer's validation."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def val_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def write_greedily(model, processor, batch, num_tokens):
    """Replace the responses of left-padded prompts by what the model itself would write."""
    module = PretrainingModule(model, 1e-3, 1, 1)
    inputs = batch
    for _ in range(num_tokens):
        probe = replace(inputs, labels=torch.full_like(inputs.input_ids, IGNORED_LABEL))
        one = torch.ones(len(inputs.input_ids), 1, dtype=torch.long)
        probe = extend(probe, one, one)
        with torch.no_grad():
            logits, _ = module._predict(probe)
        inputs = extend(inputs, logits.argmax(-1)[:, None], logits.argmax(-1)[:, None])
    return inputs


def extend(inputs, tokens, labels):
    one = torch.ones_like(tokens)
    return replace(
        inputs,
        input_ids=torch.cat([inputs.input_ids, tokens], 1),
        attention_mask=torch.cat([inputs.attention_mask, one], 1),
        mm_token_type_ids=torch.cat([inputs.mm_token_type_ids, 0 * one], 1),
        labels=torch.cat([inputs.labels, labels], 1),
    )


def test_exact_rationale_is_the_share_of_responses_the_model_would_write(tiny_model, processor):
    """1 for its own greedy words; one changed token makes one of four wrong."""
    model = tiny_model()
    rng = random.Random(0)
    turns = [replace(sample_turn(rng, 2, "val"), response=None, end="") for _ in range(4)]
    right = write_greedily(model, processor, processor(turns, "left"), 6)
    wrong = replace(right, input_ids=right.input_ids.clone(), labels=right.labels.clone())
    wrong.input_ids[2, -1] += 1
    wrong.labels[2, -1] += 1
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.validate(PretrainingModule(model, 1e-3, 1, 1), Batches([right, wrong]), verbose=False)
    rates = [v.item() for name, v in trainer.callback_metrics.items() if "exact" in name]
    assert rates == [1.0, 0.75]


def test_one_training_step_lowers_the_loss(tiny_backbone, tiny_model):
    data = PretrainingDataModule(tiny_backbone, 0, 8, 1, num_workers=0)
    (batch,) = data.train_dataloader()
    module = PretrainingModule(tiny_model().train(), 1e-3, 1, 10)
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(*module._predict(batch))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_blank_backbone_has_the_tokenizers_special_ids(tiny_backbone):
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    config = build_blank_backbone(tokenizer, 32, 48, 1, 4, 2, 16, 1).config
    assert config.image_token_id == tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert config.text_config.eos_token_id == tokenizer.eos_token_id
    assert config.tie_word_embeddings


def test_the_result_is_a_backbone_with_its_card(pretrained):
    folder = pretrained / "backbone"
    model, emb_token_id = load_backbone(str(folder), "<|emb|>", None, True, "float32", False)
    rates = json.loads((folder / "exact_rationale.json").read_text())
    lengths = range(MAX_CHAIN_LENGTH + 1)
    assert list(rates) == [f"val/exact_rationale/length_{length}" for length in lengths]
    card = (folder / "README.md").read_text()
    assert f"{model.num_parameters():,} parameters" in card
    assert "4 of 4 turns" in card
    assert "| edits | 0 | 1 | 2 | 3 | 4 |" in card
    assert emb_token_id == len(AutoTokenizer.from_pretrained(folder))


def test_a_run_that_was_cut_off_goes_on_to_the_same_weights(pretrained, tmp_path, monkeypatch):
    draw = PretrainingDataModule.train_dataloader

    def fail_in_the_second_epoch(self):
        if self.trainer.current_epoch == 1:
            raise OSError("power cut")
        return draw(self)

    with monkeypatch.context() as patch:
        patch.setattr(PretrainingDataModule, "train_dataloader", fail_in_the_second_epoch)
        with pytest.raises(OSError, match="power cut"):
            pretrain(tmp_path, **SETTINGS)
    assert not (tmp_path / "backbone" / "model.safetensors").exists()
    pretrain(tmp_path, **SETTINGS)
    prints = [compute_fingerprint(str(folder / "backbone")) for folder in (tmp_path, pretrained)]
    assert prints[0] == prints[1]
    names = ("model.safetensors", "tokenizer.json", "exact_rationale.json")
    for name in names:
        ours, theirs = (folder / "backbone" / name for folder in (tmp_path, pretrained))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_running_a_finished_run_again_changes_nothing(pretrained, tmp_path):
    folder = shutil.copytree(pretrained, tmp_path / "again")
    pretrain(folder, **SETTINGS)
    for name in ("model.safetensors", "exact_rationale.json", "README.md"):
        ours, theirs = (place / "backbone" / name for place in (folder, pretrained))
        assert ours.read_bytes() == theirs.read_bytes(), name
