"""The last stage of making a game: evaluate what was trained, and write the checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.errors import CheckpointError
from gamengen.autoencoder import Autoencoder
from gamengen.checkpoints import Checkpoint, CheckpointConfig, git_commit, save_checkpoint
from gamengen.denoiser import Denoiser
from gamengen.devices import describe_device
from gamengen.diffusion import SamplerConfig
from gamengen.evaluation.evaluate import evaluate_checkpoint
from gamengen.evaluation.options import QUICK, EvaluateOptions
from gamengen.evaluation.windows import unseen_episodes
from gamengen.geometry import Geometry
from gamengen.latents import LatentEpisodes
from gamengen.model_card import write_card
from gamengen.outcome import OutcomeHead
from gamengen.spawns import choose_spawns
from gamengen.storage import as_stored
from gamengen.tally import Tally
from gamengen.train_decoder import find_footage
from gamengen.work_folder import BEGUN, Stage

SHORT, LONG = EvaluateOptions(64, 4, 64, QUICK), EvaluateOptions(256, 16, 64, QUICK)
BEGINNINGS = ("matched", "denoiser", "perceptual", "tally", "cycle")  # of these the first knows what was trained on


@dataclass(frozen=True)
class Networks:
    """What a checkpoint is made of, and the sampler that it is meant for."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    sampler: SamplerConfig
    outcome: OutcomeHead | None = None
    geometry: Geometry | None = None
    tally: Tally | None = None


def evaluation_at_end(minutes: float = 0.0) -> EvaluateOptions:
    """What is measured of a checkpoint when it is made, a longer one where that took ``minutes`` of training."""
    return SHORT if minutes < 10 else LONG


def finish_checkpoint(
    stage: Stage,
    networks: Networks,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    out: Path,
    minutes: dict[str, float],
    scope: EvaluateOptions,
) -> dict[str, Any]:
    """Evaluate and write the checkpoint; returns its metrics.

    ``minutes`` says what each stage took, for the model card.
    """
    # Measured is what a player will load, not what training held in memory.
    autoencoder, denoiser = as_stored(networks.autoencoder), as_stored(networks.denoiser)
    outcome = as_stored(networks.outcome) if networks.outcome is not None else None
    geometry = as_stored(networks.geometry) if networks.geometry is not None else None
    tally = as_stored(networks.tally) if networks.tally is not None else None
    header, infos = stage.recording.header, stage.recording.episodes()
    seeds = [info.seed for info in infos]
    data = {
        "frames": sum(info.frames for info in infos),
        "episodes": len(infos),
        "seed": infos[0].seed - int(infos[0].path.stem),  # of episode 0
        "seeds": [min(seeds), max(seeds)],
        "agents": list(header.agents),
        "packages": header.packages,
    }
    training = {
        "minutes": minutes,
        **_beginning(stage.work / next(name for name in BEGINNINGS if name in minutes)),
        "device": describe_device(stage.device),
        "seed": stage.seed,
    }
    config = CheckpointConfig(
        out.name, header.spec, stage.preset, header.action_set, header.height, header.width, header.frame_skip,
        header.fps, autoencoder.config, denoiser.config, networks.sampler, data, training, git_commit(),
        header.notice, outcome.config if outcome is not None else None,
        geometry.config if geometry is not None else None,
        tally.config if tally is not None else None,
    )  # fmt: skip
    train, _ = find_footage(stage.recording, latents)
    spawns = choose_spawns(train, denoiser.config.context, bool(autoencoder.config.compensation), stage.seed)
    checkpoint = Checkpoint(config, autoencoder, denoiser, spawns, {}, outcome, geometry, tally)
    # Where the game's episodes are short, so are the free plays: it is no reason to fail at the very end.
    longest = max(info.frames for info in unseen_episodes(stage.recording, checkpoint))
    room = max(1, longest - denoiser.config.context)
    scope = replace(scope, rollout_frames=min(scope.rollout_frames, room))
    metrics = evaluate_checkpoint(checkpoint, stage.recording, stage.work / "evaluation", scope, str(stage.device))
    save_checkpoint(replace(checkpoint, metrics=metrics), out, write_card(config, metrics))
    return metrics


def _beginning(folder: Path) -> dict[str, Any]:
    """Where the denoiser trained in ``folder`` began: a checkpoint's name and how that was trained, or nothing."""
    path = folder / BEGUN
    try:
        if path.is_file():
            return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read it ({error})", path, "delete the file") from error
    return {"init": None, "init_training": None}
