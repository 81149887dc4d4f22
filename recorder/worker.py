"""A recording worker: a process that plays the episodes whose numbers its parent hands it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np

from agents import engine_process
from agents.agent import AgentShare, make_agent
from agents.environments import make_environment
from agents.errors import EngineError, GamengenError
from recorder.episodes import EpisodeWriter, play_episode, read_info
from recorder.recording import Recording

if TYPE_CHECKING:
    from recorder.record import RecordOptions

ATTEMPTS = 2  # engines tried for one episode before it is given up


def work(
    recording: Recording,
    options: RecordOptions,
    mix: tuple[AgentShare, ...],
    parent: int,
    connection: Connection,
    stop: Any,
    ticks: Any,
) -> None:
    """A worker process: plays the episodes whose numbers come through ``connection``."""
    told_to_end = False

    def on_terminate(signum: int, frame: Any) -> None:
        nonlocal told_to_end  # a flag only: an exception here could surface anywhere, even inside a destructor
        told_to_end = True

    def stopped() -> bool:
        ticks.value += 1
        return bool(stop.value) or told_to_end or os.getppid() != parent

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_terminate)
    if sys.platform != "win32":
        os.setsid()  # Ctrl-C in the terminal is for the parent: it would end our engine under our feet
    _keep_descriptors()
    engine_process.when_stuck = lambda: os._exit(1)  # the parent starts another worker
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the workers share the processors already
    players = Players(recording, options, mix)
    try:
        while True:
            result = players.record(connection.recv(), stopped)
            if result is None:
                return
            connection.send(result)
    except (EOFError, ConnectionError):
        return  # the parent is gone, or has enough
    except GamengenError as error:
        _tell(connection, ("error", error))
    except Exception:
        _tell(connection, ("bug", traceback.format_exc()))
    finally:
        players.close()


def _keep_descriptors() -> None:
    """Pass no open file on: an engine that outlives us would hold our pipe open, and hide our death."""
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        if int(name) > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(int(name), False)


def _tell(connection: Connection, message: tuple[str, Any]) -> None:
    try:
        connection.send(message)
    except OSError:
        return  # nobody listens any more


class Players:
    """A worker's environments and agents, one of each kind of sensors, made when first needed."""

    def __init__(self, recording: Recording, options: RecordOptions, mix: tuple[AgentShare, ...]) -> None:
        self._recording, self._options, self._mix = recording, options, mix
        self._environments: dict[frozenset[str], Any] = {}
        self._agents: dict[str, Any] = {}

    def record(self, number: int, stopped: Callable[[], bool]) -> tuple[Any, ...] | None:
        """Record episode ``number``.

        Returns:
            ``("episode", frames, bytes, engine restarts)``; ``("lost", error)`` where the engine died again
            and again; None when told to stop.
        """
        header = self._recording.header
        seed = header.seed + number
        name = draw_agent(self._mix, header.seed, number)
        if name not in self._agents:
            self._agents[name] = make_agent(name, header.action_set, header.frame_skip)
        agent = self._agents[name]
        path = self._recording.episode_path(number)
        if path.exists():  # the last worker of a killed run wrote it just now
            return ("episode", read_info(path).frames, path.stat().st_size, 0)
        lost: EngineError | None = None
        for attempt in range(ATTEMPTS):
            writer = EpisodeWriter(
                path, header.height, header.width, header.action_set.size, header.variable_names, seed, name
            )
            try:
                with writer:
                    whole = play_episode(self._environment(agent.sensors), agent, writer, seed, stopped)
                return ("episode", writer.frames, path.stat().st_size, attempt) if whole else None
            except EngineError as error:  # lose only this episode: the next reset starts a fresh engine
                if stopped():
                    return None
                lost = error
        return ("lost", lost)

    def _environment(self, sensors: frozenset[str]) -> Any:
        options = self._options
        if not options.spec.startswith("doom/"):
            sensors = frozenset()
        if sensors not in self._environments:
            self._environments[sensors] = make_environment(
                options.spec,
                frame_skip=options.frame_skip,
                height=options.height,
                width=options.width,
                sensors=sensors,
                max_frames=options.max_episode_frames,
            )
        return self._environments[sensors]

    def close(self) -> None:
        """Close every environment, with its engine."""
        for environment in self._environments.values():
            environment.close()


def draw_agent(mix: tuple[AgentShare, ...], seed: int, number: int) -> str:
    """Who plays episode ``number``: the same for the same seed, whoever recorded what before."""
    draw = np.random.default_rng([seed, number]).random()
    return mix[int(np.searchsorted(np.cumsum([share.share for share in mix])[:-1], draw, side="right"))].name
