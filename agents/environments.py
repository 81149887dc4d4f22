"""One Gymnasium face for every game: ``make_environment("doom/basic")``.

Every environment made here is a ``gymnasium.Env`` whose observation is a frame (H, W, 3) uint8 RGB,
whose action is a float32 vector (A,) of its ``action_set``, and whose ``info`` holds ``"variables"``
(game variables by name, floats) and, where asked for, ``"labels"``, or ``"depth"`` and ``"camera"`` (x, y,
z in units of the map, and the angle in degrees, to the left). A game whose terminal step has no picture repeats the
last one; recordings never hold it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from agents.actions import ActionSet
from agents.errors import SpecError

if TYPE_CHECKING:
    from agents.doom import DoomEnvironment
    from agents.gym import GymEnvironment

FRAME_HEIGHT, FRAME_WIDTH = 240, 320
FRAME_SKIP = 2
LARGEST_FRAME_SKIP = 1000


class Environment(Protocol):
    """What the rest of the project relies on in an environment."""

    spec_name: str
    action_set: ActionSet
    frame_skip: int
    fps: float
    variable_names: tuple[str, ...]
    metadata: ClassVar[dict[str, Any]]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode: (frame, info)."""

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` for frame_skip tics: (frame, reward, terminated, truncated, info)."""

    def close(self) -> None:
        """Release the game."""


def make_environment(
    spec: str,
    *,
    frame_skip: int = FRAME_SKIP,
    height: int = FRAME_HEIGHT,
    width: int = FRAME_WIDTH,
    sensors: frozenset[str] = frozenset(),
    max_frames: int | None = None,
) -> DoomEnvironment | GymEnvironment:
    """Make the environment that ``spec`` names.

    Args:
        spec: ``doom/<scenario>``, ``doom/<wad>:<map>`` or ``gym/<id>``.
        frame_skip: tics that an action is held, and that lie between two frames.
        height: frame height in pixels.
        width: frame width in pixels.
        sensors: extra buffers in ``info``: ``"labels"``, ``"depth"``, ``"automap"`` (Doom only; each costs time).
        max_frames: truncate an episode after this many frames.

    Raises:
        SpecError: the spec is unknown or its game cannot be made.
    """
    family, _, name = spec.partition("/")
    if family == "doom" and name:
        from agents.doom import DoomEnvironment

        return DoomEnvironment(name, frame_skip, height, width, sensors, max_frames)
    if family == "gym" and name:
        from agents.gym import GymEnvironment

        return GymEnvironment(name, frame_skip, height, width, max_frames)
    raise SpecError("unknown game", spec, "use doom/<scenario>, doom/freedoom1:E1M1 or gym/<id>")
