"""How fast each stage trains, and how near that is to what the device can do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from agents.errors import OptionError
from gamengen.autoencoder import FACTOR, Autoencoder, normalise
from gamengen.denoiser import Denoiser
from gamengen.device_limits import count_work, measure_ceiling
from gamengen.devices import choose_device, describe_device, has_bf16, place
from gamengen.latents import LatentEpisodes
from gamengen.presets import find_preset
from gamengen.train_autoencoder import AutoencoderTask, FramePool
from gamengen.train_denoiser import DenoiserTask
from gamengen.train_student import StudentTask
from gamengen.training import Task, Trainer, TrainOptions, autocast
from gamengen.work_folder import BATCH, CUDA_BATCH_FACTOR
from recorder.progress import progress

POOL_FRAMES, EPISODES, EPISODE_FRAMES = 256, 8, 256  # made up: their content does not matter to speed
WARMUP_STEPS = 3


def measure_training(
    preset: str = "nano", steps: int = 20, device: str = "auto", height: int = 240, width: int = 320, actions: int = 3,
    threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train each stage for some steps on made-up data, with as many CPU ``threads``; None takes one a core.

    Returns:
        ``device``, ``ceiling`` and ``rows`` of ``stage``, ``batch``, ``samples_per_s``, ``step_ms``, of it
        ``data_ms`` (drawing a batch) and ``optimizer_ms``; ``gflop_per_step`` with the optimizer's products, and
        ``ceiling_share``.

    Raises:
        OptionError: there are no steps or threads, or no such preset.
    """
    if steps < 1:
        raise OptionError(f"must be at least 1, got {steps}", "--frames", "give a positive number")
    if threads is not None:
        if threads < 1:
            raise OptionError(f"must be at least 1, got {threads}", "--threads", "give a positive number")
        torch.set_num_threads(threads)
    chosen = choose_device(device)
    dtype = torch.bfloat16 if has_bf16(chosen) else torch.float32
    ceiling = measure_ceiling(chosen, dtype)
    makers = _makers(preset, chosen, height, width, actions)
    rows = []
    with progress("measuring training", len(makers), "stages") as show, TemporaryDirectory() as folder:
        for name, make in makers.items():
            rows.append(_measure(name, make(), steps, ceiling["gflops"], Path(folder) / name))
            show(len(rows), f"{name}: {rows[-1]['samples_per_s']:.1f} samples/s")
    _print_rows(rows)
    return {"device": describe_device(chosen), "threads": torch.get_num_threads(), "ceiling": ceiling, "rows": rows}


def _makers(
    preset: str, device: torch.device, height: int, width: int, actions: int
) -> dict[str, Callable[[], tuple[Task, int]]]:
    sizes = find_preset(preset)
    config = replace(sizes.denoiser, actions=actions)
    factor = CUDA_BATCH_FACTOR if device.type == "cuda" else 1
    rng = np.random.default_rng(0)

    def latents() -> LatentEpisodes:
        shape = (EPISODES * EPISODE_FRAMES, config.channels, height // FACTOR, width // FACTOR)
        made = normalise(torch.randn(shape, generator=torch.Generator().manual_seed(0))).half()
        held = torch.from_numpy(rng.integers(0, 2, (len(made), actions)).astype(np.float32))
        return LatentEpisodes(made, held, (EPISODE_FRAMES,) * EPISODES)

    def autoencoder() -> tuple[Task, int]:
        frames = rng.integers(0, 256, (POOL_FRAMES, height, width, 3), np.uint8)
        model = place(Autoencoder(sizes.autoencoder), device)
        batch = BATCH["autoencoder"] * factor
        return AutoencoderTask(model, FramePool(frames, frames), 0, batch), batch

    def denoiser() -> tuple[Task, int]:
        model, batch = place(Denoiser(config), device), BATCH["denoiser"] * factor
        return DenoiserTask(model, place(Autoencoder(sizes.autoencoder), device), latents(), latents(), 0, batch), batch

    def student() -> tuple[Task, int]:
        model, teacher = (place(Denoiser(config), device) for _ in range(2))
        batch = BATCH["student"] * factor
        coder = place(Autoencoder(sizes.autoencoder), device)
        return StudentTask(model, teacher, coder, latents(), latents(), 0, batch), batch

    return {"autoencoder": autoencoder, "denoiser": denoiser, "student": student}


def _measure(name: str, made: tuple[Task, int], steps: int, ceiling_gflops: float, folder: Path) -> dict[str, Any]:
    task, batch = made
    trainer = Trainer(task, TrainOptions(steps=10 * steps), folder)
    device = trainer.device

    def wait() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def step(number: int) -> tuple[float, float]:
        began = wait()
        with autocast(device):
            loss = task.loss(number, 0.0)
        trainer.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        computed = wait()
        trainer.optimizer.step()
        return computed - began, wait() - computed

    task.model.train()
    for number in range(WARMUP_STEPS):
        step(number)
    times = np.array([step(number) for number in range(WARMUP_STEPS, WARMUP_STEPS + steps)])
    drawing = []
    for number in range(steps):
        began = wait()
        task.draw(number)
        drawing.append(wait() - began)
    work = count_work(lambda: step(0))
    seconds = float(np.median(times.sum(1)))
    return {
        "stage": name,
        "batch": batch,
        "samples_per_s": round(batch / seconds, 2),
        "step_ms": round(1e3 * seconds, 2),
        "data_ms": round(1e3 * float(np.median(drawing)), 2),
        "optimizer_ms": round(1e3 * float(np.median(times[:, 1])), 2),
        "gflop_per_step": round(work.gflop, 2),
        "ceiling_share": round(work.gflop / seconds / ceiling_gflops, 3),
    }


def _print_rows(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="training", title_justify="left")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{100 * v:.0f} %" if name == "ceiling_share" else str(v) for name, v in row.items()))
    Console().print(table)
