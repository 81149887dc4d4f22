"""The care of Doom's engine processes: none outlives its owner, none hangs us, nothing is left on disk.

ViZDoom runs each game in a process of its own that talks through shared memory. That process survives
its parent's ``SIGKILL``, and a call into an engine that hangs never returns. So each engine here has a
folder, ``<temporary folder>/gamengen-doom-<owner's process id>-<owner's start time>-<random>``: its
name says who owns it, the engine carries the name in its environment, and a file in it holds the name
of the engine's shared memory. Whoever comes later can end and remove what a dead owner left.

All of this reads ``/proc`` and is for Linux; elsewhere ViZDoom's own clean-up has to do.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

ENGINE_SECONDS = 120.0  # starting takes 0.2 s and a step 1 ms, but a starved machine may need much longer
DEAD_SECONDS = 5.0  # a waiting call notices a dead engine at once, or never
CLONE_FS = 0x200  # linux/sched.h: what a thread shares with its process, the working folder among it
OWNER = "GAMENGEN_ENGINE_OWNER"
PREFIX = "gamengen-doom-"
INSTANCE_FILE = "instance"
INSTANCE = r"\w{6,}"
SHARED_MEMORY = Path("/dev/shm")

_environ_lock = threading.Lock()

# Called where an engine died in the middle of a message: ViZDoom 1.3.2 then waits for ever for a lock that
# the dead engine holds, and only the end of our own process ends that. A process that can be replaced,
# such as a recording worker, sets this to a function that ends it.
when_stuck: Callable[[], None] | None = None


class EngineProcess:
    """One engine: :meth:`start` it, talk to it inside :meth:`answering`, then :meth:`end` it."""

    def __init__(self) -> None:
        remove_orphans()
        self.folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-{_start_time(os.getpid())}-"))
        self.pid: int | None = None
        self.timed_out = False
        self.left_behind = False
        self.call: int | None = None  # number of the call that we are waiting for
        self._calls = 0
        self._owner = os.getpid()

    def start(self, init: Callable[[], None]) -> None:
        """Run ``init``, which starts the engine, and find its process.

        ViZDoom 1.3.2 waits for ever for an engine that hangs while it starts (a map that is not there is
        enough), and crashes Python where such an engine is killed. So ``init`` runs in a thread that can
        be left behind; its engine is stopped at once and ended when this process has ended.

        Raises:
            TimeoutError: the engine did not start.
        """
        done = threading.Event()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                with _working_folder(self.folder):
                    init()
            except BaseException as error:  # told to the waiting thread, whatever it is
                failures.append(error)
            finally:
                done.set()

        with _environ_lock:  # the environment is the whole process's: one start at a time
            os.environ[OWNER] = self.folder.name
            try:
                threading.Thread(target=run, name="engine start", daemon=True).start()
                try:
                    self.timed_out = not _wait(done)
                except BaseException:  # Ctrl-C: a half-started engine cannot be ended
                    self.timed_out = not _wait(done)
                    raise
            finally:
                del os.environ[OWNER]
                self._find()
                if self.timed_out:
                    self._leave_behind()
        if self.timed_out:
            raise TimeoutError
        if failures:
            raise failures[0]

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Watch the engine while we wait for it: one that hangs is killed, so that the waiting call raises."""
        _watchdog.watch(self)
        self._calls += 1
        self.call = self._calls
        try:
            yield
        finally:
            self.call = None

    def has_died(self) -> bool:
        """Whether the engine was started and its process is no more."""
        return self.pid is not None and self.pid not in _engine_pids()

    def _leave_behind(self) -> None:
        if self.pid is None:
            return
        os.kill(self.pid, signal.SIGSTOP)
        instance = _instance(self.pid)
        shared = f"{SHARED_MEMORY}/ViZDoom*{instance}" if re.fullmatch(INSTANCE, instance) else ""
        wait = f"while kill -0 {os.getpid()}; do sleep 0.5; done; kill -9 {self.pid}; rm -rf '{self.folder}' {shared}"
        subprocess.Popen(
            ["/bin/sh", "-c", wait], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.left_behind = True

    @property
    def is_ours(self) -> bool:
        """Whether this process started it, and is no forked child of the one that did."""
        return os.getpid() == self._owner

    def kill(self) -> None:
        """End the process at once; ViZDoom's own farewell waits for ever for an engine that hangs.

        A forked child of the owner does nothing.
        """
        if self.pid is not None and not self.left_behind and self.is_ours:
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the process and remove its shared memory and its folder; a forked child of the owner does nothing."""
        if not self.is_ours or self.left_behind:
            return
        self.kill()
        _remove_folder(self.folder)

    def _find(self) -> None:
        for pid in _engine_pids():
            if _owner_name(pid) == self.folder.name:
                self.pid = pid
                (self.folder / INSTANCE_FILE).write_text(_instance(pid))


def remove_orphans() -> int:
    """End engines whose owner is dead and remove their shared memory and folders; the number of engines ended.

    Only what this project started is touched, and only where its owner is no more.
    """
    if not Path("/proc/self").exists():
        return 0
    ended = 0
    for pid in _engine_pids():
        name = _owner_name(pid)
        if name and not _owner_lives(name):
            instance = _instance(pid)
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                ended += 1
            _remove_shared_memory(instance)
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not _owner_lives(folder.name):
            _remove_folder(folder)
    return ended


class _Watchdog:
    """One thread that looks once a second after all engines that someone is waiting for.

    It counts its own looks, not the clock: they stop with us when the user stops the program (Ctrl-Z).
    """

    def __init__(self) -> None:
        self._engines: weakref.WeakSet[EngineProcess] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def watch(self, engine: EngineProcess) -> None:
        with self._lock:
            self._engines.add(engine)
            if self._thread is None or not self._thread.is_alive():  # a forked child has no thread yet
                self._thread = threading.Thread(target=self._look, name="engine watchdog", daemon=True)
                self._thread.start()

    def _look(self) -> None:
        waiting: dict[EngineProcess, tuple[int, float]] = {}  # the call that each engine is busy with, and since when
        while True:
            pause = _pause()
            time.sleep(pause)
            with self._lock:
                busy = {engine: engine.call for engine in self._engines}
            before, waiting = waiting, {}
            for engine, call in busy.items():
                if call is None:
                    continue
                last_call, seconds = before.get(engine, (call, 0.0))
                waiting[engine] = (call, seconds + pause if last_call == call else 0.0)
                seconds = waiting[engine][1]
                if seconds > ENGINE_SECONDS and engine.call == call:
                    engine.timed_out = True
                    engine.kill()
                if seconds > DEAD_SECONDS and when_stuck and engine.has_died() and engine.call == call:
                    when_stuck()


_watchdog = _Watchdog()


@contextlib.contextmanager
def _working_folder(folder: Path) -> Iterator[None]:
    """Work in ``folder``: the engine makes a folder of its own where it is started, and dies where it cannot.

    On Linux this thread, and the engine, leave the rest of the process where it is.
    """
    before = Path.cwd()
    if sys.platform == "linux":  # in some containers it is forbidden, then for a moment all threads move
        ctypes.CDLL(None).unshare(CLONE_FS)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _pause() -> float:
    return min(1.0, ENGINE_SECONDS / 4)


def _wait(done: threading.Event) -> bool:
    """Wait for ``ENGINE_SECONDS``, counted in looks as the watchdog does; whether it is done."""
    waited = 0.0
    while not done.wait(_pause()):
        waited += _pause()
        if waited >= ENGINE_SECONDS:
            return False
    return True


def _engine_pids() -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # "pid (command) state …": a zombie has ended already.
            command, _, rest = (entry / "stat").read_text().partition(" (")[2].rpartition(") ")
            if command == "vizdoom" and not rest.startswith("Z"):
                found.append(int(entry.name))
    return found


def _owner_name(pid: int) -> str:
    with contextlib.suppress(OSError):
        for item in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if item.startswith(OWNER.encode() + b"="):
                return item.partition(b"=")[2].decode(errors="replace")
    return ""


def _owner_lives(name: str) -> bool:
    """Whether the owner in an engine folder's name runs; its start time tells it from a later process."""
    found = re.match(rf"{PREFIX}(\d+)-(\d+)-", name)
    return found is None or _start_time(int(found[1])) == found[2]


def _start_time(pid: int) -> str:
    with contextlib.suppress(OSError, IndexError):
        # The command's name, in brackets, may hold spaces; the start time is the 20th field after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return "0"


def _instance(pid: int) -> str:
    with contextlib.suppress(OSError, ValueError, IndexError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return arguments[arguments.index(b"+viz_instance_id") + 1].decode()
    return ""


def _remove_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):
        _remove_shared_memory((folder / INSTANCE_FILE).read_text())
    shutil.rmtree(folder, ignore_errors=True)


def _remove_shared_memory(instance: str) -> None:
    if not re.fullmatch(INSTANCE, instance):  # never a pattern that would match another engine's
        return
    for path in SHARED_MEMORY.glob(f"ViZDoom*{instance}"):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
