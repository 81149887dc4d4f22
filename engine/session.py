"""A game being played: pause, rewind, saves, pictures, figures and the end of the game; knows no window."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agents.actions import ActionSet
from agents.errors import GamengenError
from agents.random_agent import TICS_PER_SECOND, RandomAgent
from engine.frame_times import FrameTimes, PlaySummary
from gamengen.outcome import Outcome
from recorder.pictures import VideoWriter, save_png

Autopilot = Callable[[np.ndarray], np.ndarray]

HISTORY_FRAMES = 300
MESSAGE_SECONDS = 2.5
RESPAWN_SECONDS = 2.5  # from the end of a game to the next start
KILLS = "KILLCOUNT"
STEP_LADDER = (1, 2, 4, 8, 16, 32, 64)


class Game(Protocol):
    """What playing needs of a game; ``engine.game.NeuralGame`` has it."""

    steps: int

    @property
    def action_set(self) -> ActionSet:
        """The channels of an action."""

    @property
    def fps(self) -> float:
        """Frames per second of the game's own clock."""

    @property
    def height(self) -> int:
        """H, of a frame in pixels."""

    @property
    def width(self) -> int:
        """W, of a frame in pixels."""

    @property
    def device_name(self) -> str:
        """What computes the frames."""

    @property
    def dtype_name(self) -> str:
        """In what numbers."""

    @property
    def spawn_count(self) -> int:
        """Number of stored starts."""

    @property
    def spawn(self) -> int:
        """Index of the start in play."""

    @property
    def name(self) -> str:
        """The checkpoint's."""

    @property
    def frame(self) -> np.ndarray:
        """The newest frame (H, W, 3) uint8."""

    @property
    def outcome(self) -> Outcome | None:
        """What the last step came to, or None where that is not told."""

    @property
    def ended(self) -> np.ndarray:
        """Whether the last step ended the game, (1,) bool."""

    def reset(self, spawn: int | None = None) -> np.ndarray:
        """Start anew from a stored start, or from a random one."""

    def step(self, action: np.ndarray) -> np.ndarray:
        """The next frame (H, W, 3) uint8 after holding ``action`` (A,)."""

    def save(self) -> Any:
        """The whole state of play."""

    def load(self, state: Any) -> np.ndarray:
        """Go back to a saved state; its frame."""


@dataclass(frozen=True)
class Tally:
    """What was achieved since the start: frames played, and what the model expects of reward and kills."""

    frames: int = 0
    reward: float = 0.0
    kills: float = 0.0

    def after(self, outcome: Outcome | None) -> Tally:
        """The tally one step later."""
        if outcome is None:
            return Tally(self.frames + 1, self.reward, self.kills)
        killed = float(outcome.rises[KILLS][0]) if KILLS in outcome.rises else 0.0
        return Tally(self.frames + 1, self.reward + float(outcome.reward[0]), self.kills + killed)

    def describe(self, outcome: Outcome | None) -> str:
        """In words, of a game that tells ``outcome``."""
        if outcome is None:
            return f"{self.frames} frames"
        if KILLS in outcome.rises:
            kills = round(self.kills)
            return f"{kills} kill{'s' * (kills != 1)}, {self.frames} frames"
        return f"reward {self.reward:.1f}, {self.frames} frames"


def random_autopilot(game: Game, seed: int = 0) -> Autopilot:
    """An agent that plays by pressing random keys, as a hand would."""
    agent = RandomAgent(game.action_set, max(1, round(TICS_PER_SECOND / game.fps)))
    agent.reset(seed)
    return lambda frame: agent.act(frame, {})


