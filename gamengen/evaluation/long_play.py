"""Long play: thousands of frames with no real one to compare with, under random keys and under an agent.

What is asked is whether the game holds: whether a play collapses, and whether its last frames look as its first do.
Where the model tells that a game is lost, the next one starts, as in the window; where it does not, play goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from agents.agent import Agent
from gamengen.evaluation.collapse import STATISTICS, frame_statistics
from gamengen.evaluation.intervals import rounded
from gamengen.evaluation.rare_parts import RareBlocks, RareSights
from gamengen.evaluation.subject import Subject
from gamengen.evaluation.turning import moves_view
from gamengen.evaluation.windows import Start
from recorder.episodes import Episode, read_episode

CHUNK = 16  # frames measured at once
SETTLE_FRAMES = 50  # at the start, which what is early leaves out
COMPARED_FRAMES = 500  # early and late, where the play is long enough
RARE_EVERY = 8  # frames: it takes longer than all else

Values = dict[str, np.ndarray]


def measure_long_play(
    subject: Subject,
    starts: Sequence[Start],
    players: Sequence[Agent],
    count: int,
    seed: int,
    rare: RareBlocks,
    sights: RareSights,
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
        sights: tells whether something unusual is in view.
        show: called with the number of frames made so far.

    Returns:
        ``statistics`` (S, count, 34) of :func:`gamengen.evaluation.collapse.frame_statistics`, ``moving`` (S, count),
        whether the view was moved, ``unusual`` and ``sights`` (S, count), of every eighth frame, else NaN, and ``lost``
        (S,), how many games were.
    """
    context = subject.context
    info: dict[str, Any] = {"variables": {}}
    episodes = [read_episode(one.path, start, start + context) for one, start in starts]
    held: list[np.ndarray] = []

    def choose(step: int, newest: np.ndarray) -> np.ndarray:
        held.append(np.stack([player.act(frame, info) for player, frame in zip(players, newest, strict=True)]))
        return held[-1]

    lost = np.zeros(len(starts), np.int64)

    def begin(number: int) -> Episode:
        """The player's next game: from its own start at first, then from those after it in turn."""
        episode = episodes[(number + lost[number]) % len(episodes)]
        players[number].reset(seed + number + len(players) * int(lost[number]))
        for frame in episode.frames[:-1]:
            players[number].act(frame, info)
        return episode

    def lose(step: int, games: list[int]) -> tuple[np.ndarray, np.ndarray]:
        lost[games] += 1
        begun = [begin(number) for number in games]
        return np.stack([one.frames for one in begun]), np.stack([one.actions[:-1] for one in begun])

    for number in range(len(players)):
        begin(number)
    frames = np.stack([episode.frames for episode in episodes])
    before = np.stack([episode.actions[:-1] for episode in episodes])
    statistics: list[np.ndarray] = []
    unusual, seen = np.full((2, len(starts), count), np.nan)
    for chunk in _chunks(frames[:, -1], subject.play(frames, before, choose, count, seed, lose)):
        done = sum(part.shape[1] for part in statistics)
        for number in range(RARE_EVERY - 1 - done % RARE_EVERY, chunk.shape[1] - 1, RARE_EVERY):
            unusual[:, done + number] = rare.shares(chunk[:, 1 + number])
            seen[:, done + number] = sights.seen(chunk[:, 1 + number])
        statistics.append(np.stack([frame_statistics(play)[1:] for play in chunk]))
        show(len(starts) * (done + chunk.shape[1] - 1))
    moving = [moves_view(subject.config.action_set, play) for play in np.stack(held, axis=1)]
    told = {"unusual": unusual, "sights": seen, "lost": lost}
    return {"statistics": np.concatenate(statistics, axis=1), "moving": np.stack(moving), **told}


def summarise_long_play(values: Values, collapse: dict[str, Any] | None) -> dict[str, Any]:
    """A player's row of ``long`` in ``metrics.json``: when plays collapse, and how they look early and late.

    Args:
        values: of all plays.
        collapse: what :func:`gamengen.evaluation.drift.summarise_collapse` finds of them; None where it cannot tell.
    """
    starts, count = values["unusual"].shape
    looks = _looks(values)
    settle = min(SETTLE_FRAMES, count // 4)
    compared = min(COMPARED_FRAMES, (count - settle) // 2)
    spans = {"early": slice(settle, settle + compared), "late": slice(count - compared, count)}
    return {
        "starts": starts,
        "frames": count,
        "lost": int(values["lost"].sum()),
        **{name: collapse and collapse[name] for name in ("collapsed", "first", "false_alarm_rate")},
        **{name: [span.start + 1, span.stop] for name, span in spans.items()},
        "looks": {
            look: {name: rounded(float(np.nanmean(curve[:, span])), 4) for name, span in spans.items()}
            for look, curve in looks.items()
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


def _looks(values: Values) -> Values:
    """What is told of each frame (S, count): brightness and contrast over 255, sharpness and motion in grey levels."""
    columns = {name: values["statistics"][..., number] for number, name in enumerate(STATISTICS)}

    def mean(kind: str) -> np.ndarray:
        return np.mean([column for name, column in columns.items() if name.startswith(kind)], axis=0)

    sharp = [np.exp(column) - 0.5 for name, column in columns.items() if name.startswith("sharpness_fine")]
    return {
        "sharpness": np.mean(sharp, axis=0),
        "unusual": values["unusual"],
        "sights": values["sights"],
        "brightness": mean("brightness"),
        "contrast": mean("contrast"),
        "colourfulness": columns["colourfulness"],
        "motion": np.exp(columns["motion"]) - 0.1,
    }
