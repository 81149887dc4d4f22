"""The window under SDL's dummy driver, driven by posted events."""

import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pygame
import pytest
from fake_game import DEFEND, FakeGame
from PIL import Image

import engine.window
from agents.actions import ActionSet
from agents.errors import DataError, DisplayError, OptionError
from engine.panels import fit_frame
from engine.window import PlayWindow, WindowOptions, play_window
from gamengen.outcome import Outcome


def post(kind: int, **values: object) -> None:
    pygame.event.post(pygame.event.Event(kind, values))


def press(key: int, mod: int = 0) -> None:
    post(pygame.KEYDOWN, key=key, mod=mod)


def release(key: int) -> None:
    post(pygame.KEYUP, key=key, mod=0)


def tap(key: int, mod: int = 0) -> None:
    press(key, mod)
    release(key)


@pytest.fixture
def game() -> FakeGame:
    return FakeGame()


@pytest.fixture
def window(game, monkeypatch, tmp_path) -> Iterator[PlayWindow]:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = PlayWindow(game, WindowOptions(scale=5, captures=tmp_path / "captures"))
    pygame.event.clear()
    yield window
    window.close()


def held(game: FakeGame) -> list[str]:
    return game.action_set.held(game.actions[-1])


def test_keys_are_held_from_down_to_up(window, game):
    press(pygame.K_LEFT)
    press(pygame.K_LCTRL)
    for _ in range(2):
        assert window.tick()
        assert held(game) == ["TURN_LEFT", "ATTACK"]
    release(pygame.K_LEFT)
    window.tick()
    assert held(game) == ["ATTACK"]


def test_a_tap_between_two_frames_is_not_lost(window, game):
    window.tick()
    tap(pygame.K_SPACE)
    window.tick()
    assert held(game) == ["ATTACK"]
    window.tick()
    assert held(game) == []


def test_focus_loss_releases_everything(window, game):
    press(pygame.K_LEFT)
    window.tick()
    post(pygame.WINDOWFOCUSLOST)
    window.tick()
    assert held(game) == []


