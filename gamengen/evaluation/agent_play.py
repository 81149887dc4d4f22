"""Agent in the loop: the same frozen agent plays the real and the neural game, and what comes of it is compared.

Each seed is one game. The real one gives both sides their start; from there the real game goes on, and the neural
one goes on from the same frames, played by the same agent with the same random numbers. What happened is read
from the pictures by the judge, on both sides alike; the real game's own variables beside show how well it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.agent import Agent, make_agent
from agents.environments import make_environment
from agents.errors import DataError, OptionError
from agents.evaluate import estimate
from agents.policy import read_agent
from agents.rewards import AMMO_NAMES
from gamengen.evaluation.judge import HEALTH, JUDGE_FRAMES, KILLS, Judge
from gamengen.evaluation.options import EvaluateOptions
from gamengen.evaluation.subject import Subject
from recorder.progress import progress
from recorder.recording import RecordingHeader

CLONED = "cloned"
DEAD, SELECTED_AMMO = "DEAD", "SELECTED_WEAPON_AMMO"
OUTCOMES = ("kills", "survival_frames", "ammo_used", "health_lost")
FIRST_SEED = 2_000_000_000  # of the games: far from any that is recorded
MOST_PARALLEL = 32  # neural games side by side
REFRACTORY = 3  # frames after a kill in which the same one still shows
MEDIAN_FRAMES = 5


@dataclass(frozen=True)
class RealGame:
    """A real game that an agent played.

    Attributes:
        frames: N frames as the judge sees them (N, h, w, 3) uint8.
        actions: what was held during each (N, A).
        variables: the game's own, by name, each (N,).
        start: the first frames in full size (S, H, W, 3), where the neural game starts.
    """

    seed: int
    frames: np.ndarray
    actions: np.ndarray
    variables: dict[str, np.ndarray]
    start: np.ndarray


class ClonedAgent:
    """Plays as the players of the recording would, by the judge's ``next_action``; it sees frames alone.

    Each button is drawn from its probability, so that it does not get stuck.
    """

    name = CLONED
    sensors: frozenset[str] = frozenset()

    def __init__(self, judge: Judge) -> None:
        self._judge = judge
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Forget the last game; all randomness of the next one comes from ``seed``."""
        self._rng = np.random.default_rng(seed)
        self._seen: list[np.ndarray] = []

    def act(self, frame: np.ndarray, info: dict[str, Any]) -> np.ndarray:
        """The action (A,) to hold while ``frame`` (H, W, 3) is on screen."""
        small = self._judge.shrink(frame[None])[0]
        self._seen = ([small] * JUDGE_FRAMES if not self._seen else [*self._seen, small])[-JUDGE_FRAMES:]
        action_set = self._judge.config.action_set
        chances, buttons = self._judge.next_action(np.stack(self._seen)), len(action_set.buttons)
        if action_set.exclusive:
            shares = chances.astype(np.float64) + 1e-9
            return action_set.encode([str(self._rng.choice(action_set.buttons, p=shares / shares.sum()))])
        held = self._rng.random(buttons) < chances[:buttons]
        return np.concatenate([held, chances[buttons:]]).astype(np.float32)


def check_player(agent: str, spec: str) -> None:
    """Raise OptionError unless there is such an agent, and the pictures of ``spec`` are enough for it."""
    if agent == "scripted" and spec.startswith("doom/"):
        what = "this agent also needs depth and labels, which the neural game does not give"
        raise OptionError(what, agent, f"use {CLONED}, which sees frames alone")
    if agent not in (CLONED, "random", "scripted") and not Path(agent).is_file():
        raise OptionError("unknown agent", agent, f"use {CLONED}, random, or the file of a trained agent")
    if agent in (CLONED, "random", "scripted"):
        return
    header, _ = read_agent(Path(agent))
    if spec.startswith("doom/") and header["options"].get("inside") is None:
        what = "this agent also needs the map, which the neural game does not give"
        raise OptionError(what, agent, f"use {CLONED}, or one that gamengen agent train --inside made")


def make_player(agent: str, judge: Judge, header: RecordingHeader) -> Agent:
    """The agent called ``cloned`` or ``random``, or the one stored in a file, to play both games.

    Raises:
        OptionError: there is none, it has other actions, or it needs more than frames.
    """
    check_player(agent, header.spec)
    if agent == CLONED:
        return ClonedAgent(judge)
    player = make_agent(agent, header.action_set, header.frame_skip)
    if player.sensors and header.spec.startswith("doom/"):
        what = f"this agent also needs {' and '.join(sorted(player.sensors))}, which the neural game does not give"
        raise OptionError(what, agent, f"use {CLONED}, which sees frames alone")
    return player


