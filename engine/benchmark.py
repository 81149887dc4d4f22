"""Speed: frames per second of a checkpoint on this machine, and how near that is to what the machine can do."""

from __future__ import annotations

import contextlib
import itertools
import platform
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.errors import OptionError
from engine.game import NeuralGame
from engine.packing import flop_formulas
from gamengen.checkpoints import Checkpoint, load_checkpoint
from gamengen.device_limits import count_work, measure_ceiling, median_seconds
from gamengen.devices import choose_device, describe_device
from gamengen.evaluation.intervals import ci95
from recorder.progress import progress

WARMUP_FRAMES = 10
BLOCKS = 10  # into which the frames are split for the interval
SHOWN = (
    "steps", "dtype", "mode", "batch", "fps", "ci95_fps", "p50_ms", "p99_ms", "denoise_ms", "decode_ms", "copy_ms",
    "gflop_per_frame", "bound_ms", "ceiling_share", "peak_mb",
)  # fmt: skip

ON_SCREEN = ("steps", "dtype", "mode", "batch", "fps", "p50_ms", "p99_ms", "denoise_ms", "decode_ms", "ceiling_share")


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; see ``gamengen bench --help``."""

    checkpoint: str | None = None
    steps: tuple[int, ...] = (1, 2, 4)
    frames: int = 100
    device: str = "auto"
    dtype: tuple[str, ...] = ("auto",)
    mode: tuple[str, ...] = ("auto",)
    batch: tuple[int, ...] = (1,)
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("frames", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"must be at least 1, got {value}", f"--{name}", "give a positive number")
        for name in ("steps", "dtype", "mode", "batch"):
            if not getattr(self, name):
                raise OptionError("give at least one", f"--{name}", f"for example gamengen bench --{name} ...")
        if min(self.batch) < 1:
            raise OptionError(f"must be at least 1, got {min(self.batch)}", "--batch", "give positive numbers")


def measure_speed(options: BenchOptions) -> dict[str, Any]:
    """Measure, print a table, and return the figures by the schema of ``gamengen bench --json``.

    A frame's time is a whole :meth:`NeuralGame.step`: sampling, decoding, conversion to uint8, what the step came
    to, and the copy to the host. The ceiling is a matrix product in the same dtype, and a copy, in the same run.
    ``fps`` counts the frames of all games of a batch, ``p50_ms`` and ``p99_ms`` are of one step of all of them.
    """
    checkpoint = load_checkpoint(options.checkpoint)
    device = choose_device(options.device)
    combinations = list(itertools.product(options.dtype, options.mode, options.batch, options.steps))
    rows: list[dict[str, Any]] = []
    ceilings: dict[torch.dtype, dict[str, float]] = {}
    with progress("measuring", len(combinations), "rows") as show:
        for done, (dtype, mode, batch, steps) in enumerate(combinations):
            game = start_game(checkpoint, options, dtype, mode, batch, steps)
            if game.dtype not in ceilings:
                ceilings[game.dtype] = measure_ceiling(device, game.dtype)
            rows.append(_measure_row(game, options.frames, ceilings[game.dtype]))
            show(done + 1, f"{rows[-1]['fps']:.1f} frames/s at {steps} steps")
    report = {
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "ceiling": next(iter(ceilings.values())),
        "ceilings": {str(dtype).removeprefix("torch."): ceiling for dtype, ceiling in ceilings.items()},
        "rows": rows,
    }
    _print_rows(rows)
    return report


def start_game(
    checkpoint: Checkpoint, options: BenchOptions, dtype: str, mode: str, batch: int, steps: int
) -> NeuralGame:
    """A game to be measured, with as many threads as asked for."""
    game = NeuralGame(checkpoint, options.device, steps, batch=batch, dtype=dtype, mode=mode)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return game


def versions() -> dict[str, str]:
    """What the figures depend on beside the device."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in ("torch", "numpy")}}


def play_random(game: NeuralGame, frames: int, rng: np.random.Generator) -> list[float]:
    """Seconds that each of ``frames`` steps took, under random keys."""
    shape = (game.action_set.size,) if game.batch == 1 else (game.batch, game.action_set.size)
    times = []
    for _ in range(frames):
        action = (rng.random(shape) < 0.3).astype(np.float32)
        began = time.perf_counter()
        game.step(action)  # ends with the copy to the host, so it waits for the device
        times.append(time.perf_counter() - began)
    return times


def _measure_row(game: NeuralGame, frames: int, ceiling: dict[str, float]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    forget_peak(game.device)  # that of the ceiling's matrices, or of the row before
    play_random(game, WARMUP_FRAMES, rng)
    times = np.array(play_random(game, frames, rng))
    repeats = min(frames, 50)
    denoise = median_seconds(game.sample_now, game.device, repeats)
    decode = median_seconds(game.decode_now, game.device, repeats)
    copy = median_seconds(game.copy_now, game.device, repeats)
    noise = game.draw_noise()
    work = count_work(lambda: game.make_now(noise), flop_formulas())
    median, peak = float(np.median(times)), peak_mb(game.device)
    bounds = {"compute": work.gflop / ceiling["gflops"], "memory": game.weight_bytes / 1e9 / ceiling["gbytes_per_s"]}
    bound = max(bounds, key=lambda name: bounds[name])
    blocks = np.array_split(times, min(BLOCKS, len(times)))
    spread = ci95([game.batch / block.mean() for block in blocks], range(len(blocks)))
    return {
        "checkpoint": game.name,
        "height": game.height,
        "width": game.width,
        "steps": game.steps,
        "dtype": game.dtype_name,
        "mode": game.mode,
        "batch": game.batch,
        "fps": round(len(times) * game.batch / float(times.sum()), 2),
        "ci95_fps": None if spread is None else round(spread, 2),
        "p50_ms": round(1e3 * median, 2),
        "p99_ms": round(1e3 * float(np.percentile(times, 99)), 2),
        "denoise_ms": round(1e3 * denoise, 2),
        "decode_ms": round(1e3 * decode, 2),
        "copy_ms": round(1e3 * copy, 3),
        "gflop_per_frame": round(work.gflop / game.batch, 2),
        "ceiling_share": round(work.gflop / median / ceiling["gflops"], 3),
        "bound": bound,
        "bound_ms": round(1e3 * bounds[bound], 2),
        "operations": work.operations,
        "gbytes_moved": round(work.gbytes, 4),
        "peak_mb": None if peak is None else round(peak),
    }


def forget_peak(device: torch.device) -> None:
    """Let :func:`peak_mb` count from now on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux


def peak_mb(device: torch.device) -> float | None:
    """The most MiB that were held since :func:`forget_peak`: on a GPU by torch, else by this process.

    None where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ModuleNotFoundError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def write_markdown(path: Path, report: dict[str, Any]) -> None:
    """The rows as a Markdown table, with the device and what was compared with."""
    ceilings = "; ".join(
        f"{dtype} {ceiling['gflops']:g} GFLOP/s, {ceiling['gbytes_per_s']:g} GB/s"
        for dtype, ceiling in report["ceilings"].items()
    )
    about = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"{report['device']}; {about}. Ceiling: {ceilings}.",
        "",
        f"| {' | '.join(name.replace('_', ' ') for name in SHOWN)} |",
        "| --- " * len(SHOWN) + "|",
        *(f"| {' | '.join(_cell(row, name) for name in SHOWN)} |" for row in report["rows"]),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    return "-" if value is None else f"{100 * value:.0f} %" if name == "ceiling_share" else str(value)


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="frames per second", title_justify="left")
    for name in ON_SCREEN:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(_cell(row, name) for name in ON_SCREEN))
    Console().print(table)
