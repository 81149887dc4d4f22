"""How the view moves: whether the keys should move it, and whether the picture does move that way.

A model may make good single pictures and stand still: after a free play has gone its own way, the picture that is
nearest to all that may follow hardly turns. No figure of single pictures tells that.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from agents.actions import ActionSet
from gamengen.camera import turn_coefficients
from gamengen.compensation import FLOW_PIXELS, homography_flow, sampling_grid
from gamengen.evaluation.intervals import rounded

CAMERA = (("TURN", "LOOK"), ("MOVE", "STRAFE"))  # the first of these that the game has
OPPOSITE = {"_LEFT": ("_RIGHT", -1.0), "_BACKWARD": ("_FORWARD", -1.0), "_DOWN": ("_UP", -1.0)}
HELD = 0.1  # of an axis: less is no turn
DEGREES = tuple(1.5 * step for step in range(-9, 10))  # a frame; Doom turns by 7 in two tics
TOP, BOTTOM = 1 / 24, 5 / 8  # of the height: above the weapon
CLEAR = 0.01  # by such a share a turn must fit better than most do
ALL_UNTIL, EVERY = 64, 4  # of each play's frames; later every fourth
SPANS = (16, 64)  # frames after which another row of figures begins

Values = dict[str, np.ndarray]


def moves_view(action_set: ActionSet, held: np.ndarray) -> np.ndarray:
    """Whether something that moves the view is held, (N,) bool; opposite keys together do not.

    Where a game has keys to turn, those to walk are left out: against a wall they move nothing.
    """
    found = next((kind for kind in CAMERA if any(name.startswith(kind) for name in action_set.names)), None)
    axes = [values for name, values in _axes(action_set, held).items() if found is None or name.startswith(found)]
    return np.abs(np.stack(axes)).max(axis=0) > HELD


def turning(action_set: ActionSet, held: np.ndarray) -> np.ndarray:
    """Where actions (N, A) turn the view, (N,): 1 to the right, -1 to the left, 0 not at all.

    A turn counts from its second frame on: Doom's first tics of one are slower. A game that cannot turn has none.
    """
    turn = _axes(action_set, held).get("TURN_RIGHT", np.zeros(len(held)))
    ways = np.where(np.abs(turn) > HELD, np.sign(turn), 0.0)
    return np.where(ways == np.concatenate([[0.0], ways[:-1]]), ways, 0.0)


def turned(frames: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """By how many degrees the view turns to the right from each of frames (N, H, W, 3) to the next, (N - 1,).

    It is the turn of a camera that sees 90 degrees by which the upper part of the one, at half its size, is most like
    the other. Where standing still is no worse, as at what stands still on the screen, a pixel does not count (the
    minimum reprojection of Godard et al., arXiv 1806.01260, section 3.2).

    Args:
        frames: of one play, in their order.
        wanted: (N - 1,) bool, which to tell; the others are NaN.
    """
    found = np.full(len(frames) - 1, np.nan)
    height, width = (size // 2 for size in frames.shape[1:3])
    rows = slice(round(TOP * height), round(BOTTOM * height))
    coefficients = torch.tensor([turn_coefficients(math.radians(degrees)) for degrees in DEGREES])
    flow = homography_flow(coefficients, frames.shape[1] // FLOW_PIXELS, frames.shape[2] // FLOW_PIXELS) / 2
    grid = sampling_grid(flow, height, width)[:, rows]
    for at in np.flatnonzero(wanted):
        pair = torch.from_numpy(frames[at : at + 2].mean(axis=-1, dtype=np.float32))[:, None]
        last, following = F.avg_pool2d(pair, 2)
        given = last[None].expand(len(grid), -1, -1, -1)
        moved = F.grid_sample(given, grid, padding_mode="border", align_corners=False)[:, 0]
        away = torch.minimum((moved - following[0, rows]).abs(), (last[0, rows] - following[0, rows]).abs())
        cost = away.mean(dim=(1, 2))
        least, usual = cost.min(), cost.median()
        found[at] = DEGREES[int(cost.argmin())] if least < (1 - CLEAR) * usual else 0.0
    return found


def told_turns(ways: np.ndarray) -> np.ndarray:
    """Which frames of a play are looked at, (N,) bool, from where its keys turn the view, (N,)."""
    at = np.arange(len(ways))
    return (ways != 0) & ((at < ALL_UNTIL) | (at % EVERY == 0))


def summarise_turns(values: Values) -> dict[str, Any] | None:
    """The ``turns`` row of ``metrics.json``, or None where nothing turns.

    Args:
        values: over free plays and frames (S, T): ``turning``, as of :func:`turning`; ``turned`` and ``real_turned``,
            degrees to the right, NaN where not known.

    Returns:
        ``spans``, each with ``from``, ``to`` and ``turns``, how many frames of turns were compared; for ``real`` and
        ``neural`` the share of those that turn the ``right_way``, and how many ``degrees`` that way in the mean.
    """
    count = values["turning"].shape[1]
    edges = [0, *(edge for edge in SPANS if edge < count), count]
    spans = []
    for begin, end in pairwise(edges):
        ways, real, neural = (values[name][:, begin:end] for name in ("turning", "real_turned", "turned"))
        known = ~np.isnan(real + neural) & (ways != 0)
        if known.any():
            span: dict[str, Any] = {"from": begin + 1, "to": end, "turns": int(known.sum())}
            for name, moved in (("real", real), ("neural", neural)):
                along = (moved * ways)[known]
                span[name] = {"right_way": rounded(float((along > 0).mean()), 4), "degrees": rounded(along.mean(), 2)}
            spans.append(span)
    return {"spans": spans} if spans else None


def _axes(action_set: ActionSet, held: np.ndarray) -> dict[str, np.ndarray]:
    """Actions (N, A) as signed axes (N,) by name: what opposite keys do together."""
    axes: dict[str, np.ndarray] = {}
    for name, values in zip(action_set.names, (held - action_set.rest).T, strict=True):
        ending = next((ending for ending in OPPOSITE if name.endswith(ending)), None)
        other, sign = OPPOSITE[ending] if ending else ("", 1.0)
        axis = name.removesuffix(ending) + other if ending else name
        axes[axis] = axes.get(axis, 0.0) + sign * values
    return axes
