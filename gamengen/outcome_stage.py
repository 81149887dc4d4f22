"""The stage that makes an outcome head, which reads reward and end off what the other stages have made."""

from __future__ import annotations

import torch

from gamengen.autoencoder import Autoencoder
from gamengen.devices import place
from gamengen.latents import LatentEpisodes
from gamengen.outcome import OutcomeHead
from gamengen.player import Player
from gamengen.stages import load_stage
from gamengen.train_outcome import OutcomeTask, find_results, outcome_config
from gamengen.train_tally import find_lost
from gamengen.training import Trainer, TrainOptions, load_finished
from gamengen.work_folder import Stage, check_made_for


def fit_outcome(
    stage: Stage,
    autoencoder: Autoencoder,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    options: TrainOptions,
    player: Player | None = None,
) -> OutcomeHead:
    """Train the outcome head, or load it where this budget is spent already.

    With a ``player``, it also learns from frames that the model has made.

    Raises:
        CheckpointError: what is in the work folder learned from another player, or was trained for another encoder.
    """
    torch.manual_seed(stage.seed + 4)
    task, folder = _outcome_task(stage, autoencoder, latents, player), stage.work / "outcome"
    if player is not None:
        check_made_for(folder, "player", player.denoiser)
    if not load_finished(task.model, folder, options):
        Trainer(task, options, folder).run()
    return task.head.eval()


def load_outcome(
    stage: Stage, autoencoder: Autoencoder, latents: tuple[LatentEpisodes, LatentEpisodes]
) -> OutcomeHead | None:
    """The outcome head that an earlier stage left in the work folder, or None."""
    if not (stage.work / "outcome" / "final.safetensors").is_file():
        return None
    return load_stage(_outcome_task(stage, autoencoder, latents).head, stage, "outcome")


def _outcome_task(
    stage: Stage,
    autoencoder: Autoencoder,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    player: Player | None = None,
) -> OutcomeTask:
    check_made_for(stage.work / "outcome", "encoder", autoencoder.encoder)
    config = outcome_config(stage.recording, latents[0])
    head = place(OutcomeHead(config), stage.device)
    tally = latents[0].tally
    lost = find_lost(stage.recording.episodes(), tally.config) if tally is not None else ()
    train, held_out = zip(latents, find_results(stage.recording, config, lost), strict=True)
    return OutcomeTask(head, train, held_out, stage.seed + 4, stage.batch("outcome"), player)
