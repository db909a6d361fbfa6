"""What an answer has to do with its query: something, and not just the source again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tracelib.construction.rules.function_words import ENGLISH
from tracelib.construction.rules.violation import Violation
from tracelib.construction.rules.words import fold_plural, normalize_text, split_words


def select_content_words(text: str) -> set[str]:
    """Return the words of a text that say something, in the singular: no function words or numbers.

    >>> sorted(select_content_words("Put the 2 dogs on a red sofa."))
    ['dog', 'put', 'red', 'sofa']
    """
    words = (word for word in split_words(text) if word not in ENGLISH and not word.isdigit())
    return {fold_plural(word) for word in words}


def find_unrelated_answer(
    answer: str, references: Sequence[str], min_shared_words: int
) -> Iterator[Violation]:
    """Yield a violation `unrelated_answer` where too few content words are in any reference.

    Args:
        answer: The answer.
        references: Instruction, query text and target text. Where none has a content word, there is
            nothing to share and any answer passes.
        min_shared_words: Content words that the answer must have in common with them all together.
    """
    allowed = {word for text in references for word in select_content_words(text)}
    shared = select_content_words(answer) & allowed
    if allowed and len(shared) < min_shared_words:
        detail = f"shares {len(shared)} content words with instruction, query and target"
        yield Violation("unrelated_answer", f"{detail}, required are {min_shared_words}")


def find_copied_caption(answer: str, source_caption: str | None) -> Iterator[Violation]:
    """Yield a violation `copied_caption` where an edited picture's answer is its source's caption.

    Args:
        answer: The answer.
        source_caption: Caption of the picture that is to be edited, or None where there is none.
    """
    if source_caption is not None and normalize_text(answer) == normalize_text(source_caption):
        yield Violation("copied_caption", f"the answer is the source's caption {source_caption!r}")
