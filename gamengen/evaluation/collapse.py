"""Whether, and in which frame, a long free play collapses: to blur, noise, one colour, drifting colours or a still.

There is no real frame to compare with after thousands of frames of free play, so pictures are judged by statistics
that need none, and those are compared with what they are in real play. A collapse is a change that stays. Whether what
is seen makes sense (a monster that is there or not) no such statistic tells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from agents.errors import DataError, OptionError

ROWS, COLUMNS, BANDS = 3, 4, 3
STATISTICS = (
    *(f"sharpness_{scale}_{band}" for scale in ("fine", "coarse") for band in range(BANDS)),
    *(f"brightness_{row}{column}" for row in range(ROWS) for column in range(COLUMNS)),
    *(f"contrast_{row}{column}" for row in range(ROWS) for column in range(COLUMNS)),
    "red_green", "yellow_blue", "colourfulness", "motion",
)  # fmt: skip
SMALLEST_FRAME = 16  # pixels
CHUNK = 16  # frames
WINDOW = 16  # frames
PERSIST = 2  # lengths of a window
FEWEST_SEQUENCES = 3
SHARPNESS = 2 * BANDS  # the first so many statistics
# However still real play is, a standard deviation is taken to be at least this: 5 % of sharpness, 2.5 grey levels.
TOLERANCE = np.array([0.05] * SHARPNESS + [0.01] * (len(STATISTICS) - 1 - SHARPNESS))
# A collapse is gross: thresholds are above the quantile by a part of the spread between real sequences, and at least
# by this much of each score, which are logarithms: 30 % of the distance and of the motion, half of the motion.
MARGIN = 0.25
SMALLEST_MARGIN = {"picture": 0.25, "flicker": 0.25, "frozen": 0.7}
STILL = -math.log(0.1 + 0.25)  # the score ``frozen`` of a mean change of a quarter of a grey level
MOST_MOTION = 0.7  # by how much a play's own motion may be from the real game's, at most: a factor of 2


def frame_statistics(frames: np.ndarray) -> np.ndarray:
    """No-reference statistics of the frames of one play, in their order.

    By name, in the order of ``STATISTICS``:

    - ``sharpness``: log(mean absolute Laplacian of the brightness in grey levels + 0.5), in 3 horizontal bands from
      top to bottom, of the frame (``fine``) and of the frame at half its size (``coarse``);
    - ``brightness``, ``contrast``: mean and standard deviation of the brightness, over 255, in a grid of 3x4;
    - ``red_green``, ``yellow_blue``: means of R - G and of (R + G) / 2 - B, over 255, and ``colourfulness``, made of
      their means and deviations (Hasler and Süsstrunk, 2003, equation M3, over 255);
    - ``motion``: log(mean absolute change of the brightness since the frame before, in grey levels + 0.1). The first
      frame has none before it and is given the motion of the second.

    Args:
        frames: (N, H, W, 3) uint8, one after the other; at least 16x16.

    Returns:
        (N, 34) float64.
    """
    assert frames.ndim == 4 and frames.dtype == np.uint8 and len(frames), (frames.shape, frames.dtype)
    assert min(frames.shape[1:3]) >= SMALLEST_FRAME, frames.shape
    parts, motions, last = [], [], None
    for first in range(0, len(frames), CHUNK):
        grey, *differences = colour_planes(frames[first : first + CHUNK])
        mean = block_means(grey, ROWS, COLUMNS)
        square = block_means(grey * grey, ROWS, COLUMNS)
        parts.append(
            np.concatenate(
                [
                    np.log(block_means(_laplacian(grey), BANDS, 1) + 0.5),
                    np.log(block_means(_laplacian(halve(grey)), BANDS, 1) + 0.5),
                    mean / 255,
                    np.sqrt(np.maximum(square - mean**2, 0)) / 255,
                    _chroma(differences),
                ],
                axis=1,
            )
        )
        before = grey[:1] if last is None else last
        change = np.abs(grey - np.concatenate([before, grey[:-1]]))
        motions.append(np.log(block_means(change, 1, 1) + 0.1))
        last = grey[-1:]
    motion = np.concatenate(motions)
    motion[0] = motion[min(1, len(motion) - 1)]
    return np.concatenate([np.concatenate(parts), motion], axis=1)


@dataclass(frozen=True)
class CollapseDetector:
    """Raises an alarm where play stays unlike real play. Made by :meth:`fit`.

    Statistics are averaged over windows of ``window`` frames, one starting at each frame, and three scores are
    given to each window:

    - ``picture``: log of the Mahalanobis distance of the mean statistics, all but the motion, from real play's;
    - ``flicker``: log of the mean change from frame to frame;
    - ``frozen``: the mean motion, negative, of the frames before which something was held that moves the view;
      where that is less than half of the window, the score is that of the window before. A still picture while
      nothing is held is no collapse.

    A window is alarmed where a score is above its threshold. An alarm takes as many alarmed windows in a row as two
    windows have frames: a flash or some broken frames, up to a window's length, raise none.

    Args:
        window: frames.
        false_alarm: the share of real sequences that may raise an alarm.
        centre: mean of the statistics in real play (33,).
        whitening: (33, 33); the length of ``whitening @ (statistics - centre)`` is the Mahalanobis distance.
        thresholds: of the scores, by name; ``frozen`` is missing where it could not be learned.
        sequences: real sequences that they were learned from.
    """

    window: int
    false_alarm: float
    centre: np.ndarray
    whitening: np.ndarray
    thresholds: dict[str, float]
    sequences: int

    @classmethod
    def fit(
        cls,
        sequences: Sequence[np.ndarray],
        moving: Sequence[np.ndarray] | None = None,
        window: int = WINDOW,
        false_alarm: float = 0.01,
    ) -> CollapseDetector:
        """Learn what real play looks like.

        Thresholds come from sequences that had no part in what they are measured against: the Gaussian is fitted
        anew without each sequence in turn (leave-one-out). A sequence's score is the highest that lasts as long as
        an alarm has to. The threshold is the quantile of those scores, or, as few sequences have no such quantile, the
        prediction bound of a normal distribution if that is higher, and a margin; that of ``frozen`` is above every
        window of real play. The false alarms are shared equally by the scores. The rate is that of sequences as long
        as these: give them the length of the plays that are to be judged.

        Args:
            sequences: statistics (M, 34) of real play, one array an episode; those of fewer than ``3 * window - 1``
                frames are left out.
            moving: of each sequence (M,) bool, as in :meth:`first_collapse`; without it frozen pictures are not
                looked for.
            window: frames.
            false_alarm: share of real sequences that may raise an alarm.

        Raises:
            OptionError: the window or the share makes no sense.
            DataError: fewer than three sequences are long enough.
        """
        if window < 2:
            raise OptionError(f"the window must be at least 2 frames, got {window}", "window", "give a larger one")
        if not 0 < false_alarm < 1:
            raise OptionError(f"must be between 0 and 1, got {false_alarm}", "false_alarm", "give a share such as 0.01")
        assert moving is None or len(moving) == len(sequences), (len(sequences), len(moving))
        shortest = shortest_judged(window)
        chosen = [index for index, part in enumerate(sequences) if len(part) >= shortest]
        if len(chosen) < FEWEST_SEQUENCES:
            what = f"{len(chosen)} real episodes have {shortest} frames; it takes {FEWEST_SEQUENCES}"
            raise DataError(what, "the collapse detector", "record more and longer episodes")
        windows = [_windowed(sequences[index][:, :-1], window) for index in chosen]
        gaussians = _Gaussians(windows, window)
        highest: dict[str, list[float]] = {name: [] for name in SMALLEST_MARGIN}
        for left_out, index in enumerate(chosen):
            held = None if moving is None else moving[index]
            scores = {
                "picture": _log_distance(windows[left_out], *gaussians.without(left_out)),
                **_motion_scores(sequences[index][:, -1], held, window),
            }
            for name, score in scores.items():
                lasting = score if name == "frozen" else _lasting(score, window)
                highest[name].append(float(lasting.max()))
        known = {name: [value for value in values if value > -math.inf] for name, values in highest.items()}
        learned = {name: values for name, values in known.items() if len(values) >= FEWEST_SEQUENCES}
        thresholds = {name: _bound(name, values, false_alarm / len(learned)) for name, values in learned.items()}
        return cls(window, false_alarm, *gaussians.of_all(), thresholds, len(chosen))

    def scores(self, statistics: np.ndarray, moving: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """How far each window is above the thresholds: (M - window + 1,) by score; more than 0 is alarmed.

        Args:
            statistics: (M, 34) of one play.
            moving: as in :meth:`first_collapse`.
        """
        assert statistics.ndim == 2 and statistics.shape[1] == len(STATISTICS), statistics.shape
        assert len(statistics) >= self.window, (len(statistics), self.window)
        windows = _windowed(statistics[:, :-1], self.window)
        found = {
            "picture": _log_distance(windows, self.centre, self.whitening),
            **_motion_scores(statistics[:, -1], moving, self.window),
        }
        return {name: found[name] - threshold for name, threshold in self.thresholds.items() if name in found}

    def alarms(self, statistics: np.ndarray, moving: np.ndarray | None = None) -> dict[str, int]:
        """The frame in which each score that raises an alarm first does, by name; see :meth:`first_collapse`."""
        if len(statistics) < shortest_judged(self.window):
            return {}
        found = {}
        for name, score in self.scores(statistics, moving).items():
            starts = np.flatnonzero(_lasting(score, self.window) > 0)
            if len(starts):
                found[name] = int(starts[0]) + self.window - 1
        return found

    def first_collapse(self, statistics: np.ndarray, moving: np.ndarray | None = None) -> int | None:
        """The frame in which a play was first seen to have collapsed.

        That is the last frame of the first window that stays alarmed: a sudden collapse begins in it or in one of
        the ``window - 1`` frames before, never later.

        Args:
            statistics: (M, 34) of one play, of :func:`frame_statistics`.
            moving: (M,) bool: whether what was held before each frame, and so made it, moves the view. Without
                it frozen pictures are not looked for.

        Returns:
            An index from 0 to M - 1, or None: no collapse, or fewer than ``3 * window - 1`` frames.
        """
        return min(self.alarms(statistics, moving).values(), default=None)

    def false_alarm_rate(self, sequences: Sequence[np.ndarray], moving: Sequence[np.ndarray] | None = None) -> float:
        """Share of real sequences, which it was not fitted on, that raise an alarm.

        Args:
            sequences: statistics (M, 34) of real play; those that are too short do not count.
            moving: of each sequence, as in :meth:`first_collapse`.

        Raises:
            DataError: no sequence is long enough.
        """
        assert moving is None or len(moving) == len(sequences), (len(sequences), len(moving))
        held = [None] * len(sequences) if moving is None else moving
        raised = [
            self.first_collapse(statistics, one) is not None
            for statistics, one in zip(sequences, held, strict=True)
            if len(statistics) >= shortest_judged(self.window)
        ]
        if not raised:
            what = f"no real episode has {shortest_judged(self.window)} frames"
            raise DataError(what, "the collapse detector's false-alarm rate", "record longer episodes")
        return sum(raised) / len(raised)


class _Gaussians:
    """Mean and covariance of the windows of all sequences, or of all but one, from their moments."""

    def __init__(self, windows: list[np.ndarray], window: int) -> None:
        self._window = window
        self._origin = np.concatenate(windows).mean(axis=0)  # against cancellation
        centred = [part - self._origin for part in windows]
        self._counts = np.array([len(part) for part in centred])
        self._sums = np.stack([part.sum(axis=0) for part in centred])
        self._squares = np.stack([part.T @ part for part in centred])

    def of_all(self) -> tuple[np.ndarray, np.ndarray]:
        return self._of(np.ones(len(self._counts), bool))

    def without(self, sequence: int) -> tuple[np.ndarray, np.ndarray]:
        return self._of(np.arange(len(self._counts)) != sequence)

    def _of(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        count = self._counts[chosen].sum()
        mean = self._sums[chosen].sum(axis=0) / count
        covariance = self._squares[chosen].sum(axis=0) / count - np.outer(mean, mean)
        # Windows overlap, so that there are fewer of them than it seems; the fewer, the less correlations are trusted.
        size = len(mean)
        trust = count / (count + size * self._window)
        covariance = trust * covariance + (1 - trust) * np.diag(np.diag(covariance)) + np.diag(TOLERANCE**2)
        values, vectors = np.linalg.eigh(covariance)
        values = np.maximum(values, TOLERANCE.min() ** 2)
        return self._origin + mean, vectors.T / np.sqrt(values)[:, None]


def _log_distance(windows: np.ndarray, centre: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    """Log of the Mahalanobis distance of each window (M,), 0 at the root of the number of statistics."""
    squares = ((windows - centre) @ whitening.T) ** 2
    return np.asarray(0.5 * np.log(squares.mean(axis=1) + 1e-12))


def _motion_scores(motion: np.ndarray, moving: np.ndarray | None, window: int) -> dict[str, np.ndarray]:
    scores = {"flicker": np.log(_windowed(np.exp(motion)[:, None], window)[:, 0])}
    if moving is not None:
        assert moving.shape == motion.shape, (moving.shape, motion.shape)
        share = _windowed(moving[:, None].astype(np.float64), window)[:, 0]
        mean = _windowed((motion * moving)[:, None], window)[:, 0] / np.maximum(share, 1e-9)
        known = share >= 0.5 - 1e-9
        # Where too little was held to tell, what was last known holds on: letting go of a key thaws nothing.
        last = np.maximum.accumulate(np.where(known, np.arange(len(known)), 0))
        scores["frozen"] = np.where(known[last], -mean[last], -math.inf)
    return scores


def _windowed(values: np.ndarray, window: int) -> np.ndarray:
    """Means (M - window + 1, D) of all runs of ``window`` rows of (M, D)."""
    return np.lib.stride_tricks.sliding_window_view(values, window, axis=0).mean(axis=-1)


def _lasting(score: np.ndarray, window: int) -> np.ndarray:
    """The lowest score of each run of windows that is long enough for an alarm."""
    return np.lib.stride_tricks.sliding_window_view(score, PERSIST * window).min(axis=-1)


def shortest_judged(window: int = WINDOW) -> int:
    """Frames in which an alarm can be raised."""
    return (PERSIST + 1) * window - 1


def _bound(name: str, values: list[float], false_alarm: float) -> float:
    """A bound that another score like these is above with a probability of at most ``false_alarm``, and a margin."""
    if name == "frozen":
        # Who runs into a wall stands still; how long that lasts has no normal distribution. No picture is stiller
        # than still, so that a margin on top of the stillest window of real play must leave room.
        stillest = max(values)
        return max(min(stillest + SMALLEST_MARGIN[name], STILL), stillest + 0.1)
    count = len(values)
    # Only the upper side counts: quiet sequences, in which next to nothing moves, are far below and no reason to wait.
    middle = float(np.median(values))
    spread = math.sqrt(np.mean([(value - middle) ** 2 for value in values if value >= middle]))
    bound = middle + _student(1 - false_alarm, count - 1) * spread * math.sqrt(1 + 1 / count)
    margin = max(MARGIN * spread, SMALLEST_MARGIN[name])
    # Of count + 1 exchangeable values the new one is as likely to have any rank.
    seen = sorted(values)[min(count, math.ceil((count + 1) * (1 - false_alarm))) - 1]
    return max(bound, seen) + margin


def _student(share: float, freedom: int) -> float:
    """Quantile of Student's t distribution, expanded about the normal's (Abramowitz and Stegun, 26.7.5)."""
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def colour_planes(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Brightness, R - G and (R + G) / 2 - B, each (N, H, W) float32 in grey levels, of frames (N, H, W, 3) uint8."""
    red, green, blue = (frames[..., channel].astype(np.float32) for channel in range(3))
    return (red + green + blue) / 3, red - green, (red + green) / 2 - blue


