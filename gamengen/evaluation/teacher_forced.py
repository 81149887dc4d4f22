"""Teacher-forced prediction: the next frame from real past frames, as in the paper's table of PSNR and LPIPS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gamengen.evaluation.intervals import ci95, pooled_psnr, rounded
from gamengen.evaluation.rare_parts import RareBlocks, events_at
from gamengen.evaluation.similarity import STILL_PSNR, frame_psnr, frame_ssim, region_psnr, regions
from gamengen.evaluation.subject import Subject
from gamengen.evaluation.windows import Start
from gamengen.training import step_generator
from recorder.episodes import read_episode

if TYPE_CHECKING:
    from gamengen.evaluation.lpips import Lpips

STEPS = (1, 2, 4, 8)
TURNING_DEGREES = 3.0  # a frame

Values = dict[str, np.ndarray]


def measure_windows(
    subject: Subject, starts: Sequence[Start], first: int, seed: int, lpips: Lpips | None, rare: RareBlocks
) -> tuple[Values, list[np.ndarray]]:
    """Predict one frame of each window and compare it with the real one.

    Args:
        subject: the checkpoint.
        starts: windows of K + 1 frames.
        first: number of the first of them among all, which fixes its noise.
        seed: of the sampling noise.
        lpips: measures LPIPS where its weights are at hand.
        rare: finds what is unusual in a real frame.

    Returns:
        Arrays (N,) by name: ``psnr/<picture>``, ``ssim/…``, ``lpips/…`` and ``<region>/…`` for the pictures
        ``autoencoder`` (the true latent, decoded as in play), ``autoencoder_alone`` (decoded without the frame
        before, where the decoder else sees that), ``copy_last`` and each number of steps; ``degrees`` turned,
        NaN where unknown; ``rare/<picture>``, PSNR within what is unusual, NaN where nothing is, and ``rare_share``
        of the pixels; ``event/<name>``, 1 where it shows; ``owner``, the episode's seed. And a column of pictures
        for each window.
    """
    rows: dict[str, list[float]] = {}
    columns = []
    for number, (info, start) in enumerate(starts, first):
        episode = read_episode(info.path, start, start + subject.context + 1)
        latents = subject.encode(episode.frames)[None]
        actions = torch.from_numpy(episode.actions)[None, :-1]
        generator = step_generator(seed, number)
        noise = subject.noise(latents[:, 0], generator)
        real, last = episode.frames[-1:], episode.frames[-2:-1]
        past = latents[:, :-1]
        context, before, _ = subject.look(past, actions, last, subject.settle(past, actions), generator)
        pictures = {
            "autoencoder": subject.decode_next(latents[:, -1], before),
            "copy_last": last,
        }
        if subject.config.autoencoder.compensation:
            pictures["autoencoder_alone"] = subject.decode(latents[:, -1])
        for steps in STEPS:
            pictures[str(steps)] = subject.decode_next(subject.predict(context, actions, noise, steps), before)
        masks = regions(subject.config.spec, *real.shape[1:3])
        row = {"owner": float(info.seed), "degrees": _turned(episode.variables, info.variable_names)}
        row |= {
            f"event/{name}": float(shows) for name, shows in events_at(episode.variables, info.variable_names).items()
        }
        unusual = rare.mask(real[0])
        row["rare_share"] = float(unusual.mean())
        for name, picture in pictures.items():
            row[f"rare/{name}"] = float(region_psnr(real, picture, unusual)[0]) if unusual.any() else float("nan")
            row[f"psnr/{name}"] = float(frame_psnr(real, picture)[0])
            row[f"ssim/{name}"] = float(frame_ssim(real, picture)[0])
            if lpips is not None:
                row[f"lpips/{name}"] = float(lpips.distance(real, picture)[0])
            for region, mask in masks.items():
                row[f"{region}/{name}"] = float(region_psnr(real, picture, mask)[0])
        for name, value in row.items():
            rows.setdefault(name, []).append(value)
        columns.append(np.stack([last[0], real[0], *(pictures[str(steps)][0] for steps in STEPS)]))
    return {name: np.array(values) for name, values in rows.items()}, columns


def summarise_windows(values: Values) -> dict[str, Any]:
    """The rows of ``metrics.json`` from what :func:`measure_windows` found for all windows."""
    owners = values["owner"]
    pictures = ["autoencoder", "copy_last", *map(str, STEPS)]
    figures = {name: _figure(values, name, owners) for name in pictures}
    alone = "autoencoder_alone"
    found = [name for name in ("hud", "weapon", "world") if f"{name}/copy_last" in values]
    parts = {region: {name: rounded(float(values[f"{region}/{name}"].mean())) for name in pictures} for region in found}
    still = values["psnr/copy_last"] >= STILL_PSNR
    kinds = {"still": still, "moving": ~still, "turning": np.abs(values["degrees"]) >= TURNING_DEGREES}
    motion = {
        kind: {
            "share": rounded(float(chosen.mean())),
            **{name: rounded(float(values[f"psnr/{name}"][chosen].mean())) for name in pictures},
        }
        for kind, chosen in kinds.items()
        if chosen.any()
    }
    share = values["rare_share"]
    rare = {"share": rounded(float(share.mean())), "frames": int((share > 0).sum())}
    if rare["frames"]:
        rare |= {name: rounded(float(np.nanmean(values[f"rare/{name}"]))) for name in pictures}
    happened = {key.removeprefix("event/"): values[key] > 0 for key in values if key.startswith("event/")}
    events = {
        event: {
            "frames": int(chosen.sum()),
            **{name: rounded(float(values[f"psnr/{name}"][chosen].mean())) for name in pictures},
        }
        for event, chosen in happened.items()
        if chosen.any()
    }
    return {
        "autoencoder": figures["autoencoder"],
        alone: _figure(values, alone, owners) if f"psnr/{alone}" in values else None,
        "copy_last": figures["copy_last"],
        "teacher_forced": {str(steps): figures[str(steps)] for steps in STEPS},
        "regions": parts,
        "motion": motion,
        "rare": rare,
        "events": events,
    }


def _figure(values: Values, name: str, owners: np.ndarray) -> dict[str, float | None]:
    psnr = values[f"psnr/{name}"]
    lpips = values.get(f"lpips/{name}")
    return {
        "psnr": rounded(float(psnr.mean())),
        "pooled_psnr": rounded(pooled_psnr(psnr)),
        "ssim": rounded(float(values[f"ssim/{name}"].mean()), 4),
        "lpips": None if lpips is None else rounded(float(lpips.mean()), 4),
        "ci95": rounded(ci95(psnr, owners)),
    }


def _turned(variables: np.ndarray, names: tuple[str, ...]) -> float:
    """Degrees turned between the last two frames, NaN where the game tells no angle."""
    if "ANGLE" not in names:
        return float("nan")
    before, after = variables[-2:, names.index("ANGLE")]
    return float((after - before + 180) % 360 - 180)
