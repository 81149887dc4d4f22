"""How well an agent plays a game: rewards, kills and length of its episodes, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agents.agent import Agent, make_agent
from agents.environments import FRAME_SKIP, make_environment
from agents.errors import OptionError
from agents.rewards import PaperReward

MAX_FRAMES = 2100
# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom; beyond, the normal one is near enough.
STUDENT_95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its 95 % interval (null for a single episode)."""

    mean: float
    ci95: float | None


@dataclass(frozen=True)
class AgentSummary:
    """How an agent did.

    Attributes:
        reward: sum of the game's own reward over an episode.
        paper_reward: sum of :class:`agents.rewards.PaperReward`; null where the game has no variables.
        kills: kills of an episode; null where the game does not count them.
        frames: frames of an episode, ``frame_skip`` tics each.
        seconds: the same in the game's own time.
        terminated: share of the episodes that the game itself ended, by death or by the goal.
    """

    agent: str
    spec: str
    episodes: int
    seed: int
    frame_skip: int
    reward: Interval
    paper_reward: Interval | None
    kills: Interval | None
    frames: Interval
    seconds: Interval
    terminated: float


def evaluate_agent(
    name: str,
    spec: str,
    episodes: int = 20,
    seed: int = 0,
    frame_skip: int = FRAME_SKIP,
    max_frames: int = MAX_FRAMES,
    show: Callable[[float, str], None] | None = None,
) -> AgentSummary:
    """Play ``episodes`` episodes with seeds ``seed``, ``seed + 1``, … and sum up.

    Args:
        name: ``random``, ``scripted`` or the file of a trained agent.
        spec: the game, as for :func:`agents.environments.make_environment`.
        episodes: how many to play.
        seed: seed of the first episode.
        frame_skip: tics that an action is held.
        max_frames: an episode is cut after this many frames.
        show: called after each episode with the number played and a note.

    Raises:
        GamengenError: the agent or the game cannot be made, or an option is out of range.
    """
    for option, value in (("--episodes", episodes), ("--max-frames", max_frames)):
        if value < 1:
            raise OptionError(f"must be at least 1, got {value}", option, "give a positive number")
    if seed < 0:
        raise OptionError(f"must not be negative, got {seed}", "--seed", "give 0 or more")
    probe = make_environment(spec, frame_skip=frame_skip)
    try:
        agent = make_agent(name, probe.action_set, frame_skip)
    finally:
        probe.close()
    sensors = agent.sensors if spec.startswith("doom/") else frozenset()
    environment = make_environment(spec, frame_skip=frame_skip, sensors=sensors, max_frames=max_frames)
    rows = []
    try:
        for number in range(episodes):
            rows.append(_play(environment, agent, seed + number))
            if show is not None:
                show(number + 1, f"reward {rows[-1][0]:.1f}")
    finally:
        environment.close()
    rewards, paper, kills, frames, ended = (list(column) for column in zip(*rows, strict=True))
    return AgentSummary(
        name,
        spec,
        episodes,
        seed,
        frame_skip,
        estimate(rewards),
        None if np.isnan(paper).any() else estimate(paper),
        None if np.isnan(kills).any() else estimate(kills),
        estimate(frames),
        estimate([count / environment.fps for count in frames]),
        float(np.mean(ended)),
    )


def estimate(values: Sequence[float]) -> Interval:
    """Mean and half width of the 95 % interval, by Student's t."""
    count = len(values)
    mean = float(np.mean(values))
    if count < 2:
        return Interval(mean, None)
    quantile = STUDENT_95[count - 2] if count - 2 < len(STUDENT_95) else 1.96
    return Interval(mean, quantile * float(np.std(values, ddof=1)) / math.sqrt(count))


def _play(environment: Any, agent: Agent, seed: int) -> tuple[float, float, float, int, bool]:
    """One episode: (reward, paper reward, kills, frames, terminated); NaN where not known."""
    agent.reset(seed)
    frame, info = environment.reset(seed=seed)
    kills_before = info["variables"].get("KILLCOUNT", math.nan)
    paper = PaperReward()
    paper.reset(info["variables"])
    total, paper_total, frames = 0.0, 0.0 if info["variables"] else math.nan, 0
    terminated = truncated = False
    while not (terminated or truncated):
        frame, reward, terminated, truncated, info = environment.step(agent.act(frame, info))
        total += reward
        paper_total += paper(info["variables"])
        frames += 1
    return total, paper_total, info["variables"].get("KILLCOUNT", math.nan) - kills_before, frames, terminated
