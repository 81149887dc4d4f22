"""Parallel recording: worker processes play episodes and write them, one file each.

Workers share no lock and no queue with one another, so that killing one at any instant cannot stop the
others: each has a pipe to its parent, which hands out episode numbers. Everything random in an episode
comes from the recording's seed and that number.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing as mp
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from agents.agent import AgentShare, default_mix, make_agent, parse_mix
from agents.environments import FRAME_HEIGHT, FRAME_SKIP, FRAME_WIDTH, LARGEST_FRAME_SKIP, make_environment
from agents.errors import EngineError, GamengenError, OptionError
from recorder.episodes import EpisodeWriter
from recorder.progress import progress
from recorder.recording import Recording, RecordingHeader, hash_file
from recorder.worker import ATTEMPTS, work

MAX_EPISODE_FRAMES = 2100
LARGEST_SEED = 2**31 - 1
STALL_SECONDS = 120.0  # a worker that plays no step for so long hangs in its engine
END_SECONDS = 5.0  # for workers to close their engines


@dataclass(frozen=True)
class RecordOptions:
    """What to record: at least ``frames`` frames in all, by a mix of agents.

    ``seed`` and an episode's number make its seed; a recording that is gone on with keeps its own. Without an ``agent``
    those play who can play this game: see :func:`agents.agent.default_mix`.
    """

    spec: str
    out: Path
    frames: int = 10_000
    agent: str | None = None
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
        if self.frame_skip > LARGEST_FRAME_SKIP:
            raise OptionError(f"must be at most {LARGEST_FRAME_SKIP}, got {self.frame_skip}", "--frame-skip", "use 2")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise OptionError(f"must be 0 to {LARGEST_SEED}, got {self.seed}", "--seed", "give another seed")


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

    Numbers that have no episode yet are recorded first, so that what is lost to a kill comes back.

    Raises:
        GamengenError: the spec, an agent or the folder cannot be used, or the disk is full; episodes that
            were finished stay.
    """
    mix = parse_mix(options.agent or default_mix(options.spec))
    environment: Any = make_environment(
        options.spec, frame_skip=options.frame_skip, height=options.height, width=options.width
    )
    try:
        for share in mix:  # an agent that does not fit is told now, not by a worker
            make_agent(share.name, environment.action_set, options.frame_skip)
        agents = {share.name: hash_file(share.name) for share in mix}
        header = RecordingHeader.of(environment, options.height, options.width, agents, options.seed)
    finally:
        environment.close()
    done = _already_done(options, header)
    if done is not None:
        return done
    _remove_orphans(options.spec)
    recording = Recording.create_or_resume(options.out, header)
    with recording.lock():
        return _Run(recording, options, mix).record()


def _already_done(options: RecordOptions, header: RecordingHeader) -> RecordSummary | None:
    if not Recording.exists(options.out):
        return None
    recording = Recording.open(options.out)
    if not recording.episode_paths():
        return None
    recording.check_same_game(header)
    infos = recording.episodes()
    have = sum(info.frames for info in infos)
    if have < options.frames:
        return None
    print(f"{options.out} holds {have:,} frames already: nothing to record", file=sys.stderr, flush=True)
    return RecordSummary(str(options.out), 0, 0, 0.0, 0.0, 0.0, len(infos), have, 0)


@dataclass
class _Worker:
    """What the parent knows of a worker process. ``ticks`` counts its steps; it is written without a lock."""

    process: Any
    connection: Connection
    ticks: Any
    number: int
    ticks_seen: int = 0
    seen_at: float = field(default_factory=time.monotonic)

    def stalls(self) -> bool:
        """Whether it has played no step for long, as when its engine hangs."""
        now, ticks = time.monotonic(), self.ticks.value
        if ticks != self.ticks_seen:
            self.ticks_seen, self.seen_at = ticks, now
        return now - self.seen_at > STALL_SECONDS


