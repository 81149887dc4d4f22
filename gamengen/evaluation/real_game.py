"""The real game, brought to where a recording was, to see what it would show under other actions."""

from __future__ import annotations

from types import TracebackType

import numpy as np

from agents.environments import make_environment
from recorder.episodes import EpisodeInfo, read_actions, read_episode
from recorder.recording import RecordingHeader


class RealGame:
    """Replays recorded episodes by their seeds and actions; use it as a context manager.

    Doom gives identical frames for the same seed and actions, so any moment of a recording can be
    reached again and gone on from. Where a game does not replay, :meth:`seek` says so.
    """

    def __init__(self, header: RecordingHeader) -> None:
        self._environment = make_environment(
            header.spec, frame_skip=header.frame_skip, height=header.height, width=header.width
        )
        self._ended = False
        self.info: dict[str, float] = {}

    def __enter__(self) -> RealGame:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._environment.close()

    def seek(self, episode: EpisodeInfo, at: int) -> bool:
        """Play ``episode`` again up to its frame ``at``; whether the game shows the recorded frame there."""
        actions = read_actions(episode.path)
        frame, info = self._environment.reset(seed=episode.seed)
        self._ended = False
        for action in actions[:at]:
            frame, _, terminated, truncated, info = self._environment.step(action)
            if terminated or truncated:
                return False
        self.info = info["variables"]
        recorded = read_episode(episode.path, at, at + 1).frames[0]
        return bool(np.array_equal(frame, recorded))

    def step(self, action: np.ndarray) -> np.ndarray | None:
        """Hold ``action`` (A,) for one frame; the next frame (H, W, 3) uint8, or None once the episode has ended."""
        if self._ended:
            return None
        frame, _, terminated, truncated, info = self._environment.step(action)
        self._ended = terminated or truncated
        self.info = info["variables"]
        return None if terminated else frame

    def follow(self, actions: np.ndarray) -> list[np.ndarray]:
        """The frames under ``actions`` (T, A), fewer where the episode ends."""
        frames = []
        for action in actions:
            frame = self.step(action)
            if frame is None:
                break
            frames.append(frame)
        return frames
