"""The stages of making a game, each resumable: autoencoder, latents, flow, denoiser, student, decoder, outcome.

All of them keep what they make in one work folder: ``autoencoder/``, ``latents/``, ``flows/``, ``flow/``, ``moved/``,
``tally/``, ``denoiser/``, ``student/``, ``decoder/`` and ``outcome/``. Where it has a flow network, the denoiser, its
student and the decoder see the last frame moved; where there is a tally, they are told the score.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from agents.errors import CheckpointError, OptionError
from gamengen.autoencoder import Autoencoder
from gamengen.checkpoints import check_fits, load_fitting
from gamengen.compensation import Camera
from gamengen.denoiser import Denoiser, seeing
from gamengen.devices import Model, place
from gamengen.diffusion import SamplerConfig
from gamengen.evaluation.lpips import Lpips
from gamengen.flow import FlowNetwork, Mover
from gamengen.flow_cache import find_camera, load_flows, load_moved, measure_recording, move_recording
from gamengen.latents import LatentEpisodes, encode_recording, load_latents
from gamengen.outcome import OutcomeHead
from gamengen.player import Player
from gamengen.presets import find_preset
from gamengen.processes import first_goes_first, is_first
from gamengen.tally import Tally, TallyConfig
from gamengen.train_autoencoder import POOL_FRAMES, AutoencoderTask, load_frame_pool
from gamengen.train_decoder import CAMERA_PAIRS, DecoderTask, find_footage
from gamengen.train_denoiser import DenoiserTask
from gamengen.train_flow import FlowTask
from gamengen.train_matching import MatchingTask
from gamengen.train_outcome import OutcomeTask, find_results, outcome_config
from gamengen.train_perceptual import PerceptualTask
from gamengen.train_student import STUDENT_STEPS, StudentTask
from gamengen.train_tally import TallyTask, find_levels, make_tally, with_counts
from gamengen.training import Trainer, TrainOptions, load_finished
from gamengen.work_folder import Stage, check_made_for, note_beginning, was_made_for
from recorder.recording import Recording, write_json


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
        task = DecoderTask(model, denoiser, *footage, stage.seed + 2, stage.batch("decoder"), pairs, mover)
        Trainer(task, options, folder).run()
    return model.eval()


def load_autoencoder(stage: Stage) -> Autoencoder:
    """The autoencoder that an earlier stage left in the work folder, or else that of the checkpoint to start from.

    Raises:
        CheckpointError: there is none.
    """
    if stage.init is not None and not (stage.work / "autoencoder").is_dir():
        return place(copy.deepcopy(stage.init.autoencoder), stage.device).eval()
    model = place(Autoencoder(find_preset(stage.preset).autoencoder), stage.device)
    return _load_stage(model, stage, "autoencoder")


def load_denoiser(stage: Stage) -> Denoiser:
    """The denoiser that an earlier stage left in the work folder.

    Raises:
        CheckpointError: there is none.
    """
    return _load_stage(_fresh_denoiser(stage), stage, "denoiser")


def load_student(stage: Stage, denoiser: Denoiser) -> Denoiser | None:
    """The student of ``denoiser`` that earlier stages left in the work folder, or None.

    Where one was trained on to match ``denoiser``, it is that one; else where it was trained on by what is seen, that
    one. What ``gamengen train perceptual`` made of a checkpoint's student is not: it has no denoiser there.

    Raises:
        CheckpointError: it is another denoiser's.
    """
    matched = stage.work / "matched"
    if (matched / "final.safetensors").is_file() and was_made_for(matched, "teacher", denoiser):
        return _load_stage(_fresh_denoiser(stage), stage, "matched")
    if not (stage.work / "student" / "final.safetensors").is_file():
        return None
    check_made_for(stage.work / "student", "denoiser", denoiser)
    student = _load_stage(_fresh_denoiser(stage), stage, "student")
    seen = stage.work / "perceptual"
    if (seen / "final.safetensors").is_file() and was_made_for(seen, "denoiser", student):
        return _load_stage(_fresh_denoiser(stage), stage, "perceptual")
    return student


def load_player(stage: Stage, autoencoder: Autoencoder) -> Player | None:
    """What earlier stages left to play with: the student, else the denoiser, each with its own sampler; or None.

    Raises:
        CheckpointError: the student, or what moves its last frame, is of other networks.
    """
    if not (stage.work / "denoiser" / "final.safetensors").is_file():
        return None
    denoiser, mover = load_denoiser(stage), load_mover(stage, autoencoder)
    student = load_student(stage, denoiser)
    if student is None:
        return Player(denoiser, SamplerConfig(), mover)
    return Player(student, SamplerConfig(STUDENT_STEPS), mover)


def encode(stage: Stage, autoencoder: Autoencoder) -> tuple[LatentEpisodes, LatentEpisodes]:
    """Encode the recording, where that is not done, and read the latents: (train, held out).

    Where the work folder has a flow network, the frames are moved too; where there is a tally, the score is counted.
    """
    latents = count_score(stage.recording, load_tally(stage, autoencoder), encode_alone(stage, autoencoder))
    mover = load_mover(stage, autoencoder)
    if mover is None:
        return latents
    latents = _measure_flows(stage, mover.network.camera, latents)
    with first_goes_first():
        move_recording(stage.recording, mover, stage.work, stage.work / "moved")
    return load_moved(stage.work / "moved", mover, latents)


def count_score(
    recording: Recording, tally: Tally | None, latents: tuple[LatentEpisodes, LatentEpisodes]
) -> tuple[LatentEpisodes, LatentEpisodes]:
    """The same latents, (train, held out), with what the score bar counts, where there is a tally.

    Raises:
        DataError: the recording does not know what it counts.
    """
    if tally is None:
        return latents
    train, held_out = with_counts(recording, tally.config.levels, latents)
    return replace(train, tally=tally), replace(held_out, tally=tally)


def encode_alone(stage: Stage, autoencoder: Autoencoder) -> tuple[LatentEpisodes, LatentEpisodes]:
    """As :func:`encode`, of the frames alone."""
    folder = stage.work / "latents"
    with first_goes_first():
        encode_recording(stage.recording, autoencoder, folder)
    return load_latents(folder, autoencoder)


def fit_flow(
    stage: Stage, autoencoder: Autoencoder, latents: tuple[LatentEpisodes, LatentEpisodes], options: TrainOptions
) -> FlowNetwork:
    """Train the flow network, or load it where this budget is spent already."""
    torch.manual_seed(stage.seed + 5)
    model, folder = _fresh_flow(stage), stage.work / "flow"
    check_made_for(folder, "encoder", autoencoder.encoder)
    if not load_finished(model, folder, options):
        if stage.init is not None and stage.init.flow is not None:
            load_fitting(model, stage.init.flow)
        _learn_camera(stage, model)
        latents = _measure_flows(stage, model.camera, latents)
        Trainer(FlowTask(model, *latents, stage.seed + 5, stage.batch("flow")), options, folder).run()
    return model.eval()


def _learn_camera(stage: Stage, model: FlowNetwork) -> None:
    """Learn the camera of the flow network, which takes a minute or two, once for all runs of the stage."""
    path = stage.work / "flow" / "camera.safetensors"
    try:
        with first_goes_first():
            if not path.is_file():
                camera = find_camera(stage.recording, model.config.context, stage.seed)
                partial = path.with_suffix(".partial")
                save_file(camera.state_dict(), partial)
                partial.replace(path)
        model.camera.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"cannot use the camera ({error})", path, "delete the file to learn it anew") from error


def _measure_flows(
    stage: Stage, camera: Camera, latents: tuple[LatentEpisodes, LatentEpisodes]
) -> tuple[LatentEpisodes, LatentEpisodes]:
    folder, context = stage.work / "flows", find_preset(stage.preset).denoiser.context
    with first_goes_first():
        measure_recording(stage.recording, camera, context, folder)
    return load_flows(folder, camera, latents)


def load_mover(stage: Stage, autoencoder: Autoencoder) -> Mover | None:
    """The flow network that an earlier stage left in the work folder, with its encoder; or None.

    Raises:
        CheckpointError: it is another encoder's.
    """
    network = load_flow(stage)
    if network is None:
        return None
    check_made_for(stage.work / "flow", "encoder", autoencoder.encoder)
    return Mover(network.requires_grad_(False), autoencoder)


def load_flow(stage: Stage) -> FlowNetwork | None:
    """The flow network that an earlier stage left in the work folder, or None."""
    return _load_stage(_fresh_flow(stage), stage, "flow") if stage.moves else None


def fit_tally(
    stage: Stage, autoencoder: Autoencoder, latents: tuple[LatentEpisodes, LatentEpisodes], options: TrainOptions
) -> Tally | None:
    """Train the tally, or load it where this budget is spent already; None where no score bar counts anything."""
    torch.manual_seed(stage.seed + 8)
    folder = stage.work / "tally"
    path = folder / "config.json"
    if not find_levels(stage.recording):
        return None
    check_made_for(folder, "encoder", autoencoder.encoder)
    begun = path.is_file() and (folder / "state.pt").is_file()  # which has the pictures too
    context = find_preset(stage.preset).denoiser.context
    tally = _read_tally(path) if begun else make_tally(stage.recording, latents, context, stage.device)
    if not begun:
        with first_goes_first():
            if is_first():
                write_json(path, asdict(tally.config))
    if not load_finished(place(tally, stage.device), folder, options):
        counted = with_counts(stage.recording, tally.config.levels, latents)
        Trainer(TallyTask(tally, *counted, stage.seed + 8, stage.batch("tally")), options, folder).run()
    return tally.eval().requires_grad_(False)


def _read_tally(path: Path) -> Tally:
    try:
        return Tally(TallyConfig(**json.loads(path.read_text())))
    except (OSError, ValueError, TypeError, AttributeError, OptionError) as error:
        raise CheckpointError(f"cannot use it ({error})", path, "delete this folder to train it anew") from error


def fit_recount(
    stage: Stage,
    tally: Tally,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    player: Player,
    options: TrainOptions,
) -> Tally:
    """``tally`` trained on in free plays of ``player``, its pictures as they were; or loaded where that is done."""
    model, folder = place(copy.deepcopy(tally), stage.device).requires_grad_(True), stage.work / "recount"
    check_made_for(folder, "denoiser", player.denoiser)
    if not load_finished(model, folder, options):
        task = TallyTask(model, *latents, stage.seed + 9, stage.batch("tally"), player)
        Trainer(task, options, folder).run()
    return model.eval().requires_grad_(False)


def load_recount(stage: Stage, tally: Tally | None, denoiser: Denoiser) -> Tally | None:
    """``tally`` as an earlier stage trained it on in free plays of ``denoiser``, where one did."""
    folder = stage.work / "recount"
    made = (folder / "final.safetensors").is_file() and was_made_for(folder, "denoiser", denoiser)
    if tally is None or not made:
        return tally
    return _load_stage(copy.deepcopy(tally), stage, "recount")


def load_tally(stage: Stage, autoencoder: Autoencoder) -> Tally | None:
    """The tally that an earlier stage left in the work folder, or else that of the checkpoint to start from, or None.

    Raises:
        CheckpointError: it is another encoder's.
    """
    if not stage.counts:
        return None
    if not (stage.work / "tally" / "final.safetensors").is_file():
        assert stage.init is not None and stage.init.tally is not None
        return place(copy.deepcopy(stage.init.tally), stage.device).requires_grad_(False)
    check_made_for(stage.work / "tally", "encoder", autoencoder.encoder)
    tally = place(_read_tally(stage.work / "tally" / "config.json"), stage.device)
    return _load_stage(tally, stage, "tally").requires_grad_(False)


def fit_denoiser(
    stage: Stage,
    autoencoder: Autoencoder,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    options: TrainOptions,
    faithful: bool = False,
) -> Denoiser:
    """Train the denoiser, or load it where this budget is spent already."""
    torch.manual_seed(stage.seed + 1)
    model = _fresh_denoiser(stage)
    folder = stage.work / "denoiser"
    if not load_finished(model, folder, options):
        if stage.init is not None:
            _start_from(model, seeing(stage.init.denoiser, stage.moves, stage.counts), stage)
            if not (folder / "state.pt").is_file():  # else it goes on from what it began with
                note_beginning(stage.init, folder)
        mover = load_mover(stage, autoencoder)
        if mover is not None:
            check_made_for(folder, "flow", mover.network)
        batch = stage.batch("denoiser")
        task = DenoiserTask(model, autoencoder, *latents, stage.seed, batch, mover=mover, faithful=faithful)
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
    check_made_for(folder, "denoiser", denoiser)
    if not load_finished(model, folder, options):
        model.load_state_dict(denoiser.state_dict())
        mover = load_mover(stage, autoencoder)
        task = StudentTask(model, denoiser, autoencoder, *latents, stage.seed + 3, stage.batch("student"), mover=mover)
        Trainer(task, options, folder).run()
    return model.eval()


def fit_perceptual(
    stage: Stage,
    autoencoder: Autoencoder,
    student: Denoiser,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    eyes: Lpips,
    options: TrainOptions,
) -> Denoiser:
    """``student`` trained on by what is seen, or loaded where that is done."""
    decoder = place(copy.deepcopy(autoencoder), stage.device)
    model, teacher = (place(copy.deepcopy(student), stage.device) for _ in range(2))
    folder = stage.work / "perceptual"
    check_made_for(folder, "denoiser", student)
    if stage.init is not None:
        note_beginning(stage.init, folder)
    if not load_finished(model, folder, options):
        batch = stage.batch("perceptual")
        task = PerceptualTask(model, teacher, decoder, *latents, stage.seed + 6, eyes, batch)
        Trainer(task, options, folder).run()
    return model.eval()


def fit_matched(
    stage: Stage,
    autoencoder: Autoencoder,
    student: Denoiser,
    teacher: Denoiser,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    options: TrainOptions,
) -> Denoiser:
    """``student`` trained on to make what ``teacher`` would as often as that would, or loaded where that is done."""
    model, folder = place(copy.deepcopy(student), stage.device), stage.work / "matched"
    check_made_for(folder, "student", student)
    check_made_for(folder, "teacher", teacher)
    if stage.init is not None:
        note_beginning(stage.init, folder)
    if not load_finished(model, folder, options):
        task = MatchingTask(model, teacher, autoencoder, *latents, stage.seed + 7, stage.batch("matched"))
        Trainer(task, options, folder).run()
    return model.eval()


def fit_outcome(
    stage: Stage,
    autoencoder: Autoencoder,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    options: TrainOptions,
    player: Player | None = None,
) -> OutcomeHead:
    """Train the outcome head, or load it where this budget is spent already.

    With a ``player``, it also learns from frames that the model has made.
    """
    torch.manual_seed(stage.seed + 4)
    task, folder = _outcome_task(stage, autoencoder, latents, player), stage.work / "outcome"
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
    stage: Stage,
    autoencoder: Autoencoder,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    player: Player | None = None,
) -> OutcomeTask:
    check_made_for(stage.work / "outcome", "encoder", autoencoder.encoder)
    config = outcome_config(stage.recording, latents[0])
    head = place(OutcomeHead(config), stage.device)
    train, held_out = zip(latents, find_results(stage.recording, config), strict=True)
    return OutcomeTask(head, train, held_out, stage.seed + 4, stage.batch("outcome"), player)


def _fresh_denoiser(stage: Stage) -> Denoiser:
    actions = stage.recording.header.action_set.size
    sizes = find_preset(stage.preset).denoiser
    return place(Denoiser(replace(sizes, actions=actions, moved=stage.moves, told=stage.counts)), stage.device)


def _fresh_flow(stage: Stage) -> FlowNetwork:
    actions = stage.recording.header.action_set.size
    return place(FlowNetwork(replace(find_preset(stage.preset).flow, actions=actions)), stage.device)


def _load_stage(model: Model, stage: Stage, name: str) -> Model:
    if not load_finished(model, stage.work / name, None):
        what = f"the work folder has no finished {name}"
        raise CheckpointError(what, stage.work, f"run gamengen train {name} first, with this folder")
    return model.eval()


def _start_from(model: nn.Module, source: nn.Module, stage: Stage) -> None:
    assert stage.init is not None
    check_fits(model, source, stage.preset, stage.init.config)
    load_fitting(model, source)
