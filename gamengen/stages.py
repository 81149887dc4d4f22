"""The stages of making a game, each resumable: autoencoder, latents, denoiser, student, decoder, outcome, checkpoint.

All of them keep what they make in one work folder: ``autoencoder/``, ``latents/``, ``denoiser/``,
``student/``, ``decoder/``, ``outcome/`` and ``evaluation/``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from agents.errors import CheckpointError, DataError
from gamengen.autoencoder import FACTOR, Autoencoder
from gamengen.checkpoints import (
    Checkpoint,
    CheckpointConfig,
    as_stored,
    git_commit,
    load_fitting,
    save_checkpoint,
)
from gamengen.denoiser import Denoiser
from gamengen.devices import Model, describe_device, place
from gamengen.diffusion import SamplerConfig
from gamengen.evaluation.evaluate import evaluate_checkpoint
from gamengen.evaluation.options import EvaluateOptions
from gamengen.evaluation.windows import unseen_episodes
from gamengen.latents import (
    LatentEpisodes,
    encode_recording,
    load_latents,
    weights_hash,
)
from gamengen.model_card import write_card
from gamengen.outcome import OutcomeHead
from gamengen.presets import find_preset
from gamengen.processes import first_goes_first, is_first
from gamengen.spawns import choose_spawns
from gamengen.train_autoencoder import POOL_FRAMES, AutoencoderTask, load_frame_pool
from gamengen.train_decoder import CAMERA_PAIRS, DecoderTask, find_footage
from gamengen.train_denoiser import DenoiserTask
from gamengen.train_outcome import OutcomeTask, find_results, outcome_config
from gamengen.train_student import StudentTask
from gamengen.training import Trainer, TrainOptions, load_finished
from recorder.recording import Recording, write_json

BATCH = {"autoencoder": 16, "denoiser": 16, "student": 16, "decoder": 8, "outcome": 128}
BEGUN = "begun.json"  # what a denoiser's training started from
STAGES = ("autoencoder", "denoiser", "student", "decoder", "outcome")
CUDA_BATCH_FACTOR = 8  # a GPU is only busy with many samples at once


@dataclass(frozen=True)
class Stage:
    """What every stage needs to know: where, on what, from which weights, with which seed."""

    recording: Recording
    work: Path
    preset: str
    device: torch.device
    init: Checkpoint | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        header = self.recording.header
        if header.height % FACTOR or header.width % FACTOR:
            what = f"frame height and width must be multiples of {FACTOR}, got {header.height} and {header.width}"
            raise DataError(what, self.recording.folder, "record anew with such a --height and --width")

    def batch(self, name: str) -> int:
        """Samples a training step of the stage ``name``."""
        return BATCH[name] * (CUDA_BATCH_FACTOR if self.device.type == "cuda" else 1)


def fit_autoencoder(stage: Stage, options: TrainOptions) -> Autoencoder:
    """Train the autoencoder, or load it where this budget is spent already."""
    torch.manual_seed(stage.seed)
    model = place(Autoencoder(find_preset(stage.preset).autoencoder), stage.device)
    folder = stage.work / "autoencoder"
    if not load_finished(model, folder, options):
        if stage.init is not None:
            _start_from(model, stage.init.autoencoder, stage)
        pool = load_frame_pool(stage.recording, POOL_FRAMES)
        Trainer(AutoencoderTask(model, pool, stage.seed, stage.batch("autoencoder")), options, folder).run()
    return model.eval()


def fit_decoder(
    stage: Stage,
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    options: TrainOptions,
) -> Autoencoder:
    """The autoencoder with its decoder trained on, motion compensation included; or load it where that is done."""
    torch.manual_seed(stage.seed + 2)
    actions = denoiser.config.context * denoiser.config.actions
    model = place(Autoencoder(replace(autoencoder.config, compensation=actions)), stage.device)
    folder = stage.work / "decoder"
    _check_made_for(folder, "denoiser", denoiser)
    if not load_finished(model, folder, options):
        if stage.init is not None and stage.init.autoencoder.compensation is not None:
            assert model.compensation is not None
            load_fitting(model.compensation, stage.init.autoencoder.compensation)
        load_fitting(model, autoencoder)
        footage = find_footage(stage.recording, latents)
        # The camera is learned at the first step, which must not take more than a small part of a short training.
        budget = options.minutes / 15 if options.minutes is not None else (options.steps or 0) / 1500
        pairs = int(CAMERA_PAIRS * min(1.0, max(0.05, budget)))
        task = DecoderTask(model, denoiser, *footage, stage.seed + 2, stage.batch("decoder"), pairs)
        Trainer(task, options, folder).run()
    return model.eval()


def _check_made_for(folder: Path, part: str, model: nn.Module) -> None:
    """See that what ``folder`` holds was trained for this very ``part`` of the model, and note that it is."""
    path, own = folder / f"{part}.json", {part: weights_hash(model)}
    try:
        if path.is_file() and json.loads(path.read_text()) != own:
            what = f"the {folder.name} in the work folder was trained for another {part}"
            raise CheckpointError(what, folder, "delete this folder to train it anew")
        with first_goes_first():
            folder.mkdir(parents=True, exist_ok=True)
            if is_first():
                write_json(path, own)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot use it ({error})", path, "delete this folder to train it anew") from error


def load_autoencoder(stage: Stage) -> Autoencoder:
    """The autoencoder that an earlier stage left in the work folder.

    Raises:
        CheckpointError: there is none.
    """
    model = place(Autoencoder(find_preset(stage.preset).autoencoder), stage.device)
    return _load_stage(model, stage, "autoencoder")


def load_denoiser(stage: Stage) -> Denoiser:
    """The denoiser that an earlier stage left in the work folder.

    Raises:
        CheckpointError: there is none.
    """
    return _load_stage(_fresh_denoiser(stage), stage, "denoiser")


def load_student(stage: Stage, denoiser: Denoiser) -> Denoiser | None:
    """The student of ``denoiser`` that an earlier stage left in the work folder, or None.

    Raises:
        CheckpointError: it is another denoiser's.
    """
    if not (stage.work / "student" / "final.safetensors").is_file():
        return None
    _check_made_for(stage.work / "student", "denoiser", denoiser)
    return _load_stage(_fresh_denoiser(stage), stage, "student")


def encode(stage: Stage, autoencoder: Autoencoder) -> tuple[LatentEpisodes, LatentEpisodes]:
    """Encode the recording, where that is not done, and read the latents: (train, held out)."""
    folder = stage.work / "latents"
    with first_goes_first():
        encode_recording(stage.recording, autoencoder, folder)
    return load_latents(folder, autoencoder)


def fit_denoiser(
    stage: Stage,
    autoencoder: Autoencoder,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    options: TrainOptions,
) -> Denoiser:
    """Train the denoiser, or load it where this budget is spent already."""
    torch.manual_seed(stage.seed + 1)
    model = _fresh_denoiser(stage)
    folder = stage.work / "denoiser"
    if not load_finished(model, folder, options):
        if stage.init is not None:
            _start_from(model, stage.init.denoiser, stage)
            if is_first() and not (folder / "state.pt").is_file():  # else it goes on from what it began with
                start = {"init": stage.init.config.name, "init_training": stage.init.config.training}
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / BEGUN, start)
        task = DenoiserTask(model, autoencoder, *latents, stage.seed, stage.batch("denoiser"))
        Trainer(task, options, folder).run()
    return model.eval()


def fit_student(
    stage: Stage,
    autoencoder: Autoencoder,
    denoiser: Denoiser,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    options: TrainOptions,
) -> Denoiser:
    """Distil ``denoiser`` into a student for one step, or load the student where that is done."""
    torch.manual_seed(stage.seed + 3)
    model, folder = _fresh_denoiser(stage), stage.work / "student"
    _check_made_for(folder, "denoiser", denoiser)
    if not load_finished(model, folder, options):
        model.load_state_dict(denoiser.state_dict())
        task = StudentTask(model, denoiser, autoencoder, *latents, stage.seed + 3, stage.batch("student"))
        Trainer(task, options, folder).run()
    return model.eval()


def fit_outcome(
    stage: Stage, autoencoder: Autoencoder, latents: tuple[LatentEpisodes, LatentEpisodes], options: TrainOptions
) -> OutcomeHead:
    """Train the outcome head, or load it where this budget is spent already."""
    torch.manual_seed(stage.seed + 4)
    task, folder = _outcome_task(stage, autoencoder, latents), stage.work / "outcome"
    if not load_finished(task.model, folder, options):
        Trainer(task, options, folder).run()
    return task.head.eval()


def load_outcome(
    stage: Stage, autoencoder: Autoencoder, latents: tuple[LatentEpisodes, LatentEpisodes]
) -> OutcomeHead | None:
    """The outcome head that an earlier stage left in the work folder, or None."""
    if not (stage.work / "outcome" / "final.safetensors").is_file():
        return None
    return _load_stage(_outcome_task(stage, autoencoder, latents).head, stage, "outcome")


def _outcome_task(
    stage: Stage, autoencoder: Autoencoder, latents: tuple[LatentEpisodes, LatentEpisodes]
) -> OutcomeTask:
    _check_made_for(stage.work / "outcome", "encoder", autoencoder.encoder)
    config = outcome_config(stage.recording, latents[0])
    head = place(OutcomeHead(config), stage.device)
    train, held_out = zip(latents, find_results(stage.recording, config), strict=True)
    return OutcomeTask(head, train, held_out, stage.seed + 4, stage.batch("outcome"))


@dataclass(frozen=True)
class Networks:
    """What a checkpoint is made of, and the sampler that it is meant for."""

    autoencoder: Autoencoder
    denoiser: Denoiser
    sampler: SamplerConfig
    outcome: OutcomeHead | None = None


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
        **_beginning(stage),
        "device": describe_device(stage.device),
        "seed": stage.seed,
    }
    config = CheckpointConfig(
        out.name, header.spec, stage.preset, header.action_set, header.height, header.width, header.frame_skip,
        header.fps, autoencoder.config, denoiser.config, networks.sampler, data, training, git_commit(),
        header.notice, outcome.config if outcome is not None else None,
    )  # fmt: skip
    train, _ = find_footage(stage.recording, latents)
    spawns = choose_spawns(train, denoiser.config.context, bool(autoencoder.config.compensation), stage.seed)
    checkpoint = Checkpoint(config, autoencoder, denoiser, spawns, {}, outcome)
    # Where the game's episodes are short, so are the free plays: it is no reason to fail at the very end.
    longest = max(info.frames for info in unseen_episodes(checkpoint, stage.recording))
    room = max(1, longest - denoiser.config.context)
    scope = replace(scope, rollout_frames=min(scope.rollout_frames, room))
    metrics = evaluate_checkpoint(checkpoint, stage.recording, stage.work / "evaluation", scope, str(stage.device))
    save_checkpoint(replace(checkpoint, metrics=metrics), out, write_card(config, metrics))
    return metrics


def _beginning(stage: Stage) -> dict[str, Any]:
    """Where the denoiser in the work folder began: a checkpoint's name and how that was trained, or nothing."""
    path = stage.work / "denoiser" / BEGUN
    try:
        if path.is_file():
            return dict(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read it ({error})", path, "delete the file") from error
    return {"init": None, "init_training": None}


def _fresh_denoiser(stage: Stage) -> Denoiser:
    actions = stage.recording.header.action_set.size
    return place(Denoiser(replace(find_preset(stage.preset).denoiser, actions=actions)), stage.device)


def _load_stage(model: Model, stage: Stage, name: str) -> Model:
    if not load_finished(model, stage.work / name, None):
        what = f"the work folder has no finished {name}"
        raise CheckpointError(what, stage.work, f"run gamengen train {name} first, with this folder")
    return model.eval()


def _start_from(model: nn.Module, source: nn.Module, stage: Stage) -> None:
    if len(load_fitting(model, source)) == len(model.state_dict()):
        assert stage.init is not None
        what = f"nothing of the checkpoint fits the preset {stage.preset}: it is {stage.init.config.preset}"
        raise CheckpointError(what, stage.init.config.name, "give that --preset, or leave --init out")
