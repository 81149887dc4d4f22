"""``gamengen bench``: that it counts rightly, and measures what it says. How fast anything is, no test asks."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pygame
import pytest
import torch
from torch import nn

import engine.benchmark
import engine.endurance
import engine.game
import engine.latency
import gamengen.device_limits
import gamengen.train_speed
from agents.actions import ActionSet
from agents.errors import OptionError
from engine.benchmark import SHOWN, BenchOptions, measure_speed, write_markdown
from engine.endurance import compare_speed, soak
from engine.frame_maker import FrameMaker
from engine.game import NeuralGame
from engine.latency import measure_latency
from gamengen.bench_command import Bench
from gamengen.checkpoints import Checkpoint, save_checkpoint
from gamengen.device_limits import count_work, measure_ceiling
from gamengen.train_speed import measure_training
from gamengen.work_folder import BATCH

MakeUp = Callable[..., Checkpoint]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gamengen.device_limits, "CEILING_SECONDS", 0.0)
    monkeypatch.setattr(gamengen.device_limits, "CEILING_SIZE", {"cpu": 256})
    monkeypatch.setattr(gamengen.device_limits, "CEILING_FLOATS", 2**20)
    for module in (engine.benchmark, engine.endurance):
        monkeypatch.setattr(module, "WARMUP_FRAMES", 1)


@pytest.fixture
def folder(made_up: MakeUp, tmp_path: Path) -> Path:
    save_checkpoint(made_up(), tmp_path / "game", "")
    return tmp_path / "game"


def test_work_is_counted() -> None:
    conv, x = nn.Conv2d(3, 5, 3, padding=1, bias=False), torch.zeros(2, 3, 4, 6)
    with torch.inference_mode():
        work = count_work(lambda: conv(x).transpose(2, 3).add_(1))
    assert work.gflop == pytest.approx(2 * 2 * 5 * 3 * 9 * 24 / 1e9)
    assert work.operations == 2, "a transpose is a view"
    floats = (2 * 3 * 24 + 5 * 3 * 9 + 2 * 5 * 24) + 2 * (2 * 5 * 24)
    assert work.gbytes == pytest.approx(4 * floats / 1e9)


def test_the_ceiling_is_a_rate() -> None:
    assert all(value > 0 for value in measure_ceiling(torch.device("cpu"), torch.float32).values())


def test_rows_are_all_combinations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = BenchOptions(str(folder), (1, 2), 4, "cpu", ("float32",), ("eager",), (1, 3), 1)
    threads = torch.get_num_threads()
    report = measure_speed(options)
    torch.set_num_threads(threads)
    assert set(report) == {"device", "threads", "versions", "ceiling", "ceilings", "rows"}
    assert list(report["ceilings"]) == list(dict.fromkeys(row["dtype"] for row in report["rows"]))
    assert {"python", "torch", "numpy"} <= set(report["versions"])
    assert [(row["batch"], row["steps"]) for row in report["rows"]] == [(1, 1), (1, 2), (3, 1), (3, 2)]
    for row in report["rows"]:
        assert set(row) == {
            "checkpoint", "height", "width", "steps", "dtype", "mode", "batch", "fps", "ci95_fps", "p50_ms", "p99_ms",
            "denoise_ms", "decode_ms", "copy_ms", "gflop_per_frame", "ceiling_share", "bound", "bound_ms", "operations",
            "gbytes_moved", "peak_mb",
        }  # fmt: skip
        assert (row["checkpoint"], row["height"], row["width"]) == ("made-up", 48, 80)
        assert (row["dtype"], row["mode"]) == ("float32", "eager")
        assert row["bound"] in ("compute", "memory")
        for name in ("fps", "p50_ms", "p99_ms", "denoise_ms", "decode_ms", "operations", "gbytes_moved", "peak_mb"):
            assert row[name] > 0, name
    one, two, three, _ = report["rows"]
    assert two["operations"] > one["operations"]
    assert three["operations"] == one["operations"], "a batch takes no more kernels"
    assert "frames per second" in capsys.readouterr().out


def test_a_frame_of_more_steps_reads_more_weights(made_up: MakeUp) -> None:
    one, three = (NeuralGame(made_up(), "cpu", steps, dtype="float32") for steps in (1, 3))
    again = sum(parameter.nbytes for parameter in made_up().denoiser.noise_net.parameters())
    assert three.weight_bytes - one.weight_bytes == 2 * again > 0


def test_the_table_as_markdown(tmp_path: Path) -> None:
    row = {**dict.fromkeys(SHOWN, 1.5), "ceiling_share": 0.5, "ci95_fps": None}
    ceilings = {
        "bfloat16": {"gflops": 400.0, "gbytes_per_s": 30.0}, "float32": {"gflops": 100.0, "gbytes_per_s": 20.0},
    }  # fmt: skip
    report = {"device": "a machine", "versions": {"torch": "3"}, "ceilings": ceilings, "rows": [row]}
    write_markdown(tmp_path / "new" / "bench.md", report)
    text = (tmp_path / "new" / "bench.md").read_text()
    assert "Ceiling: bfloat16 400 GFLOP/s, 30 GB/s; float32 100 GFLOP/s, 20 GB/s." in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 3
    assert "50 %" in lines[-1] and " - " in lines[-1]


def test_where_nothing_can_be_compiled_it_says_so(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (None, "no-such-compiler"))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    with pytest.raises(OptionError, match="torch.compile does not work here .* ; --mode compiled ; use --mode eager"):
        NeuralGame(made_up(), "cpu", 1, mode="compiled").step([1, 0])


def test_compiled_frames_are_the_same(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as torch.compile traces, but not handed to a compiler, which takes a minute."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager", fullgraph=True))
    frames = [
        np.stack([game.step([1, 0]) for _ in range(2)]).astype(int)
        for game in (NeuralGame(made_up(), "cpu", 2, dtype="float32", mode=mode) for mode in ("eager", "compiled"))
    ]
    assert np.abs(frames[0] - frames[1]).max() <= 1


def test_modes_that_cannot_be(made_up: MakeUp) -> None:
    with pytest.raises(OptionError, match="needs a CUDA device"):
        NeuralGame(made_up(), "cpu", mode="graph")
    with pytest.raises(OptionError, match="unknown mode"):
        FrameMaker(made_up().autoencoder, made_up().denoiser, None, "fast")
    with pytest.raises(OptionError, match="ten times slower"):
        NeuralGame(made_up(), "cpu", dtype="float16")


def test_measuring_does_not_play_on(made_up: MakeUp) -> None:
    games = [NeuralGame(made_up(), "cpu", 1, dtype="float32") for _ in range(2)]
    games[0].make_now(games[0].draw_noise())
    for measure in (games[0].copy_now, games[0].sample_now, games[0].decode_now):
        measure()
    assert np.array_equal(games[0].step([1, 0]), games[1].step([1, 0]))


@pytest.mark.parametrize("uncapped", [False, True])
def test_latency_through_the_window(made_up: MakeUp, uncapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.latency, "PAUSE_SECONDS", (0.0, 0.05))
    game = NeuralGame(made_up(), "cpu", 1, dtype="float32")
    found = measure_latency(game, 4, uncapped)
    assert found["presses"] == 4
    assert 0 < found["latency_p50_ms"] <= found["latency_p99_ms"] <= found["latency_max_ms"]
    assert found["video_driver"] == "dummy"
    assert found["clock_hz"] == (None if uncapped else 30.0)


def test_latency_is_of_a_key_that_changes_something(made_up: MakeUp) -> None:
    """Where one button is always held, its own key changes nothing while no other is."""
    pygame.init()
    game = NeuralGame(made_up(action_set=ActionSet(("ACTION_0", "ACTION_1"), exclusive=True)), "cpu", 1)
    key, channel = engine.latency._a_key(game)
    assert (pygame.key.name(key), game.action_set.names[channel]) == ("1", "ACTION_1")


def test_latency_counts_from_the_event_to_the_frame(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A game that takes a fifth of a second for a frame cannot show a key sooner."""
    import time

    monkeypatch.setattr(engine.latency, "PAUSE_SECONDS", (0.0, 0.05))
    monkeypatch.setattr(engine.latency, "HELD_SECONDS", 0.5)
    game = NeuralGame(made_up(), "cpu", 1, dtype="float32")
    step = game.step

    def slow(action: Any) -> np.ndarray:
        time.sleep(0.2)
        return step(action)

    monkeypatch.setattr(game, "step", slow)
    assert measure_latency(game, 2, uncapped=True)["latency_p50_ms"] >= 200


