"""Fidelity: how near a checkpoint's frames are to the real game's, on episodes it never saw."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agents.errors import DataError, OptionError
from gamengen.checkpoints import Checkpoint
from gamengen.devices import choose_device, place
from gamengen.diffusion import SamplerConfig, check_seed, sample_next
from gamengen.train_autoencoder import encode_frames, frame_psnr
from gamengen.training import autocast, step_generator
from recorder.episodes import EpisodeInfo, read_episode
from recorder.pictures import contact_sheet, save_png
from recorder.progress import progress
from recorder.record import RecordOptions, record_episodes
from recorder.recording import HELD_OUT_EVERY, Recording, write_json

STEPS = (1, 2, 4)
SHEET_COLUMNS = 6
UNSEEN_SEED = 1_000_000_000


@dataclass(frozen=True)
class EvaluateOptions:
    """How much to evaluate.

    Args:
        windows: teacher-forced predictions, spread evenly over the held-out episodes.
        rollouts: free plays under recorded actions.
        rollout_frames: frames of each.
        seed: of the sampling noise.
    """

    windows: int = 256
    rollouts: int = 16
    rollout_frames: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("windows", "rollouts", "rollout_frames"):
            if getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"must be at least 1, got {getattr(self, name)}", flag, "give a positive number")
        check_seed(self.seed)


def evaluate_checkpoint(
    checkpoint: Checkpoint,
    recording: Recording,
    out: Path | None = None,
    options: EvaluateOptions | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Measure a checkpoint on a recording's held-out episodes.

    ``psnr`` is the mean over frames of each frame's own, against the real frame, at most 60 dB a frame. Still
    frames weigh much in it: copying them is perfect. ``pooled_psnr`` is that of the mean squared error.

    Args:
        checkpoint: what to evaluate.
        recording: of the same game; where the checkpoint was trained on its seeds, only the episodes
            that were held out are used.
        out: a folder for ``metrics.json`` and contact sheets.
        options: how much to evaluate.
        device: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        The figures, by the schema of ``metrics.json``; null is what was not measured.

    Raises:
        DataError: the recording is of another game, size or ActionSet, or too short.
    """
    options = options or EvaluateOptions()
    _check_fit(checkpoint, recording)
    if out is not None:
        _prepare(out)
    episodes = unseen_episodes(checkpoint, recording)
    measure = _Measurement(checkpoint, choose_device(device), options)
    with progress("evaluating", options.windows + options.rollouts, "windows") as show:
        starts = _spread(episodes, options.windows, checkpoint.config.denoiser.context + 1)
        teacher, teacher_sheet = measure.teacher_forced(starts, show)
        length = checkpoint.config.denoiser.context + options.rollout_frames
        drift, drift_sheet = measure.drift(_spread(episodes, options.rollouts, length), show)
    metrics = {
        "checkpoint": checkpoint.config.name,
        "spec": checkpoint.config.spec,
        "episodes": len(episodes),
        "frames": options.windows,
        **teacher,
        "drift": drift,
        "action_f1": None,
    }
    if out is not None:
        _write_metrics(out / "metrics.json", metrics)
        save_png(out / "teacher_forced.png", teacher_sheet)
        save_png(out / "rollout.png", drift_sheet)
    return metrics


def unseen_episodes(checkpoint: Checkpoint, recording: Recording) -> list[EpisodeInfo]:
    """Episodes whose seeds the checkpoint was never trained on.

    Raises:
        DataError: there are none.
    """
    infos = recording.episodes()
    data = checkpoint.config.data
    first, last = data.get("seeds", (0, -1))
    base = data.get("seed", first)  # the seed of episode 0, and of every tenth after it, was held out
    unseen = [info for info in infos if not first <= info.seed <= last or (info.seed - base) % HELD_OUT_EVERY == 0]
    if not unseen:
        remedy = "record with another --seed, or evaluate with --record"
        raise DataError("the checkpoint was trained on all of these episodes", recording.folder, remedy)
    return unseen


def record_for(checkpoint: Checkpoint, frames: int, folder: Path) -> Recording:
    """Record ``frames`` frames of the checkpoint's game with seeds far from any that it was trained on."""
    config = checkpoint.config
    record_episodes(
        RecordOptions(
            config.spec, folder, frames, seed=UNSEEN_SEED, frame_skip=config.frame_skip, height=config.height,
            width=config.width,
        )
    )  # fmt: skip
    return Recording.open(folder)


