from tracelib.construction.journal.journal_row import JournalRow
from tracelib.construction.journal.quarantine import QuarantinedRow, list_quarantined
from tracelib.construction.journal.work_folder import Journal


def test_each_quarantined_row_has_the_errors_of_its_input(tmp_path):
    def fail(number, status, error, digit, attempt=1):
        return JournalRow(f"9:{number}", "verify", 0, status, digit * 16, attempt, {}, error)

    with Journal(tmp_path) as journal:
        phase = journal.open_phase("verify")
        assert list_quarantined(phase) == []
        phase.append(
            [
                fail(2, "quarantined", "of old settings", "a"),
                fail(1, "failed", "timeout", "b"),
                fail(2, "failed", "first", "b"),
                fail(3, "quarantined", "was done later", "b"),
                fail(2, "quarantined", "second", "b", 2),
                fail(1, "quarantined", "refused", "b", 2),
                JournalRow("9:3", "verify", 0, "done", "c" * 16, 1, {"verdict": True}),
                fail(4, "failed", "not yet", "b"),
            ]
        )
        assert list_quarantined(phase) == [
            QuarantinedRow("9:1", 0, ("timeout", "refused")),
            QuarantinedRow("9:2", 0, ("first", "second")),
        ]
