"""The window of the human test: its keys, its clips, and displays that are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pygame
import pytest
from test_raters import Clock

from agents.errors import DisplayError
from engine.clip_pairs import Pair
from engine.raters import DEAF_SECONDS, LOOP_PAUSE_SECONDS, RatersWindow, check_raters, lay_out, run_raters
from engine.rating import RatingSession, read_answers

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tap(key: int) -> None:
    pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key, mod=0))


@pytest.fixture
def session(pairs: list[Pair], tmp_path: Path, clock: Clock) -> RatingSession:
    return RatingSession(pairs, tmp_path / "raters", "anna", clock)


@pytest.fixture
def window(session: RatingSession, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[RatersWindow]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = RatersWindow(session, clock)
    pygame.event.clear()
    yield window
    window.close()


def colours(window: RatersWindow) -> list[tuple[int, int]]:
    """Red and blue in the middle of each clip on the screen."""
    areas = lay_out(window.screen.get_size(), (16, 12))
    return [(colour[0], colour[2]) for colour in (window.screen.get_at(area.center) for area in areas)]


def test_both_clips_are_shown_and_loop(window: RatersWindow, session: RatingSession, clock: Clock) -> None:
    assert window.tick()
    real = ["left", "right"].index(session.side)
    for passed, frame in ((0.0, 0), (0.21, 1), (1.99, 9), (2.0 + LOOP_PAUSE_SECONDS / 2, 9), (2.61, 0), (2.81, 1)):
        clock.now = passed
        window.tick()
        assert window.frame == frame
        shown = colours(window)
        assert shown[real] == (100 + 10 * frame, 0)
        assert shown[1 - real] == (0, 100 + 10 * frame)
    tap(pygame.K_SPACE)
    window.tick()
    assert window.frame == 0


def test_arrows_answer(window: RatersWindow, session: RatingSession, clock: Clock, tmp_path: Path) -> None:
    keys = [pygame.K_LEFT, pygame.K_RIGHT, pygame.K_RIGHT, pygame.K_LEFT]
    for number, key in enumerate(keys):
        clock.now += 3
        tap(key)
        assert window.tick()
        assert session.answered == number + 1
    answers = read_answers(tmp_path / "raters" / "anna.jsonl")
    assert [answer.answer for answer in answers] == ["left", "right", "right", "left"]
    assert [answer.seconds for answer in answers] == [3, 3, 3, 3]
    tap(pygame.K_LEFT)  # all are answered
    tap(pygame.K_SPACE)
    assert window.tick()
    assert session.answered == 4
    tap(pygame.K_BACKSPACE)
    assert window.tick()
    assert session.pair == session.pairs[3]
    tap(pygame.K_ESCAPE)
    assert not window.tick()


def test_a_key_at_once_does_not_count(window: RatersWindow, session: RatingSession, clock: Clock) -> None:
    for answered, passed in ((0, 0.0), (1, DEAF_SECONDS), (1, DEAF_SECONDS / 2), (2, DEAF_SECONDS)):
        clock.now += passed
        tap(pygame.K_LEFT)
        tap(pygame.K_LEFT)
        window.tick()
        assert session.answered == answered
    tap(pygame.K_BACKSPACE)
    tap(pygame.K_LEFT)
    window.tick()
    assert session.answered == 1, "a key in the moment after an answer was taken back"


def test_other_keys_and_resizing_answer_nothing(window: RatersWindow, session: RatingSession) -> None:
    for key in (pygame.K_a, pygame.K_UP, pygame.K_RETURN, pygame.K_BACKSPACE):
        tap(key)
    assert window.tick()
    assert session.answered == 0
    for size in ((64, 48), (300, 900), (1900, 200)):
        pygame.display.set_mode(size, pygame.RESIZABLE)
        window.screen = pygame.display.get_surface()
        assert window.tick()
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    assert not window.tick()


@pytest.mark.parametrize("size", [(1280, 720), (800, 600), (500, 900), (1900, 300)])
def test_layout(size: tuple[int, int]) -> None:
    left, right = lay_out(size, (320, 240))
    assert left.size == right.size
    assert left.width / left.height == pytest.approx(320 / 240, rel=0.02)
    assert 0 <= left.left < left.right < right.left < right.right <= size[0]
    assert left.left == pytest.approx(size[0] - right.right, abs=1)
    assert 0 < left.top == right.top
    assert left.bottom < size[1]


def test_running_to_the_end_and_again(
    pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")

    def press_all(window: RatersWindow) -> None:
        window._clock = clock = Clock()
        window._turn()
        for key in (pygame.K_LEFT, pygame.K_RIGHT, pygame.K_LEFT, pygame.K_LEFT, pygame.K_ESCAPE):
            clock.now += 1
            tap(key)
            window.tick()

    monkeypatch.setattr(RatersWindow, "run", press_all)
    found = run_raters(pairs, tmp_path, "anna")
    assert (found["rater"], found["answered"], found["pairs"], found["answers"]) == ("anna", 4, 4, 4)
    assert json.loads((tmp_path / "raters" / "summary.json").read_text())["rows"] == found["rows"]
    assert not pygame.display.get_init()
    assert "how often raters picked the real game" in capsys.readouterr().out

    def no_window(*arguments: Any) -> None:
        raise AssertionError("there is nothing left to show")

    monkeypatch.setattr(RatersWindow, "__init__", no_window)
    assert run_raters(pairs, tmp_path, "anna") == found


def test_leaving_at_once(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(RatersWindow, "run", lambda window: None)
    assert run_raters(pairs, tmp_path, "anna") == {"rater": "anna", "answered": 0, "pairs": 4, "answers": 0}


def test_no_display_is_told_before_anything_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(DisplayError, match="people rate at a screen") as caught:
        check_raters("anna", 2)
    assert "\n" not in str(caught.value)
    assert "--headless" not in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs X11")
def test_a_display_that_does_not_answer() -> None:
    code = (
        "from engine.raters import *\n"
        "try: check_raters('anna', 2)\n"
        "except DisplayError as error: print(error)\n"
    )  # fmt: skip
    environment = {**os.environ, "DISPLAY": ":987", "SDL_VIDEODRIVER": "", "PYTHONPATH": "."}
    environment.pop("WAYLAND_DISPLAY", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("cannot open a window")
    assert "people rate at a screen" in done.stdout
    assert done.stdout.count("\n") == 1
