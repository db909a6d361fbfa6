from collections import Counter

from tracelib.construction.journal.progress import STATES, make_progress


def test_every_state_is_counted_in_its_field():
    counts = Counter({state: 10**place for place, state in enumerate(STATES)})
    progress = make_progress(counts)
    assert {state: getattr(progress, f"num_{state}") for state in STATES} == counts
    assert (progress.num_due, progress.num_rows) == (111, 111_111)
