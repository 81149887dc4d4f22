"""From key to picture: how long after a key event the window shows a frame that the key made."""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pygame

from agents.errors import OptionError
from engine.game import NeuralGame
from engine.keys import bind_inputs
from engine.window import PlayWindow, WindowOptions

HELD_SECONDS = 0.15
PAUSE_SECONDS = (0.2, 0.5)  # between two presses, drawn evenly, so that every phase of the clock is met
PATIENCE = 20.0  # seconds for one press


@dataclass
class _Press:
    """A press on its way: when its event was posted, and when its frame was shown."""

    posted: float = 0.0
    shown: float | None = None


def measure_latency(game: NeuralGame, presses: int, uncapped: bool = False, seed: int = 0) -> dict[str, Any]:
    """Press one key ``presses`` times in a real window, and time each until its frame is on screen.

    The events go through pygame's queue, the window's own loop and its own clock, as a hand's do; what is before the
    queue (keyboard, desktop) and after the flip (compositor, screen) is not in it. Without a display SDL's dummy driver
    takes its place, and ``video_driver`` says so.

    Returns:
        ``latency_p50_ms``, ``latency_p99_ms``, ``latency_max_ms``, ``presses``, ``fps`` of play meanwhile, ``clock_hz``
        (None where uncapped) and ``video_driver``.

    Raises:
        OptionError: there are no presses, or no key of the game's buttons.
    """
    if presses < 1:
        raise OptionError(f"must be at least 1, got {presses}", "--latency", "give a positive number")
    if sys.platform.startswith("linux") and not any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    ):
        os.environ["SDL_VIDEODRIVER"] = "dummy"
    window = PlayWindow(game, WindowOptions(uncapped=uncapped))
    key, channel = _a_key(game)
    driver = pygame.display.get_driver()
    press = _Press()
    found: list[float] = []
    rng = np.random.default_rng(seed)
    finished = threading.Event()

    def push() -> None:
        for _ in range(presses):
            time.sleep(rng.uniform(*PAUSE_SECONDS))
            press.shown, press.posted = None, time.perf_counter()
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key, mod=0, unicode="", scancode=0))
            time.sleep(HELD_SECONDS)
            pygame.event.post(pygame.event.Event(pygame.KEYUP, key=key, mod=0, unicode="", scancode=0))
            end = time.monotonic() + PATIENCE
            while press.shown is None and time.monotonic() < end:
                time.sleep(0.001)
            if press.shown is not None:
                found.append(press.shown - press.posted)
        finished.set()

    tick = window.tick

    def watching() -> bool:
        going = tick()
        if window.session.over:  # no press is answered there
            window.session.respawn()
        if press.shown is None and press.posted and window.session.action[channel]:
            press.shown = time.perf_counter()
        return going and not finished.is_set()

    window.tick = watching  # type: ignore[method-assign]
    hand = threading.Thread(target=push, daemon=True)
    hand.start()
    try:
        window.run()
    finally:
        finished.set()
        summary = window.close()
    if not found:
        raise OptionError("no press was ever shown", "--latency", "is the window in the background?")
    p50, p99 = np.percentile(found, [50, 99])
    return {
        "latency_p50_ms": round(1e3 * float(p50), 2),
        "latency_p99_ms": round(1e3 * float(p99), 2),
        "latency_max_ms": round(1e3 * max(found), 2),
        "presses": len(found),
        "fps": round(summary.fps, 2),
        "clock_hz": None if uncapped else game.fps,
        "video_driver": driver,
    }


def _a_key(game: NeuralGame) -> tuple[int, int]:
    """A key of the keyboard that changes the game's action, and the channel that it changes."""
    for name, target in bind_inputs(game.action_set).items():
        if not name.startswith(("pad", "mouse")):
            channel = game.action_set.names.index(target.channel)
            if not game.action_set.rest[channel]:  # else nothing would be seen to change
                return pygame.key.key_code(name), channel
    raise OptionError("no key holds a button of this game", "--latency", "measure another checkpoint")
