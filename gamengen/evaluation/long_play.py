"""Long play: thousands of frames with no real one to compare with, under random keys and under an agent.

What is asked is whether the game holds: whether a play collapses, and whether its last frames look as its first do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from agents.agent import Agent
from gamengen.evaluation.collapse import frame_statistics
from gamengen.evaluation.drift import moves_view
from gamengen.evaluation.intervals import rounded
from gamengen.evaluation.rare_parts import RareBlocks
from gamengen.evaluation.similarity import sharpness
from gamengen.evaluation.subject import Subject
from gamengen.evaluation.windows import Start
from recorder.episodes import read_episode

CHUNK = 16  # frames measured at once
SETTLE_FRAMES = 50  # at the start, which what is early leaves out
COMPARED_FRAMES = 500  # early and late, where the play is long enough
LOOKS = ("sharpness", "unusual", "brightness", "contrast", "colourfulness", "motion")

Values = dict[str, np.ndarray]


def measure_long_play(
    subject: Subject,
    starts: Sequence[Start],
    players: Sequence[Agent],
    count: int,
    seed: int,
    rare: RareBlocks,
    show: Callable[[int], None] = lambda frames: None,
) -> Values:
    """Play ``count`` frames from each start, side by side; each player sees the neural game's frames alone.

    Args:
        subject: the checkpoint.
        starts: where to start.
        players: one for each start.
        count: frames.
        seed: of the sampling noise, and with the number of the start of the players.
        rare: finds what is unusual.
        show: called with the number of frames made so far.

    Returns:
        ``statistics`` (S, count, 34) and ``moving`` (S, count) for the collapse detector, and by the names of ``LOOKS``
        (S, count).
    """
    context = subject.context
    info: dict[str, Any] = {"variables": {}}
    episodes = [read_episode(one.path, start, start + context) for one, start in starts]
    held: list[np.ndarray] = []

    def choose(step: int, newest: np.ndarray) -> np.ndarray:
        held.append(np.stack([player.act(frame, info) for player, frame in zip(players, newest, strict=True)]))
        return held[-1]

    for number, (player, episode) in enumerate(zip(players, episodes, strict=True)):
        player.reset(seed + number)
        for frame in episode.frames[:-1]:
            player.act(frame, info)
    frames = np.stack([episode.frames for episode in episodes])
    before = np.stack([episode.actions[:-1] for episode in episodes])
    parts: list[Values] = []
    for chunk in _chunks(frames[:, -1], subject.play(frames, before, choose, count, seed)):
        looks = [_looks(play, rare) for play in chunk]
        parts.append({name: np.stack([look[name] for look in looks]) for name in looks[0]})
        show(sum(part["sharpness"].size for part in parts))
    values = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
    actions = np.stack(held, axis=1)
    return values | {"moving": np.stack([moves_view(subject.config.action_set, play) for play in actions])}


def summarise_long_play(values: Values, collapse: dict[str, Any] | None) -> dict[str, Any]:
    """A player's row of ``long`` in ``metrics.json``: when plays collapse, and how they look early and late.

    Args:
        values: of all plays.
        collapse: what :func:`gamengen.evaluation.drift.summarise_collapse` finds of them; None where it cannot tell.
    """
    count = values["sharpness"].shape[1]
    settle = min(SETTLE_FRAMES, count // 4)
    compared = min(COMPARED_FRAMES, (count - settle) // 2)
    spans = {"early": slice(settle, settle + compared), "late": slice(count - compared, count)}
    return {
        "starts": len(values["sharpness"]),
        "frames": count,
        **{name: collapse and collapse[name] for name in ("collapsed", "first", "false_alarm_rate")},
        **{name: [span.start + 1, span.stop] for name, span in spans.items()},
        "looks": {
            look: {name: rounded(float(values[look][:, span].mean()), 4) for name, span in spans.items()}
            for look in LOOKS
        },
    }


def _chunks(first: np.ndarray, playing: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Frames (S, 1 + n, H, W, 3) of n new ones at a time, each after the one before them."""
    kept = [first]
    for newest in playing:
        kept.append(newest)
        if len(kept) > CHUNK:
            yield np.stack(kept, axis=1)
            kept = [newest]
    if len(kept) > 1:
        yield np.stack(kept, axis=1)


def _looks(frames: np.ndarray, rare: RareBlocks) -> Values:
    """Of all frames (1 + n, H, W, 3) but the first, (n,): brightness and contrast over 255, motion in grey levels."""
    statistics = frame_statistics(frames)[1:]
    grey = frames[1:].mean(axis=3)
    return {
        "statistics": statistics,
        "sharpness": sharpness(frames[1:]),
        "unusual": rare.shares(frames[1:]),
        "brightness": grey.mean(axis=(1, 2)) / 255,
        "contrast": grey.std(axis=(1, 2)) / 255,
        "colourfulness": statistics[:, -2],
        "motion": np.exp(statistics[:, -1]) - 0.1,
    }
