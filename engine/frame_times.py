"""How long frames take: the figures on screen and at the end of play."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TIMES_KEPT = 10_000
TIMES_SHOWN = 120


@dataclass(frozen=True)
class PlaySummary:
    """What was played.

    ``seconds`` is time in play, without pauses; ``fps`` is frames over that; the percentiles are of the time
    that the game took to make a frame. ``files`` are the pictures and videos written.
    """

    frames: int
    seconds: float
    fps: float
    p50_ms: float
    p99_ms: float
    files: tuple[str, ...] = ()


class FrameTimes:
    """Counts frames and the time they took.

    Args:
        clock: seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._times: deque[tuple[float, float]] = deque(maxlen=TIMES_KEPT)  # making a frame, since the last frame
        self._last: float | None = None
        self.frames, self.seconds = 0, 0.0

    def measure(self, make_frame: Callable[[], np.ndarray]) -> np.ndarray:
        """Call ``make_frame`` and count its frame."""
        started = self._clock()
        frame = make_frame()
        now = self._clock()
        whole = now - (started if self._last is None else self._last)
        self._last = now
        self._times.append((now - started, whole))
        self.frames += 1
        self.seconds += whole
        return frame

    def interrupt(self) -> None:
        """Time until the next frame is not play: the game is paused."""
        self._last = None

    def fps(self) -> float:
        """Frames per second over the newest ``TIMES_SHOWN`` frames; 0 before the first."""
        newest = list(self._times)[-TIMES_SHOWN:]
        return len(newest) / max(sum(whole for _, whole in newest), 1e-9) if newest else 0.0

    def percentiles(self, newest: int = TIMES_KEPT) -> tuple[float, float]:
        """p50 and p99 of the milliseconds to make one of the ``newest`` frames; 0 before the first."""
        made = [seconds * 1000 for seconds, _ in list(self._times)[-newest:]]
        if not made:
            return 0.0, 0.0
        p50, p99 = np.percentile(made, [50, 99])
        return float(p50), float(p99)

    def summary(self, files: Iterable[Path] = ()) -> PlaySummary:
        """All of it, and the ``files`` that were written."""
        p50, p99 = self.percentiles()
        fps = self.frames / self.seconds if self.seconds > 0 else 0.0
        return PlaySummary(self.frames, self.seconds, fps, p50, p99, tuple(map(str, files)))
