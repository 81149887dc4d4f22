"""The paper's ablations at our scale: ``python docs/paper_tables.py --work WORK --data RECORDING --out FOLDER``.

One small denoiser is trained for each row, from scratch and for as many steps, on the latents of a finished
``gamengen create`` (its work folder), and evaluated on held-out episodes: by context length, without context noise,
and on agent against random data. Run again, it goes on. Writes ``tables.md`` and ``tables.json``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from gamengen.autoencoder_stages import load_autoencoder
from gamengen.checkpoints import Checkpoint, CheckpointConfig, Spawns
from gamengen.denoiser import Denoiser
from gamengen.devices import choose_device, place
from gamengen.diffusion import CONTEXT_NOISE_MAX, SamplerConfig
from gamengen.evaluation.evaluate import evaluate_checkpoint
from gamengen.evaluation.options import QUICK, EvaluateOptions
from gamengen.latents import LatentEpisodes
from gamengen.presets import find_preset
from gamengen.stages import encode_alone
from gamengen.train_denoiser import DenoiserTask
from gamengen.training import Trainer, TrainOptions, load_finished
from gamengen.work_folder import Stage
from recorder.recording import Recording, split_held_out, write_json

CONTEXTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Row:
    """One training: what differs from the others."""

    name: str
    context: int = 8
    context_noise: float = CONTEXT_NOISE_MAX
    agent: str | None = None
    """Only episodes of this agent, and no more frames than the other agent has."""


ROWS = (
    *(Row(f"context {context}", context) for context in CONTEXTS),
    Row("no context noise", context_noise=0.0),
    Row("data of the scripted agent", agent="scripted"),
    Row("data of the random agent", agent="random"),
)


@dataclass(frozen=True)
class Options:
    """What the tables are made from."""

    work: Path
    """Work folder of a finished gamengen create: its autoencoder and latents are used."""
    data: Path
    """The recording that it was made from."""
    out: Path
    steps: int = 2000
    """Training steps of each row, of 32 windows, on a GPU of 256."""
    preset: str = "nano"
    widths: tuple[int, int] = (64, 112)
    """Of the denoiser: half the preset's, at a quarter of the cost."""
    rows: tuple[str, ...] = tuple(row.name for row in ROWS)
    windows: int = 256
    rollouts: int = 16
    lpips_weights: Path | None = None
    """Converted by gamengen lpips; without them that column stays empty."""
    device: str = "auto"
    seed: int = 0


def main() -> None:
    """Train and evaluate every row, then write the tables."""
    options = tyro.cli(Options)
    recording = Recording.open(options.data)
    stage = Stage(recording, options.work, options.preset, choose_device(options.device), None, options.seed)
    autoencoder = load_autoencoder(stage)
    latents = encode_alone(stage, autoencoder)  # of a work folder whose own denoiser may be told and see more
    results: dict[str, Any] = {}
    for row in ROWS:
        if row.name in options.rows:
            results[row.name] = measure(row, options, stage, autoencoder, latents)
            about = {"steps": options.steps, "widths": options.widths, "windows": options.windows}
            write_json(options.out / "tables.json", {**about, "rollouts": options.rollouts, "rows": results})
            (options.out / "tables.md").write_text(table(results, recording.header.fps))


def measure(row: Row, options: Options, stage: Stage, autoencoder: Any, latents: Any) -> dict[str, Any]:
    """Train the denoiser of ``row`` and return its metrics."""
    torch.manual_seed(options.seed + 1)
    header, folder = stage.recording.header, options.out / row.name.replace(" ", "_")
    preset = find_preset(options.preset).denoiser
    config = replace(preset, context=row.context, actions=header.action_set.size, widths=options.widths)
    model = place(Denoiser(config), stage.device)
    training = TrainOptions(steps=options.steps, adam_lr=5e-4, seed=options.seed, evaluate_seconds=1e6)
    if not load_finished(model, folder, training):
        train = latents[0] if row.agent is None else only(latents[0], stage.recording, row.agent)
        batch = stage.batch("denoiser")
        task = DenoiserTask(model, autoencoder, train, latents[1], options.seed, batch, row.context_noise)
        Trainer(task, training, folder).run()
    infos = stage.recording.episodes()
    data = {"seeds": [infos[0].seed, infos[-1].seed], "seed": infos[0].seed - int(infos[0].path.stem)}
    nothing = Spawns(torch.empty(0), torch.empty(0))
    checkpoint = Checkpoint(
        CheckpointConfig(
            row.name, header.spec, options.preset, header.action_set, header.height, header.width, header.frame_skip,
            header.fps, autoencoder.config, config, SamplerConfig(), data,
        ),
        autoencoder, model.eval(), nothing, {},
    )  # fmt: skip
    scope = EvaluateOptions(options.windows, options.rollouts, 64, QUICK, options.seed, options.lpips_weights)
    return evaluate_checkpoint(checkpoint, stage.recording, folder / "evaluation", scope, str(stage.device))


def only(episodes: LatentEpisodes, recording: Recording, agent: str) -> LatentEpisodes:
    """The episodes that ``agent`` played, cut to as many frames as the agent with the fewest has."""
    by_path = {info.path: info.agent for info in recording.episodes()}
    agents = [by_path[path] for path in split_held_out(list(by_path))[0]]
    parts = {name: [n for n, player in enumerate(agents) if player == name] for name in set(agents)}
    most = min(sum(episodes.lengths[n] for n in chosen) for chosen in parts.values())
    first = np.cumsum([0, *episodes.lengths])
    index, lengths = [], []
    for n in parts[agent]:
        length = min(episodes.lengths[n], most - sum(lengths))
        if length > 0:
            index.append(np.arange(first[n], first[n] + length))
            lengths.append(length)
    chosen = torch.from_numpy(np.concatenate(index))
    return LatentEpisodes(episodes.latents[chosen], episodes.actions[chosen], tuple(lengths))


def table(results: dict[str, Any], fps: float) -> str:
    """The rows as Markdown; ``sharp`` is the sharpness after 3 s as a share of the real game's."""
    after = round(3 * fps) - 1
    columns = (
        "row",
        "PSNR, 1 step",
        "PSNR, 4 steps",
        "LPIPS",
        "PSNR of the mean error",
        "frame 1",
        "after 3 s",
        "sharp",
    )
    lines = [f"| {' | '.join(columns)} |", "| --- " * len(columns) + "|"]
    for name, metrics in results.items():
        one, four, drift = metrics["teacher_forced"]["1"], metrics["teacher_forced"]["4"], metrics["drift"]["psnr"]
        late = drift[after] if len(drift) > after and drift[after] is not None else float("nan")
        lpips = "-" if four["lpips"] is None else f"{four['lpips']:.3f}"
        sharp = metrics["drift"]["sharpness"][after] / metrics["drift"]["real_sharpness"][after]
        lines.append(
            f"| {name} | {one['psnr']:.2f} ± {one['ci95'] or 0:.2f} | {four['psnr']:.2f} ± {four['ci95'] or 0:.2f} | "
            f"{lpips} | {four['pooled_psnr']:.2f} | {drift[0]:.2f} | {late:.2f} | {sharp:.2f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
