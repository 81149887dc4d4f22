"""The stages of the autoencoder: its own training, its decoder's for cycle consistency, and with the last frame."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch

from gamengen.autoencoder import Autoencoder
from gamengen.checkpoints import Checkpoint, load_fitting
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.evaluation.lpips import Lpips
from gamengen.latents import LatentEpisodes
from gamengen.presets import find_preset
from gamengen.stages import load_mover, load_stage, start_from
from gamengen.train_autoencoder import POOL_FRAMES, AutoencoderTask, load_frame_pool
from gamengen.train_cycle import CycleTask
from gamengen.train_decoder import CAMERA_PAIRS, DecoderTask, find_footage
from gamengen.training import Trainer, TrainOptions, load_finished
from gamengen.work_folder import Stage, check_made_for, check_trained_by, was_made_for


def fit_autoencoder(stage: Stage, options: TrainOptions) -> Autoencoder:
    """Train the autoencoder, or load it where this budget is spent already."""
    torch.manual_seed(stage.seed)
    model = place(Autoencoder(find_preset(stage.preset).autoencoder), stage.device)
    folder = stage.work / "autoencoder"
    if not load_finished(model, folder, options):
        if stage.init is not None:
            start_from(model, stage.init.autoencoder, stage)
        pool = load_frame_pool(stage.recording, POOL_FRAMES)
        Trainer(AutoencoderTask(model, pool, stage.seed, stage.batch("autoencoder")), options, folder).run()
    return model.eval()


def fit_decoder(
    stage: Stage,
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    options: TrainOptions,
    compensation_only: bool = False,
) -> Autoencoder:
    """The autoencoder with its decoder trained on, motion compensation included; or load it where that is done.

    With ``compensation_only`` its layers that see no last frame stay as they are.
    """
    torch.manual_seed(stage.seed + 2)
    actions = denoiser.config.context * denoiser.config.actions
    config = replace(autoencoder.config, compensation=actions, guided=stage.moves)
    model, mover = place(Autoencoder(config), stage.device), load_mover(stage, autoencoder)
    folder = stage.work / "decoder"
    check_made_for(folder, "denoiser", denoiser)
    if not load_finished(model, folder, options):
        if stage.init is not None and stage.init.autoencoder.compensation is not None:
            assert model.compensation is not None
            load_fitting(model.compensation, stage.init.autoencoder.compensation)
        load_fitting(model, autoencoder)
        footage = find_footage(stage.recording, latents)
        # The camera is learned at the first step, which must not take more than a small part of a short training.
        budget = options.minutes / 15 if options.minutes is not None else (options.steps or 0) / 1500
        pairs = int(CAMERA_PAIRS * min(1.0, max(0.05, budget)))
        batch = stage.batch("decoder")
        task = DecoderTask(model, denoiser, *footage, stage.seed + 2, batch, pairs, mover, compensation_only)
        Trainer(task, options, folder).run()
    return model.eval()


def fit_cycle(
    stage: Stage,
    autoencoder: Autoencoder,
    options: TrainOptions,
    denoiser: Denoiser | None = None,
    train: LatentEpisodes | None = None,
    eyes: Lpips | None = None,
) -> Autoencoder:
    """The autoencoder with its decoder trained for cycle consistency, or loaded where that is done.

    A ``denoiser`` that sees the last frame moved plays meanwhile, from the latents ``train``. ``eyes`` judge too.
    """
    torch.manual_seed(stage.seed + 10)
    model, folder = place(copy.deepcopy(autoencoder), stage.device), stage.work / "cycle"
    check_made_for(folder, "autoencoder", autoencoder)
    if denoiser is not None:
        check_made_for(folder, "denoiser", denoiser)
    check_trained_by(folder, eyes)
    if not load_finished(model, folder, options):
        pool = load_frame_pool(stage.recording, POOL_FRAMES)
        mover = load_mover(stage, model) if denoiser is not None else None
        task = CycleTask(model, pool, stage.seed + 10, stage.batch("cycle"), denoiser, mover, train, eyes)
        Trainer(task, options, folder).run()
    return model.eval().requires_grad_(True)


def load_autoencoder(stage: Stage) -> Autoencoder:
    """The autoencoder that an earlier stage left in the work folder, or else that of the checkpoint to start from.

    Its decoder is as it was trained for cycle consistency, where that was done.

    Raises:
        CheckpointError: there is none.
    """
    if stage.init is not None and not (stage.work / "autoencoder").is_dir():
        return first_autoencoder(stage, stage.init)
    model = place(Autoencoder(find_preset(stage.preset).autoencoder), stage.device)
    load_stage(model, stage, "autoencoder")
    cycle = stage.work / "cycle"
    if (cycle / "final.safetensors").is_file() and was_made_for(cycle, "autoencoder", model):
        load_stage(model, stage, "cycle")
    return model


def first_autoencoder(stage: Stage, init: Checkpoint) -> Autoencoder:
    """That of the checkpoint to start from, without what brings in the last frame where that is of other keys or ways.

    A compensation looks for the camera in the keys of one game, or is told by a geometry how it moves.
    """
    autoencoder, config = copy.deepcopy(init.autoencoder), init.config.autoencoder
    seen = find_preset(stage.preset).denoiser.context * stage.recording.header.action_set.size
    if config.compensation and (config.compensation != seen or config.guided != stage.moves):
        autoencoder = Autoencoder(replace(config, compensation=0, guided=False))
        load_fitting(autoencoder, init.autoencoder)
    return place(autoencoder, stage.device).eval()
