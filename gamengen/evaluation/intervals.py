"""Means with 95 % intervals: frames of one episode are alike, so the spread is taken between episodes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


def ci95(values: np.ndarray | Sequence[float], owners: Sequence[int] | np.ndarray) -> float | None:
    """Half width of the 95 % interval of the mean, from the spread of the episodes' means; None with one episode.

    Args:
        values: one a frame (N,); NaN is left out.
        owners: the episode of each (N,).
    """
    found, who = np.asarray(values, float), np.asarray(owners)
    kept = ~np.isnan(found)
    means = [float(found[kept & (who == owner)].mean()) for owner in np.unique(who[kept])]
    if len(means) < 2:
        return None
    quantile = _T95[len(means) - 2] if len(means) - 1 <= len(_T95) else 1.96
    return quantile * float(np.std(means, ddof=1)) / math.sqrt(len(means))


def pooled_psnr(psnr: np.ndarray) -> float:
    """PSNR of the mean squared error, from each frame's own PSNR (N,)."""
    return float(-10 * np.log10(np.mean(10 ** (-np.asarray(psnr, float) / 10))))


def rounded(value: float | None, digits: int = 3) -> float | None:
    """``value`` for a JSON file: rounded, and None where there is none."""
    return None if value is None or math.isnan(value) else round(float(value), digits)


def rounded_list(values: np.ndarray, digits: int = 2) -> list[float | None]:
    """The same for each of many."""
    return [rounded(float(value), digits) for value in values]