def compare_agent(subject: Subject, judge: Judge, header: RecordingHeader, options: EvaluateOptions) -> dict[str, Any]:
    """Let one agent play the real and the neural game, and compare what comes of it.

    Args:
        subject: the neural game.
        judge: reads both, and is the agent called ``cloned``.
        header: of a recording of the real game.
        options: ``agent``, as for :func:`make_player` (None is ``cloned``), ``agent_seeds``, ``agent_frames``
            after the start, and ``seed``.

    Returns:
        ``agent``, ``seeds``, ``frames`` and, as ``{"mean", "ci95"}`` over the games by outcome, ``real``,
        ``real_true`` (the same by the game's own variables), ``neural``, and ``difference`` (neural - real, game
        by game). The outcomes are ``kills``, ``survival_frames`` (at most ``frames``), ``ammo_used`` and
        ``health_lost``, all up to the survival; null where the game has no such thing.

    Raises:
        OptionError: the agent cannot play both.
    """
    agent, start = options.agent or CLONED, max(subject.context, JUDGE_FRAMES)
    rows: dict[str, list[dict[str, float]]] = {"real": [], "real_true": [], "neural": [], "difference": []}
    with progress("agent in the loop", 2 * options.agent_seeds * options.agent_frames, "frames") as show:
        player = make_player(agent, judge, header)
        games = play_real(
            header, player, judge, options.agent_seeds, options.agent_frames, start, FIRST_SEED + options.seed,
            lambda count: show(count * options.agent_frames, "the real game"),
        )  # fmt: skip
        for first in range(0, len(games), MOST_PARALLEL):
            part = games[first : first + MOST_PARALLEL]
            players = [make_player(agent, judge, header) for _ in part]
            done = (len(games) + first) * options.agent_frames

            def tell(count: int, done: int = done, games: int = len(part)) -> None:
                show(done + count * games, "the neural game")

            made = play_neural(subject, judge, players, part, options.agent_frames, options.seed + first, tell)
            for game, neural in zip(part, made, strict=True):
                sides = [read_outcome(judge, frames, start) for frames in (game.frames, neural)]
                rows["real"].append(sides[0])
                rows["real_true"].append(true_outcome(judge, game.variables, start))
                rows["neural"].append(sides[1])
                rows["difference"].append({name: sides[1][name] - sides[0][name] for name in sides[0]})
    summary = {side: _sum_up(found) for side, found in rows.items()}
    return {"agent": agent, "seeds": len(games), "frames": options.agent_frames, **summary}


def play_real(
    header: RecordingHeader,
    player: Agent,
    judge: Judge,
    count: int,
    frames: int,
    start: int,
    seed: int,
    show: Callable[[int], None] = lambda count: None,
) -> list[RealGame]:
    """Play real games, by the alignment law of ``recorder.episodes``; ``player`` plays from the first frame on.

    A game that ends within its start is not used: the next seed takes its place.

    Args:
        header: of a recording of the game.
        player: who plays.
        judge: makes the frames small.
        count: games.
        frames: length of each after its start, at most.
        start: frames of the start.
        seed: of the first game; each has the next one.
        show: called with the number of games played.

    Raises:
        DataError: the games end too soon.
    """
    games: list[RealGame] = []
    environment = make_environment(header.spec, frame_skip=header.frame_skip, height=header.height, width=header.width)
    try:
        for number in range(2 * count + 8):
            game = _play_one(environment, player, judge, seed + number, start, frames)
            games += [game] if len(game.frames) > start else []
            show(len(games))
            if len(games) == count:
                return games
    finally:
        environment.close()
    raise DataError(f"most games end within {start} frames", header.spec, "leave out the measure agent")


def _play_one(environment: Any, player: Agent, judge: Judge, seed: int, start: int, frames: int) -> RealGame:
    player.reset(seed)
    frame, info = environment.reset(seed=seed)
    seen: list[np.ndarray] = []
    small: list[np.ndarray] = []
    actions, variables, ended = [], [], False
    while not ended and len(small) < start + frames:
        action = player.act(frame, info)
        seen += [np.array(frame)] if len(seen) < start else []
        small.append(judge.shrink(frame[None])[0])
        actions.append(action)
        variables.append(info["variables"])
        frame, _, terminated, truncated, info = environment.step(action)
        ended = terminated or truncated
    names = variables[0]
    table = {name: np.array([row.get(name, np.nan) for row in variables]) for name in names}
    return RealGame(seed, np.stack(small), np.stack(actions), table, np.stack(seen))


