"""Chat text per side: from a record's texts and number of images to chat messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Template:
    """The slots of one side's prompt, in order: system, media, instruction and text.

    Args:
        system: System line; empty for none.
        user: User turn, with `{instruction}` and `{text}`; images always come before it.
        user_by_task: User turns that replace `user` for single M-BEIR task ids.
    """

    system: str = ""
    user: str = "{instruction} {text}"
    user_by_task: dict[int, str] = field(default_factory=dict)

    def build_messages(
        self, num_images: int, instruction: str, text: str, task_id: int
    ) -> Messages:
        """Return the chat messages of one record, in the form chat templates take.

        Args:
            num_images: Images of the record; each becomes one image slot before the text.
            instruction: Instruction, `""` for none.
            text: The record's own text, `""` for none.
            task_id: M-BEIR task of the query, or of the query a candidate is for; -1 when unknown.

        >>> Template().build_messages(1, "Find its twin.", "", 4)[0]["content"][1]["text"]
        'Find its twin.'
        """
        pattern = self.user_by_task.get(task_id, self.user)
        words = pattern.format(instruction=instruction, text=text).strip()
        content: list[dict[str, str]] = [{"type": "image"}] * num_images
        if words:
            content = [*content, {"type": "text", "text": words}]
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": content}]


def format_text(text: str | None) -> str:
    r"""Format a text as M-BEIR's reference code does (protocol, not taste).

    Deletes carriage returns, strips whitespace, then double quotes, capitalises the first character
    and closes the sentence with a full stop.

    >>> format_text('  "hi" '), format_text("ok?"), format_text(None)
    ('Hi.', 'Ok?', '')
    """
    words = (text or "").replace("\r", "").strip().strip('"')
    if not words:
        return ""
    return words[0].upper() + words[1:] + ("" if words[-1] in ".?!" else ".")


def format_query(instruction: str, text: str | None) -> str:
    """Format an instruction and a query text, whose own first letter keeps its case."""
    return format_text(f"{format_text(instruction)} {text or ''}")
