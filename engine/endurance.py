"""Speed over time, and two games side by side: what a single measurement does not show."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.errors import OptionError
from engine.benchmark import WARMUP_FRAMES, peak_mb, play_random
from engine.game import NeuralGame
from gamengen.evaluation.intervals import ci95
from recorder.progress import progress

WINDOWS = 10
BLOCK_FRAMES = 10


def soak(game: NeuralGame, minutes: float) -> dict[str, Any]:
    """Play as fast as possible for ``minutes``; speed and memory in ten windows of that time.

    Returns:
        ``windows``, each with ``minute`` (its end), ``fps`` of all games of a batch together, ``p99_ms`` and
        ``memory_mb`` held then, None where the system does not tell; ``fps_change`` and ``memory_change_mb`` from the
        second window to the last: the first warms up.

    Raises:
        OptionError: minutes is not positive.
    """
    if not 0 < minutes < float("inf"):
        raise OptionError(f"must be more than 0, got {minutes}", "--soak", "give minutes")
    rng, rows, began = np.random.default_rng(0), [], time.monotonic()
    play_random(game, WARMUP_FRAMES, rng)
    with progress("soaking", minutes, "min") as show:
        for number in range(1, WINDOWS + 1):
            times: list[float] = []
            while time.monotonic() < began + 60 * minutes * number / WINDOWS or not times:
                times += play_random(game, 1, rng)
            fps, held = len(times) * game.batch / sum(times), held_mb()
            row: dict[str, Any] = {"minute": round(minutes * number / WINDOWS, 2), "fps": round(fps, 2)}
            row |= {
                "p99_ms": round(1e3 * float(np.percentile(times, 99)), 2),
                "memory_mb": None if held is None else round(held, 1),
            }
            rows.append(row)
            show(row["minute"], f"{row['fps']} frames/s")
    settled = rows[1:]
    first, last = (row["memory_mb"] for row in (settled[0], settled[-1]))
    return {
        "windows": rows,
        "fps_change": round(settled[-1]["fps"] / settled[0]["fps"] - 1, 4),
        "memory_change_mb": None if first is None or last is None else round(last - first, 1),
    }


def compare_speed(one: NeuralGame, other: NeuralGame, frames: int) -> dict[str, Any]:
    """Two games in turn, a few frames each, so that a machine whose speed drifts is fair to both.

    Returns:
        Frames a second of each, and ``ratio``, the mean over pairs of blocks of one's speed over the other's, with the
        half width of its 95 % interval, ``ratio_ci95``.
    """
    rng, games = np.random.default_rng(0), (one, other)
    for game in games:
        play_random(game, WARMUP_FRAMES, rng)
    speeds = []
    for _ in range(max(2, frames // BLOCK_FRAMES)):
        speeds.append([BLOCK_FRAMES * game.batch / sum(play_random(game, BLOCK_FRAMES, rng)) for game in games])
    pairs = np.array(speeds)
    ratios = pairs[:, 0] / pairs[:, 1]
    spread = ci95(ratios, range(len(ratios)))
    return {
        "fps": round(float(pairs[:, 0].mean()), 2),
        "other_fps": round(float(pairs[:, 1].mean()), 2),
        "ratio": round(float(ratios.mean()), 4),
        "ratio_ci95": None if spread is None else round(spread, 4),
        "pairs": len(ratios),
    }


def held_mb() -> float | None:
    """MiB that this process holds now; where the system does not tell, the most that it ever held, or None."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_mb(torch.device("cpu"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