def test_keypad_digits_are_digits(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    game = FakeGame(ActionSet(tuple(f"ACTION_{i}" for i in range(4)), exclusive=True))
    window = PlayWindow(game)
    press(pygame.K_KP_3)
    window.tick()
    assert held(game) == ["ACTION_3"]
    window.close()


def test_the_mouse_fires_and_once_clicked_turns(window, game):
    motion = {"pos": (9, 9), "buttons": (0, 0, 0)}
    post(pygame.MOUSEMOTION, rel=(60, 0), **motion)
    window.tick()
    assert held(game) == [], "not captured yet"
    post(pygame.MOUSEBUTTONDOWN, button=1, pos=(9, 9))
    post(pygame.MOUSEMOTION, rel=(60, 0), **motion)
    window.tick()
    assert held(game) == ["TURN_RIGHT", "ATTACK"]
    post(pygame.MOUSEBUTTONUP, button=1, pos=(9, 9))
    tap(pygame.K_p)
    window.tick()
    tap(pygame.K_p)
    post(pygame.MOUSEMOTION, rel=(60, 0), **motion)
    window.tick()
    assert held(game) == [], "a pause frees the mouse"


def test_gamepad(window, game):
    post(pygame.CONTROLLERAXISMOTION, axis=pygame.CONTROLLER_AXIS_RIGHTX, value=-32768, instance_id=0)
    post(pygame.CONTROLLERAXISMOTION, axis=pygame.CONTROLLER_AXIS_TRIGGERRIGHT, value=32767, instance_id=0)
    window.tick()
    assert held(game) == ["TURN_LEFT", "ATTACK"]
    post(pygame.CONTROLLERAXISMOTION, axis=pygame.CONTROLLER_AXIS_RIGHTX, value=0, instance_id=0)
    post(pygame.CONTROLLERDEVICEREMOVED, instance_id=0)
    window.tick()
    assert held(game) == []
    post(pygame.CONTROLLERBUTTONDOWN, button=pygame.CONTROLLER_BUTTON_DPAD_RIGHT, instance_id=0)
    post(pygame.CONTROLLERBUTTONUP, button=pygame.CONTROLLER_BUTTON_DPAD_RIGHT, instance_id=0)
    window.tick()
    assert held(game) == ["TURN_RIGHT"]
    post(pygame.CONTROLLERBUTTONDOWN, button=pygame.CONTROLLER_BUTTON_START, instance_id=0)
    post(pygame.CONTROLLERDEVICEADDED, device_index=99)
    window.tick()
    assert window.session.paused
    assert "gamepad cannot be used" in window.session.message


def test_respawn_and_next_spawn(window, game):
    tap(pygame.K_n)
    window.tick()
    assert game.spawn == 1
    for _ in range(4):
        tap(pygame.K_n)
    window.tick()
    assert game.spawn == 1, "after the last comes the first"
    window.tick()
    tap(pygame.K_r)
    window.tick()
    assert game.number == 1
    assert window.session.message == f"spawn {game.spawn + 1} of 4"


def test_pause_and_single_frame(window, game):
    window.tick()
    tap(pygame.K_p)
    window.tick()
    tap(pygame.K_LCTRL)  # pressed while paused: not to act later
    window.tick()
    assert len(game.actions) == 1
    press(pygame.K_RIGHT)
    tap(pygame.K_PERIOD)
    window.tick()
    assert held(game) == ["TURN_RIGHT"]
    window.tick()
    assert len(game.actions) == 2
    tap(pygame.K_p)
    window.tick()
    assert len(game.actions) == 3
    assert held(game) == ["TURN_RIGHT"]


def test_rewind_goes_back_as_long_as_it_is_held(window, game):
    press(pygame.K_RIGHT)
    pictures = [game.frame]
    for _ in range(5):
        window.tick()
        pictures.append(game.frame)
    press(pygame.K_BACKSPACE)
    for i in (4, 3, 2):
        window.tick()
        np.testing.assert_array_equal(window.session.frame, pictures[i])
    release(pygame.K_BACKSPACE)
    window.tick()
    np.testing.assert_array_equal(window.session.frame, pictures[3])
    tap(pygame.K_BACKSPACE)  # within one frame: still one frame back
    window.tick()
    np.testing.assert_array_equal(window.session.frame, pictures[2])
    press(pygame.K_BACKSPACE)
    for _ in range(5):
        window.tick()
    np.testing.assert_array_equal(window.session.frame, pictures[0])
    assert "as far back" in window.session.message


def test_save_and_load(window, game):
    tap(pygame.K_F9)
    window.tick()
    assert "nothing saved" in window.session.message
    tap(pygame.K_F5)
    window.tick()
    saved = game.number - 1
    for _ in range(3):
        window.tick()
    tap(pygame.K_F9)
    tap(pygame.K_p)
    window.tick()
    assert game.number == saved
    assert window.session.message == "loaded"


def test_steps_climb_a_ladder(window, game):
    for _ in range(2):
        tap(pygame.K_F8)
    window.tick()
    assert game.steps == 16
    for _ in range(9):
        tap(pygame.K_F8, pygame.KMOD_LSHIFT)
    window.tick()
    assert game.steps == 1
    assert window.session.message == "1 sampling step a frame"
    for _ in range(9):
        tap(pygame.K_F8)
    window.tick()
    assert game.steps == 64


def test_the_agent_takes_over_and_gives_back(monkeypatch, game):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    window = PlayWindow(game, autopilot=lambda frame: DEFEND.encode(["ATTACK"]))
    press(pygame.K_LEFT)
    tap(pygame.K_F10)
    window.tick()
    assert held(game) == ["ATTACK"]
    tap(pygame.K_F10)
    window.tick()
    assert held(game) == ["TURN_LEFT"]
    window.close()


def test_the_agent_is_random_by_default(window, game):
    tap(pygame.K_F10)
    for _ in range(150):
        window.session.advance(DEFEND.rest)
        window.tick()
    assert np.stack(game.actions).any(axis=0).all()


def test_help_and_overlay_are_drawn(window, game):
    game.fps = 35.0
    tap(pygame.K_p)
    window.tick()
    plain = pygame.surfarray.array3d(window.screen)
    for key in (pygame.K_F2, pygame.K_F1):
        tap(key)
        window.tick()
        drawn = pygame.surfarray.array3d(window.screen)
        assert (drawn != plain).any(axis=2).mean() > 0.05
        tap(key)
        window.tick()
        np.testing.assert_array_equal(pygame.surfarray.array3d(window.screen), plain)


def test_the_figures_of_a_game_that_tells_outcomes(window, game):
    levels = {"HEALTH": np.array([73.4]), "SELECTED_WEAPON_AMMO": np.array([12.0])}
    told, step = Outcome(np.ones(1), np.zeros(1), {"KILLCOUNT": np.ones(1)}, levels), game.step

    def telling(action):
        frame = step(action)
        game.outcome = told
        return frame

    game.step = telling
    window.session.times.percentiles = lambda *_: (1.0, 2.0)
    tap(pygame.K_F2)
    press(pygame.K_LEFT)
    for _ in range(2):
        assert window.tick()
    found = dict(window._figures())
    assert (found["score"], found["reads"]) == ("2 kills, 2 frames", "health 73, ammo 12")
    assert (found["frame"], found["steps"]) == ("p50 1.0 ms, p99 2.0 ms", "4")
    assert (found["device"], found["held"]) == ("cpu, float32", "TURN_LEFT")
    assert found["game"] == "fake game, spawn 1 of 4"
    assert found["FPS"].endswith("of 35.0")


@pytest.mark.parametrize(("uncapped", "waits"), [(False, [0.07, 0.0, 0.07]), (True, [0.0] * 3)])
def test_the_windows_clock(game, monkeypatch, uncapped, waits):
    """A frame is waited for, and a late one is not made up for by the next."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    now, slept, took, step = [0.0], [], iter((0.03, 0.35, 0.03, 0.03)), game.step

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    def slow(action):
        now[0] += next(took)
        return step(action)

    monkeypatch.setattr(engine.window, "time", types.SimpleNamespace(perf_counter=lambda: now[0], sleep=sleep))
    game.step, game.fps = slow, 10.0
    play_window(game, WindowOptions(frames=4, uncapped=uncapped))
    assert slept == pytest.approx(waits)


@pytest.mark.parametrize("key", [pygame.K_r, pygame.K_n, pygame.K_F9])
def test_a_new_start_or_a_load_can_be_taken_back(window, game, key):
    tap(pygame.K_F5)
    press(pygame.K_RIGHT)
    for _ in range(3):
        window.tick()
    shown = game.frame
    tap(key)
    tap(pygame.K_BACKSPACE)
    window.tick()
    assert (game.number, window.session.tally.frames) == (3, 3)
    np.testing.assert_array_equal(window.session.frame, shown)


def test_help_holds_the_game(window, game):
    tap(pygame.K_F1)
    window.tick()
    assert game.actions == []
    tap(pygame.K_F1)
    window.tick()
    assert len(game.actions) == 1


def test_screenshot(window, game, tmp_path):
    window.tick()
    for _ in range(2):
        tap(pygame.K_F7)
        window.tick()
    first, second = window.session.files
    assert first.parent == second.parent == tmp_path / "captures"
    assert first.name == "fake-game-001.png"
    with Image.open(first) as picture:
        assert picture.size == (game.width, game.height)
        assert picture.getextrema() != ((0, 0),) * 3


def test_recording(window, game):
    tap(pygame.K_F6)
    for _ in range(6):
        window.tick()
    assert window.session.recording
    tap(pygame.K_F6)
    tap(pygame.K_p)
    window.tick()
    (path,) = window.session.files
    with av.open(str(path)) as video:
        assert video.streams.video[0].average_rate == 35
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 6
    assert np.abs(frames[-1].astype(int) - game.frame).mean() < 12


def test_a_recording_is_finished_on_closing(window):
    tap(pygame.K_F6)
    window.tick()
    (path,) = window.close().files
    assert Path(path).stat().st_size > 0


def test_captures_that_cannot_be_written_do_not_stop_the_game(window, game, tmp_path, monkeypatch):
    (tmp_path / "captures").touch()
    for key, words in ((pygame.K_F6, "cannot record: file exists"), (pygame.K_F7, "no screenshot: file exists")):
        tap(key)
        assert window.tick()
        assert window.session.message.startswith(words)
    (tmp_path / "captures").unlink()
    tap(pygame.K_F6)
    window.tick()

    def fail(frame: np.ndarray) -> None:
        raise DataError("no space left", "x.mp4", "free some")

    monkeypatch.setattr(window.session._video, "append", fail)
    assert window.tick()
    assert window.session.message == "recording stopped: no space left, x.mp4"
    assert not window.session.recording
    tap(pygame.K_F6)
    tap(pygame.K_F6)
    assert window.tick()
    assert "no video" in window.session.message, "nothing was played between start and stop"
    assert window.session.files == []


def test_quitting(window):
    tap(pygame.K_ESCAPE)
    assert not window.tick()


def test_closing_the_window(window):
    post(pygame.QUIT)
    assert not window.tick()


def test_resizing_keeps_the_aspect(window):
    assert window.screen.get_size() == (320, 240)
    pygame.display.set_mode((400, 240), pygame.RESIZABLE)
    window.tick()
    picture = pygame.surfarray.array3d(window.screen)
    assert not picture[:40].any()
    assert not picture[-40:].any()
    assert picture[41:-41].any(axis=2).all()
    assert fit_frame((320, 240), (100, 1000)) == pygame.Rect(0, 462, 100, 75)


@pytest.mark.parametrize("smooth", [True, False])
def test_play_window_stops_after_its_frames(game, smooth, monkeypatch, tmp_path):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    summary = play_window(game, WindowOptions(frames=7, uncapped=True, smooth=smooth, captures=tmp_path))
    assert summary.frames == len(game.actions) == 7
    assert summary.seconds > 0
    assert 0 < summary.p50_ms <= summary.p99_ms
    assert not pygame.display.get_init()
    assert list(tmp_path.iterdir()) == []


def test_capped_play_in_full_screen(game, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    summary = play_window(game, WindowOptions(frames=4, fullscreen=True, fps=100))
    assert summary.frames == 4


def test_no_display_is_told_in_one_line(game, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    with pytest.raises(DisplayError, match=r"--headless --frames N --video OUT\.mp4") as caught:
        play_window(game)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs X11")
@pytest.mark.parametrize("driver", ["", "x11"])
def test_a_display_that_does_not_answer(game, driver):
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from fake_game import FakeGame; from engine.window import *\n"
        "try: play_window(FakeGame())\n"
        "except DisplayError as error: print(error)\n"
    )
    environment = {**os.environ, "DISPLAY": ":987", "SDL_VIDEODRIVER": driver, "PYTHONPATH": "."}
    environment.pop("WAYLAND_DISPLAY", None)
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert done.stdout.startswith("cannot open a window")
    assert "--headless" in done.stdout
    assert done.stdout.count("\n") == 1


def test_another_pygame_is_refused(game, monkeypatch):
    monkeypatch.delattr(pygame, "IS_CE")
    with pytest.raises(DisplayError, match="pygame-ce"):
        play_window(game)


@pytest.mark.parametrize("bad", [{"scale": 0}, {"scale": -2}, {"frames": 0}, {"fps": 0}, {"mouse_speed": 0}])
def test_bad_options(bad):
    with pytest.raises(OptionError, match=next(iter(bad)).replace("_", "-")):
        WindowOptions(**bad)