class PlaySession:
    """One game with everything that a player can do to it besides playing.

    The caller asks :meth:`advance` for a frame at the game's clock and calls the other methods on keys.
    Nothing here fails over a picture or video that cannot be written: the message says so.

    Args:
        game: played on from where it stands.
        captures: folder for screenshots and videos, made when first needed.
        autopilot: the agent that can take over: frame (H, W, 3) to action (A,); random where not given.
        seed: of the random autopilot.
        clock: seconds, rising.
    """

    def __init__(
        self,
        game: Game,
        captures: Path = Path("captures"),
        autopilot: Autopilot | None = None,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.game = game
        self.times = FrameTimes(clock)
        self.files: list[Path] = []
        self.paused = self.agent_plays = self.show_help = self.show_overlay = False
        self.action = game.action_set.rest
        self.frame = game.frame
        self.tally = Tally()
        self._over_since: float | None = None
        self._captures = captures
        self._autopilot = autopilot or random_autopilot(game, seed)
        self._clock = clock
        self._history: deque[Any] = deque(maxlen=HISTORY_FRAMES)
        self._saved: Any = None
        self._video: VideoWriter | None = None
        self._single = self._rewind_held = self._rewind_tapped = False
        self._message = ""
        self._message_ends: float | None = None

    @property
    def playing(self) -> bool:
        """Whether the next :meth:`advance` makes a new frame."""
        return self._single or not (self.paused or self.show_help or self.rewinding or self.over)

    @property
    def over(self) -> bool:
        """Whether the game has ended; after a moment the next one starts."""
        return self._over_since is not None

    @property
    def rewinding(self) -> bool:
        """Whether the next :meth:`advance` goes back one frame."""
        return self._rewind_held or self._rewind_tapped

    @property
    def recording(self) -> bool:
        """Whether a video is being written."""
        return self._video is not None

    @property
    def message(self) -> str:
        """What to tell the player now; empty most of the time."""
        return self._message if self._message_ends is None or self._clock() < self._message_ends else ""

    @property
    def spawn_text(self) -> str:
        """Which start is in play, in words."""
        return f"spawn {self.game.spawn + 1} of {self.game.spawn_count}" if self.game.spawn >= 0 else "its own start"

    def advance(self, action: np.ndarray) -> np.ndarray:
        """One tick of the game's clock: play ``action`` (A,), go back a frame, or stand still while paused.

        Returns:
            the frame (H, W, 3) uint8 to show.

        Raises:
            ActionError: the action does not fit the game.
        """
        waits = self.paused or self.show_help
        if self._over_since is not None and self._clock() - self._over_since >= RESPAWN_SECONDS and not waits:
            self.respawn()
        if self.rewinding:
            self._rewind()
        elif self.playing:
            self._play(action)
        else:
            self.times.interrupt()
        if self._message_ends is None:  # counted from now, when it is shown: a frame may have taken long
            self._message_ends = self._clock() + MESSAGE_SECONDS
        return self.frame

    def _play(self, action: np.ndarray) -> None:
        self._single = False
        self.action = self._autopilot(self.frame) if self.agent_plays else action
        self._remember()
        self.frame = self.times.measure(lambda: self.game.step(self.action))
        self.tally = self.tally.after(self.game.outcome)
        self._record_frame()
        if self.game.ended.any():
            self._over_since = self._clock()
            self.say(f"game over: {self.tally.describe(self.game.outcome)} (R starts anew, Backspace goes back)")

    def _remember(self) -> None:
        self._history.append((self.game.save(), self.tally))

    def _remember_to_go_back(self) -> None:
        """Where the game is over there is nothing to go back to: one would play on dead."""
        if self._over_since is None:
            self._remember()

    def _rewind(self) -> None:
        self._rewind_tapped = False
        self.times.interrupt()
        self.action = self.game.action_set.rest
        self._over_since = None
        if self._history:
            state, self.tally = self._history.pop()
            self.frame = self.game.load(state)
            self.say(f"rewind ({len(self._history)} frames left)")
        else:
            self.say("rewind: this is as far back as it goes")

    def say(self, message: str) -> None:
        """Show ``message`` for a short while from the next frame on."""
        self._message, self._message_ends = message, None

    def respawn(self) -> None:
        """Start anew from a random spawn; rewinding can take it back."""
        self._start(None)

    def next_spawn(self) -> None:
        """Start anew from the spawn after this one."""
        self._start((self.game.spawn + 1) % self.game.spawn_count)

    def _start(self, spawn: int | None) -> None:
        self._remember_to_go_back()
        self.frame = self.game.reset(spawn)
        self.paused, self.tally, self._over_since = False, Tally(), None
        self.say(self.spawn_text)

    def toggle_pause(self) -> None:
        """Pause or go on."""
        self.paused = not self.paused

    def step_once(self) -> None:
        """Pause, and play a single frame."""
        self.paused = self._single = True

    def hold_rewind(self) -> None:
        """Go back frame by frame until :meth:`release_rewind`, one frame at least."""
        self._rewind_held = self._rewind_tapped = True

    def release_rewind(self) -> None:
        """Stop going back."""
        self._rewind_held = False

    def toggle_help(self) -> None:
        """Show or hide the help; the game waits meanwhile."""
        self.show_help = not self.show_help

    def toggle_overlay(self) -> None:
        """Show or hide the figures."""
        self.show_overlay = not self.show_overlay

    def quick_save(self) -> None:
        """Keep this moment for :meth:`quick_load`."""
        if self._over_since is not None:
            self.say("not saved: the game is over")
            return
        self._saved = (self.game.save(), self.tally)
        self.say("saved (F9 loads)")

    def quick_load(self) -> None:
        """Go back to the moment kept by :meth:`quick_save`; rewinding can take it back."""
        if self._saved is None:
            self.say("nothing saved yet: F5 saves")
            return
        self._remember_to_go_back()
        state, self.tally = self._saved
        self._over_since = None
        self.frame = self.game.load(state)
        self.say("loaded")

    def more_steps(self) -> None:
        """More sampling steps a frame: better and slower."""
        self._set_steps(min((steps for steps in STEP_LADDER if steps > self.game.steps), default=self.game.steps))

    def fewer_steps(self) -> None:
        """Fewer sampling steps a frame: faster."""
        self._set_steps(max((steps for steps in STEP_LADDER if steps < self.game.steps), default=self.game.steps))

    def _set_steps(self, steps: int) -> None:
        self.game.steps = steps
        self.say(f"{steps} sampling step{'s' if steps > 1 else ''} a frame")

    def toggle_agent(self) -> None:
        """The agent takes over, or gives back."""
        self.agent_plays = not self.agent_plays
        self.say("the agent plays (F10 gives back)" if self.agent_plays else "you play")

    def take_screenshot(self) -> None:
        """Write the frame as PNG, in the game's own resolution."""
        try:
            path = self._new_file(".png")
            save_png(path, self.frame)
        except (GamengenError, OSError) as error:
            self.say(f"no screenshot: {_reason(error)}")
            return
        self.files.append(path)
        self.say(f"screenshot {path}")

    def toggle_recording(self) -> None:
        """Start an MP4 of every frame played from now on, or finish it."""
        if self._video is not None:
            self._finish_recording()
            return
        try:
            path = self._new_file(".mp4")
            self._video = VideoWriter(path, self.game.fps, self.game.height, self.game.width).__enter__()
        except (GamengenError, OSError) as error:
            self.say(f"cannot record: {_reason(error)}")
            return
        self.say("recording (F6 stops)")

    def close(self) -> PlaySummary:
        """Finish what is being written; what was played."""
        if self._video is not None:
            self._finish_recording()
        return self.times.summary(self.files)

    def _record_frame(self) -> None:
        if self._video is None:
            return
        try:
            self._video.append(self.frame)
        except (GamengenError, OSError) as error:
            self._video = None  # the writer has removed what it began
            self.say(f"recording stopped: {_reason(error)}")

    def _finish_recording(self) -> None:
        assert self._video is not None
        video, self._video = self._video, None
        try:
            video.__exit__(None, None, None)
        except (GamengenError, OSError) as error:
            self.say(f"no video: {_reason(error)}")
            return
        self.files.append(video.path)
        self.say(f"video {video.path}")

    def _new_file(self, suffix: str) -> Path:
        """A path in the captures folder that is not taken yet."""
        self._captures.mkdir(parents=True, exist_ok=True)
        stem = re.sub(r"[^\w.-]+", "-", self.game.name).strip("-.") or "game"
        number = 1
        while (path := self._captures / f"{stem}-{number:03d}{suffix}").exists():
            number += 1
        return path


def _reason(error: Exception) -> str:
    if isinstance(error, GamengenError):
        return f"{error.what}, {error.where}"
    assert isinstance(error, OSError)
    return f"{(error.strerror or str(error)).lower()}, {error.filename}"
