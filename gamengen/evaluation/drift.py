"""Free play: how far it drifts from the real game under the same actions, and whether it collapses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agents.actions import ActionSet
from gamengen.evaluation.collapse import MOST_MOTION, CollapseDetector, frame_statistics
from gamengen.evaluation.frechet import ClipFeatures, clips
from gamengen.evaluation.intervals import ci95, rounded, rounded_list
from gamengen.evaluation.rare_parts import RareBlocks, RareSights
from gamengen.evaluation.similarity import frame_psnr, sharpness
from gamengen.evaluation.subject import Subject, follow
from gamengen.evaluation.turning import moves_view, told_turns, turned, turning
from gamengen.evaluation.windows import Start
from recorder.episodes import read_actions, read_episode
from recorder.pictures import VideoWriter, draw_held_keys

if TYPE_CHECKING:
    from gamengen.evaluation.judge import Judge
    from gamengen.evaluation.lpips import Lpips

SEGMENT = 64  # frames
TOLD_EVERY = 8  # frames: LPIPS costs as much as playing, and so does encoding
CLIP_FRAMES = (16, 32)
READ_FRAMES = 64  # of each free play, from which the actions are read back: later the scenes differ too much
SETTLE_FRAMES = 16  # at the start: what is on screen there still comes from the real frame before
ANCHOR_FRAMES = 16  # after those, from which a play's changes are measured
START_FRAMES = 64

Values = dict[str, np.ndarray]


def measure_rollouts(
    subject: Subject,
    starts: Sequence[Start],
    count: int,
    seed: int,
    show: Callable[[int], None],
    *,
    lpips: Lpips | None = None,
    judge: Judge | None = None,
    features: ClipFeatures | None = None,
    rare: RareBlocks | None = None,
    sights: RareSights | None = None,
) -> tuple[Values, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Play ``count`` frames from each start under the recorded actions, all side by side.

    Where an episode ends before, its actions begin anew and there is no real frame to compare with.

    Args:
        subject: the checkpoint.
        starts: where to start; K frames from there are the real context.
        count: frames of free play.
        seed: of the sampling noise.
        show: called with the number of frames made so far.
        lpips: measures LPIPS, of every eighth frame.
        judge: reads the actions back.
        features: of clips, for the Fréchet distance.
        rare: finds what is unusual, in real and in generated frames.
        sights: tells whether something unusual, such as a monster, is in view, of every eighth frame.

    Returns:
        Arrays by name, the first axis over starts: ``psnr``, ``still_psnr``, ``sharpness``, ``real_sharpness``,
        ``lpips``, ``unusual``, ``real_unusual``, ``sights``, ``real_sights``, ``turned``, ``real_turned`` (S, count),
        NaN where not known; ``turning`` (S, count), of :func:`gamengen.evaluation.turning.turning`; ``statistics`` and
        ``moving`` for the collapse detector; ``owner`` (S,); and over all starts ``held``/``neural_held``/``real_held``
        (N, A) and ``real_clips_<T>``/``neural_clips_<T>`` (N, F). And (real, neural, actions) of each start.
    """
    context = subject.context
    episodes = [read_episode(info.path, start, start + context + count) for info, start in starts]
    actions = np.stack([_endless_actions(info, start, context + count) for info, start in starts])
    first = np.stack([episode.frames[:context] for episode in episodes])
    neural = np.empty((len(starts), count, *first.shape[2:]), np.uint8)
    playing = subject.play(first, actions[:, : context - 1], follow(actions[:, context - 1 :]), count, seed)
    for step, newest in enumerate(playing):
        neural[:, step] = newest
        show((step + 1) * len(starts))

    lists: dict[str, list[np.ndarray]] = {}
    played = []
    for number, (episode, frames) in enumerate(zip(episodes, neural, strict=True)):
        real, held = episode.frames[context:], actions[number, context - 1 :]
        ways = turning(subject.config.action_set, actions[number])[context - 1 : context - 1 + count]
        told = told_turns(ways)
        row = {
            "turning": ways,
            "turned": turned(np.concatenate([first[number, -1:], frames]), told),
            "real_turned": turned(np.concatenate([first[number, -1:], real]), told[: len(real)]),
            "psnr": frame_psnr(real, frames[: len(real)]),
            "still_psnr": frame_psnr(real, np.broadcast_to(first[number, -1], real.shape)),
            "sharpness": sharpness(frames),
            "real_sharpness": sharpness(real),
        }
        if lpips is not None:
            row["lpips"] = np.full(count, np.nan)
            row["lpips"][: len(real) : TOLD_EVERY] = lpips.distance(
                real[::TOLD_EVERY], frames[: len(real) : TOLD_EVERY]
            )
        if rare is not None:
            row |= {"unusual": rare.shares(frames), "real_unusual": rare.shares(real)}
        if sights is not None:
            for name, pictures in (("sights", frames), ("real_sights", real)):
                row[name] = np.full(count, np.nan)
                row[name][: len(pictures) : TOLD_EVERY] = sights.seen(pictures[::TOLD_EVERY])
        rows: Values = {name: _filled(curve, count) for name, curve in row.items()}
        rows["statistics"] = frame_statistics(np.concatenate([first[number, -1:], frames]))[1:]
        rows["moving"] = moves_view(subject.config.action_set, held[:count])
        rows["owner"] = np.array(float(starts[number][0].seed))
        for name, array in rows.items():
            lists.setdefault(name, []).append(array)
        played.append((real, frames, held))
    values = {name: np.stack(parts) for name, parts in lists.items()}
    if judge is not None:
        values |= _read_back(judge, played, first[:, -1])
    if features is not None:
        for length in CLIP_FRAMES:
            for name, at in (("real", 0), ("neural", 1)):
                found = [clip for one in played for clip in clips(one[at], length, length)]
                if found:
                    values[f"{name}_clips_{length}"] = features(np.stack(found))
    return values, played


