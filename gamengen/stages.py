"""The stages of making a game, each resumable: latents, geometry, tally, denoiser, student.

All of them keep what they make in one work folder: ``autoencoder/``, ``cycle/``, ``latents/``, ``views/``,
``geometry/``, ``moved/``, ``tally/``, ``denoiser/``, ``student/``, ``decoder/`` and ``outcome/``. Where there is a
geometry, the denoiser and its student see the last frame moved; where there is a tally, they are told the
score. Those of the autoencoder are in :mod:`gamengen.autoencoder_stages`, that of the outcome head in
:mod:`gamengen.outcome_stage`.
"""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from agents.errors import CheckpointError, OptionError
from gamengen.autoencoder import FACTOR, Autoencoder
from gamengen.checkpoints import Checkpoint, check_fits, load_fitting
from gamengen.denoiser import Denoiser, seeing
from gamengen.devices import Model, place
from gamengen.diffusion import SamplerConfig
from gamengen.evaluation.lpips import Lpips
from gamengen.geometry import Geometry, Mover
from gamengen.geometry_cache import load_motions, load_moved, load_scenes, move_recording, see_recording
from gamengen.latents import LatentEpisodes, encode_recording, load_latents, weights_hash
from gamengen.player import Player
from gamengen.presets import find_preset
from gamengen.processes import first_goes_first, is_first
from gamengen.tally import Tally, TallyConfig
from gamengen.train_denoiser import DenoiserTask
from gamengen.train_geometry import GeometryTask
from gamengen.train_matching import MatchingTask
from gamengen.train_perceptual import PerceptualTask
from gamengen.train_student import STUDENT_STEPS, StudentTask
from gamengen.train_tally import TallyTask, find_levels, make_tally, with_counts
from gamengen.training import Trainer, TrainOptions, leave_weights, load_finished
from gamengen.work_folder import Stage, check_made_for, check_trained_by, note_beginning, was_made_for
from recorder.recording import Recording, write_json


def load_denoiser(stage: Stage, autoencoder: Autoencoder | None = None) -> Denoiser:
    """The denoiser that an earlier stage left in the work folder.

    Raises:
        CheckpointError: there is none, or it was trained on what another encoder than that of ``autoencoder`` makes.
    """
    denoiser = load_stage(_fresh_denoiser(stage), stage, "denoiser")
    if autoencoder is not None:
        check_made_for(stage.work / "denoiser", "encoder", autoencoder.encoder)
    return denoiser


def load_student(stage: Stage, denoiser: Denoiser) -> Denoiser | None:
    """The student of ``denoiser`` that earlier stages left in the work folder, or None.

    Where one was trained on to match ``denoiser``, it is that one; else where it was trained on by what is seen, that
    one. What ``gamengen train perceptual`` made of a checkpoint's student is not: it has no denoiser there.

    Raises:
        CheckpointError: it is another denoiser's.
    """
    matched = stage.work / "matched"
    if (matched / "final.safetensors").is_file() and was_made_for(matched, "teacher", denoiser):
        shared = (matched / "shared" / "final.safetensors").is_file()
        return load_stage(_fresh_denoiser(stage), stage, "matched/shared" if shared else "matched")
    if not (stage.work / "student" / "final.safetensors").is_file():
        return None
    check_made_for(stage.work / "student", "denoiser", denoiser)
    student = load_stage(_fresh_denoiser(stage), stage, "student")
    seen = stage.work / "perceptual"
    if (seen / "final.safetensors").is_file() and was_made_for(seen, "denoiser", student):
        return load_stage(_fresh_denoiser(stage), stage, "perceptual")
    return student


def load_player(stage: Stage, autoencoder: Autoencoder) -> Player | None:
    """What earlier stages left to play with: the student, else the denoiser, each with its own sampler; or None.

    Raises:
        CheckpointError: the student, or what moves its last frame, is of other networks.
    """
    if not (stage.work / "denoiser" / "final.safetensors").is_file():
        return None
    denoiser, mover = load_denoiser(stage, autoencoder), load_mover(stage, autoencoder)
    student = load_student(stage, denoiser)
    if student is None:
        return Player(denoiser, SamplerConfig(), mover)
    return Player(student, SamplerConfig(STUDENT_STEPS), mover)


