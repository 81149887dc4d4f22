"""How the view moves: whether the keys should move it, and whether the picture does move that way.

A model may make good single pictures and stand still: after a free play has gone its own way, the picture that is
nearest to all that may follow hardly turns. No figure of single pictures tells that.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from agents.actions import ActionSet
from gamengen.evaluation.intervals import rounded

CAMERA = (("TURN", "LOOK"), ("MOVE", "STRAFE"))  # the first of these that the game has
OPPOSITE = {"_LEFT": ("_RIGHT", -1.0), "_BACKWARD": ("_FORWARD", -1.0), "_DOWN": ("_UP", -1.0)}
TURNED = 0.1  # of an axis: less is no turn
TOP, BOTTOM = 1 / 24, 5 / 8  # of the height: above the weapon, and most of what is shown there is far away
REACH = 1 / 8  # of the width, at most, from one frame to the next
BLUR = 4  # rows that are averaged
RIGHT_WAY = 1 / 80  # of the width: from here on a picture has turned
SPANS = (16, 64)  # frames after which another row of figures begins

Values = dict[str, np.ndarray]


def moves_view(action_set: ActionSet, held: np.ndarray) -> np.ndarray:
    """Whether something that moves the view is held, (N,) bool; opposite keys together do not.

    Where a game has keys to turn, those to walk are left out: against a wall they move nothing.
    """
    found = next((kind for kind in CAMERA if any(name.startswith(kind) for name in action_set.names)), None)
    axes = [values for name, values in _axes(action_set, held).items() if found is None or name.startswith(found)]
    return np.abs(np.stack(axes)).max(axis=0) > TURNED


def turning(action_set: ActionSet, held: np.ndarray) -> np.ndarray:
    """Where actions (N, A) turn the view, (N,): 1 to the right, -1 to the left, 0 not at all.

    A turn counts from its second frame on: Doom's first tics of one are slower. A game that cannot turn has none.
    """
    turn = _axes(action_set, held).get("TURN_RIGHT", np.zeros(len(held)))
    ways = np.where(np.abs(turn) > TURNED, np.sign(turn), 0.0)
    return np.where(ways == np.concatenate([[0.0], ways[:-1]]), ways, 0.0)


def sideways_motion(frames: np.ndarray) -> np.ndarray:
    """By how many pixels the view turns to the right from each of frames (N, H, W, 3) to the next, (N - 1,).

    It is the shift at which the one is most like the other, by the squared error of the brightness of the upper part,
    each frame's mean taken off; an eighth of the width at most.
    """
    height, width = frames.shape[1:3]
    grey = frames[:, round(TOP * height) : max(round(TOP * height) + BLUR, round(BOTTOM * height))].mean(-1)
    grey = grey[:, : grey.shape[1] // BLUR * BLUR].reshape(len(grey), -1, BLUR, width).mean(2)
    grey -= grey.mean(axis=(1, 2), keepdims=True)
    reach, finest = int(REACH * width), max(1, width // 160)
    shifts = np.arange(-(reach // finest) * finest, reach + 1, finest)
    last, following = grey[:-1], grey[1:, :, reach : width - reach]
    errors = [np.square(last[:, :, reach + shift : width - reach + shift] - following).mean((1, 2)) for shift in shifts]
    # Among equals, as in a picture without any structure, the smallest.
    order = np.argsort(np.abs(shifts), kind="stable")
    return shifts[order][np.stack(errors)[order].argmin(axis=0)].astype(np.float64)


def summarise_turns(values: Values, width: int) -> dict[str, Any] | None:
    """The ``turns`` row of ``metrics.json``, or None where nothing turns.

    Args:
        values: over free plays and frames (S, T): ``turning``, as of :func:`turning`; ``sideways`` and
            ``real_sideways``, pixels to the right, NaN where not known.
        width: of the frames, in pixels.

    Returns:
        ``spans``, each with ``from``, ``to`` and ``turns``, how many frames of turns were compared; for ``real`` and
        ``neural`` the share of those that turn the ``right_way``, and how many ``pixels`` that way they turn in the
        mean, and ``at_rest`` the share of the frames without a turn in which the view stays.
    """
    count = values["turning"].shape[1]
    edges = [0, *(edge for edge in SPANS if edge < count), count]
    spans = []
    for begin, end in pairwise(edges):
        ways = values["turning"][:, begin:end]
        both = {"real": values["real_sideways"][:, begin:end], "neural": values["sideways"][:, begin:end]}
        known = ~np.isnan(both["real"] + both["neural"])
        turned, rest = known & (ways != 0), known & (ways == 0)
        if not turned.any():
            continue
        span: dict[str, Any] = {"from": begin + 1, "to": end, "turns": int(turned.sum())}
        for name, moved in both.items():
            along = (moved * ways)[turned]
            span[name] = {
                "right_way": rounded(float((along >= RIGHT_WAY * width).mean()), 4),
                "pixels": rounded(float(along.mean()), 2),
                "at_rest": rounded(float((np.abs(moved[rest]) < RIGHT_WAY * width).mean()), 4) if rest.any() else None,
            }
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