def play_neural(
    subject: Subject,
    judge: Judge,
    players: Sequence[Agent],
    games: Sequence[RealGame],
    frames: int,
    seed: int,
    show: Callable[[int], None] = lambda count: None,
) -> list[np.ndarray]:
    """Play on from the starts of real games, in the neural game.

    Each player first sees the start as it did in the real game, so that it goes on as there.

    Args:
        subject: the neural game.
        judge: makes the frames small.
        players: one for each game.
        games: where they start.
        frames: how many to make.
        seed: of the sampling noise.
        show: called with the number of frames made of each.

    Returns:
        For each game, start and new frames as the judge sees them, (S + ``frames``, h, w, 3) uint8; fewer where the
        model tells that it is lost: up to the frame before, as the real game's.
    """
    info: dict[str, Any] = {"variables": {}}
    for player, game in zip(players, games, strict=True):
        player.reset(game.seed)
        for frame in game.start[:-1]:
            player.act(frame, info)

    def choose(step: int, newest: np.ndarray) -> np.ndarray:
        return np.stack([player.act(frame, info) for player, frame in zip(players, newest, strict=True)])

    start, context = len(games[0].start), subject.context
    starts = np.stack([game.start[-context:] for game in games])
    held = np.stack([game.actions[start - context : start - 1] for game in games])
    made = [[*game.frames[:start]] for game in games]
    lengths = [start + frames] * len(games)

    def lose(step: int, lost: list[int]) -> None:
        for number in lost:
            lengths[number] = min(lengths[number], start + step)

    for count, newest in enumerate(subject.play(starts, held, choose, frames, seed, lose), start=1):
        for row, small in zip(made, judge.shrink(newest), strict=True):
            row.append(small)
        show(count)
    return [np.stack(row[:length]) for row, length in zip(made, lengths, strict=True)]


def read_outcome(judge: Judge, frames: np.ndarray, start: int) -> dict[str, float]:
    """What happened after the first ``start`` >= 4 of these small frames (N, h, w, 3), as the judge reads them."""
    reading = judge.read_small(frames)
    newest = JUDGE_FRAMES - 1  # row s of a reading is of frame s + 3
    variables = {name: median_filter(row)[start - 1 - newest :] for name, row in reading.variables.items()}
    ends = reading.ends[start - 1 - newest :] > 0.5
    alive = _survival(judge, variables, ends)
    outcome = _losses(judge, variables, alive)
    if reading.kills is not None:
        outcome["kills"] = count_events(reading.kills[start - 1 : start - 1 + alive])
    return outcome


def true_outcome(judge: Judge, variables: Mapping[str, np.ndarray], start: int) -> dict[str, float]:
    """The same by the game's own variables, each (N,); nothing where it tells none."""
    if not variables:
        return {}
    known = {name: row[start - 1 :] for name, row in variables.items()}
    alive = _survival(judge, known, np.zeros(max(map(len, known.values()), default=1), bool))
    outcome = _losses(judge, known, alive)
    if judge.config.counts_kills:
        outcome["kills"] = float(known[KILLS][alive] - known[KILLS][0])
    return outcome


def count_events(chances: np.ndarray) -> int:
    """How often a probability (N,) rises above a half; what follows within three frames is the same event."""
    count, last = 0, -REFRACTORY - 1
    for at in np.flatnonzero(chances > 0.5).tolist():
        if at - last > REFRACTORY:
            count, last = count + 1, at
    return count


def median_filter(values: np.ndarray) -> np.ndarray:
    """The running median (N,) over five frames of ``values`` (N,): a misreading of two frames is not seen."""
    side = MEDIAN_FRAMES // 2
    padded = np.pad(values, side, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, MEDIAN_FRAMES), axis=-1)


def _survival(judge: Judge, variables: Mapping[str, np.ndarray], ends: np.ndarray) -> int:
    """New frames until the player is dead or, where no frame shows that, at a health at which games end.

    Row 0 of ``variables`` and ``ends`` is of the last frame of the start.
    """
    config = judge.config
    if DEAD in config.values:
        over = variables[DEAD] > 0.5
    elif config.last_health is not None:
        over = variables[HEALTH] <= config.last_health
    else:
        over = ends
    found = np.flatnonzero(over[1:])
    return int(found[0]) + 1 if len(found) else len(over) - 1


def _losses(judge: Judge, variables: Mapping[str, np.ndarray], alive: int) -> dict[str, float]:
    """Survival, and what was lost of health and ammunition until then."""
    values = judge.config.values
    ammunition = [name for name in AMMO_NAMES if name in values] or [
        name for name in (SELECTED_AMMO,) if name in values
    ]

    def falls(name: str) -> float:
        return float(np.maximum(0, -np.diff(variables[name][: alive + 1])).sum())

    outcome: dict[str, float] = {"survival_frames": alive}
    if ammunition:
        outcome["ammo_used"] = sum(map(falls, ammunition))
    if HEALTH in values:
        outcome["health_lost"] = falls(HEALTH)
    return outcome


def _sum_up(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None] | None]:
    """Mean and half width of the 95 % interval of each outcome over the games."""
    table: dict[str, dict[str, float | None] | None] = {}
    for name in OUTCOMES:
        values = [row[name] for row in rows if name in row]
        found = estimate(values) if values else None
        if found is None:
            table[name] = None
        else:
            table[name] = {"mean": round(found.mean, 3), "ci95": None if found.ci95 is None else round(found.ci95, 3)}
    return table
