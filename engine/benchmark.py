"""Speed: frames per second of a checkpoint on this machine, and how near that is to its ceiling."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from agents.errors import OptionError
from engine.game import NeuralGame
from gamengen.checkpoints import load_checkpoint
from gamengen.devices import choose_device, describe_device
from recorder.progress import progress

WARMUP_FRAMES = 10
CEILING_SECONDS = 1.0
CEILING_SIZE = {"cpu": 2048, "cuda": 8192}  # of the square matrices
CEILING_FLOATS = 2**26  # copied


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; see ``gamengen bench --help``."""

    checkpoint: str | None = None
    steps: tuple[int, ...] = (1, 2, 4)
    frames: int = 100
    device: str = "auto"
    dtype: str = "auto"
    batch: int = 1
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"must be at least 1, got {value}", f"--{name}", "give a positive number")
        if not self.steps:
            raise OptionError("give at least one number of steps", "--steps", "for example --steps 1 2 4")


def measure_speed(options: BenchOptions) -> dict[str, Any]:
    """Measure, print a table, and return the figures by the schema of ``gamengen bench --json``.

    A frame's time is a whole :meth:`NeuralGame.step`: sampling, decoding, conversion to uint8 and the
    copy to the host. The ceiling is a matrix product in the same dtype, and a copy, in the same run.
    """
    checkpoint = load_checkpoint(options.checkpoint)
    device = choose_device(options.device)
    rows: list[dict[str, Any]] = []
    with progress("measuring", len(options.steps) + 1, "rows") as show:
        for done, steps in enumerate(options.steps):
            game = NeuralGame(checkpoint, options.device, steps, batch=options.batch, dtype=options.dtype)
            if options.threads is not None:
                torch.set_num_threads(options.threads)
            if not rows:
                ceiling = measure_ceiling(device, game.dtype)
                show(0.5, "ceiling")
            rows.append(_measure_row(game, options, ceiling["gflops"]))
            show(done + 1, f"{rows[-1]['fps']:.1f} frames/s at {steps} steps")
        show(len(options.steps) + 1, "")
    report = {
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{n: metadata.version(n) for n in ("torch", "numpy")}},
        "ceiling": ceiling,
        "rows": rows,
    }
    _print_rows(rows)
    return report


def measure_ceiling(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """This device's own best: a matrix product in GFLOP/s, and a copy in GB/s read and written."""
    size = CEILING_SIZE[device.type]
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    source = torch.randn(CEILING_FLOATS, device=device)
    target = torch.empty_like(source)
    product = _best_seconds(lambda: torch.mm(a, b), device)
    copy = _best_seconds(lambda: target.copy_(source), device)
    return {"gflops": round(2 * size**3 / product / 1e9, 1), "gbytes_per_s": round(2 * source.nbytes / copy / 1e9, 1)}


def _measure_row(game: NeuralGame, options: BenchOptions, ceiling_gflops: float) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    shape = (game.action_set.size,) if game.batch == 1 else (game.batch, game.action_set.size)
    times = []
    for frame in range(WARMUP_FRAMES + options.frames):
        action = (rng.random(shape) < 0.3).astype(np.float32)
        began = time.perf_counter()
        game.step(action)  # ends with the copy to the host, so it waits for the device
        if frame >= WARMUP_FRAMES:
            times.append(time.perf_counter() - began)
    gflop = _count_gflop(lambda: game.step(np.zeros(shape, np.float32)))
    denoise = _median_seconds(game.sample_now, game.device, min(options.frames, 50))
    decode = _median_seconds(game.decode_now, game.device, min(options.frames, 50))
    median, total = float(np.median(times)), float(np.sum(times))
    return {
        "checkpoint": game.name,
        "height": game.height,
        "width": game.width,
        "steps": game.steps,
        "dtype": game.dtype_name,
        "mode": "eager",
        "batch": game.batch,
        "fps": round(len(times) * game.batch / total, 2),
        "p50_ms": round(1e3 * median, 2),
        "p99_ms": round(1e3 * float(np.percentile(times, 99)), 2),
        "denoise_ms": round(1e3 * denoise, 2),
        "decode_ms": round(1e3 * decode, 2),
        "gflop_per_frame": round(gflop / game.batch, 2),
        "ceiling_share": round(gflop / median / ceiling_gflops, 3),
    }


def _count_gflop(work: Callable[[], Any]) -> float:
    """Multiply-adds of convolutions and matrix products, counted twice as is usual."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def _best_seconds(work: Callable[[], Any], device: torch.device) -> float:
    times: list[float] = []
    while sum(times) < CEILING_SECONDS or len(times) < 5:
        times.append(_timed(work, device))
    return min(times)


def _median_seconds(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    for _ in range(3):
        work()
    return float(np.median([_timed(work, device) for _ in range(repeats)]))


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = ("steps", "dtype", "batch", "fps", "p50_ms", "p99_ms", "denoise_ms", "decode_ms", "gflop_per_frame")
    table = Table(title="frames per second", title_justify="left")
    for name in (*shown, "ceiling_share"):
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(str(row[name]) for name in shown), f"{100 * row['ceiling_share']:.0f} %")
    Console().print(table)
