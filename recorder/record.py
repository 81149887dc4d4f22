"""Parallel recording: worker processes play episodes and write them, one file each."""

from __future__ import annotations

import hashlib
import multiprocessing as mp
import os
import queue
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.agent import AgentShare, make_agent, parse_mix
from agents.environments import FRAME_HEIGHT, FRAME_SKIP, FRAME_WIDTH, make_environment
from agents.errors import DataError, EngineError, GamengenError, OptionError
from recorder.episodes import EpisodeWriter, play_episode
from recorder.progress import progress
from recorder.recording import FREEDOOM_NOTICE, Recording, RecordingHeader, package_versions

MAX_EPISODE_FRAMES = 2100
RETRIES = 3


@dataclass(frozen=True)
class RecordOptions:
    """What to record: at least ``frames`` frames in all, by a mix of agents."""

    spec: str
    out: Path
    frames: int = 10_000
    agent: str = "scripted:0.6,random:0.4"
    workers: int = 2
    seed: int = 0
    frame_skip: int = FRAME_SKIP
    height: int = FRAME_HEIGHT
    width: int = FRAME_WIDTH
    max_episode_frames: int = MAX_EPISODE_FRAMES

    def __post_init__(self) -> None:
        for name in ("frames", "workers", "frame_skip", "height", "width", "max_episode_frames"):
            if getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"must be at least 1, got {getattr(self, name)}", flag, "give a positive number")
        if self.seed < 0:
            raise OptionError(f"must not be negative, got {self.seed}", "--seed", "give 0 or more")


@dataclass(frozen=True)
class RecordSummary:
    """What a recording run did."""

    folder: str
    episodes: int
    frames: int
    seconds: float
    frames_per_second: float
    bytes_per_frame: float
    total_episodes: int
    total_frames: int
    engine_restarts: int


def record_episodes(options: RecordOptions) -> RecordSummary:
    """Record until the folder holds ``options.frames`` frames; going on where it was stopped.

    Raises:
        GamengenError: the spec, an agent or the folder cannot be used, or the disk is full.
    """
    mix = parse_mix(options.agent)
    environment = make_environment(
        options.spec, frame_skip=options.frame_skip, height=options.height, width=options.width
    )
    try:
        for share in mix:  # an agent that does not fit is told now, not by a worker
            make_agent(share.name, environment.action_set, options.frame_skip)
        header = RecordingHeader(
            options.spec, environment.action_set, options.height, options.width, options.frame_skip, environment.fps,
            environment.variable_names, {share.name: _hash(share.name) for share in mix}, options.seed,
            package_versions(), FREEDOOM_NOTICE if options.spec.startswith("doom/") else "",
        )  # fmt: skip
    finally:
        environment.close()
    if options.spec.startswith("doom/"):
        from agents.doom import remove_orphans

        remove_orphans()
    recording = Recording.create_or_resume(options.out, header)
    return _run_workers(recording, options, mix)


def _run_workers(recording: Recording, options: RecordOptions, mix: tuple[AgentShare, ...]) -> RecordSummary:
    existing = recording.episodes() if recording.episode_paths() else []
    have = sum(info.frames for info in existing)
    first_number = int(existing[-1].path.stem) + 1 if existing else 0
    context = mp.get_context("spawn")
    numbers, stop, results = context.Value("q", first_number), context.Event(), context.Queue()
    arguments = (recording, options, mix, numbers, stop, results)
    workers = [context.Process(target=_work, args=arguments) for _ in range(options.workers)]
    started, frames, size, episodes, restarts = time.monotonic(), 0, 0, 0, 0
    failure: GamengenError | None = None
    try:
        with progress(f"recording {options.spec}", options.frames, "frames") as show:
            show(have, "")
            if have < options.frames:
                for worker in workers:
                    worker.start()
            while have + frames < options.frames and failure is None:
                try:
                    message = results.get(timeout=0.5)
                except queue.Empty:
                    if not any(worker.is_alive() for worker in workers):
                        failure = EngineError("all recording processes ended", options.spec, "run the command again")
                    continue
                if message[0] == "episode":
                    frames, size, episodes = frames + message[1], size + message[2], episodes + 1
                    show(have + frames, f"{frames / (time.monotonic() - started):.0f} frames/s")
                elif message[0] == "restart":
                    restarts += 1
                else:
                    failure = message[1]
    finally:
        seconds = time.monotonic() - started
        stop.set()
        _end(workers)
    if failure is not None:
        raise failure
    return RecordSummary(
        str(recording.folder), episodes, frames, seconds, frames / seconds if frames else 0.0,
        size / frames if frames else 0.0, len(existing) + episodes, have + frames, restarts,
    )  # fmt: skip


def _end(workers: list[Any]) -> None:
    """Ask the workers to end; each closes its engine on SIGTERM."""
    for worker in workers:
        if worker.pid is not None and worker.is_alive():
            worker.terminate()
    for worker in workers:
        if worker.pid is not None:
            worker.join(10)
            if worker.is_alive():
                worker.kill()
                worker.join()


def _work(
    recording: Recording, options: RecordOptions, mix: tuple[AgentShare, ...], numbers: Any, stop: Any, results: Any
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    signal.signal(signal.SIGTERM, _exit)
    parent = os.getppid()
    try:
        players = _Players(recording, options, mix)
        try:
            while not stop.is_set() and os.getppid() == parent:
                with numbers.get_lock():
                    number, numbers.value = numbers.value, numbers.value + 1
                restarts, info = players.record(number)
                for _ in range(restarts):
                    results.put(("restart",))
                results.put(("episode", *info))
        finally:
            players.close()
    except GamengenError as error:
        results.put(("error", error))


def _exit(signum: int, frame: Any) -> None:
    raise SystemExit(0)


class _Players:
    """A worker's environments and agents, one of each kind of sensors, made when first needed."""

    def __init__(self, recording: Recording, options: RecordOptions, mix: tuple[AgentShare, ...]) -> None:
        self._recording, self._options, self._mix = recording, options, mix
        self._environments: dict[frozenset[str], Any] = {}
        self._agents: dict[str, Any] = {}

    def record(self, number: int) -> tuple[int, tuple[int, int]]:
        """Record episode ``number``: (engine restarts, (frames, bytes))."""
        options, header = self._options, self._recording.header
        seed = options.seed + number
        draw = np.random.default_rng([options.seed, number]).random()
        index = int(np.searchsorted(np.cumsum([share.share for share in self._mix])[:-1], draw, side="right"))
        name = self._mix[index].name
        if name not in self._agents:
            self._agents[name] = make_agent(name, header.action_set, options.frame_skip)
        agent = self._agents[name]
        path = self._recording.episode_path(number)
        for attempt in range(RETRIES):
            try:
                writer = EpisodeWriter(
                    path, header.height, header.width, header.action_set.size, header.variable_names, seed, name
                )
                with writer:
                    play_episode(self._environment(agent.sensors), agent, writer, seed)
                return attempt, (writer.frames, path.stat().st_size)
            except EngineError as error:  # lose only this episode: the next reset starts a fresh engine
                if attempt == RETRIES - 1:
                    raise error
        raise AssertionError("unreachable")

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
        for environment in self._environments.values():
            environment.close()


def _hash(name: str) -> str:
    path = Path(name)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else ""
    except OSError as error:
        raise DataError(f"cannot read the agent ({error.strerror})", name, "check the file") from error
