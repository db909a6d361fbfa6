"""Makes the untrained backbone: tokenizer, image processor and a tiny Qwen2.5-VL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from tracelib.data.scenes import wording
from tracelib.data.scenes.world import sample_chain
from tracelib.prompts import format_query

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TEMPLATE_WORDS = (
    "system\nuser\nassistant\n Work step by step if the query is hard. Answer at once."
)


def train_tokenizer(
    seed: int, vocab_size: int = 1016, num_texts: int = 20_000
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on train scenes: short there, and any text goes in."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_iterate_texts(Random(f"tokenizer {seed}"), num_texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def _iterate_texts(rng: Random, num_texts: int) -> Iterator[str]:
    prompts = [prompt for row in wording.INSTRUCTIONS.values() for prompt in row]
    for _ in range(num_texts):
        operations, states = sample_chain(rng, rng.randint(1, 4), "train")
        caption = wording.write_caption(states[0], rng)
        yield format_query(rng.choice(prompts), wording.write_recipe(caption, operations))
        yield format_query("", caption)
        yield wording.write_passage(states[-1])
        yield " ".join(wording.write_rationale(states))
        yield _TEMPLATE_WORDS


def build_blank_backbone(
    tokenizer: PreTrainedTokenizerFast,
    hidden_size: int = 128,
    intermediate_size: int = 384,
    num_layers: int = 4,
    num_heads: int = 4,
    num_key_value_heads: int = 4,
    vision_hidden_size: int = 96,
    vision_depth: int = 2,
    vocab_size: int = 1024,
) -> Qwen2_5_VLForConditionalGeneration:
    """Return a Qwen2.5-VL of the given sizes with random weights and tied embeddings.

    Args:
        tokenizer: Its special tokens give the configuration's ids; rows beyond it are spare, as in
            Qwen's own.
        hidden_size: Width of the language model; a multiple of 8 heads' worth of rotary dimensions.
        intermediate_size: Width of its MLP.
        num_layers: Layers of the language model.
        num_heads: Attention heads.
        num_key_value_heads: Key and value heads.
        vision_hidden_size: Width of the vision encoder.
        vision_depth: Blocks of the vision encoder; the last one attends over the whole picture.
        vocab_size: Embedding rows.
    """
    vocab = tokenizer.get_vocab()
    ids = {token: int(vocab[token]) for token in SPECIAL_TOKENS}
    half = hidden_size // num_heads // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "intermediate_size": intermediate_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "max_position_embeddings": 1024,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8],
            },
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": vision_depth,
            "hidden_size": vision_hidden_size,
            "intermediate_size": 2 * vision_hidden_size,
            "num_heads": 4,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [vision_depth - 1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|endoftext|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def write_processors(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save the tokenizer and an image processor for pictures of 1 to 64 patches of 28 x 28."""
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(
        size={"shortest_edge": 28**2, "longest_edge": 64 * 28**2}
    ).save_pretrained(folder)
