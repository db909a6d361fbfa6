"""The rows that were given up, each with the error of every attempt."""

from __future__ import annotations

from dataclasses import dataclass

from tracelib.construction.journal.phase_journal import PhaseJournal
from tracelib.construction.journal.row_key import unpack_key


@dataclass(frozen=True)
class QuarantinedRow:
    """A row that was given up.

    Args:
        query_id: `D:N` of the query.
        sample: Which of its samples.
        errors: Error of each attempt since its input last changed, oldest first.
    """

    query_id: str
    sample: int
    errors: tuple[str, ...]


def list_quarantined(journal: PhaseJournal) -> list[QuarantinedRow]:
    """Return the quarantined rows of a phase, by query and sample.

    The file is read once; memory grows with the number of quarantined rows alone.
    """
    found: dict[int, tuple[str, list[str]]] = {
        key: ("", []) for key in journal.find_keys("quarantined")
    }
    if not found:
        return []
    for row in journal.read_history():
        if row.key in found:
            if found[row.key][0] != row.input_hash:
                found[row.key] = (row.input_hash, [])
            found[row.key][1].extend([row.error] if row.error else [])
    return [QuarantinedRow(*unpack_key(key), tuple(errors)) for key, (_, errors) in found.items()]
