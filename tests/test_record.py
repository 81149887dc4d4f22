"""Parallel recording of real Doom: resuming, kills, Ctrl-C, full disks, refusals; and episodes pushed from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recorder.record
import recorder.worker
from agents.actions import ActionSet
from agents.doom import DoomEnvironment, remove_orphans
from agents.errors import DataError, EngineError, GamengenError, OptionError, SpecError
from recorder.episodes import read_episode
from recorder.record import RecordOptions, StreamRecorder, record_episodes
from recorder.recording import Recording, RecordingHeader
from recorder.worker import Players, draw_agent

ROOT = Path(__file__).parents[1]
SPEC = "doom/basic"
SIZE: dict[str, Any] = {"height": 120, "width": 160, "max_episode_frames": 60}
PATIENCE = 60.0  # seconds until a test gives up; nothing depends on how fast things are

SCRIPT = """
import sys
from pathlib import Path
from recorder.record import RecordOptions, record_episodes
if __name__ == "__main__":
    options = RecordOptions("doom/basic", Path(sys.argv[1]), frames=int(sys.argv[2]), workers=int(sys.argv[3]),
                            agent="random", height=120, width=160, max_episode_frames=60)
    print(record_episodes(options).total_frames)
"""


def options(out: Path, frames: int, **changes: Any) -> RecordOptions:
    return RecordOptions(
        **{"spec": SPEC, "out": out, "frames": frames, "workers": 1, "agent": "random", **SIZE, **changes}
    )


def wait_until(done: Callable[[], Any]) -> None:
    limit = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < limit, "this never happens"
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):  # of any of its threads
        with contextlib.suppress(OSError):
            found += [int(child) for child in path.read_text().split()]
    return found


def family(pid: int) -> list[int]:
    """All processes below ``pid``."""
    return [below for child in children(pid) for below in (child, *family(child))]


def is_engine(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "vizdoom"
    return False


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def shared_memory(pids: list[int]) -> list[Path]:
    """Shared memory of the engines ``pids``, which ViZDoom names by an id on their command line."""
    found = []
    for pid in filter(is_engine, pids):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        instance = words[words.index(b"+viz_instance_id") + 1].decode()
        found += Path("/dev/shm").glob(f"ViZDoom*{instance}")
    return found


@contextlib.contextmanager
def recorder_process(folder: Path, frames: int = 1_000_000, workers: int = 2) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = folder.with_suffix(".py")
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(folder), str(frames), str(workers)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        below = family(process.pid)
        if process.poll() is None:
            process.kill()
        for pid in below:  # before the pipe is read: they hold it open
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        process.communicate()
        remove_orphans()


def finished(folder: Path) -> list[Path]:
    return sorted(folder.glob("episodes/*/*.h5"))


def check_whole(folder: Path) -> None:
    """Every episode with a final name reads back, and nothing half-written is left."""
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]
    recording = Recording.open(folder)
    for path in recording.episode_paths():
        episode = read_episode(path)
        recording.check(episode.info)
        assert episode.frames.max(axis=(1, 2, 3)).min() > 0
    numbers = [int(path.stem) for path in recording.episode_paths()]
    assert [read_episode(path).info.seed for path in recording.episode_paths()] == numbers


def test_record_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "recording"
    first = record_episodes(options(out, 100, workers=2, agent="scripted:1,random:1"))
    assert first.frames == first.total_frames >= 100
    assert first.episodes == len(finished(out))
    assert first.bytes_per_frame > 0
    check_whole(out)
    before = {path: path.read_bytes() for path in finished(out)}

    second = record_episodes(options(out, first.total_frames + 60, agent="random"))
    assert second.total_frames == first.frames + second.frames >= first.total_frames + 60
    assert second.total_episodes == len(finished(out)) > len(before)
    assert all(path.read_bytes() == data for path, data in before.items())
    assert set(Recording.open(out).header.agents) == {"scripted", "random"}
    check_whole(out)

    stamp = (out / "recording.json").stat().st_mtime_ns
    capsys.readouterr()
    third = record_episodes(options(out, 100))
    assert (third.episodes, third.frames, third.total_frames) == (0, 0, second.total_frames)
    assert "nothing to record" in capsys.readouterr().err
    assert (out / "recording.json").stat().st_mtime_ns == stamp


def test_gaps_are_filled_and_seeds_give_the_same_frames(tmp_path: Path) -> None:
    record_episodes(options(tmp_path / "a", 200))
    paths = finished(tmp_path / "a")
    lost = {path: read_episode(path) for path in paths[:2]}
    for path in lost:
        path.unlink()
    # The recording keeps its own seed: another one given later cannot repeat what is there.
    record_episodes(options(tmp_path / "a", 200, seed=1))
    for path, before in lost.items():
        after = read_episode(path)
        assert after.info == before.info
        np.testing.assert_array_equal(after.actions, before.actions)
        np.testing.assert_array_equal(after.frames, before.frames)


def test_the_mix_is_drawn_by_seed_and_number() -> None:
    from agents.agent import parse_mix

    mix = parse_mix("scripted:3,random:1")
    drawn = [draw_agent(mix, 5, number) for number in range(400)]
    assert drawn == [draw_agent(mix, 5, number) for number in range(400)]
    assert drawn != [draw_agent(mix, 6, number) for number in range(400)]
    assert 260 < Counter(drawn)["scripted"] < 340


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"frames": 0}, "--frames"),
        ({"frames": -5}, "--frames"),
        ({"workers": 0}, "--workers"),
        ({"seed": -1}, "--seed"),
        ({"seed": 2**31}, "--seed"),
        ({"max_episode_frames": 0}, "--max-episode-frames"),
    ],
)
def test_bad_options(tmp_path: Path, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        options(tmp_path, **{"frames": 10, **changes})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"spec": "doom/nowhere"}, SpecError),
        ({"spec": "nowhere"}, SpecError),
        ({"agent": "nobody"}, OptionError),
        ({"agent": "random:-1"}, OptionError),
    ],
)
def test_what_is_unknown_is_refused_and_writes_nothing(
    tmp_path: Path, changes: dict[str, Any], error: type[GamengenError]
) -> None:
    with pytest.raises(error):
        record_episodes(options(tmp_path / "a", 10, **changes))
    assert not (tmp_path / "a").exists()


def test_frame_size_that_the_game_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="333"):
        record_episodes(options(tmp_path / "a", 10, width=333))
    assert not finished(tmp_path / "a")


def make_recording(folder: Path, **changes: Any) -> Recording:
    values: dict[str, Any] = {
        "spec": SPEC, "action_set": ActionSet(("MOVE_LEFT", "MOVE_RIGHT", "ATTACK")), "height": 120, "width": 160,
        "frame_skip": 2, "fps": 17.5, "variable_names": ("HEALTH",), "agents": {}, "seed": 0, "packages": {},
    }  # fmt: skip
    return Recording.create_or_resume(folder, RecordingHeader(**{**values, **changes}))


def push(stream: StreamRecorder, index: int, steps: int) -> None:
    for step in range(steps):
        frame = np.full((120, 160, 3), 1 + index * 50 + step, np.uint8)
        stream.add(index, frame, np.array([0, 1, step % 2]), float(step), {"HEALTH": 100 - step})


@pytest.mark.parametrize(
    ("there", "match"),
    [
        ({"spec": "doom/deathmatch"}, "spec"),
        ({"action_set": ActionSet(("ATTACK",))}, "action_set"),
        ({"width": 320, "height": 240}, "height"),
        ({"frame_skip": 4}, "frame_skip"),
    ],
)
def test_another_game_in_the_folder_is_refused(tmp_path: Path, there: dict[str, Any], match: str) -> None:
    recording = make_recording(tmp_path / "a", **there)
    header = recording.header
    with StreamRecorder(recording, 1, 0, "x") as stream:
        stream.add(0, np.ones((header.height, header.width, 3), np.uint8), header.action_set.rest, 0, {})
        stream.end(0, terminated=True, truncated=False)
    with pytest.raises(DataError, match=match):
        record_episodes(options(tmp_path / "a", 10))
    assert len(finished(tmp_path / "a")) == 1


def test_unusable_folders(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "a", tmp_path / "full", Path("/proc/recording")):
        with pytest.raises(DataError, match=str(out)):
            record_episodes(options(out, 10))


def test_two_recorders_in_one_folder(tmp_path: Path) -> None:
    record_episodes(options(tmp_path / "a", 10))
    with Recording.open(tmp_path / "a").lock(), pytest.raises(DataError, match="another process"):
        record_episodes(options(tmp_path / "a", 1000))


def test_a_recording_that_has_just_begun_stays_as_it_is(tmp_path: Path) -> None:
    """It has no episode yet, and its recorder goes by the header that it wrote."""
    begun = make_recording(tmp_path / "a")
    header = (tmp_path / "a" / "recording.json").read_bytes()
    with begun.lock(), pytest.raises(DataError, match="another process"):
        record_episodes(options(tmp_path / "a", 10, seed=9))
    assert (tmp_path / "a" / "recording.json").read_bytes() == header


def test_sigkill_of_the_recorder(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with recorder_process(out) as process:
        wait_until(lambda: len(finished(out)) >= 3 and len([*filter(is_engine, family(process.pid))]) == 2)
        below = family(process.pid)
        memory = shared_memory(below)
        assert memory
        process.kill()
        process.wait()
        # The workers see that their parent is gone and close their engines.
        wait_until(lambda: not any(map(is_running, below)))
        assert not [path for path in memory if path.exists()]
    check_whole(out)
    found = {path: path.read_bytes() for path in finished(out)}
    assert len(found) >= 3
    have = sum(info.frames for info in Recording.open(out).episodes())
    summary = record_episodes(options(out, have + 50))
    assert summary.total_episodes > len(found)
    assert all(path.read_bytes() == data for path, data in found.items())
    check_whole(out)


def test_interrupt_of_the_whole_group(tmp_path: Path) -> None:
    """Ctrl-C in a terminal reaches every process of the group."""
    out = tmp_path / "a"
    with recorder_process(out) as process:
        wait_until(lambda: len(finished(out)) >= 2 and len([*filter(is_engine, family(process.pid))]) == 2)
        below = family(process.pid)
        memory = shared_memory(below)
        os.killpg(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode != 0
        wait_until(lambda: not any(map(is_running, below)))
        assert not [path for path in memory if path.exists()]
    assert "ignored" not in text
    assert text.count("Traceback") == 1  # the script's own KeyboardInterrupt: no worker says a word
    assert "KeyboardInterrupt" in text
    check_whole(out)


def test_interrupt_while_workers_start(tmp_path: Path) -> None:
    with recorder_process(tmp_path / "a") as process:
        wait_until(lambda: len(family(process.pid)) >= 2)
        below = family(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        text, _ = process.communicate(timeout=PATIENCE)
        wait_until(lambda: not any(map(is_running, below)))
    assert text.count("Traceback") == 1
    check_whole(tmp_path / "a")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_end_of_a_worker(tmp_path: Path, how: signal.Signals) -> None:
    out = tmp_path / "a"
    with recorder_process(out, frames=400) as process:
        wait_until(lambda: finished(out) and [*filter(is_engine, family(process.pid))])
        worker = next(pid for pid in children(process.pid) if any(map(is_engine, children(pid))))
        below = [worker, *family(worker)]
        memory = shared_memory(below)
        os.kill(worker, how)
        text, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, text
        assert not any(map(is_running, below))
        assert not [path for path in memory if path.exists()]
    assert "Traceback" not in text
    assert int(text.split()[-1]) >= 400
    check_whole(out)


def test_crash_of_an_engine_loses_no_finished_episode(tmp_path: Path) -> None:
    out = tmp_path / "a"
    with recorder_process(out, frames=250, workers=1) as process:
        for count in (1, 3):
            wait_until(lambda count=count: len(finished(out)) >= count)
            for pid in filter(is_engine, family(process.pid)):
                os.kill(pid, signal.SIGKILL)
        text, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, text
    assert "Traceback" not in text
    check_whole(out)
    assert [int(path.stem) for path in finished(out)] == list(range(len(finished(out))))


def test_engine_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(self: Any, **_: Any) -> Any:
        raise EngineError("the engine died", SPEC, "reset it")

    monkeypatch.setattr(DoomEnvironment, "reset", fail)
    players = Players(make_recording(tmp_path / "a"), options(tmp_path / "a", 10), recorder.record.parse_mix("random"))
    kind, error = players.record(0, lambda: False) or ("", None)
    assert kind == "lost"
    assert isinstance(error, EngineError)
    assert not finished(tmp_path / "a")


def test_hanging_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = recorder.record._Worker(None, None, type("Ticks", (), {"value": 5})(), 0)  # type: ignore[arg-type]
    assert not worker.stalls()
    monkeypatch.setattr(recorder.record, "STALL_SECONDS", -1.0)
    assert worker.stalls()

    stalled: list[Any] = []

    def stalls(self: Any) -> bool:
        """The first worker that is asked, once."""
        stalled.append(self.process)
        return len(stalled) == 1

    monkeypatch.setattr(recorder.record._Worker, "stalls", stalls)
    summary = record_episodes(options(tmp_path / "a", 40))
    assert not stalled[0].is_alive()
    assert summary.engine_restarts >= 1
    assert summary.total_frames >= 40
    check_whole(tmp_path / "a")


def open_full(self: Path, mode: str = "r", *arguments: Any, **keywords: Any) -> Any:
    """In place of ``Path.open``: a device where nothing fits."""
    return open("/dev/full" if "w" in mode else self, mode, *arguments, **keywords)


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = make_recording(tmp_path / "a")
    with StreamRecorder(recording, 2, 0, "me") as stream:
        push(stream, 0, 5)
        stream.end(0, terminated=True, truncated=False)
        push(stream, 0, 20)
        push(stream, 1, 20)
        monkeypatch.setattr(Path, "open", open_full)
        with pytest.raises(DataError, match="no space left"):
            stream.end(0, terminated=True, truncated=False)
        monkeypatch.undo()
        stream.end(1, terminated=True, truncated=False)
    check_whole_stream(tmp_path / "a", [5, 20])


def check_whole_stream(folder: Path, lengths: list[int]) -> None:
    assert [info.frames for info in Recording.open(folder).episodes()] == lengths
    assert not [path for path in folder.rglob("*") if path.name.endswith(".partial")]


FULL_DISK = """
import sys
from pathlib import Path
from agents.errors import DataError
from recorder.record import RecordOptions, record_episodes
open_path = Path.open
def open_full(self, mode="r", *arguments, **keywords):
    return open("/dev/full", mode) if "w" in mode and "000002.h5" in self.name else open_path(self, mode, *arguments)
