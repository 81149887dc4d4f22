"""The window that a game is played in: reads keys, mouse and gamepad, and draws."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # or importing pygame prints

import pygame
from pygame._sdl2 import controller

from agents.errors import DisplayError, OptionError
from engine.frame_times import TIMES_SHOWN, PlaySummary
from engine.keys import Controls, describe_controls
from engine.panels import draw_frame, draw_help, draw_marks, draw_message, draw_overlay
from engine.session import Autopilot, Game, PlaySession

PAUSED_FPS = 30.0
LARGEST_SHARE = 0.85  # of the desktop, for a window that chooses its own size
INVISIBLE_DRIVERS = ("dummy", "offscreen")
HEADLESS_REMEDY = "play without one: --headless --frames N --video OUT.mp4"

COMMANDS: dict[int, Callable[[PlaySession], None]] = {
    pygame.K_r: PlaySession.respawn,
    pygame.K_n: PlaySession.next_spawn,
    pygame.K_p: PlaySession.toggle_pause,
    pygame.K_PERIOD: PlaySession.step_once,
    pygame.K_BACKSPACE: PlaySession.hold_rewind,
    pygame.K_F1: PlaySession.toggle_help,
    pygame.K_F2: PlaySession.toggle_overlay,
    pygame.K_F5: PlaySession.quick_save,
    pygame.K_F6: PlaySession.toggle_recording,
    pygame.K_F7: PlaySession.take_screenshot,
    pygame.K_F8: PlaySession.more_steps,
    pygame.K_F9: PlaySession.quick_load,
    pygame.K_F10: PlaySession.toggle_agent,
}
COMMAND_HELP = [
    ("R, N", "new spawn, next spawn"),
    ("P", "pause"),
    (".", "a single frame"),
    ("Backspace", "rewind, while held"),
    ("F1, F2", "this help, figures"),
    ("F5, F9", "save, load"),
    ("F6", "record MP4, stop"),
    ("F7", "screenshot"),
    ("F8, Shift+F8", "more, fewer sampling steps"),
    ("F10", "the agent plays, or you"),
    ("Click", "the mouse turns, until a pause"),
    ("Esc", "quit"),
]
PAD_COMMANDS: dict[int, Callable[[PlaySession], None]] = {
    pygame.CONTROLLER_BUTTON_START: PlaySession.toggle_pause,
    pygame.CONTROLLER_BUTTON_BACK: PlaySession.respawn,
    pygame.CONTROLLER_BUTTON_LEFTSHOULDER: PlaySession.hold_rewind,
}
PAD_BUTTONS = {
    pygame.CONTROLLER_BUTTON_A: "pad a",
    pygame.CONTROLLER_BUTTON_X: "pad x",
    pygame.CONTROLLER_BUTTON_DPAD_UP: "pad up",
    pygame.CONTROLLER_BUTTON_DPAD_DOWN: "pad down",
    pygame.CONTROLLER_BUTTON_DPAD_LEFT: "pad left",
    pygame.CONTROLLER_BUTTON_DPAD_RIGHT: "pad right",
}
PAD_AXES = {
    pygame.CONTROLLER_AXIS_LEFTX: "pad left x",
    pygame.CONTROLLER_AXIS_LEFTY: "pad left y",
    pygame.CONTROLLER_AXIS_RIGHTX: "pad right x",
    pygame.CONTROLLER_AXIS_TRIGGERLEFT: "pad left trigger",
    pygame.CONTROLLER_AXIS_TRIGGERRIGHT: "pad right trigger",
}


@dataclass(frozen=True)
class WindowOptions:
    """How a game is shown.

    Args:
        scale: window pixels a frame pixel; None takes the largest whole number that suits the desktop.
        fullscreen: fill the screen.
        smooth: smooth the enlarged frame; False shows square pixels.
        uncapped: make frames as fast as the device can.
        fps: another clock than the game's own, frames a second.
        mouse_speed: how far the mouse turns; 2 is twice as far.
        frames: close after so many shown frames, paused ones too; None plays until the player quits.
        captures: folder for screenshots and videos.
        seed: of the random agent.
    """

    scale: float | None = None
    fullscreen: bool = False
    smooth: bool = True
    uncapped: bool = False
    fps: float | None = None
    mouse_speed: float = 1.0
    frames: int | None = None
    captures: Path = Path("captures")
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale <= 32:
            raise OptionError(f"scale must be above 0 and at most 32, got {self.scale}", "--scale", "try 3")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise OptionError(f"fps must be above 0 and at most 1000, got {self.fps}", "window", "leave it out")
        if not 0 < self.mouse_speed <= 100:
            raise OptionError(f"must be above 0 and at most 100, got {self.mouse_speed}", "--mouse-speed", "try 1")
        if self.frames is not None and self.frames < 1:
            raise OptionError(f"frames must be at least 1, got {self.frames}", "--frames", "give a positive number")


def play_window(
    game: Game, options: WindowOptions = WindowOptions(), autopilot: Autopilot | None = None
) -> PlaySummary:
    """Open a window and play ``game`` until the player quits.

    Args:
        game: a NeuralGame, or anything with its face.
        options: how it is shown.
        autopilot: the agent of F10: frame (H, W, 3) uint8 to action (A,); random where not given.

    Raises:
        DisplayError: no window can be opened here.
    """
    window = PlayWindow(game, options, autopilot)
    try:
        window.run()
    finally:
        summary = window.close()
    return summary


class PlayWindow:
    """A window on a :class:`PlaySession`; :func:`play_window` runs one to its end.

    Raises:
        DisplayError: no window can be opened here.
    """

    def __init__(
        self, game: Game, options: WindowOptions = WindowOptions(), autopilot: Autopilot | None = None
    ) -> None:
        self.screen = _open_screen(game, options)
        self.session = PlaySession(game, options.captures, autopilot, options.seed)
        self.session.say("F1 shows the keys")
        self.controls = Controls(game.action_set, options.mouse_speed)
        self._options = options
        self._pads: dict[int, controller.Controller] = {}
        self._mouse_captured = self._closed = False
        self._shown = 0

    def run(self) -> None:
        """Play at the game's clock until the player quits."""
        due = time.perf_counter()
        while self.tick():
            uncapped = self._options.uncapped and self.session.playing
            seconds = 0.0 if uncapped else 1 / self._fps()
            now = time.perf_counter()
            due = max(due + seconds, now)  # a late frame is not made up for by hurrying the next
            time.sleep(due - now)

    def _fps(self) -> float:
        if self.session.playing or self.session.rewinding:
            return self._options.fps or self.session.game.fps
        return PAUSED_FPS

    def tick(self) -> bool:
        """Read the events, play one frame and show it; whether to go on."""
        for event in pygame.event.get():
            self._handle(event)
        if self._closed:
            return False
        if self.session.paused or self.session.show_help:
            self._capture_mouse(False)
        # Taken while paused too: a key tapped then is not to act later.
        self.session.advance(self.controls.take())
        self._draw()
        self._shown += 1
        return self._options.frames is None or self._shown < self._options.frames

    def close(self) -> PlaySummary:
        """Close the window and finish what is being written; what was played."""
        summary = self.session.close()
        controller.quit()
        pygame.display.quit()
        return summary

    def _handle(self, event: pygame.event.Event) -> None:
        kind = event.type
        if kind == pygame.QUIT:
            self._closed = True
        elif kind == pygame.KEYDOWN:
            self._press_key(event.key, event.mod)
        elif kind == pygame.KEYUP:
            if event.key == pygame.K_BACKSPACE:
                self.session.release_rewind()
            self.controls.release(_key_name(event.key))
        elif kind in (pygame.MOUSEBUTTONDOWN, pygame.MOUSEBUTTONUP, pygame.MOUSEMOTION):
            self._handle_mouse(event)
        elif kind == pygame.WINDOWFOCUSLOST:
            self.controls.release_all()
            self.session.release_rewind()
            self._capture_mouse(False)
        else:
            self._handle_pad(event)

    def _press_key(self, key: int, modifiers: int) -> None:
        if key == pygame.K_ESCAPE:
            self._closed = True
        elif key == pygame.K_F8 and modifiers & pygame.KMOD_SHIFT:
            self.session.fewer_steps()
        elif key in COMMANDS:
            COMMANDS[key](self.session)
        else:
            self.controls.press(_key_name(key))

    def _handle_mouse(self, event: pygame.event.Event) -> None:
        if event.type == pygame.MOUSEMOTION:
            if self._mouse_captured:
                self.controls.move_mouse(event.rel[0])
        elif event.button == pygame.BUTTON_LEFT and event.type == pygame.MOUSEBUTTONUP:
            self.controls.release("mouse left")
        elif event.button == pygame.BUTTON_LEFT:
            self._capture_mouse(self.session.playing and self.controls.can_turn)
            self.controls.press("mouse left")

    def _capture_mouse(self, capture: bool) -> None:
        if capture != self._mouse_captured:
            self._mouse_captured = capture
            self.controls.stop_mouse()
            pygame.mouse.set_relative_mode(capture)

    def _handle_pad(self, event: pygame.event.Event) -> None:
        if event.type == pygame.CONTROLLERDEVICEADDED:
            self._open_pad(event.device_index)
        elif event.type == pygame.CONTROLLERDEVICEREMOVED:
            self._pads.pop(event.instance_id, None)
            self.controls.release_all()
        elif event.type == pygame.CONTROLLERAXISMOTION and event.axis in PAD_AXES:
            self.controls.move_stick(PAD_AXES[event.axis], max(-1.0, event.value / 32767))
        elif event.type == pygame.CONTROLLERBUTTONDOWN:
            if event.button in PAD_COMMANDS:
                PAD_COMMANDS[event.button](self.session)
            self.controls.press(PAD_BUTTONS.get(event.button, ""))
        elif event.type == pygame.CONTROLLERBUTTONUP:
            if event.button == pygame.CONTROLLER_BUTTON_LEFTSHOULDER:
                self.session.release_rewind()
            self.controls.release(PAD_BUTTONS.get(event.button, ""))

    def _open_pad(self, index: int) -> None:
        try:
            pad = controller.Controller(index)
            self._pads[pad.as_joystick().get_instance_id()] = pad  # its events come for as long as it is kept
        except pygame.error as error:
            self.session.say(f"this gamepad cannot be used: {error}")
            return
        self.session.say("gamepad connected")

    def _draw(self) -> None:
        session = self.session
        area = draw_frame(self.screen, session.frame, self._options.smooth)
        marks = {"REC": session.recording, "PAUSED": session.paused, "AGENT": session.agent_plays}
        draw_marks(self.screen, area, [mark for mark, shown in marks.items() if shown])
        if session.show_overlay:
            draw_overlay(self.screen, area, self._figures())
        if session.message:
            draw_message(self.screen, area, session.message)
        if session.show_help:
            keys = describe_controls(session.game.action_set)
            columns = [("the game", keys), ("the window", COMMAND_HELP)]
            draw_help(self.screen, area, session.game.name, columns)
        pygame.display.flip()

    def _figures(self) -> list[tuple[str, str]]:
        session, game = self.session, self.session.game
        p50, p99 = session.times.percentiles(TIMES_SHOWN)
        clock = "uncapped" if self._options.uncapped else f"of {self._options.fps or game.fps:.1f}"
        rows = [
            ("FPS", f"{session.times.fps():.1f} {clock}"),
            ("frame", f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"),
            ("steps", str(game.steps)),
            ("device", f"{game.device_name}, {game.dtype_name}"),
            ("game", f"{game.name}, {session.spawn_text}"),
            ("held", ", ".join(game.action_set.held(session.action)) or "-"),
        ]
        if game.outcome is not None:
            told = {name.rpartition("_")[2].lower(): value[0] for name, value in game.outcome.levels.items()}
            rows.append(("score", session.tally.describe(game.outcome)))
            rows.append(("reads", ", ".join(f"{name} {value:.0f}" for name, value in told.items()) or "-"))
        return rows


def _key_name(key: int) -> str:
    name = pygame.key.name(key)
    return name[1] if len(name) == 3 and name[0] == "[" and name[1].isdigit() else name  # keypad digits


def check_display() -> None:
    """Make sure that a window can be opened here.

    Raises:
        DisplayError: it cannot.
    """
    if not getattr(pygame, "IS_CE", False):
        remedy = "pip uninstall pygame, then pip install --force-reinstall pygame-ce"
        raise DisplayError("this pygame is not pygame-ce", pygame.__file__, remedy)
    driver = os.environ.get("SDL_VIDEODRIVER", "")
    unset = not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY")
    if sys.platform.startswith("linux") and unset and not driver:
        raise DisplayError("there is no display", "DISPLAY and WAYLAND_DISPLAY are not set", HEADLESS_REMEDY)
    try:
        pygame.display.init()
    except pygame.error as error:
        raise _no_window(str(error)) from error
    # Without a display SDL may quietly draw into nothing; only who asks for that gets it.
    chosen = pygame.display.get_driver()
    if chosen in INVISIBLE_DRIVERS and chosen not in driver:
        pygame.display.quit()
        raise _no_window("the display does not answer")


def _no_window(reason: str) -> DisplayError:
    names = (os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    where = next((name for name in names if name), "the default display")
    return DisplayError(f"cannot open a window ({reason})", where, HEADLESS_REMEDY)


def _open_screen(game: Game, options: WindowOptions) -> pygame.Surface:
    check_display()
    try:
        pygame.font.init()
        controller.init()
        pygame.display.set_caption(f"{game.name} - gamengen")
        if options.fullscreen:
            return pygame.display.set_mode((0, 0), pygame.FULLSCREEN)
        return pygame.display.set_mode(_window_size(game, options.scale), pygame.RESIZABLE)
    except pygame.error as error:
        pygame.display.quit()
        raise _no_window(str(error)) from error


def _window_size(game: Game, scale: float | None) -> tuple[int, int]:
    if scale is None:
        width, height = pygame.display.get_desktop_sizes()[0]
        scale = max(1, int(min(width * LARGEST_SHARE / game.width, height * LARGEST_SHARE / game.height)))
    return max(1, round(game.width * scale)), max(1, round(game.height * scale))
