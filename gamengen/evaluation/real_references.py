"""Measures that need the real game at hand: play without a key, and returning to where one was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from agents.actions import ActionSet
from agents.random_agent import OPPOSITES
from gamengen.evaluation.drift import Values
from gamengen.evaluation.intervals import ci95, rounded, rounded_list
from gamengen.evaluation.real_game import RealGame
from gamengen.evaluation.similarity import frame_psnr, sharpness
from gamengen.evaluation.subject import Subject, follow
from gamengen.evaluation.windows import Start
from recorder.episodes import read_episode

AWAY_FRAMES = 24  # there, and as many back
LONGEST_CIRCLE = 120  # frames


def measure_no_action(subject: Subject, game: RealGame, start: Start, count: int, seed: int) -> Values | None:
    """Touch nothing for ``count`` frames, in the neural and in the real game.

    Returns:
        ``psnr``, ``sharpness``, ``real_sharpness`` (count,), NaN where the real episode had ended; None where the
        game does not replay.
    """
    rest = np.repeat(subject.config.action_set.rest[None], count, axis=0)
    found = _both(subject, game, start, rest, seed)
    if found is None:
        return None
    real, neural, _ = found
    values = {"psnr": frame_psnr(real, neural[: len(real)]), "sharpness": sharpness(neural)}
    values["real_sharpness"] = sharpness(real)
    return {
        name: np.concatenate([part, np.full(count - len(part), np.nan)]) for name, part in values.items()
    }  # fmt: skip


def summarise_no_action(parts: Sequence[Values]) -> dict[str, Any]:
    """The ``no_action`` row of ``metrics.json``."""
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    known = {name: (~np.isnan(values)).sum(axis=0) for name, values in stacked.items()}
    curves = {
        name: np.where(known[name] > 0, np.nansum(values, axis=0) / np.maximum(known[name], 1), np.nan)
        for name, values in stacked.items()
    }
    frames = list(range(1, len(curves["psnr"]) + 1))
    return {"starts": len(parts), "frames": frames, **{name: rounded_list(part) for name, part in curves.items()}}


def measure_return(subject: Subject, game: RealGame, start: Start, seed: int) -> dict[str, Values]:
    """Turn away and back, and once around: does what comes back match what was there?

    Returns:
        ``there_and_back`` and, where the game tells its angle, ``full_circle``: the PSNR of the neural game's
        last frame (``neural``), of the real start (``real``) and of the real frame farthest away (``away``),
        each against the real game's last frame under the same actions; and the number of ``frames``.
    """
    action_set = subject.config.action_set
    found: dict[str, Values] = {}
    for name, script in _scripts(action_set, game, start).items():
        both = _both(subject, game, start, script, seed)
        if both is None or len(both[0]) < len(script):
            continue
        real, neural, first = both
        end, away = real[-1:], real[len(real) // 2 - 1][None]
        found[name] = {
            "neural": frame_psnr(end, neural[-1:])[0], "real": frame_psnr(end, first)[0],
            "away": frame_psnr(end, away)[0], "frames": np.array(float(len(script))),
        }  # fmt: skip
    return found


def summarise_return(parts: Sequence[tuple[int, dict[str, Values]]]) -> dict[str, Any] | None:
    """The ``return`` row of ``metrics.json``, from (owner, what :func:`measure_return` found)."""
    rows = {}
    for name in ("there_and_back", "full_circle"):
        found = [(owner, part[name]) for owner, part in parts if name in part]
        if not found:
            continue
        owners = [owner for owner, _ in found]
        values = {key: np.array([float(part[key]) for _, part in found]) for key in found[0][1]}
        rows[name] = {
            "starts": len(found),
            "frames": rounded(float(values["frames"].mean()), 1),
            "psnr_neural": rounded(float(values["neural"].mean())),
            "psnr_real": rounded(float(values["real"].mean())),
            "psnr_away": rounded(float(values["away"].mean())),
            "ci95": rounded(ci95(values["neural"], owners)),
        }
    return rows or None


def _both(
    subject: Subject, game: RealGame, start: Start, script: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Real frames, neural frames and the real start (1, H, W, 3), under ``script`` (T, A)."""
    info, at = start
    newest = at + subject.context - 1
    if not game.seek(info, newest):
        return None
    real = game.follow(script)
    episode = read_episode(info.path, at, newest + 1)
    playing = subject.play(episode.frames[None], episode.actions[None, :-1], follow(script[None]), len(script), seed)
    neural = np.concatenate(list(playing))
    first = episode.frames[-1:]
    return np.stack(real) if real else np.empty((0, *first.shape[1:]), np.uint8), neural, first


def _scripts(action_set: ActionSet, game: RealGame, start: Start) -> dict[str, np.ndarray]:
    pairs = [pair for pair in OPPOSITES if set(pair) <= set(action_set.buttons)]
    if not pairs:
        return {}
    there, back = (action_set.encode([name]) for name in pairs[0])
    scripts = {"there_and_back": np.stack([there] * AWAY_FRAMES + [back] * AWAY_FRAMES)}
    circle = _circle(action_set, game, start) if pairs[0] == ("TURN_LEFT", "TURN_RIGHT") else 0
    if circle:
        scripts["full_circle"] = np.stack([there] * circle)
    return scripts


def _circle(action_set: ActionSet, game: RealGame, start: Start) -> int:
    """Frames of turning left that bring the real game's angle round once; 0 where that cannot be told."""
    info, at = start
    if "ANGLE" not in info.variable_names or not game.seek(info, at):
        return 0
    left, turned, before = action_set.encode(["TURN_LEFT"]), 0.0, game.info["ANGLE"]
    for frame in range(1, LONGEST_CIRCLE):
        if game.step(left) is None:
            return 0
        turned += abs((game.info["ANGLE"] - before + 180) % 360 - 180)
        before = game.info["ANGLE"]
        if turned >= 357:
            return frame
    return 0
