"""How sure one may be of a difference between two runs over the same queries.

Both tests work on strata, the benchmark's columns: what is judged is the plain mean of the strata's
mean differences, with queries drawn anew within each column and the columns themselves kept. One
stratum gives the test of one column. Queries must be independent: where a query was asked several
times, under several prompts, pass the mean of its differences.

Where few sizes occur, as with hits, one draw tells how often each is drawn (multinomial, binomial):
the same law in a fraction of the time.

Shapes: N queries of a stratum.

References:
    Smucker, Allan and Carterette, A Comparison of Statistical Significance Tests for Information
    Retrieval Evaluation (CIKM 2007).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_Floats = npt.NDArray[np.float64]
_BLOCK = 2**20
_MAX_EXACT = 16
_COUNTING_COST = 60  # draws of single queries in the time of one binomial draw, about


def bootstrap_interval(
    strata: Sequence[Tensor], num_resamples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean of the strata's mean differences.

    Too narrow below some 30 queries a stratum, and of no width where no query differs.

    Args:
        strata: `[N]` paired differences of each stratum, one per query.
        num_resamples: Resamples, at least 1.
        seed: Equal seeds give equal intervals.
        level: Probability that the interval is to hold the true difference.

    Returns:
        Lower and upper end.

    Raises:
        ValueError: A stratum is empty or not finite, or a number is out of range.

    >>> bootstrap_interval([torch.ones(5)], num_resamples=100, seed=0)
    (1.0, 1.0)
    """
    columns = _check_strata(strata, num_resamples)
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; allowed is what lies between 0 and 1")
    generator = np.random.default_rng(seed)
    means = np.zeros(num_resamples)
    for differences in columns:
        means += _resample_means(differences, num_resamples, generator) / len(columns)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def sign_flip_p_value(strata: Sequence[Tensor], num_resamples: int, seed: int) -> float:
    """Return the two-sided p-value of the mean of the strata's mean differences against none.

    Were the two runs alike, each difference could as well have had the other sign. Up to 16
    differences that are not zero, all their signs are tried; else signs are drawn, and with b of n
    draws at least as far from zero the p-value is (b + 1) / (n + 1).

    Args:
        strata: `[N]` paired differences of each stratum, one per query.
        num_resamples: Draws n, at least 1.
        seed: Equal seeds give equal p-values.

    Returns:
        The p-value, in 0 .. 1 without 0.

    Raises:
        ValueError: A stratum is empty or not finite, or `num_resamples` is out of range.

    >>> sign_flip_p_value([torch.tensor([1.0, 1.0, 1.0, 0.0])], num_resamples=100, seed=0)
    0.25
    """
    columns = _check_strata(strata, num_resamples)
    terms = np.concatenate([differences / len(differences) for differences in columns])
    terms = terms[terms != 0]
    # Sums of the same terms in another order must not differ by a rounding error.
    bound = abs(terms.sum()) - 1e-9 * np.abs(terms).sum()
    if not len(terms):
        return 1.0
    if len(terms) <= _MAX_EXACT:
        signs = np.array(np.meshgrid(*[(-1.0, 1.0)] * len(terms))).reshape(len(terms), -1)
        return float((np.abs(terms @ signs) >= bound).mean())
    sums = _flip_signs(terms, num_resamples, np.random.default_rng(seed))
    return (int((np.abs(sums) >= bound).sum()) + 1) / (num_resamples + 1)


def _resample_means(
    differences: _Floats, num_resamples: int, generator: np.random.Generator
) -> _Floats:
    """Return the mean of each resample, drawn from the queries with replacement."""
    values, counts = np.unique(differences, return_counts=True)
    num_queries = len(differences)
    if len(values) * _COUNTING_COST < num_queries:
        blocks = [
            generator.multinomial(num_queries, counts / num_queries, size) @ values
            for size in _split(num_resamples, len(values))
        ]
    else:
        shapes = ((size, num_queries) for size in _split(num_resamples, num_queries))
        blocks = [
            differences[generator.integers(num_queries, size=shape, dtype=np.int32)].sum(1)
            for shape in shapes
        ]
    return np.concatenate(blocks) / num_queries


def _flip_signs(terms: _Floats, num_resamples: int, generator: np.random.Generator) -> _Floats:
    """Return the sums of terms under signs drawn by fair coins."""
    sizes, counts = np.unique(np.abs(terms), return_counts=True)
    if len(sizes) * _COUNTING_COST < len(terms):
        blocks = [
            generator.binomial(counts, 0.5, (size, len(sizes))) @ sizes
            for size in _split(num_resamples, len(sizes))
        ]
    else:
        sizes = np.abs(terms)
        blocks = [
            generator.integers(2, size=(size, len(terms)), dtype=np.int8).astype(np.float64) @ sizes
            for size in _split(num_resamples, len(terms))
        ]
    sums: _Floats = 2 * np.concatenate(blocks) - np.abs(terms).sum()
    return sums


def _check_strata(strata: Sequence[Tensor], num_resamples: int) -> list[_Floats]:
    """Return the strata as arrays, or raise."""
    if num_resamples < 1:
        raise ValueError(f"num_resamples is {num_resamples}; allowed 1 and above")
    if not strata or not all(stratum.ndim == 1 and len(stratum) for stratum in strata):
        shapes = [tuple(stratum.shape) for stratum in strata]
        raise ValueError(f"strata of shapes {shapes}; expected at least one, each with queries")
    if not all(bool(stratum.isfinite().all()) for stratum in strata):
        raise ValueError("a difference is not finite")
    return [stratum.to(torch.float64).cpu().numpy() for stratum in strata]


def _split(num_resamples: int, width: int) -> list[int]:
    """Return the sizes of blocks of resamples that hold a bounded number of draws each."""
    size = max(1, _BLOCK // width)
    return [min(size, num_resamples - start) for start in range(0, num_resamples, size)]