def encode(stage: Stage, autoencoder: Autoencoder) -> tuple[LatentEpisodes, LatentEpisodes]:
    """Encode the recording, where that is not done, and read the latents: (train, held out).

    Where there is a geometry, the frames are moved too; where there is a tally, the score is counted.
    """
    latents = count_score(stage.recording, load_tally(stage, autoencoder), encode_alone(stage, autoencoder))
    mover = load_mover(stage, autoencoder)
    if mover is None:
        return latents
    latents = load_motions(_see(stage), latents)
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
    train, held_out = with_counts(recording, tally.config, latents)
    return replace(train, tally=tally), replace(held_out, tally=tally)


def encode_alone(stage: Stage, autoencoder: Autoencoder) -> tuple[LatentEpisodes, LatentEpisodes]:
    """As :func:`encode`, of the frames alone."""
    folder = stage.work / "latents"
    with first_goes_first():
        encode_recording(stage.recording, autoencoder, folder)
    return load_latents(folder, autoencoder)


def fit_geometry(
    stage: Stage, autoencoder: Autoencoder, latents: tuple[LatentEpisodes, LatentEpisodes], options: TrainOptions
) -> Geometry:
    """Train the geometry, or load it where this budget is spent already.

    Raises:
        DataError: the game tells no distances, or goes another way now than it was recorded.
    """
    torch.manual_seed(stage.seed + 5)
    model, folder = _fresh_geometry(stage), stage.work / "geometry"
    check_made_for(folder, "encoder", autoencoder.encoder)
    if not load_finished(model, folder, options):
        if stage.init is not None and stage.init.geometry is not None:
            load_fitting(model, stage.init.geometry)
        scenes = load_scenes(_see(stage), latents)
        Trainer(GeometryTask(model, *scenes, stage.seed + 5, stage.batch("geometry")), options, folder).run()
    return model.eval()


def _see(stage: Stage) -> Path:
    """The cache of how far things were and how the camera moved, made where it is not yet."""
    folder = stage.work / "views"
    with first_goes_first():
        see_recording(stage.recording, folder)
    return folder


def load_mover(stage: Stage, autoencoder: Autoencoder) -> Mover | None:
    """The geometry that the last frame is moved by, with its encoder; or None.

    Raises:
        CheckpointError: it is another encoder's.
    """
    geometry = load_geometry(stage)
    if geometry is None:
        return None
    if (stage.work / "geometry").is_dir():
        check_made_for(stage.work / "geometry", "encoder", autoencoder.encoder)
    return Mover(geometry.requires_grad_(False), autoencoder)


def load_geometry(stage: Stage) -> Geometry | None:
    """The geometry that an earlier stage left in the work folder, or else that of the checkpoint to start from."""
    if not stage.moves:
        return None
    if (stage.work / "geometry" / "final.safetensors").is_file():
        return load_stage(_fresh_geometry(stage), stage, "geometry")
    assert stage.init is not None and stage.init.geometry is not None
    return place(copy.deepcopy(stage.init.geometry), stage.device).eval()


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
        counted = with_counts(stage.recording, tally.config, latents)
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
    check_made_for(folder, "tally", tally)
    if not load_finished(model, folder, options):
        task = TallyTask(model, *latents, stage.seed + 9, stage.batch("tally"), player)
        Trainer(task, options, folder).run()
    return model.eval().requires_grad_(False)


def load_recount(stage: Stage, tally: Tally | None, denoiser: Denoiser) -> Tally | None:
    """``tally`` as an earlier stage trained it on in free plays of ``denoiser``, where one did."""
    folder = stage.work / "recount"
    if tally is None or not (folder / "final.safetensors").is_file():
        return tally
    if not (was_made_for(folder, "denoiser", denoiser) and was_made_for(folder, "tally", tally)):
        return tally
    return load_stage(copy.deepcopy(tally), stage, "recount")


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
    return load_stage(tally, stage, "tally").requires_grad_(False)