def halve(grey: np.ndarray) -> np.ndarray:
    """Frames (N, H, W) at half their size, each pixel the mean of four."""
    height, width = (size // 2 * 2 for size in grey.shape[1:])
    rows = grey[:, 0:height:2, :width] + grey[:, 1:height:2, :width]
    return (rows[:, :, 0::2] + rows[:, :, 1::2]) / 4


def block_means(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Means (N, rows * columns) float64 over a grid of nearly equal blocks of (N, H, W)."""
    height, width = values.shape[1:]
    tops, lefts = np.arange(rows) * height // rows, np.arange(columns) * width // columns
    sums = np.add.reduceat(np.add.reduceat(values, tops, axis=1), lefts, axis=2, dtype=np.float64)
    counts = np.diff([*tops, height])[:, None] * np.diff([*lefts, width])
    return (sums / counts).reshape(len(values), -1)


def _chroma(differences: Sequence[np.ndarray]) -> np.ndarray:
    """The three statistics of colour (N, 3), of R - G and (R + G) / 2 - B, each (N, H, W)."""
    means = [block_means(plane, 1, 1) for plane in differences]
    squares = [block_means(plane * plane, 1, 1) for plane in differences]
    variances = [np.maximum(square - mean**2, 0) for square, mean in zip(squares, means, strict=True)]
    colourfulness = np.sqrt(variances[0] + variances[1]) + 0.3 * np.hypot(*means)
    return np.concatenate([*means, colourfulness], axis=1) / 255


def _laplacian(grey: np.ndarray) -> np.ndarray:
    """Absolute Laplacian (N, H - 2, W - 2)."""
    found = 4 * grey[:, 1:-1, 1:-1]
    for part in (grey[:, :-2, 1:-1], grey[:, 2:, 1:-1], grey[:, 1:-1, :-2], grey[:, 1:-1, 2:]):
        found -= part
    return np.abs(found, out=found)
