"""A sample as a piece of HTML: pictures, what was asked and written, and every verdict on it."""

from __future__ import annotations

from pathlib import Path

from tracelib.construction.report.sample import Sample, Side, Verdict, Writing
from tracelib.construction.report.shown_text import escape_text
from tracelib.construction.report.thumbnail import make_thumbnail

_VERDICT_COLORS: dict[Verdict, str] = {"kept": "good", "direct": "", "dropped": "bad"}
_OTHER_COLOR = "warn"
_MAX_DETAIL = 600
_MAX_NAME = 80


def format_card(sample: Sample, root: Path) -> str:
    """Return the HTML of a sample.

    Args:
        sample: It.
        root: Folder that its pictures lie in.
    """
    rules = " ".join(dict.fromkeys(reason.rule for reason in sample.reasons))
    return (
        f'<article class="card {sample.verdict}" data-verdict="{sample.verdict}" '
        f'data-dataset="{escape_text(sample.dataset)}" data-rule="{escape_text(rules)}">\n'
        f"{_format_head(sample)}\n"
        f'<div class="body">\n<section>\n{_format_side("Query", sample.query, root)}\n</section>\n'
        f"<section>\n{_format_middle(sample)}\n</section>\n"
        f"<section>\n{_format_side('Target', sample.target, root)}\n</section>\n</div>\n"
        f"{_format_reasons(sample)}{_format_meta(sample)}</article>\n"
    )


def _format_head(sample: Sample) -> str:
    color = _VERDICT_COLORS.get(sample.verdict, _OTHER_COLOR)
    chips = [f'<span class="chip verdict {color}">{sample.verdict}</span>']
    chips += [
        f'<span class="chip {color}">{escape_text(rule, _MAX_NAME)}</span>' for rule in sample.rules
    ]
    if (judged := sample.judgement) is not None:
        color = "good" if judged.is_consistent else "bad"
        word = "consistent" if judged.is_consistent else "inconsistent"
        chips.append(f'<span class="chip {color}">{word} {judged.confidence:.2f}</span>')
    if sample.writing is not None and sample.writing.source == "oracle":
        chips.append('<span class="chip warn">oracle</span>')
    chips.append(f'<span class="chip">{escape_text(sample.dataset, _MAX_NAME)}</span>')
    chips.append(f'<span class="chip">task {sample.task_id}</span>')
    where = f"query {escape_text(sample.query.id, _MAX_NAME)}"
    if sample.writing is not None:
        where += f" · sample {sample.sample}"
    return f'<div class="head">{"".join(chips)}<span class="where">{where}</span></div>'


def _format_middle(sample: Sample) -> str:
    parts = [_format_writing(sample)]
    if sample.instruction:
        parts.insert(
            0,
            '<p class="label">Instruction</p>'
            f'<p class="text small">{escape_text(sample.instruction)}</p>',
        )
    return "\n".join(parts)


def _format_side(label: str, side: Side, root: Path) -> str:
    parts = [f'<p class="label">{label}</p>']
    if side.image_path is not None:
        parts.append(_format_picture(label, side.image_path, root))
    if side.text:
        parts.append(f'<p class="text">{escape_text(side.text)}</p>')
    if label == "Target":
        parts.append(f'<p class="text small">{escape_text(side.id, _MAX_NAME)}</p>')
    return "\n".join(parts)


def _format_picture(label: str, image_path: str, root: Path) -> str:
    title = escape_text(image_path, _MAX_DETAIL)
    if (picture := make_thumbnail(root, image_path)) is None:
        return f'<div class="picture" title="{title}">this picture cannot be read</div>'
    tiny = ' class="tiny"' if picture.is_tiny else ""
    return (
        f'<div class="picture" title="{title}"><img{tiny} alt="{label}" width="{picture.width}" '
        f'height="{picture.height}" src="{picture.url}"></div>'
    )


def _format_writing(sample: Sample) -> str:
    if (writing := sample.writing) is None:
        word = {
            "direct": "None: this query is answered directly.",
            "quarantined": "None: every attempt failed.",
            "unanswered": "None: no sample of the query is left.",
        }.get(sample.verdict, "None.")
        return f'<p class="label">Rationale</p><p class="text small">{word}</p>'
    if writing.reasoning is None or writing.answer is None:
        return (
            '<p class="label">Reply, whose tags cannot be read</p>'
            f'<p class="text raw">{escape_text(writing.raw)}</p>'
        )
    return (
        f'<p class="label">Reasoning{_format_tokens(writing.reasoning_tokens)}</p>'
        f'<p class="text">{escape_text(writing.reasoning)}</p>'
        f'<p class="label">Answer{_format_tokens(writing.answer_tokens)}</p>'
        f'<p class="text answer">{escape_text(writing.answer)}</p>'
    )


def _format_tokens(num_tokens: int | None) -> str:
    if num_tokens is None:
        return ""
    return f" · {num_tokens:,} token{'' if num_tokens == 1 else 's'}"


def _format_reasons(sample: Sample) -> str:
    lines = [
        f"<p><b>{escape_text(reason.rule, _MAX_NAME)}</b> "
        f"{escape_text(reason.detail, _MAX_DETAIL)}</p>"
        for reason in sample.reasons
    ]
    return f'<div class="why">{"".join(lines)}</div>\n' if lines else ""


def _format_meta(sample: Sample) -> str:
    parts = [f"Difficulty: {escape_text(sample.difficulty, _MAX_DETAIL)}"]
    if sample.writing is not None:
        parts += _describe_writing(sample.writing)
    if (judged := sample.judgement) is not None:
        parts.append(
            f'Verifier: <meter min="0" max="1" value="{judged.confidence:.3f}"></meter> '
            f"{judged.confidence:.2f} {escape_text(judged.reason, _MAX_DETAIL)}"
        )
    return f'<div class="meta">{"".join(f"<span>{part}</span>" for part in parts)}</div>\n'


def _describe_writing(writing: Writing) -> list[str]:
    seen = "saw the target" if writing.source == "oracle" else "did not see the target"
    return [
        f"Teacher: {escape_text(writing.teacher, _MAX_NAME)}, {seen}",
        f"Template: {escape_text(writing.template, _MAX_NAME)}",
    ]
