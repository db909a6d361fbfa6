"""The rule filter: every violation of a teacher's output, without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tracelib.construction.rules import (
    answers,
    language,
    leaks,
    lengths,
    phrases,
    repetition,
    tags,
)
from tracelib.construction.rules.violation import Violation
from tracelib.construction.rules.words import normalize_text

_LOWEST = {
    "ngram_words": 1,
    "max_foreign_letters": 0,
    "max_foreign_words": 0,
    "min_shared_words": 0,
    "max_target_words": 0,
    "max_prompt_words": 0,
}


@dataclass(frozen=True)
class RuleLimits:
    """The thresholds of the rules; the defaults are for English (TRACE, supplement 9).

    Args:
        min_reasoning_tokens: Fewest tokens of the reasoning, by the teacher's tokenizer.
        max_reasoning_tokens: Most tokens of the reasoning.
        min_answer_tokens: Fewest tokens of the answer.
        max_answer_tokens: Most tokens of the answer.
        ngram_words: Words of the n-grams that repetition is measured by.
        max_repeated_ngrams: Largest share of n-grams of a part that came before in it, 0 .. 1.
        max_foreign_letters: Most letters of another script than Latin.
        min_english_words: Least share of English function words among all words, 0 .. 1; 0 for a
            language without any, such as that of Scenes.
        max_foreign_words: By how many words the function words of other languages may outnumber the
            English ones, in the reasoning and in the answer.
        min_shared_words: Fewest content words of the answer that instruction, query text or target
            text have too; 0 turns the rule off.
        composed_tasks: M-BEIR tasks whose answer must differ from the source's caption.
        max_target_words: Most consecutive words of the target's text in a `teacher` rationale.
        max_prompt_words: Most consecutive words of the teacher's prompt in a rationale.
        refusals: Phrases of a refusal, looked for without case and punctuation.
        boilerplate: Phrases of boilerplate, looked for in the same way.

    Raises:
        ValueError: A threshold is out of its range.
    """

    min_reasoning_tokens: int = 16
    max_reasoning_tokens: int = 256
    min_answer_tokens: int = 2
    max_answer_tokens: int = 64
    ngram_words: int = 4
    max_repeated_ngrams: float = 0.2
    max_foreign_letters: int = 0
    min_english_words: float = 0.15
    max_foreign_words: int = 1
    min_shared_words: int = 1
    composed_tasks: tuple[int, ...] = (7,)
    max_target_words: int = 7
    max_prompt_words: int = 11
    refusals: tuple[str, ...] = phrases.REFUSALS
    boilerplate: tuple[str, ...] = phrases.BOILERPLATE

    def __post_init__(self) -> None:
        """Check the ranges."""
        for part in ("reasoning", "answer"):
            low, high = (getattr(self, f"{end}_{part}_tokens") for end in ("min", "max"))
            if not 0 <= low <= high:
                raise ValueError(
                    f"min_{part}_tokens {low} and max_{part}_tokens {high}: required is 0 <= "
                    f"min_{part}_tokens <= max_{part}_tokens"
                )
        for name in ("max_repeated_ngrams", "min_english_words"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"{name} {share} is not in 0 .. 1")
        for name, lowest in _LOWEST.items():
            if (number := getattr(self, name)) < lowest:
                raise ValueError(f"{name} {number} is less than {lowest}")
        for name in ("refusals", "boilerplate"):
            if blank := [phrase for phrase in getattr(self, name) if not normalize_text(phrase)]:
                raise ValueError(f"{name} has {blank[0]!r}, a phrase without a word")


@dataclass(frozen=True)
class Facts:
    """What is known of the query that an output was written for.

    Args:
        query_text: The query's own text, `""` for none.
        instruction: The query's instruction, `""` for none.
        source_caption: Caption of the query's picture, or None where there is none.
        target_text: Text of the target, or None where it has none.
        target_id: Candidate id of the target, or None.
        source: `teacher` saw the query only, `oracle` saw the target too.
        task_id: M-BEIR task of the query.
        prompt: What the teacher was told, without the query's texts or with them; `""` where its
            words are not to be looked for.
    """

    query_text: str
    instruction: str
    source_caption: str | None
    target_text: str | None
    target_id: str | None
    source: Literal["teacher", "oracle"]
    task_id: int
    prompt: str = ""


def check_rationale(
    text: str, facts: Facts, limits: RuleLimits, count_tokens: Callable[[str], int]
) -> list[Violation]:
    """Return every violation of a teacher's output, in a fixed order; none for one that is kept.

    Where the tags are wrong there are no parts, and only the rules on the whole text can speak.

    Args:
        text: The output as it came.
        facts: What it was written for.
        limits: The thresholds.
        count_tokens: Number of tokens of a text by the teacher's tokenizer.
    """
    found = [*_check_tags(text), *_check_text(text, facts, limits)]
    if tags.has_tags(text):
        reasoning, answer = tags.parse_rationale_text(text)
        found += _check_parts(reasoning, answer, limits, count_tokens)
        found += _check_answer(answer, facts, limits)
    return found


def _check_tags(text: str) -> Iterator[Violation]:
    yield from tags.find_missing_tags(text)
    yield from tags.find_repeated_tags(text)
    yield from tags.find_misplaced_tags(text)
    yield from tags.find_malformed_tags(text)
    yield from tags.find_foreign_tags(text)
    yield from tags.find_text_outside_tags(text)


def _check_text(text: str, facts: Facts, limits: RuleLimits) -> Iterator[Violation]:
    """Check what holds for the output as a whole, whether it has its tags or not."""
    yield from phrases.find_refusals(text, limits.refusals)
    yield from phrases.find_boilerplate(text, limits.boilerplate)
    yield from language.find_foreign_letters(text, limits.max_foreign_letters)
    seen = (facts.query_text, facts.instruction)
    yield from leaks.find_leaked_prompt(text, facts.prompt, seen, limits.max_prompt_words)
    if facts.source != "oracle":
        yield from leaks.find_leaked_id(text, facts.target_id)
        yield from leaks.find_leaked_target(text, facts.target_text, seen, limits.max_target_words)


def _check_parts(
    reasoning: str, answer: str, limits: RuleLimits, count_tokens: Callable[[str], int]
) -> Iterator[Violation]:
    yield from lengths.find_reasoning_length(
        count_tokens(reasoning), limits.min_reasoning_tokens, limits.max_reasoning_tokens
    )
    yield from lengths.find_answer_length(
        count_tokens(answer), limits.min_answer_tokens, limits.max_answer_tokens
    )
    yield from language.find_few_english_words(f"{reasoning} {answer}", limits.min_english_words)
    for part, words in (("reasoning", reasoning), ("answer", answer)):
        yield from language.find_foreign_words(words, limits.max_foreign_words)
        yield from repetition.find_repetition(
            part, words, limits.ngram_words, limits.max_repeated_ngrams
        )


def _check_answer(answer: str, facts: Facts, limits: RuleLimits) -> Iterator[Violation]:
    references = (facts.instruction, facts.query_text, facts.target_text or "")
    yield from answers.find_unrelated_answer(answer, references, limits.min_shared_words)
    if facts.task_id in limits.composed_tasks:
        yield from answers.find_copied_caption(answer, facts.source_caption)
