"""Each stage of making a game as a command of its own: ``gamengen train ...``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from agents.errors import DataError, OptionError
from gamengen.autoencoder import Autoencoder
from gamengen.autoencoder_stages import first_autoencoder, fit_autoencoder, fit_cycle, fit_decoder, load_autoencoder
from gamengen.checkpoints import Checkpoint, check_writable, load_checkpoint
from gamengen.denoiser import Denoiser, seeing
from gamengen.devices import choose_device, describe_device, place
from gamengen.diffusion import SamplerConfig
from gamengen.evaluation.results import summarise
from gamengen.finish import Networks, evaluation_at_end, finish_checkpoint
from gamengen.latents import LatentEpisodes
from gamengen.looks import load_eyes
from gamengen.outcome_stage import fit_outcome, load_outcome
from gamengen.player import Player
from gamengen.presets import find_preset
from gamengen.processes import is_first, join
from gamengen.stages import (
    count_score,
    encode,
    encode_alone,
    fit_denoiser,
    fit_geometry,
    fit_matched,
    fit_perceptual,
    fit_recount,
    fit_student,
    fit_tally,
    load_denoiser,
    load_geometry,
    load_mover,
    load_player,
    load_recount,
    load_student,
    load_tally,
)
from gamengen.tally import Tally
from gamengen.train_student import STUDENT_STEPS
from gamengen.train_tally import COUNTED, RECOUNT_RATE, find_levels
from gamengen.training import TrainOptions
from gamengen.work_folder import STAGES, Stage, note_beginning
from recorder.recording import Recording


def train_autoencoder(
    data: Path, work: Path, preset: str, init: str | None, options: TrainOptions, device: str
) -> dict[str, Any]:
    """``gamengen train autoencoder``: returns the last held-out figures."""
    stage = _stage(data, work, preset, init, options, device)
    fit_autoencoder(stage, options)
    return {"device": describe_device(stage.device), **_last_figures(work / "autoencoder")}


def train_denoiser(
    data: Path,
    work: Path,
    out: Path,
    preset: str,
    init: str | None,
    options: TrainOptions,
    device: str,
    faithful: bool = False,
    plays_of: str | None = None,
) -> dict[str, Any]:
    """``gamengen train denoiser``: trains, evaluates and writes the checkpoint."""
    check_writable(out)
    stage = _stage(data, work, preset, init, options, device)
    player = load_checkpoint(plays_of) if plays_of is not None else None
    autoencoder = load_autoencoder(stage)
    latents = encode(stage, autoencoder)
    denoiser = fit_denoiser(stage, autoencoder, latents, options, faithful, player)
    tally = load_tally(stage, autoencoder)
    networks = Networks(autoencoder, denoiser, SamplerConfig(), geometry=load_geometry(stage), tally=tally)
    return _write_stage(stage, networks, latents, out, ("autoencoder", "cycle", "geometry", "tally", "denoiser"))


def train_geometry(
    data: Path, work: Path, preset: str, init: str | None, options: TrainOptions, device: str
) -> dict[str, Any]:
    """``gamengen train geometry``: returns the last held-out figures."""
    stage = _stage(data, work, preset, init, options, device)
    autoencoder = load_autoencoder(stage)
    fit_geometry(stage, autoencoder, encode_alone(stage, autoencoder), options)
    return {"device": describe_device(stage.device), **_last_figures(work / "geometry")}


def train_tally(
    data: Path, work: Path, preset: str, init: str | None, options: TrainOptions, device: str
) -> dict[str, Any]:
    """``gamengen train tally``: returns the last held-out figures."""
    stage = _stage(data, work, preset, init, options, device)
    _fit_tally(stage, load_autoencoder(stage), options)
    return {"device": describe_device(stage.device), **_last_figures(work / "tally")}


def tell_score(
    data: Path, work: Path, out: Path, init: str | None, options: TrainOptions, outcome_minutes: float, device: str
) -> dict[str, Any]:
    """``gamengen train tally --out``: trains a tally for a checkpoint, evaluates and writes the checkpoint."""
    check_writable(out)
    if init is None:
        raise OptionError("it takes a checkpoint that is to be told the score", "--out", "give --init")
    if not 0 < outcome_minutes < math.inf:  # its old head would end games that the tally ends too
        raise OptionError(f"must be more than 0, got {outcome_minutes}", "--outcome-minutes", "for example 4")
    stage, start = _going_on(data, work, init, options, device)
    if levels := tuple(find_levels(stage.recording)):  # else it is told of that below
        _check_same_score(start, levels, init)
    autoencoder = first_autoencoder(stage, start)
    tally = _fit_tally(stage, autoencoder, options)
    note_beginning(start, work / "tally")
    latents = encode(stage, autoencoder)
    denoiser = place(seeing(start.denoiser, stage.moves, told=True), stage.device)
    return _write_student(stage, denoiser, tally, latents, out, ("tally",), outcome_minutes)


def _fit_tally(stage: Stage, autoencoder: Autoencoder, options: TrainOptions) -> Tally:
    tally = fit_tally(stage, autoencoder, encode_alone(stage, autoencoder), options)
    if tally is None:
        what = f"nothing in it is counted that the score bar shows ({', '.join(COUNTED)})"
        raise DataError(what, stage.recording.folder, "leave this stage out: the others do without")
    return tally


def distill(data: Path, work: Path, out: Path, preset: str, options: TrainOptions, device: str) -> dict[str, Any]:
    """``gamengen train distill``: trains a student, evaluates and writes the checkpoint."""
    check_writable(out)
    stage = _stage(data, work, preset, None, options, device)
    autoencoder = load_autoencoder(stage)
    denoiser = load_denoiser(stage, autoencoder)
    latents = encode(stage, autoencoder)
    student = fit_student(stage, autoencoder, denoiser, latents, options)
    tally = load_tally(stage, autoencoder)
    networks = Networks(autoencoder, student, SamplerConfig(STUDENT_STEPS), geometry=load_geometry(stage), tally=tally)
    return _write_stage(
        stage, networks, latents, out, ("autoencoder", "cycle", "geometry", "tally", "denoiser", "student")
    )


def train_perceptual(
    data: Path,
    work: Path,
    out: Path,
    init: str,
    weights: Path,
    options: TrainOptions,
    outcome_minutes: float,
    device: str,
) -> dict[str, Any]:
    """``gamengen train perceptual``: trains, evaluates and writes the checkpoint."""
    check_writable(out)
    _check_outcome_minutes(outcome_minutes)
    eyes = load_eyes(weights)
    stage, start = _going_on(data, work, init, options, device)
    if stage.moves:
        raise OptionError("it sees the last frame moved, which cannot be trained so", f"--init {init}", "give another")
    autoencoder = place(start.autoencoder, stage.device)
    tally = place(start.tally, stage.device).requires_grad_(False) if start.tally is not None else None
    latents = count_score(stage.recording, tally, encode_alone(stage, autoencoder))
    denoiser = fit_perceptual(stage, autoencoder, start.denoiser, latents, eyes, options)
    return _write_student(stage, denoiser, tally, latents, out, ("perceptual",), outcome_minutes)


def match(
    data: Path,
    work: Path,
    out: Path,
    init: str,
    options: TrainOptions,
    outcome_minutes: float,
    device: str,
    share: float = 1.0,
    weights: Path | None = None,
) -> dict[str, Any]:
    """``gamengen train match``: trains, evaluates and writes the checkpoint."""
    check_writable(out)
    _check_outcome_minutes(outcome_minutes)
    if not 0 < share <= 1:
        raise OptionError(f"must be more than 0 and at most 1, got {share}", "--share", "for example 0.7")
    eyes = load_eyes(weights) if weights is not None else None
    stage, start = _going_on(data, work, init, options, device)
    # Not asked for the teacher's encoder: it may be this one before it was stored in half precision.
    teacher, autoencoder = load_denoiser(stage), first_autoencoder(stage, start)
    tally = load_tally(stage, autoencoder)
    if tally is not None and not outcome_minutes:
        _check_ends(start, tally, "--outcome-minutes", "for example 6")
    latents = encode(stage, autoencoder)
    student = place(seeing(start.denoiser, stage.moves, tally is not None), stage.device)
    denoiser = fit_matched(stage, autoencoder, student, teacher, latents, options, share, eyes)
    names = ("geometry", "tally", "denoiser", "matched")
    return _write_student(stage, denoiser, tally, latents, out, names, outcome_minutes)


def _check_same_score(start: Checkpoint, levels: tuple[str, ...], init: str) -> None:
    """See that a denoiser which is not trained here is told of the ``levels`` that it knows, if it knows any."""
    if start.tally is not None and start.tally.config.levels != levels:
        what = f"its denoiser is told {', '.join(start.tally.config.levels)}, and would be told {', '.join(levels)}"
        raise OptionError(what, f"--init {init}", "gamengen train match teaches it what is new")


def _check_ends(start: Checkpoint, tally: Tally, option: str, remedy: str) -> None:
    """See that an outcome head which is kept does not end games that the tally ends too."""
    known = start.tally.config.vital if start.tally is not None else ""
    if tally.config.vital != known and start.outcome is not None:
        raise OptionError("its outcome head would end games that the score ends too", option, remedy)


def _check_outcome_minutes(minutes: float) -> None:
    if not 0 <= minutes < math.inf:
        raise OptionError(f"must be 0 or more, got {minutes}", "--outcome-minutes", "for example 6")


def _going_on(data: Path, work: Path, init: str, options: TrainOptions, device: str) -> tuple[Stage, Checkpoint]:
    """The stage of a student that is trained on alone, and the checkpoint that it is of."""
    stage = _stage(data, work, load_checkpoint(init).config.preset, init, options, device)
    start, header = stage.init, stage.recording.header
    assert start is not None
    same = (
        start.config.spec,
        start.config.action_set,
        start.config.height,
        start.config.width,
        start.config.frame_skip,
    )
    if same != (header.spec, header.action_set, header.height, header.width, header.frame_skip):
        raise DataError("the recording is of another game than the checkpoint", data, f"record {start.config.spec}")
    return stage, start


def _write_student(
    stage: Stage,
    denoiser: Denoiser,
    tally: Tally | None,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    out: Path,
    names: tuple[str, ...],
    outcome_minutes: float,
) -> dict[str, Any]:
    """Write the checkpoint that the stage began with, with another student, and with its outcome head or a new one."""
    assert stage.init is not None
    autoencoder, outcome = first_autoencoder(stage, stage.init), stage.init.outcome
    player = Player(denoiser, SamplerConfig(STUDENT_STEPS), load_mover(stage, autoencoder))
    if outcome_minutes and tally is not None:
        counting = TrainOptions(minutes=outcome_minutes / 2, adam_lr=RECOUNT_RATE, seed=stage.seed)
        tally = fit_recount(stage, tally, latents, player, counting)
        names = (*names, "recount")
    if outcome_minutes:
        telling = TrainOptions(minutes=outcome_minutes, adam_lr=1e-3, seed=stage.seed)
        outcome = fit_outcome(stage, autoencoder, latents, telling, player)
        names = (*names, "outcome")
    networks = Networks(autoencoder, denoiser, player.sampler, outcome, load_geometry(stage), tally)
    return _write_stage(stage, networks, latents, out, names)


def train_decoder(
    data: Path,
    work: Path,
    out: Path,
    preset: str,
    init: str | None,
    options: TrainOptions,
    device: str,
    compensation_only: bool = False,
) -> dict[str, Any]:
    """``gamengen train decoder``: trains, evaluates and writes the checkpoint."""
    check_writable(out)
    stage = _stage(data, work, preset, init, options, device)
    plain = load_autoencoder(stage)
    denoiser = load_denoiser(stage, plain)
    latents = encode(stage, plain)
    student = load_student(stage, denoiser)
    played = student or denoiser
    sampler = SamplerConfig() if student is None else SamplerConfig(STUDENT_STEPS)
    autoencoder = fit_decoder(stage, plain, played, latents, options, compensation_only)
    outcome = load_outcome(stage, plain, latents)
    tally = load_recount(stage, load_tally(stage, plain), played)
    networks = Networks(autoencoder, played, sampler, outcome, load_geometry(stage), tally)
    return _write_stage(stage, networks, latents, out, STAGES)


def train_cycle(
    data: Path, work: Path, out: Path, init: str, weights: Path | None, options: TrainOptions, device: str
) -> dict[str, Any]:
    """``gamengen train cycle``: trains, evaluates and writes the checkpoint."""
    check_writable(out)
    eyes = load_eyes(weights) if weights is not None else None
    stage, start = _going_on(data, work, init, options, device)
    if not stage.moves:
        what = "it sees no frame moved, so what it shows is never encoded again"
        raise OptionError(what, f"--init {init}", "leave this stage out")
    if start.autoencoder.compensation is not None:
        what = "its decoder sees the last frame, and this is for one that sees its latent alone"
        raise OptionError(what, f"--init {init}", "give another")
    plain, tally = first_autoencoder(stage, start), load_tally(stage, start.autoencoder)
    if tally is not None:
        _check_same_score(start, tally.config.levels, init)
        _check_ends(start, tally, f"--init {init}", "first gamengen train tally --init --out")
    latents = encode(stage, plain)
    denoiser = place(seeing(start.denoiser, stage.moves, tally is not None), stage.device).eval().requires_grad_(False)
    autoencoder = fit_cycle(stage, plain, options, denoiser, latents[0], eyes)
    note_beginning(start, stage.work / "cycle")
    sampler = start.config.sampler
    networks = Networks(autoencoder, denoiser, sampler, start.outcome, load_geometry(stage), tally)
    return _write_stage(stage, networks, latents, out, ("cycle",))


def train_outcome(data: Path, work: Path, preset: str, options: TrainOptions, device: str) -> dict[str, Any]:
    """``gamengen train outcome``: returns the last held-out figures."""
    stage = _stage(data, work, preset, None, options, device)
    autoencoder = load_autoencoder(stage)
    latents = encode(stage, autoencoder)
    fit_outcome(stage, autoencoder, latents, options, load_player(stage, autoencoder))
    return {"device": describe_device(stage.device), **_last_figures(work / "outcome")}


def _write_stage(
    stage: Stage,
    networks: Networks,
    latents: tuple[LatentEpisodes, LatentEpisodes],
    out: Path,
    names: tuple[str, ...],
) -> dict[str, Any]:
    if not is_first():
        return {}
    made = [name for name in names if (stage.work / name / "final.safetensors").is_file()]
    minutes = {name: round(_last_figures(stage.work / name).get("seconds", 0.0) / 60, 1) for name in made}
    metrics = finish_checkpoint(stage, networks, latents, out, minutes, evaluation_at_end())
    return {"checkpoint": str(out), "device": describe_device(stage.device), **summarise(metrics)}


def _stage(data: Path, work: Path, preset: str, init: str | None, options: TrainOptions, device: str) -> Stage:
    find_preset(preset)
    chosen = join(choose_device(device))
    start = load_checkpoint(init) if init is not None else None
    return Stage(Recording.open(data), work, preset, chosen, start, options.seed)


def _last_figures(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    except (OSError, ValueError, IndexError) as error:
        raise DataError(f"cannot read the training log ({error})", folder, "train this stage again") from error
