"""Real frames in memory, small, in runs of consecutive ones: what the judge is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from agents.errors import DataError
from recorder.episodes import EpisodeInfo, read_episode

POOL_FRAMES = 8_000
RUN_FRAMES = 40
SMALL_HEIGHT = 120  # rows, about: larger frames are averaged down by a whole factor


@dataclass(frozen=True)
class FramePool:
    """Runs of consecutive frames, one after the other.

    Attributes:
        frames: (M, h, w, 3) uint8.
        actions: (M, A) float32, held while each frame is on screen.
        variables: game variables by name, each (M,) float32.
        skilled: (M,) bool, whether a player who is not random plays.
        last: (M,) bool, whether the game itself ends after the frame.
        starts: (W,) int64, where a window begins that lies within one run.
    """

    frames: torch.Tensor
    actions: torch.Tensor
    variables: dict[str, np.ndarray]
    skilled: torch.Tensor
    last: torch.Tensor
    starts: torch.Tensor


def gather_frames(episodes: list[EpisodeInfo], window: int, multiple: int) -> FramePool:
    """Read runs of frames, spread evenly over the episodes, 8,000 frames at most; all where there are fewer.

    Args:
        episodes: of one recording.
        window: frames of a window.
        multiple: as for :func:`shrink`.

    Raises:
        DataError: no episode is as long as a window, or one is damaged.
    """
    runs = [
        (info, start)
        for info in episodes
        for start in range(0, info.frames, RUN_FRAMES)
        if info.frames - start >= window
    ]
    if not runs:
        where = episodes[0].path.parent if episodes else "the recording"
        raise DataError(f"no episode has {window} frames", where, "record more frames")
    count = min(len(runs), POOL_FRAMES // RUN_FRAMES)
    picked = [runs[round(i)] for i in np.linspace(0, len(runs) - 1, count)]
    has_skill = any(info.agent != "random" for info, _ in picked)
    starts: list[int] = []
    frames, actions, variables, skilled, last, at = [], [], [], [], [], 0
    for info, start in picked:
        part = read_episode(info.path, start, start + RUN_FRAMES)
        length = len(part.frames)
        frames.append(torch.from_numpy(shrink(part.frames, multiple)))
        actions.append(part.actions)
        variables.append(part.variables)
        skilled += [info.agent != "random" or not has_skill] * length
        last += [info.terminated and start + i == info.frames - 1 for i in range(length)]
        starts += range(at, at + length - window + 1)
        at += length
    columns = np.concatenate(variables)
    return FramePool(
        torch.cat(frames),
        torch.from_numpy(np.concatenate(actions)),
        {name: columns[:, i] for i, name in enumerate(episodes[0].variable_names)},
        torch.tensor(skilled),
        torch.tensor(last),
        torch.tensor(starts),
    )


def shrink(frames: np.ndarray, multiple: int = 1) -> np.ndarray:
    """Frames (N, H, W, 3) uint8 averaged down to about 120 rows by a whole factor; smaller ones stay as they are.

    The result is padded with black, below and to the right, to sides that are multiples of ``multiple``.
    """
    factor = max(1, round(frames.shape[1] / SMALL_HEIGHT))
    height, width = (size // factor * factor for size in frames.shape[1:3])
    total = np.zeros((len(frames), height // factor, width // factor, 3), np.uint32)
    for y in range(factor):
        for x in range(factor):
            total += frames[:, y:height:factor, x:width:factor]
    small = ((total + factor**2 // 2) // factor**2).astype(np.uint8)
    below, right = -small.shape[1] % multiple, -small.shape[2] % multiple
    return np.pad(small, ((0, 0), (0, below), (0, right), (0, 0)))