def summarise_rollouts(values: Values, steps: int) -> dict[str, Any]:
    """The ``drift`` row of ``metrics.json``: means over the starts, and over segments of 64 frames."""
    count = values["psnr"].shape[1]
    curves = {name: _mean(values[name]) for name in ("psnr", "still_psnr", "sharpness", "real_sharpness")}
    lpips = _mean(values["lpips"]) if "lpips" in values else None
    segments = []
    for first in range(0, count, SEGMENT):
        part = slice(first, min(first + SEGMENT, count))
        segment: dict[str, Any] = {"from": first + 1, "to": part.stop}
        names = ("psnr", "still_psnr", "lpips", "sharpness", "real_sharpness", "unusual", "real_unusual")
        for name in (*names, "sights", "real_sights"):
            known = name in values and not np.isnan(values[name][:, part]).all()
            segment[name] = rounded(float(np.nanmean(values[name][:, part])), 4) if known else None
        segments.append(segment)
    return {
        "steps": steps,
        "starts": len(values["psnr"]),
        "frames": list(range(1, count + 1)),
        "compared": [int(number) for number in (~np.isnan(values["psnr"])).sum(axis=0)],
        **{name: rounded_list(curve) for name, curve in curves.items()},
        "ci95": [rounded(ci95(column, values["owner"]), 2) for column in values["psnr"].T],
        "lpips": None if lpips is None else rounded_list(lpips, 4),
        "segments": segments,
    }


