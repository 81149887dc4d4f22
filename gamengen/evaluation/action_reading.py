"""Does the picture show what was held? F1 per button of what the judge reads, and the shift test.

An inverse-dynamics model (the judge) reads the actions back from frames, real and generated ones alike. What it
reads is compared with what was held; its score on real frames is the ceiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

OFFSETS = (-2, -1, 0, 1, 2)
THRESHOLD = 0.5


def action_f1(readings: np.ndarray, actions: np.ndarray, names: Sequence[str]) -> dict[str, float | None]:
    """F1 of each button, and ``mean``, that over the buttons.

    Args:
        readings: the probability that each button was held, and the value of each axis, (N, A).
        actions: what was held (N, A), row by row.
        names: of the channels.

    Returns:
        F1 = 2 TP / (2 TP + FP + FN) by name; a button counts as held above 0.5. An axis, known by its negative
        values, counts as two buttons, ``name+`` and ``name-``, held beyond half its way. What is never held has
        null, and no part in ``mean``.
    """
    scores: dict[str, float | None] = {}
    for name, guessed, held in _buttons(readings, actions, names):
        hits, both = int((guessed & held).sum()), int(guessed.sum() + held.sum())
        scores[name] = round(2 * hits / both, 4) if held.any() else None
    known = [score for score in scores.values() if score is not None]
    return {**scores, "mean": round(float(np.mean(known)), 4) if known else None}


def shift_test(
    real: np.ndarray, neural: np.ndarray, actions: np.ndarray, lengths: np.ndarray | Sequence[int]
) -> dict[str, Any]:
    """How many frames lie between a key and the picture that shows it, in the real and in the neural game.

    Args:
        real: what is read from real frames (N, A): row s of a sequence is of the action held in its frame s.
        neural: what is read from the neural game's (N, A), under the same actions.
        actions: what was held (N, A).
        lengths: rows of each sequence, one after the other in all three; their sum is N.

    Returns:
        ``offsets``; for ``real`` and ``neural`` the mean F1 of the readings against the actions so many frames
        later; and ``real_peak`` and ``neural_peak``, the offset of the largest. It is 0 where an action shows in
        the very next frame, and -1 where it shows one frame too late: what frame s then seems to do was held in
        frame s - 1. Null where nothing is held, or no sequence is long enough.
    """
    found: dict[str, Any] = {"offsets": list(OFFSETS)}
    for side, readings in (("real", real), ("neural", neural)):
        curve = [_shifted_f1(readings, actions, lengths, offset) for offset in OFFSETS]
        # Of equal ones the nearest to 0.
        known = [(score, -abs(offset), offset) for score, offset in zip(curve, OFFSETS, strict=True) if score]
        found |= {side: curve, f"{side}_peak": max(known)[2] if known else None}
    return found


def _shifted_f1(
    readings: np.ndarray, actions: np.ndarray, lengths: np.ndarray | Sequence[int], offset: int
) -> float | None:
    """Mean F1 against the actions ``offset`` frames later, over the same readings whatever the offset."""
    most, first = max(OFFSETS), 0
    rows: list[int] = []
    for length in np.asarray(lengths, int).tolist():
        rows += range(first + most, first + length - most)
        first += length
    assert first == len(readings) == len(actions), (first, len(readings), len(actions))
    at = np.array(rows, int)
    return action_f1(readings[at], actions[at + offset], [str(i) for i in range(actions.shape[1])])["mean"]


def _buttons(
    readings: np.ndarray, actions: np.ndarray, names: Sequence[str]
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Name, what is read and what was held (N,) bool, of each button and of both ways of each axis."""
    found = []
    for name, guessed, held in zip(names, readings.T, actions.T, strict=True):
        if (held < 0).any():
            found += [(f"{name}+", guessed > THRESHOLD, held > THRESHOLD)]
            found += [(f"{name}-", guessed < -THRESHOLD, held < -THRESHOLD)]
        else:
            found += [(name, guessed > THRESHOLD, held > THRESHOLD)]
    return found