class _Run:
    """One run of recording: the parent's side."""

    def __init__(self, recording: Recording, options: RecordOptions, mix: tuple[AgentShare, ...]) -> None:
        self._recording, self._options, self._mix = recording, options, mix
        existing = recording.episodes() if recording.episode_paths() else []
        self._had_episodes, self._had_frames = len(existing), sum(info.frames for info in existing)
        self._numbers = _free_numbers({int(info.path.stem) for info in existing})
        self._context = mp.get_context("spawn")
        self._stop = self._context.RawValue("b", 0)
        self._workers: list[_Worker] = []
        self._frames = self._episodes = self._bytes = self._restarts = self._failures_in_a_row = 0

    def record(self) -> RecordSummary:
        options, started = self._options, time.monotonic()
        try:
            with progress(f"recording {options.spec}", options.frames, "frames") as show:
                show(self._had_frames, "")
                for _ in range(options.workers):
                    self._start_worker(next(self._numbers))
                while self._had_frames + self._frames < options.frames:
                    for connection in wait([worker.connection for worker in self._workers], timeout=0.5):
                        self._hear(next(worker for worker in self._workers if worker.connection is connection))
                        rate = self._frames / (time.monotonic() - started)
                        show(self._had_frames + self._frames, f"{rate:.0f} frames/s")
                    for worker in [worker for worker in self._workers if worker.stalls()]:
                        worker.process.kill()
                        self._replace(worker)
        finally:
            seconds = time.monotonic() - started
            self._end()
        return RecordSummary(
            str(self._recording.folder), self._episodes, self._frames, seconds, self._frames / seconds,
            self._bytes / max(1, self._frames), self._had_episodes + self._episodes, self._had_frames + self._frames,
            self._restarts,
        )  # fmt: skip

    def _start_worker(self, number: int) -> None:
        ours, theirs = self._context.Pipe()
        ticks = self._context.RawValue("Q", 0)
        arguments = (self._recording, self._options, self._mix, os.getpid(), theirs, self._stop, ticks)
        process = self._context.Process(target=work, args=arguments, daemon=True)
        _start_tracker()
        with _later_interrupts():
            process.start()
            self._workers.append(_Worker(process, ours, ticks, number))
        theirs.close()
        ours.send(number)

    def _hear(self, worker: _Worker) -> None:
        """Take a worker's message and give it the next number."""
        try:
            kind, *rest = worker.connection.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if kind == "episode":
            self._count_episode(*rest)
        elif kind == "lost":
            self._restarts += ATTEMPTS
            self._count_failure(rest[0])
        elif kind == "error":
            raise rest[0]
        else:
            raise RuntimeError(f"a recording process failed:\n{rest[0]}")
        worker.number, worker.seen_at = next(self._numbers), time.monotonic()
        try:
            worker.connection.send(worker.number)
        except OSError:
            self._replace(worker)

    def _count_episode(self, frames: int, size: int, restarts: int) -> None:
        self._frames, self._bytes, self._episodes = self._frames + frames, self._bytes + size, self._episodes + 1
        self._restarts, self._failures_in_a_row = self._restarts + restarts, 0

    def _replace(self, worker: _Worker) -> None:
        """Another process takes over the episode of one that was killed or crashed."""
        self._remove(worker)
        self._restarts += 1
        remedy = "see if the machine has memory left, then run the command again: finished episodes stay"
        self._count_failure(EngineError("the recording processes keep ending", self._options.spec, remedy))
        self._start_worker(worker.number)

    def _count_failure(self, error: GamengenError) -> None:
        """Give up where nothing works; one episode in between and all is well again."""
        self._failures_in_a_row += 1
        if self._failures_in_a_row > self._options.workers + 1:
            raise error

    def _remove(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.connection.close()
        worker.process.join(END_SECONDS)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        _remove_orphans(self._options.spec)

    def _end(self) -> None:
        """Tell the workers to end, and end those that do not."""
        self._stop.value = 1
        try:
            limit = time.monotonic() + END_SECONDS
            for worker in self._workers:
                self._hear_the_last(worker, limit)
            for worker in self._workers:
                worker.process.join(max(0.0, limit - time.monotonic()))
        finally:  # also at a second Ctrl-C
            killed = [worker for worker in self._workers if worker.process.is_alive()]
            for worker in killed:
                worker.process.kill()
                worker.process.join()
            if killed or self._restarts:
                _remove_orphans(self._options.spec)
            self._recording.remove_partials()

    def _hear_the_last(self, worker: _Worker, limit: float) -> None:
        """Count an episode that was finished as the end was told; until ``limit`` of the monotonic clock."""
        with contextlib.suppress(EOFError, OSError):
            if worker.connection.poll(max(0.0, limit - time.monotonic())):
                kind, *rest = worker.connection.recv()
                if kind == "episode":
                    self._count_episode(*rest)
        worker.connection.close()


class StreamRecorder:
    """Records episodes that are played elsewhere, such as by an agent in training; use it as a context manager.

    Several environments play side by side, each known by its index. Unfinished episodes are kept in memory,
    compressed, and dropped by :meth:`close`.

    Args:
        recording: where finished episodes go; it stays locked until :meth:`close`.
        environments: how many play side by side.
        seed: stored with each episode, plus its number; see :meth:`begin`.
        agent_name: stored with each episode; it may be set anew as the agent learns.

    Raises:
        DataError: another process is recording into this folder, or an episode there is damaged.
    """

    def __init__(self, recording: Recording, environments: int, seed: int, agent_name: str) -> None:
        self.agent_name = agent_name
        self.frames = self.episodes = 0
        self._recording, self._seed = recording, seed
        self._open = contextlib.ExitStack()
        self._open.enter_context(recording.lock())
        self._numbers = _free_numbers({int(path.stem) for path in recording.episode_paths()})
        self._writers: list[EpisodeWriter | None] = [None] * environments
        self._next: list[int | None] = [None] * environments  # numbers of episodes that have begun without a frame

    def __enter__(self) -> StreamRecorder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, index: int) -> int:
        """The seed that is stored with the next episode of environment ``index``: play it with that."""
        number = self._next[index]
        if number is None:
            number = self._next[index] = next(self._numbers)
        return self._seed + number

    def add(
        self, index: int, frame: np.ndarray, action: np.ndarray, reward: float, variables: dict[str, float]
    ) -> None:
        """Add one step of environment ``index``: ``action`` (A,) is what is held while ``frame`` is on screen.

        Args:
            index: which environment.
            frame: (H, W, 3) uint8, of the recording's size.
            action: (A,) float32.
            reward: what the step earned.
            variables: game variables while ``frame`` is on screen.
        """
        writer = self._writers[index]
        if writer is None:
            seed, header = self.begin(index), self._recording.header
            number, self._next[index] = seed - self._seed, None
            writer = self._writers[index] = EpisodeWriter(
                self._recording.episode_path(number), header.height, header.width, header.action_set.size,
                header.variable_names, seed, self.agent_name,
            ).__enter__()  # fmt: skip
        writer.append(frame, action, reward, variables)

    def end(self, index: int, terminated: bool, truncated: bool) -> None:
        """The episode of environment ``index`` has ended: write it.

        Raises:
            DataError: it cannot be written; finished episodes stay.
        """
        writer, self._writers[index] = self._writers[index], None
        if writer is None:
            return
        try:
            writer.finish(terminated=terminated, truncated=truncated)
        finally:
            writer.__exit__(None, None, None)
        self.frames, self.episodes = self.frames + writer.frames, self.episodes + 1

    def close(self) -> None:
        """Drop unfinished episodes and free the recording."""
        for writer in self._writers:
            if writer is not None:
                writer.__exit__(None, None, None)
        self._writers = [None] * len(self._writers)
        self._open.close()


def _free_numbers(taken: set[int]) -> Iterator[int]:
    return (number for number in itertools.count() if number not in taken)


def _remove_orphans(spec: str) -> None:
    if spec.startswith("doom/"):
        from agents.doom import remove_orphans

        remove_orphans()


def _start_tracker() -> None:
    """Start multiprocessing's own helper process now: where a worker's start starts it, it lets Ctrl-C through."""
    if sys.platform != "win32":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()


@contextlib.contextmanager
def _later_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back for a moment; a process started meanwhile never gets one before it is ready."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
