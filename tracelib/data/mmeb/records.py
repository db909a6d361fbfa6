"""From the texts and picture paths of MMEB rows to queries and candidates.

Records are those of M-BEIR: a query's text is the row's whole text, its instruction included, and
its task is the one with its modalities. Pictures come before the text, so image slots leave it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tracelib.data.jsonl import DataError, strip_control_tokens
from tracelib.data.mmeb.rewrites import Rewrite
from tracelib.data.records import TASK_MODALITIES
from tracelib.types import Candidate, Query, Side

IMAGE_SLOT = "<|image_1|>"
_TASKS = {modalities: task for task, modalities in TASK_MODALITIES.items()}
_TASKS["image", "image,text"] = 5  # M-BEIR declares it and never uses it


@dataclass(frozen=True)
class Content:
    """Text and picture of one record, ready to be rendered.

    Args:
        text: Rewritten text without slots; `""` for none.
        image_path: Path relative to the pictures' root, or None.
    """

    text: str
    image_path: str | None

    @property
    def modality(self) -> str:
        """`text`, `image` or `image,text`."""
        return ",".join(["image"] * (self.image_path is not None) + ["text"] * bool(self.text))


@dataclass
class SideCounts:
    """What was met on one side of a subset; a candidate that several rows share counts once.

    Args:
        num_texts: Texts read.
        num_unmatched: Texts that a condition of the rewrite (`value_map`, `original`) left alone;
            empty without conditions.
        num_slots_without_picture: Texts with an image slot and no picture (WebQA has them).
        num_pictures_without_slot: Pictures whose text has no slot for them.
    """

    num_texts: int = 0
    num_unmatched: dict[str, int] = field(default_factory=dict)
    num_slots_without_picture: int = 0
    num_pictures_without_slot: int = 0


def build_content(text: str, image_path: str, rewrite: Rewrite) -> Content:
    """Return a record's content; control tokens leave its text along with the slot.

    >>> build_content("<|image_1|> Name it.", "a.png", Rewrite(suffix_add=" Now.")).text.strip()
    'Name it. Now.'
    """
    words = strip_control_tokens(rewrite.apply(text).replace(IMAGE_SLOT, "")).lstrip()
    return Content(words, image_path or None)


def build_candidate(subset: str, number: int, content: Content) -> Candidate:
    """Return a candidate whose id is `subset:number`."""
    return Candidate(f"{subset}:{number}", content.text, content.image_path, content.modality)


def build_query(
    subset: str, number: int, content: Content, gold: Candidate, negatives: Sequence[Candidate] = ()
) -> Query:
    """Return a query whose id is `subset:number`, with its positive and hard negatives."""
    return Query(
        query_id=f"{subset}:{number}",
        column=f"mmeb/{subset}",
        task_id=_TASKS[content.modality, gold.modality],
        text=content.text,
        image_path=content.image_path,
        instruction="",
        positive_ids=(gold.candidate_id,),
        negative_ids=tuple(candidate.candidate_id for candidate in negatives),
    )


class RecordIntake:
    """Checks and counts what the rows of one subset hold, and numbers distinct candidates.

    Args:
        images_root: Folder that picture paths are relative to and may not leave.
        rewrites: The rewrite of each side.
    """

    def __init__(self, images_root: Path, rewrites: dict[Side, Rewrite]) -> None:
        self.images_root, self.rewrites = images_root.resolve(), rewrites
        self.counts: dict[Side, SideCounts] = {
            side: SideCounts(num_unmatched=dict.fromkeys(rewrite.conditions, 0))
            for side, rewrite in rewrites.items()
        }
        self._pictures: set[str] = set()
        self._numbers: dict[Content, int] = {}
        self._seen: dict[tuple[str, str], int] = {}

    def read(self, side: Side, text: str | None, image_path: str | None, where: str) -> Content:
        """Return the content of one record, checked and counted; null is the empty string.

        Args:
            side: Whose record it is.
            text: Raw text.
            image_path: Path of its picture, `""` for none.
            where: File and row, for errors.

        Raises:
            DataError: Text and picture are both empty, or the picture is missing or outside the
                root.
        """
        text, image_path = text or "", image_path or ""
        if image_path and image_path not in self._pictures:
            self._check_picture(side, image_path, where)
        content = build_content(text, image_path, self.rewrites[side])
        if not content.modality:
            raise DataError(f"{where}: {side} {text!r} has neither text nor picture")
        counts, has_slot = self.counts[side], IMAGE_SLOT in text
        counts.num_texts += 1
        for condition in self.rewrites[side].find_unmatched(text):
            counts.num_unmatched[condition] += 1
        counts.num_slots_without_picture += has_slot and not image_path
        counts.num_pictures_without_slot += bool(image_path) and not has_slot
        return content

    def number_candidate(
        self, text: str, image_path: str, where: str
    ) -> tuple[int, Content | None]:
        """Return a candidate's number, from 1, and its content when it is met for the first time.

        Equal texts with one picture have one number, also where only a rewrite made them equal.

        Raises:
            DataError: As `read`.
        """
        if (number := self._seen.get((text, image_path))) is not None:
            return number, None
        content = self.read("candidate", text, image_path, where)
        is_new = content not in self._numbers
        number = self._numbers.setdefault(content, len(self._numbers) + 1)
        self._seen[text, image_path] = number
        return number, content if is_new else None

    def _check_picture(self, side: Side, image_path: str, where: str) -> None:
        path = (self.images_root / image_path).resolve()
        if not path.is_relative_to(self.images_root):
            raise DataError(
                f"{where}: {side} picture {image_path!r} leads to {path}, outside "
                f"{self.images_root}; choose an images_root that holds it"
            )
        if not path.is_file():
            raise DataError(
                f"{where}: {side} picture {image_path!r} is missing from {self.images_root}; "
                "unpack the pictures or choose another images_root"
            )
        self._pictures.add(image_path)
