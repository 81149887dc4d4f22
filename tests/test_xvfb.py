"""A real window on a real X server: keys arrive, and the picture is on the screen."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(shutil.which("Xvfb") is None, reason="needs Xvfb (Debian: apt-get install xvfb)")

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 120.0
WINDOW_CLASS = "gamengen-test"
# Plays the fake game and prints what is held whenever that changes; without xdotool it presses its own keys.
PLAYER = """
import sys
from pathlib import Path
from fake_game import FakeGame
from engine.window import WindowOptions, play_window
import pygame

KEYS = [(pygame.KEYDOWN, pygame.K_LEFT), (pygame.KEYDOWN, pygame.K_LCTRL), (pygame.KEYUP, pygame.K_LEFT),
        (pygame.KEYUP, pygame.K_LCTRL), (pygame.KEYDOWN, pygame.K_F2), (pygame.KEYDOWN, pygame.K_F7)]

class PrintingGame(FakeGame):
    held_text = None

    def step(self, action):
        text = " ".join(self.action_set.held(action)) or "nothing"
        if text != self.held_text:
            print(text, flush=True)
        self.held_text = text
        frame = super().step(action)
        if sys.argv[2] == "post" and self.number % 4 == 3 and KEYS:
            kind, key = KEYS.pop(0)
            pygame.event.post(pygame.event.Event(kind, key=key, mod=0))
        return frame

summary = play_window(PrintingGame(height=240, width=320), WindowOptions(scale=2, captures=Path(sys.argv[1])))
print("played", summary.frames > 0, len(summary.files), flush=True)
"""


def wait_for(ready: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ready():
        assert time.monotonic() < deadline, f"still no {what}"
        time.sleep(0.05)


@pytest.fixture
def display(tmp_path) -> Iterator[str]:
    """The name of a fresh X server with one screen of 800x600, whose pixels lie in a file."""
    read_end, write_end = os.pipe()
    command = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "800x600x24", "-fbdir", str(tmp_path)]
    server = subprocess.Popen([*command, "-nolisten", "tcp"], pass_fds=[write_end], stderr=subprocess.DEVNULL)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as pipe:
            number = pipe.readline().strip()
        assert number, "Xvfb did not start"
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(PATIENCE_SECONDS)


def read_screen(path: Path) -> np.ndarray:
    """The X server's picture (H, W, 3) uint8, from its file in xwd format."""
    data = path.read_bytes()
    header = np.frombuffer(data, ">u4", 20)
    height, width, row_bytes = int(header[5]), int(header[4]), int(header[12])
    start = int(header[0]) + 12 * int(header[19])
    rows = np.frombuffer(data, np.uint8, height * row_bytes, start).reshape(height, row_bytes)
    return rows[:, : 4 * width].reshape(height, width, 4)[..., 2::-1]


def test_playing_on_an_x_server(display, tmp_path):
    with_xdotool = shutil.which("xdotool") is not None
    environment = {**os.environ, "DISPLAY": display, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment["SDL_VIDEO_X11_WMCLASS"] = WINDOW_CLASS
    for name in ("SDL_VIDEODRIVER", "WAYLAND_DISPLAY"):
        environment.pop(name, None)
    captures, output = tmp_path / "captures", tmp_path / "output.txt"

    def use(*arguments: str) -> str:
        done = subprocess.run(["xdotool", *arguments], env=environment, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip()

    def printed() -> list[str]:
        return output.read_text().splitlines()

    def press(*arguments: str) -> None:
        if with_xdotool:
            use(*arguments)

    def screen() -> np.ndarray:
        return read_screen(tmp_path / "Xvfb_screen0")

    command = [sys.executable, "-c", PLAYER, str(captures), "real" if with_xdotool else "post"]
    with output.open("w") as file:
        player = subprocess.Popen(command, env=environment, stdout=file, cwd=ROOT)
    try:
        wait_for(lambda: printed() == ["nothing"], "first frame")
        if with_xdotool:
            wait_for(lambda: use("search", "--onlyvisible", "--class", WINDOW_CLASS), "window")
            use("windowfocus", "--sync", use("search", "--onlyvisible", "--class", WINDOW_CLASS))
        keys = (("keydown", "Left"), ("keydown", "Control_L"), ("keyup", "Left"), ("keyup", "Control_L"))
        for number, (kind, key) in enumerate(keys):
            press(kind, key)
            wait_for(lambda count=number + 2: len(printed()) >= count, f"answer to {kind} {key}")
        assert printed() == ["nothing", "TURN_LEFT", "TURN_LEFT ATTACK", "ATTACK", "nothing"]
        plain = screen()
        press("key", "F2")
        wait_for(lambda: (screen() != plain).any(axis=2).mean() > 0.01, "overlay")
        picture = screen()
        assert picture.shape == (600, 800, 3)
        assert (picture > 20).any(axis=2).mean() > 0.6, "the window covers 64 % of the screen"
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
        press("key", "F7")
        wait_for(lambda: list(captures.glob("*.png")), "screenshot")
        if with_xdotool:
            use("key", "Escape")
            assert player.wait(PATIENCE_SECONDS) == 0
            assert printed()[-1] == "played True 1"
    finally:
        player.kill()
        player.wait(PATIENCE_SECONDS)
