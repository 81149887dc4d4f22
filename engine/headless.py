"""Playing without a window: random, no or given keys, and a video of what came of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from agents.actions import ActionSet
from agents.errors import ActionError, OptionError
from engine.frame_times import FrameTimes, PlaySummary
from engine.session import Game, random_autopilot
from recorder.pictures import VideoWriter, draw_held_keys
from recorder.progress import progress

FILE_REMEDY = "give random, none, a .json list with one entry a frame, or a .npy of shape (N, A)"


@dataclass(frozen=True)
class HeadlessOptions:
    """What is played without a window.

    Args:
        frames: how many to make.
        video: an MP4 of them; None writes nothing.
        actions: ``random``, ``none`` (nothing is pressed) or a file, see :func:`load_actions`.
        seed: of random actions.
        draw_keys: draw into each frame of the video the keys that made it.
    """

    frames: int
    video: Path | None = None
    actions: str = "random"
    seed: int = 0
    draw_keys: bool = True

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise OptionError(f"frames must be at least 1, got {self.frames}", "--frames", "give a positive number")
        if self.video is not None and self.video.suffix.lower() != ".mp4":
            raise OptionError("videos are written as MP4", self.video, "give --video a name that ends in .mp4")


def play_headless(game: Game, options: HeadlessOptions) -> PlaySummary:
    """Play ``game`` for ``options.frames`` frames from where it stands.

    A game that ends gives way to the next, but for actions from a file.

    Raises:
        OptionError: the actions are no such word or file.
        ActionError: an action in the file does not fit the game, or there are too few of them.
        DataError: the video cannot be written.
    """
    choose = _choose_actions(game, options)
    times, frame = FrameTimes(), game.frame
    with contextlib.ExitStack() as stack:
        video = None
        if options.video is not None:
            video = stack.enter_context(VideoWriter(options.video, game.fps, game.height, game.width))
        show = stack.enter_context(progress("Playing", options.frames, "frames"))
        for number in range(options.frames):
            action = choose(number, frame)
            frame = times.measure(partial(game.step, action))
            shown, starts_anew = frame, bool(game.ended.any()) and options.actions in ("random", "none")
            if starts_anew:  # whoever plays by a list knows what comes next
                frame = game.reset()
            if video is not None:
                video.append(draw_held_keys(shown, game.action_set, action) if options.draw_keys else shown)
            show(number + 1, "")
    return times.summary([options.video] if options.video is not None else [])


def _choose_actions(game: Game, options: HeadlessOptions) -> Callable[[int, np.ndarray], np.ndarray]:
    """A function from a frame's number and the frame before it to the action (A,) that makes it."""
    if options.actions == "random":
        autopilot = random_autopilot(game, options.seed)
        return lambda number, frame: autopilot(frame)
    if options.actions == "none":
        return lambda number, frame: game.action_set.rest
    actions = load_actions(Path(options.actions), game.action_set)
    if len(actions) < options.frames:
        what = f"there are {len(actions)} actions for {options.frames} frames"
        raise ActionError(what, options.actions, f"use --frames {len(actions)}, or a longer file")
    return lambda number, frame: actions[number]


def load_actions(path: Path, action_set: ActionSet) -> np.ndarray:
    """Read actions (N, A) float32 from a file.

    A ``.json`` file is a list with one entry a frame: the names of the held buttons, such as
    ``["TURN_LEFT", "ATTACK"]``, or the A numbers of the action. A ``.npy`` file has shape (N, A).

    Raises:
        OptionError: the file is missing or is not such a file.
        ActionError: an entry does not fit ``action_set``.
    """
    if not path.is_file():
        raise OptionError("no such file of actions", path, FILE_REMEDY)
    rows = _read_rows(path)
    if len(rows) == 0:
        raise ActionError("there are no actions", path, FILE_REMEDY)
    actions = np.zeros((len(rows), action_set.size), np.float32)
    for number, row in enumerate(rows):
        try:
            names = isinstance(row, list) and all(isinstance(name, str) for name in row)
            actions[number] = action_set.encode(row) if names else _check_row(row, action_set)
        except ActionError as error:
            raise ActionError(error.what, f"{path}, frame {number}: {error.where}", error.remedy) from None
    return actions


def _check_row(row: Any, action_set: ActionSet) -> np.ndarray:
    action = action_set.check(row)
    if action.ndim != 1:
        raise ActionError("an action is a flat list of numbers", f"shape {action.shape}", FILE_REMEDY)
    return action


def _read_rows(path: Path) -> Any:
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                rows = np.lib.format.read_array(file, allow_pickle=False)
            if rows.ndim != 2:
                raise ValueError(f"it has shape {rows.shape}")
        else:
            rows = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(rows, list):
                raise ValueError("it is not a list")
    except (OSError, ValueError, EOFError) as error:  # a JSON or Unicode error is a ValueError
        raise OptionError(f"cannot read the actions ({error})", path, FILE_REMEDY) from error
    return rows
