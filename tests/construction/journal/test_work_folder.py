import pytest

from tracelib.construction.journal.journal_row import PHASES, JournalError, JournalRow
from tracelib.construction.journal.work_folder import Journal


def test_phases_are_apart_and_kept(tmp_path):
    rows = {
        phase: JournalRow("9:1", phase, 0, "done", "0" * 16, 1, {"of": phase}) for phase in PHASES
    }
    with Journal(tmp_path / "new" / "work") as journal:
        for phase, row in rows.items():
            journal.open_phase(phase).append([row])
        journal.sync()
    with Journal(tmp_path / "new" / "work") as journal:
        for phase, row in rows.items():
            assert journal.open_phase(phase) is journal.open_phase(phase)
            assert list(journal.open_phase(phase).read_newest()) == [row]
        assert journal.list_notes() == []


def test_the_folder_is_held_until_closed_even_after_an_error(tmp_path):
    def fail():
        with Journal(tmp_path):
            with pytest.raises(JournalError, match="in use by process"):
                Journal(tmp_path)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    Journal(tmp_path).close()


@pytest.mark.parametrize("settings", [{"sync_rows": 0}, {"sync_seconds": -1.0}])
def test_bad_settings_are_named(tmp_path, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Journal(tmp_path, **settings)