Path.open = open_full  # in the workers too: each of them imports this script
if __name__ == "__main__":
    try:
        record_episodes(RecordOptions("doom/basic", Path(sys.argv[1]), frames=100_000, workers=1, agent="random",
                                      height=120, width=160, max_episode_frames=60))
    except DataError as error:
        sys.exit(f"error: {error}")
"""


def test_full_disk_in_a_worker(tmp_path: Path) -> None:
    script, out = tmp_path / "full.py", tmp_path / "a"
    script.write_text(FULL_DISK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(script), str(out)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert run.returncode == 1
    assert "error: cannot write the episode (no space left on device)" in run.stderr
    assert "000002.h5" in run.stderr
    assert "Traceback" not in run.stderr
    assert [path.stem for path in finished(out)] == ["000000", "000001"]
    check_whole(out)


def test_stream_recorder(tmp_path: Path) -> None:
    recording = make_recording(tmp_path / "a")
    with StreamRecorder(recording, 3, 100, "ppo") as stream:
        push(stream, 0, 4)
        push(stream, 1, 9)
        push(stream, 0, 3)
        stream.end(1, terminated=True, truncated=False)
        stream.end(2, terminated=True, truncated=False)  # it has played nothing
        stream.agent_name = "ppo later"
        push(stream, 1, 2)
        stream.end(1, terminated=False, truncated=True)
        assert (stream.episodes, stream.frames) == (2, 11)
        assert len(finished(tmp_path / "a")) == 2
    infos = recording.episodes()
    assert [(info.path.stem, info.frames, info.seed) for info in infos] == [("000001", 9, 101), ("000002", 2, 102)]
    assert [(info.agent, info.terminated) for info in infos] == [("ppo", True), ("ppo later", False)]
    episode = read_episode(infos[0].path)
    np.testing.assert_array_equal(episode.frames[:, 0, 0, 0], 51 + np.arange(9))
    np.testing.assert_array_equal(episode.actions[:, 2], np.arange(9) % 2)
    np.testing.assert_array_equal(episode.variables[:, 0], 100 - np.arange(9))
    # Another run takes numbers that are free, and never one that is taken; the seed is told before.
    with StreamRecorder(recording, 1, 100, "ppo") as stream:
        for seed in (100, 103, 104):
            assert stream.begin(0) == stream.begin(0) == seed
            push(stream, 0, 1)
            stream.end(0, terminated=True, truncated=False)
    assert recording.episodes()[-1].seed == 104
    assert [(info.path.stem, info.frames) for info in recording.episodes()] == [
        ("000000", 1), ("000001", 9), ("000002", 2), ("000003", 1), ("000004", 1),
    ]  # fmt: skip
