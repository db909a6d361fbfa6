import numpy as np
import pytest

from tracelib.data.rationale_policy import check_rationale_policy

IDS = np.array([2_500_001, 2_500_002, 2_500_003])
NONE, TEACHER, ORACLE, SELF = -1, 0, 1, 2


def check(sources, *policy):
    check_rationale_policy(IDS, np.array(sources, np.int8), *policy)


@pytest.mark.parametrize(
    ("sources", "policy"),
    [
        ([NONE, NONE, NONE], ("none", "annotated")),
        ([NONE, ORACLE, TEACHER], ("none", "annotated")),
        ([NONE, TEACHER, SELF], ("teacher", "annotated")),
        ([NONE, ORACLE, TEACHER], ("teacher", "self")),
        ([NONE, ORACLE, TEACHER], ("teacher", "oracle")),
        ([NONE, ORACLE, TEACHER], ("oracle", "self")),
        ([NONE, ORACLE, TEACHER], ("oracle", "oracle")),
    ],
)
def test_what_is_asked_for_is_done(sources, policy):
    check(sources, *policy)


@pytest.mark.parametrize(
    ("sources", "policy", "message"),
    [
        (
            [NONE, ORACLE, ORACLE],
            ("teacher", "annotated"),
            r"2 rationales have seen their target, first that of query 5:2: .*'self'.*'oracle'",
        ),
        (
            [NONE, TEACHER, TEACHER],
            ("oracle", "annotated"),
            r"data\.rationale is 'oracle', but .*data\.contrastive_rationale to 'self'.*'oracle'",
        ),
        ([NONE, NONE, NONE], ("teacher", "annotated"), "'teacher' but no training query has a"),
        ([NONE, NONE, NONE], ("oracle", "self"), "'oracle' but no training query has a"),
        ([TEACHER] * 3, ("none", "self"), r"contrastive_rationale is 'self', but data\.rationale"),
        ([TEACHER] * 3, ("none", "oracle"), "contrastive_rationale is 'oracle', but"),
    ],
)
def test_a_text_that_leaks_or_is_not_there_is_refused(sources, policy, message):
    with pytest.raises(ValueError, match=message):
        check(sources, *policy)
