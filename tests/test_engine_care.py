"""No engine process, shared memory or folder outlives its owner; an engine that dies or hangs is an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import engine_process
from agents.doom import DoomEnvironment
from agents.engine_process import remove_orphans
from agents.environments import make_environment
from agents.errors import EngineError

ROOT = Path(__file__).parents[1]
# Plays for ever; says when the engine runs, and which.
PLAYER = """
import signal, sys
from agents import engine_process
from agents.environments import make_environment

def end(signum, frame):
    raise SystemExit(3)

signal.signal(signal.SIGTERM, end)
environment = make_environment("doom/basic")
environment.reset(seed=1)
engine = environment._engine
print(engine.pid, engine.folder.name, engine_process._instance(engine.pid), flush=True)
{then}
while True:
    _, _, terminated, truncated, _ = environment.step(environment.action_set.rest)
    if terminated or truncated:
        environment.reset(seed=1)
"""


class Player:
    """A Python process that plays Doom in a folder of its own."""

    def __init__(self, folder: Path, then: str = "") -> None:
        environ = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": tempfile.gettempdir()}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PLAYER.format(then=then)], cwd=folder, env=environ,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        pid, self.folder_name, self.instance = self.process.stdout.readline().split()
        self.engine = int(pid)

    def left(self) -> list[str]:
        """What is left of its engine."""
        traces = [str(path) for path in Path("/dev/shm").glob(f"ViZDoom*{self.instance}")]
        traces += [str(path) for path in Path(tempfile.gettempdir()).glob(f"{self.folder_name}*")]
        if self.engine in engine_process._engine_pids():
            traces.append(f"engine {self.engine}")
        return traces


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Player]]:
    players: list[Player] = []

    def make(then: str = "") -> Player:
        players.append(Player(tmp_path, then))
        return players[-1]

    yield make
    for player in players:
        player.process.kill()
        player.process.wait()
    remove_orphans()


@pytest.fixture
def environment() -> Iterator[Any]:
    environment = make_environment("doom/basic")
    yield environment
    environment.close()


@pytest.mark.parametrize(
    ("ending", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 3)], ids=["ctrl-c", "sigterm"]
)
def test_signal_leaves_nothing(start: Callable[..., Player], ending: signal.Signals, code: int) -> None:
    player = start()
    os.kill(player.process.pid, ending)
    player.process.communicate(timeout=60)
    assert player.process.returncode == code
    assert player.left() == []


def test_ctrl_c_reaches_the_engine_too(start: Callable[..., Player]) -> None:
    player = start()
    os.killpg(player.process.pid, signal.SIGINT)  # as a terminal does
    player.process.communicate(timeout=60)
    assert player.process.returncode != 0
    assert player.left() == []


@pytest.mark.parametrize("then", ["sys.exit()", "del engine, environment", "raise ValueError"])
def test_exit_without_close_leaves_nothing(start: Callable[..., Player], tmp_path: Path, then: str) -> None:
    player = start(then)
    player.process.communicate(timeout=60)
    assert player.left() == []
    assert list(tmp_path.iterdir()) == []  # nor in the user's folder


def test_orphans_of_a_killed_owner_are_removed(start: Callable[..., Player]) -> None:
    killed, alive = start(), start()
    killed.process.kill()
    killed.process.wait()  # its pipes stay open: the engine has them too
    assert f"engine {killed.engine}" in killed.left()
    assert remove_orphans() == 1
    _wait(lambda: killed.left() == [])
    assert alive.process.poll() is None
    assert f"engine {alive.engine}" in alive.left()


def test_shared_memory_of_a_killed_pair_is_removed(start: Callable[..., Player]) -> None:
    player = start()
    player.process.kill()
    os.kill(player.engine, signal.SIGKILL)
    player.process.communicate()
    assert player.left()
    remove_orphans()
    _wait(lambda: player.left() == [])


def test_a_forked_child_leaves_the_engine_alone(environment: DoomEnvironment) -> None:
    environment.reset(seed=5)
    child = os.fork()
    if child == 0:
        environment.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert environment.step(environment.action_set.rest)[0].any()


def test_engine_that_dies_is_an_error_and_starts_anew(environment: DoomEnvironment) -> None:
    first, _ = environment.reset(seed=5)
    assert environment._engine is not None
    folder, pid = environment._engine.folder, environment._engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError, match=r"engine stopped .*; doom/basic ; run it again"):
        _play(environment)
    assert not folder.exists()
    with pytest.raises(EngineError, match="call reset"):
        environment.step(environment.action_set.rest)
    again, _ = environment.reset(seed=5)
    assert np.array_equal(first, again)


def test_engine_that_hangs_is_an_error(environment: DoomEnvironment, monkeypatch: pytest.MonkeyPatch) -> None:
    environment.reset(seed=5)
    assert environment._engine is not None
    assert environment._engine.pid is not None
    monkeypatch.setattr(engine_process, "ENGINE_SECONDS", 0.5)
    os.kill(environment._engine.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="did not answer"):
        _play(environment)
    monkeypatch.undo()
    environment.reset(seed=5)


def test_engine_that_dies_in_the_middle_of_a_message_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a call never returns; what can be done is to end the process, as recording workers do."""
    told: list[str] = []
    monkeypatch.setattr(engine_process, "ENGINE_SECONDS", 0.4)
    monkeypatch.setattr(engine_process, "DEAD_SECONDS", 0.2)
    monkeypatch.setattr(engine_process, "when_stuck", lambda: told.append("stuck"))
    engine = engine_process.EngineProcess()
    ended = subprocess.Popen(["true"])
    ended.wait()
    engine.pid = ended.pid
    with engine.answering():
        _wait(lambda: bool(told))
    engine.end()