class _Measurement:
    """The networks on their device, and what is computed with them."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, options: EvaluateOptions) -> None:
        self._autoencoder = place(checkpoint.autoencoder, device)
        self._denoiser = place(checkpoint.denoiser, device)
        self._sampler, self._device = checkpoint.config.sampler, device
        self._context, self._options = checkpoint.config.denoiser.context, options
        self._generator = step_generator(options.seed, 0)

    @torch.inference_mode()
    def teacher_forced(self, starts: list[tuple[EpisodeInfo, int]], show: Any) -> tuple[dict[str, Any], np.ndarray]:
        """Autoencoder ceiling, copy-last and predictions at each number of steps, from real context."""
        names = ["autoencoder", "copy_last", *map(str, STEPS)]
        values: dict[str, list[float]] = {name: [] for name in names}
        owners: list[Path] = []
        columns: list[list[np.ndarray]] = []
        keep = {round(i) for i in np.linspace(0, len(starts) - 1, SHEET_COLUMNS)}
        for done, (info, start) in enumerate(starts):
            latents, actions, frames = self._window(info, start, self._context + 1)
            real = torch.from_numpy(frames[-1:])
            made = {"autoencoder": self._decode(latents[:, -1]), "copy_last": torch.from_numpy(frames[-2:-1])}
            noise = torch.randn(2, *latents[:, 0].shape, generator=self._generator).to(self._device)
            for steps in STEPS:
                predicted = self._predict(latents[:, :-1], actions[:, :-1], noise, steps)
                made[str(steps)] = self._decode(predicted)
            for name, picture in made.items():
                values[name].append(float(frame_psnr(real, picture)))
            owners.append(info.path)
            if done in keep:
                columns.append([frames[-2], frames[-1], *(made[str(steps)][0].numpy() for steps in STEPS)])
            show(done + 1, "teacher-forced")
        figures = {name: _figure(values[name], owners) for name in names}
        sheet = contact_sheet(
            [np.stack(row) for row in zip(*columns, strict=True)],
            labels=["last real", "next real", *(f"{steps} steps" for steps in STEPS)],
        )
        result = {
            "autoencoder": figures["autoencoder"],
            "copy_last": figures["copy_last"],
            "teacher_forced": {str(steps): figures[str(steps)] for steps in STEPS},
        }
        return result, sheet

    @torch.inference_mode()
    def drift(self, starts: list[tuple[EpisodeInfo, int]], show: Any) -> tuple[dict[str, Any], np.ndarray]:
        """Free play under recorded actions: PSNR against the real frame at each distance from the start."""
        frames_count, context = self._options.rollout_frames, self._context
        curves, still = [], []
        rows: list[np.ndarray] = []
        at = np.unique(np.linspace(0, frames_count - 1, SHEET_COLUMNS).astype(int))
        for done, (info, start) in enumerate(starts):
            latents, actions, frames = self._window(info, start, context + frames_count)
            past = latents[:, :context]
            made = []
            for frame in range(frames_count):
                noise = torch.randn(2, *past[:, 0].shape, generator=self._generator).to(self._device)
                held = actions[:, frame : frame + context]
                latent = self._predict(past, held, noise, self._sampler.steps)
                past = torch.cat([past[:, 1:], latent[:, None].to(past.dtype)], dim=1)
                made.append(latent)
            real = torch.from_numpy(frames[context:])
            neural = torch.cat([self._decode(latent) for latent in made])
            curves.append(frame_psnr(real, neural).numpy())
            still.append(frame_psnr(real, torch.from_numpy(frames[context - 1 : context])).numpy())
            if done < 4:
                rows += [real.numpy()[at], neural.numpy()[at]]
            show(self._options.windows + done + 1, "free play")
        curve = {
            "steps": self._sampler.steps,
            "frames": list(range(1, frames_count + 1)),
            "psnr": _rounded(np.mean(curves, axis=0)),
            "still_psnr": _rounded(np.mean(still, axis=0)),
        }
        return curve, contact_sheet(rows, labels=["real", "neural"] * (len(rows) // 2))

    def _window(self, info: EpisodeInfo, start: int, length: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        episode = read_episode(info.path, start, start + length)
        latents = encode_frames(self._autoencoder, episode.frames).float()[None]
        return latents.to(self._device), torch.from_numpy(episode.actions)[None].to(self._device), episode.frames

    def _predict(self, context: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor, steps: int) -> torch.Tensor:
        with autocast(self._device):
            config = SamplerConfig(steps, self._sampler.context_noise)
            return sample_next(self._denoiser, context, actions, noise, config)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        with autocast(self._device):
            return self._autoencoder.decode_frames(latents).cpu()


def _check_fit(checkpoint: Checkpoint, recording: Recording) -> None:
    config, header = checkpoint.config, recording.header
    for name in ("spec", "action_set", "height", "width", "frame_skip"):
        ours, theirs = getattr(config, name), getattr(header, name)
        if ours != theirs:
            what = f"the recording's {name} is {theirs}, the checkpoint's {ours}"
            raise DataError(what, recording.folder, "use a recording of the same game")


def _spread(episodes: list[EpisodeInfo], count: int, window: int) -> list[tuple[EpisodeInfo, int]]:
    """``count`` windows at even distances over all episodes laid end to end."""
    spans = [max(0, info.frames - window + 1) for info in episodes]
    total = sum(spans)
    if not total:
        where = episodes[0].path.parent if episodes else "the recording"
        raise DataError(f"no held-out episode has {window} frames", where, "record more, or evaluate shorter windows")
    ends = np.cumsum(spans)
    picked = []
    for position in np.linspace(0, total - 1, count).astype(int):
        index = int(np.searchsorted(ends, position, side="right"))
        picked.append((episodes[index], int(position - (ends[index] - spans[index]))))
    return picked


def _figure(values: list[float], owners: list[Path]) -> dict[str, float | None]:
    """Mean, PSNR of the mean squared error, and half of the 95 % interval from the spread between episodes."""
    by_episode: dict[Path, list[float]] = {}
    for value, owner in zip(values, owners, strict=True):
        by_episode.setdefault(owner, []).append(value)
    means = [float(np.mean(part)) for part in by_episode.values()]
    ci95 = 1.96 * float(np.std(means, ddof=1)) / math.sqrt(len(means)) if len(means) > 1 else None
    rounded = round(ci95, 3) if ci95 is not None else None
    pooled = -10 * math.log10(float(np.mean([10 ** (-value / 10) for value in values])))
    psnr = round(float(np.mean(values)), 3)
    return {"psnr": psnr, "pooled_psnr": round(pooled, 3), "ssim": None, "lpips": None, "ci95": rounded}


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 2) for value in values]


def _prepare(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(f"cannot write the report ({error.strerror})", out, "choose another --out") from error


def _write_metrics(path: Path, metrics: dict[str, Any]) -> None:
    try:
        write_json(path, metrics)
    except OSError as error:
        raise DataError(f"cannot write the report ({error.strerror})", path, "free some space") from error
