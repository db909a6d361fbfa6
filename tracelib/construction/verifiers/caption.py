"""A model that describes the true target without knowing the answer, which must say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tracelib.construction.queries import SourceQuery
from tracelib.construction.rules.words import split_words
from tracelib.construction.teachers.teacher import Reply, Request, Teacher
from tracelib.construction.verifiers.verifier import Verdict, load_verify_templates


def measure_agreement(answer: str, caption: str) -> float:
    """Return the share of words that are the same and at the same place, 0 .. 1.

    >>> measure_agreement("Red star, blue moon.", "red star / blue heart")
    0.75
    >>> measure_agreement("red star", "red star blue moon")
    0.5
    """
    said, seen = split_words(answer), split_words(caption)
    num_equal = sum(a == b for a, b in zip(said, seen, strict=False))
    return num_equal / max(len(said), len(seen), 1)


class CaptionVerifier:
    """Asks for the target's description and compares it with the answer, word by word.

    For languages in which a thing has one description, so that a small model will do: it never
    has to judge. The confidence is the agreement.

    Args:
        teacher: The model.
        templates: Folder of its prompts, of source `oracle`. They show the target, never the
            answer: with the answer before its eyes, a model repeats it.
        strip_pattern: Regular expression of what is taken out of description and answer before
            they are compared; null for nothing.
        min_agreement: Least share of equal words of a consistent answer, above 0 up to 1.
        max_tokens: Longest description, where the template sets none.
        seed: Seed of the description's sampling; the temperature is 0.

    Raises:
        ValueError: There is no such folder, a template is broken, shows the answer or does not show
            the target, or a number is out of its range.
    """

    def __init__(
        self,
        teacher: Teacher,
        templates: Path,
        strip_pattern: str | None = None,
        min_agreement: float = 1.0,
        max_tokens: int = 128,
        seed: int = 0,
    ) -> None:
        if not 0 < min_agreement <= 1:
            raise ValueError(
                f"min_agreement is {min_agreement}; allowed above 0 up to 1 (verify.verifier)"
            )
        if max_tokens < 1:
            raise ValueError(f"max_tokens is {max_tokens}; allowed 1 and above (verify.verifier)")
        try:
            self._strip = None if strip_pattern is None else re.compile(strip_pattern)
        except re.error as error:
            raise ValueError(
                f"strip_pattern {strip_pattern!r} is no regular expression: {error} "
                "(verify.verifier)"
            ) from error
        self.teacher = teacher
        self._templates = load_verify_templates(templates)
        for template in self._templates.templates:
            if shown := sorted({"answer", "reasoning"} & set(template.slots)):
                raise ValueError(
                    f"{templates}: template {template.name!r} has the slot {{{shown[0]}}}; a "
                    "description must be written without it (verify.verifier)"
                )
        self._min_agreement = min_agreement
        self._max_tokens, self._seed = max_tokens, seed

    def describe_reading(self) -> dict[str, Any]:
        """Return what a description and an answer are compared by."""
        pattern = self._strip.pattern if self._strip else None
        return {"strip_pattern": pattern, "min_agreement": self._min_agreement}

    def build_request(self, key: str, query: SourceQuery, reasoning: str, answer: str) -> Request:
        """Return the question for the target's description; the answer is kept from the model."""
        template = self._templates.choose(query)
        max_tokens = template.max_tokens or self._max_tokens
        return Request(key, template.build_messages(query), max_tokens, 0.0, self._seed)

    def read_reply(self, reply: Reply, query: SourceQuery, answer: str) -> Verdict:
        """Return how far a description and the answer agree.

        Raises:
            ValueError: The description has no word.
        """
        caption, said = (
            (self._strip.sub(" ", text) if self._strip else text).strip()
            for text in (reply.text, answer)
        )
        if not split_words(caption):
            raise ValueError(f"the description {reply.text!r} has no word")
        agreement = measure_agreement(said, caption)
        is_consistent = agreement >= self._min_agreement
        reason = f"the target is described as {caption!r}"
        return Verdict(is_consistent, agreement, reason)