def test_soak(made_up: MakeUp) -> None:
    found = soak(NeuralGame(made_up(), "cpu", 1, dtype="float32"), 0.01)
    assert [row["minute"] for row in found["windows"]] == pytest.approx([0.001 * n for n in range(1, 11)], abs=0.006)
    assert all(row["fps"] > 0 and row["memory_mb"] > 0 for row in found["windows"])
    assert {"fps_change", "memory_change_mb"} <= set(found)


def test_a_row_by_hand(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the frames take 0.1 s, half 0.3 s, and each step 6 GFLOP of a device that does 50 a second."""
    monkeypatch.setattr(engine.benchmark, "play_random", lambda game, n, rng: [0.1] * (n // 2) + [0.3] * (n - n // 2))
    monkeypatch.setattr(engine.benchmark, "median_seconds", lambda *_: 0.002)
    monkeypatch.setattr(engine.benchmark, "count_work", lambda *_: gamengen.device_limits.Work(6.0, 10, 0.5))
    for batch in (1, 3):
        game = NeuralGame(made_up(), "cpu", 1, batch=batch, dtype="float32")
        row = engine.benchmark._measure_row(game, 20, {"gflops": 50.0, "gbytes_per_s": 1e9})
        assert (row["fps"], row["p50_ms"], row["p99_ms"], row["denoise_ms"]) == (5 * batch, 200, 300, 2)
        assert (row["gflop_per_frame"], row["bound"], row["bound_ms"]) == (6 / batch, "compute", 120)
        assert row["ceiling_share"] == 0.6
        assert row["ci95_fps"] == pytest.approx(2.262 * 10 / 9 * batch, abs=0.01), "ten blocks, of 10 and 3.33 a second"


def test_as_many_threads_as_asked_for(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(engine.game, "_cores", lambda: 16)
    try:
        for asked, expected in ((3, 3), (None, 8)):
            options = BenchOptions(device="cpu", threads=asked)
            engine.benchmark.start_game(made_up(), options, "float32", "eager", 1, 1)
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_soak_tells_changes_from_the_second_window_on(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def held() -> float:
        done.append(0)
        return 100.0 + 10 * len(done)

    monkeypatch.setattr(engine.endurance, "play_random", lambda game, n, rng: [0.1 * (1 + len(done))] * n)
    monkeypatch.setattr(engine.endurance, "held_mb", held)
    found = soak(NeuralGame(made_up(), "cpu", 1, dtype="float32"), 1e-4)
    assert (found["fps_change"], found["memory_change_mb"]) == (-0.8, 80)


def test_soak_counts_the_frames_of_all_games(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine.endurance, "play_random", lambda game, frames, rng: [0.1] * frames)
    for batch in (1, 3):
        game = NeuralGame(made_up(), "cpu", 1, dtype="float32", batch=batch)
        assert {row["fps"] for row in soak(game, 1e-4)["windows"]} == {10.0 * batch}


def test_the_peak_of_memory_is_counted_anew(made_up: MakeUp) -> None:
    device = torch.device("cpu")
    torch.ones(2**27).sum()  # half a GiB, as the ceiling's
    before = engine.benchmark.peak_mb(device)
    engine.benchmark.forget_peak(device)
    after = engine.benchmark.peak_mb(device)
    assert before is not None and after is not None
    assert after < before - 200


def test_where_no_memory_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    assert engine.benchmark.peak_mb(torch.device("cpu")) is None


def test_two_games_in_turn(made_up: MakeUp, monkeypatch: pytest.MonkeyPatch) -> None:
    """Played by a clock that says that the other game takes twice as long."""
    one, other = (NeuralGame(made_up(), "cpu", 1, dtype="float32") for _ in range(2))
    turns: list[NeuralGame] = []

    def play(game: NeuralGame, frames: int, rng: Any) -> list[float]:
        turns.append(game)
        return [0.01 if game is one else 0.02] * frames

    monkeypatch.setattr(engine.endurance, "play_random", play)
    found = compare_speed(one, other, 40)
    assert (found["fps"], found["other_fps"], found["ratio"], found["pairs"]) == (100, 50, 2, 4)
    assert turns[2:] == [one, other] * 4


def test_training_speed() -> None:
    report = measure_training("tiny", 2, "cpu", 64, 96)
    assert [row["stage"] for row in report["rows"]] == ["autoencoder", "denoiser", "student"]
    for row in report["rows"]:
        assert row["samples_per_s"] > 0 and row["gflop_per_step"] > 0
        assert row["data_ms"] > 0 and 0 < row["optimizer_ms"] < row["step_ms"]
    _, denoiser, student = report["rows"]
    of_a_sample = [row["gflop_per_step"] / BATCH[row["stage"]] for row in (denoiser, student)]
    assert of_a_sample[1] > of_a_sample[0], "a teacher walks ahead"


def test_the_command(folder: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "checkpoint": str(folder), "steps": (1,), "frames": 2, "device": "cpu", "dtype": ("float32",)
    }  # fmt: skip
    report = Bench(**common, markdown=tmp_path / "bench.md").run()
    assert json.loads(json.dumps(report)) == report
    assert (tmp_path / "bench.md").is_file()
    assert Bench(**common, soak=0.001).run()["checkpoint"] == "made-up"
    compared = Bench(**common, compare=str(folder), compare_steps=2).run()
    assert (compared["steps"], compared["other_steps"], compared["other"]) == (1, 2, "made-up")