def fit_denoiser(
    stage: Stage,
    autoencoder: Autoencoder,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    options: TrainOptions,
    faithful: bool = False,
    player: Checkpoint | None = None,
) -> Denoiser:
    """Train the denoiser, or load it where this budget is spent already.

    With a ``player`` half of its free plays are that checkpoint's.

    Raises:
        CheckpointError: the player sees with another encoder, or has other sizes; or what is in the work folder does.
    """
    torch.manual_seed(stage.seed + 1)
    model = _fresh_denoiser(stage)
    folder = stage.work / "denoiser"
    check_made_for(folder, "encoder", autoencoder.encoder)
    _check_told(folder, latents[0].tally)
    if not load_finished(model, folder, options):
        if stage.init is not None:
            start_from(model, seeing(stage.init.denoiser, stage.moves, stage.counts), stage)
            if not (folder / "state.pt").is_file():  # else it goes on from what it began with
                note_beginning(stage.init, folder)
        mover = load_mover(stage, autoencoder)
        if mover is not None:
            check_made_for(folder, "geometry", mover.geometry.distance)  # the camera is not asked in training
        other = _load_other(stage, autoencoder, model, player) if player is not None else None
        batch = stage.batch("denoiser")
        task = DenoiserTask(
            model, autoencoder, *latents, stage.seed, batch, mover=mover, faithful=faithful, player=other
        )
        Trainer(task, options, folder).run()
    return model.eval()


def _check_told(folder: Path, tally: Tally | None) -> None:
    """See that the denoiser in ``folder`` was trained with what this tally tells it."""
    if tally is not None:
        check_made_for(folder, "tally", nn.ParameterList([tally.pictures, tally.clear]))


def _load_other(stage: Stage, autoencoder: Autoencoder, model: Denoiser, player: Checkpoint) -> Denoiser:
    """The player's denoiser, which takes the contexts of ``model``."""
    if weights_hash(player.autoencoder.encoder) != weights_hash(autoencoder.encoder):
        what = "its encoder is another than the work folder's, so it cannot play in this training"
        raise CheckpointError(what, player.config.name, "give --plays-of one that was trained from here")
    other = place(seeing(player.denoiser, stage.moves, stage.counts), stage.device)
    if other.config != model.config:
        what = f"it is of the preset {player.config.preset}, with other sizes"
        raise CheckpointError(what, player.config.name, f"give --plays-of one of {stage.preset}")
    return other.eval().requires_grad_(False)


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
    _check_told(stage.work / "denoiser", latents[0].tally)
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
    share: float = 1.0,
    eyes: Lpips | None = None,
) -> Denoiser:
    """``student`` trained on to make what ``teacher`` would as often as that would, or loaded where that is done.

    Of its weights ``share`` is what it has become, the rest what it was. ``eyes`` compare what it makes, too.
    """
    model, folder = place(copy.deepcopy(student), stage.device), stage.work / "matched"
    check_made_for(folder, "student", student)
    check_made_for(folder, "teacher", teacher)
    check_trained_by(folder, eyes)
    _check_told(stage.work / "denoiser", latents[0].tally)
    if stage.init is not None:
        note_beginning(stage.init, folder)
    if not load_finished(model, folder, options):
        batch, mover = stage.batch("matched"), load_mover(stage, autoencoder)
        task = MatchingTask(model, teacher, autoencoder, *latents, stage.seed + 7, batch, mover, eyes)
        Trainer(task, options, folder).run()
    # Of fine-tuned weights and those before, as Wortsman et al. (arXiv 2109.01903) average them.
    before = student.state_dict()
    model.load_state_dict({name: before[name].lerp(part, share) for name, part in model.state_dict().items()})
    leave_weights(model.state_dict(), folder / "shared", {})
    return model.eval()


def _fresh_denoiser(stage: Stage) -> Denoiser:
    actions = stage.recording.header.action_set.size
    sizes = find_preset(stage.preset).denoiser
    return place(Denoiser(replace(sizes, actions=actions, moved=stage.moves, told=stage.counts)), stage.device)


def _fresh_geometry(stage: Stage) -> Geometry:
    header = stage.recording.header
    sizes = replace(
        find_preset(stage.preset).geometry,
        actions=header.action_set.size,
        height=header.height // FACTOR,
        width=header.width // FACTOR,
    )
    return place(Geometry(sizes), stage.device)


def load_stage(model: Model, stage: Stage, name: str) -> Model:
    """``model`` with the weights that the stage ``name`` left in the work folder.

    Raises:
        CheckpointError: there are none.
    """
    if not load_finished(model, stage.work / name, None):
        what = f"the work folder has no finished {name}"
        raise CheckpointError(what, stage.work, f"run gamengen train {name} first, with this folder")
    return model.eval()


def start_from(model: nn.Module, source: nn.Module, stage: Stage) -> None:
    """Load into ``model`` what fits of ``source``, a part of the checkpoint that the stage starts from.

    Raises:
        CheckpointError: it is of other sizes.
    """
    assert stage.init is not None
    check_fits(model, source, stage.preset, stage.init.config)
    load_fitting(model, source)
