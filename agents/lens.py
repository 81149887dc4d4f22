"""Lens: how a game's picture shows the world, which turns distances into motions of pixels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lens:
    """A pinhole camera that looks straight ahead; all of it as shares of the picture's width or height.

    The defaults are Doom's, with its score bar: ninety degrees wide, pixels a fifth higher than wide; fitted to how
    recorded frames move.

    Args:
        focal_x: focal length, of the width.
        focal_y: focal length, of the height: another where pixels are not square.
        horizon: height of the horizon, from the top.
        bottom: where the view ends and a score bar begins, from the top.
    """

    focal_x: float = 0.5
    focal_y: float = 0.796
    horizon: float = 0.432
    bottom: float = 0.867