def test_engine_that_hangs_is_closed(environment: DoomEnvironment) -> None:
    environment.reset(seed=5)
    assert environment._engine is not None
    pid = environment._engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    environment.close()
    assert pid not in engine_process._engine_pids()


# Plays with an engine that stops as soon as it starts; our patience ends when it is there.
HANGING = """
import os, sys, threading
from agents import engine_process
from agents.errors import EngineError
from agents.environments import make_environment

def lose_patience():
    while not engines:
        mine = lambda pid: engine_process._owner_name(pid).split("-")[2:3] == [str(os.getpid())]
        engines.extend(filter(mine, engine_process._engine_pids()))
    engine_process.ENGINE_SECONDS = 1.0

engines = []
environment = make_environment("doom/basic")
configure = environment._configure
environment._configure = lambda game: (configure(game), game.set_vizdoom_path(sys.argv[1]))
threading.Thread(target=lose_patience).start()
try:
    environment.reset(seed=5)
except EngineError as error:
    print(error)
environment._configure, engine_process.ENGINE_SECONDS = configure, 60.0
environment.reset(seed=5)
environment.close()
print(*engines, engine_process._instance(*engines))
"""


def test_engine_that_hangs_at_the_start_is_an_error(tmp_path: Path) -> None:
    engine = tmp_path / "engine" / "vizdoom"
    engine.parent.mkdir()
    engine.write_text("#!/bin/sh\nkill -STOP $$\n")
    engine.chmod(0o755)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HANGING, str(engine)]
    with (tmp_path / "said").open("w+") as said:  # not a pipe: the engine would hold it open
        code = subprocess.run(command, cwd=tmp_path, env=environ, stdout=said, stderr=said).returncode
        said.seek(0)
        lines = said.read().splitlines()
    assert code == 0, lines
    assert "did not answer" in lines[0]
    pid, instance = lines[1].split()
    _wait(lambda: int(pid) not in engine_process._engine_pids())
    _wait(lambda: not list(Path("/dev/shm").glob(f"ViZDoom*{instance}")))


def _play(environment: DoomEnvironment) -> None:
    for _ in range(1000):
        environment.step(environment.action_set.rest)


def _wait(condition: Callable[[], bool]) -> None:
    """A killed process is gone a moment later, when the system has taken it in."""
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("still there")