def summarise_collapse(
    values: Values,
    lessons: tuple[list[np.ndarray], list[np.ndarray]],
    checks: tuple[list[np.ndarray], list[np.ndarray]],
) -> dict[str, Any]:
    """The ``collapse`` row of ``metrics.json``.

    A collapse is a change that stays: each play is measured from its own second second, so that a model that is a
    little blurred, or becomes so once nothing real is on screen any more, does not count as collapsed; sharpness and
    LPIPS tell of that. How far its first seconds are from real play is ``unlike_at_the_start``: the number of plays
    that the detector finds unlike real ones there.

    Args:
        values: of all free plays.
        lessons: statistics of real episodes, and where the view was moved in them, to learn from.
        checks: those of other real episodes, for the rate of false alarms.
    """
    usual = float(np.nanmean([early_motion(*play) for play in zip(*lessons, strict=True)]))

    def prepared(
        parts: Iterable[np.ndarray], moving: Iterable[np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        plays = list(zip(parts, moving, strict=True))
        return [since_the_start(*play, usual) for play in plays], [after_the_start(held) > 0 for _, held in plays]

    detector = CollapseDetector.fit(*prepared(*lessons))
    found = [
        detector.first_collapse(*play) for play in zip(*prepared(values["statistics"], values["moving"]), strict=True)
    ]
    settled = values["statistics"].shape[1] - len(after_the_start(values["statistics"][0]))
    first = [None if frame is None else frame + settled for frame in found]
    absolute = CollapseDetector.fit(*lessons)
    at_the_start = [absolute.first_collapse(part[:START_FRAMES]) is not None for part in values["statistics"]]
    return {
        "detector": f"windows of {detector.window} frames against {detector.sequences} real episodes",
        "starts": len(first),
        "collapsed": sum(frame is not None for frame in first),
        "first": [None if frame is None else int(frame) + 1 for frame in first],
        "unlike_at_the_start": sum(at_the_start),
        "real_episodes": len(checks[0]),
        "false_alarm_rate": rounded(detector.false_alarm_rate(*prepared(*checks))),
    }  # fmt: skip


def after_the_start(values: np.ndarray) -> np.ndarray:
    """Values (M, ...) of a play without its first 16 frames; a short play, which would lose too much, whole."""
    return values[SETTLE_FRAMES:] if len(values) > 3 * SETTLE_FRAMES else values


def early_motion(statistics: np.ndarray, moving: np.ndarray) -> float:
    """Mean motion of the first frames after the start in which the view is moved; NaN where it hardly is."""
    motion = after_the_start(statistics)[after_the_start(moving) > 0, -1][: 2 * ANCHOR_FRAMES]
    return float(motion.mean()) if len(motion) >= ANCHOR_FRAMES // 2 else float("nan")


def since_the_start(statistics: np.ndarray, moving: np.ndarray, usual_motion: float) -> np.ndarray:
    """Statistics of a play after its start, less those of the 16 frames there.

    A blurred picture changes less when the view turns, and is not frozen for that: motion, the last of them, is moved
    to where that of the first turns is the usual one, by a factor of at most 2.
    """
    later = after_the_start(statistics)
    changed = later - later[:ANCHOR_FRAMES].mean(axis=0)
    shift = usual_motion - early_motion(statistics, moving)
    changed[:, -1] = later[:, -1] + np.clip(np.nan_to_num(shift), -MOST_MOTION, MOST_MOTION)
    return changed


def save_side_by_side(
    path: Path, real: np.ndarray, neural: np.ndarray, actions: np.ndarray, action_set: ActionSet, fps: float
) -> None:
    """An MP4 of the real game beside the neural one (N, H, W, 3), the held keys drawn in.

    Raises:
        DataError: it cannot be written.
    """
    height, width = neural.shape[1:3]
    with VideoWriter(path, fps, height, 2 * width) as video:
        for number, frame in enumerate(neural):
            left = real[number] if number < len(real) else np.zeros_like(frame)
            video.append(np.concatenate([left, draw_held_keys(frame, action_set, actions[number])], axis=1))


def _read_back(judge: Judge, played: list[tuple[np.ndarray, np.ndarray, np.ndarray]], last: np.ndarray) -> Values:
    held, real_read, neural_read = [], [], []
    for number, (real, frames, actions) in enumerate(played):
        length = min(len(real), len(frames), READ_FRAMES)
        readings = [
            judge.read(np.concatenate([last[number : number + 1], part[:length]])).held for part in (real, frames)
        ]
        held.append(actions[: len(readings[0])])
        real_read.append(readings[0])
        neural_read.append(readings[1])
    lengths = np.array([len(part) for part in held])
    return {
        "held": np.concatenate(held), "real_held": np.concatenate(real_read),
        "neural_held": np.concatenate(neural_read), "held_lengths": lengths,
    }  # fmt: skip


def _endless_actions(info: Any, start: int, length: int) -> np.ndarray:
    actions = read_actions(info.path)
    return np.resize(np.roll(actions, -start, axis=0), (length, actions.shape[1]))


def _filled(values: np.ndarray, count: int) -> np.ndarray:
    return np.concatenate([values, np.full(count - len(values), np.nan)]) if len(values) < count else values


def _mean(values: np.ndarray) -> np.ndarray:
    known = (~np.isnan(values)).sum(axis=0)
    return np.where(known > 0, np.nansum(values, axis=0) / np.maximum(known, 1), np.nan)
