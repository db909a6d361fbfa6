"""The counts of M-BEIR's own test columns.

References:
    Wei et al., UniIR: Training and Benchmarking Universal Multimodal Information Retrievers (2024),
    and the descriptive statistics published with the MTEB benchmark.
"""

from __future__ import annotations

from typing import NamedTuple


class ExpectedCounts(NamedTuple):
    """Counts of one test column.

    Args:
        num_queries: Queries.
        num_candidates: Candidates of the local pool.
        num_qrels: Pairs of query and positive.
        num_cross_pool: Pairs whose positive is in another column's pool, or None where nobody
            published the count.
    """

    num_queries: int
    num_candidates: int
    num_qrels: int
    num_cross_pool: int | None = None


MBEIR_TEST_COUNTS: dict[str, ExpectedCounts] = {
    "visualnews_task0": ExpectedCounts(19_995, 542_246, 20_000),
    "mscoco_task0": ExpectedCounts(24_809, 5_000, 24_989),
    "fashion200k_task0": ExpectedCounts(1_719, 201_824, 4_847),
    "webqa_task1": ExpectedCounts(2_455, 544_457, 5_002),
    "edis_task2": ExpectedCounts(3_241, 1_047_067, 8_341),
    "webqa_task2": ExpectedCounts(2_511, 403_196, 3_627),
    "visualnews_task3": ExpectedCounts(20_000, 537_568, 20_000),
    "mscoco_task3": ExpectedCounts(5_000, 24_809, 24_989),
    "fashion200k_task3": ExpectedCounts(4_889, 61_707, 4_889),
    "nights_task4": ExpectedCounts(2_120, 40_038, 2_120),
    "oven_task6": ExpectedCounts(50_004, 676_667, 492_654, 442_650),
    "infoseek_task6": ExpectedCounts(11_323, 611_651, 73_869, 7_547),
    "fashioniq_task7": ExpectedCounts(6_003, 74_381, 6_014),
    "cirr_task7": ExpectedCounts(4_170, 21_551, 4_216),
    "oven_task8": ExpectedCounts(14_741, 335_135, 261_258),
    "infoseek_task8": ExpectedCounts(17_593, 481_782, 131_376),
}
