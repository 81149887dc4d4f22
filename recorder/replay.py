"""Recorded games played once more, by the same seeds and actions, to see what a recording does not hold: distances.

A Doom game with the same seed and actions goes the same way, so distances need not be recorded with it: they are seen
when they are asked for, and only where the game's variables agree. (Frames may differ a little: no seed decides
how the face of the score bar looks.)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agents.environments import make_environment
from agents.errors import DataError
from recorder.episodes import read_episode
from recorder.recording import RecordingHeader

CELL = 4  # pixels each way of the frame to a distance
COMPARED = ("POSITION_X", "POSITION_Y", "ANGLE", "HEALTH")  # counters may begin with what the episode before left


@dataclass(frozen=True)
class Views:
    """What was in view at each frame of an episode, and from where.

    Args:
        distances: along the line of sight, in units of the map (N, H/4, W/4) float16; 0 where something stands on the
            screen itself, such as a gun.
        cameras: x, y, z in units of the map and the angle in radians, to the left (N, 4) float32.
    """

    distances: np.ndarray
    cameras: np.ndarray


def can_replay(spec: str) -> bool:
    """Whether games of ``spec`` tell distances."""
    return spec.startswith("doom/")


class Replay:
    """Plays episodes of a recording with ``header`` once more; a context manager, and callable.

    Raises:
        DataError: this game tells no distances.
    """

    def __init__(self, header: RecordingHeader) -> None:
        if not can_replay(header.spec):
            raise DataError("only Doom tells how far things are", header.spec, "leave geometry out for this game")
        self._environment = make_environment(
            header.spec, frame_skip=header.frame_skip, height=header.height, width=header.width,
            sensors=frozenset({"depth"}),
        )  # fmt: skip

    def __call__(self, path: Path) -> Views:
        """Of the episode at ``path``.

        Raises:
            DataError: the game goes another way now than it was recorded.
        """
        from agents.doom import DEPTH_FIRST, DEPTH_UNIT

        episode = read_episode(path)
        depths, cameras = [], []
        _, info = self._environment.reset(seed=episode.info.seed)
        compared = [name for name in COMPARED if name in episode.info.variable_names]
        recorded = episode.variables[:, [episode.info.variable_names.index(name) for name in compared]]
        for number, expected in enumerate(recorded):
            if number:
                _, _, _, _, info = self._environment.step(episode.actions[number - 1])
            if not np.array_equal(np.array([info["variables"][name] for name in compared], np.float32), expected):
                what = f"played again, the game is another at frame {number}"
                raise DataError(what, path, "record anew with this version of ViZDoom, or leave geometry out")
            depths.append(_cells(info["depth"]))
            cameras.append(info["camera"])
        depth, camera = np.stack(depths), np.stack(cameras)
        distances = np.where(depth > 0, DEPTH_UNIT * depth + DEPTH_FIRST, 0).astype(np.float16)
        camera[:, 3] = np.deg2rad(camera[:, 3])
        return Views(distances, camera)

    def __enter__(self) -> Replay:
        return self

    def __exit__(self, *error: object) -> None:
        self._environment.close()


def _cells(depth: np.ndarray) -> np.ndarray:
    """The depth buffer (H, W) uint8 -> (H/4, W/4) float32, the middle of each cell; 0 where any of it is."""
    height, width = (size // CELL * CELL for size in depth.shape)
    cells = depth[:height, :width].reshape(height // CELL, CELL, width // CELL, CELL)[:, 1:3, :, 1:3]
    found: np.ndarray = cells.mean((1, 3), np.float32)
    return np.where(cells.min((1, 3)) > 0, found, 0)
