"""One command makes a game: record, autoencoder, latents, denoiser, student (by what is seen too), decoder, outcome.

Each stage leaves its result in the work folder and is skipped when that is there, so a run that was
killed goes on where it stopped.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from agents.agent import default_mix, make_agent, parse_mix
from agents.environments import make_environment
from agents.errors import CheckpointError, OptionError
from gamengen.autoencoder import Autoencoder, check_frame_size
from gamengen.autoencoder_stages import fit_autoencoder, fit_cycle, fit_decoder
from gamengen.checkpoints import Checkpoint, check_fits, check_writable, load_checkpoint, read_config, shipped_for
from gamengen.denoiser import Denoiser
from gamengen.devices import choose_device, describe_device
from gamengen.diffusion import SamplerConfig, check_seed
from gamengen.evaluation.results import summarise
from gamengen.finish import Networks, evaluation_at_end, finish_checkpoint
from gamengen.looks import load_eyes
from gamengen.outcome_stage import fit_outcome
from gamengen.player import Player
from gamengen.presets import find_preset
from gamengen.stages import (
    encode,
    encode_alone,
    fit_denoiser,
    fit_geometry,
    fit_perceptual,
    fit_recount,
    fit_student,
    fit_tally,
    load_mover,
)
from gamengen.train_cycle import RATES as CYCLE_RATES
from gamengen.train_geometry import RATE
from gamengen.train_perceptual import RATES as PERCEPTUAL_RATES
from gamengen.train_student import STUDENT_RATES, STUDENT_STEPS
from gamengen.train_tally import RECOUNT_RATE, find_levels
from gamengen.training import TrainOptions
from gamengen.work_folder import Stage
from recorder.record import MAX_EPISODE_FRAMES, RecordOptions, record_episodes
from recorder.recording import Recording, write_json
from recorder.replay import can_replay

# What the plan reckons with, measured on 2 CPU cores and guessed low for a GPU.
FRAMES_PER_MINUTE = {"cpu": 1_000, "cuda": 40_000}
MOST_FRAMES = {"cpu": 64_000, "cuda": 1_000_000}
LEAST_FRAMES = 2_000
LEAST_EPISODES, SHORTEST_EPISODE = 12, 100
RECORDED_PER_SECOND = 300  # a worker
ENCODED_PER_SECOND = {"cpu": 110, "cuda": 5_000}
RECORDING_SHARE = 0.3  # of the budget, at most
EVALUATION_SHARE = 0.05
PERCEPTUAL_SHARE = 0.2  # of the training, taken from the denoiser's
CYCLE_SHARE, GEOMETRY_SHARE = 0.08, 0.1  # of the training, where the last frame is moved
TALLY_SHARE = 0.02  # of the training, twice, where a score bar counts


@dataclass(frozen=True)
class CreateOptions:
    """What game to make, how long it may take, and where it goes.

    Args:
        spec: the game, as ``doom/basic`` or ``gym/<id>``.
        out: folder of the checkpoint.
        minutes: time budget in all.
        preset: size of the model.
        init: checkpoint to start from; None takes a shipped one whose shapes fit, of the same game if there is one.
        from_scratch: start from fresh weights.
        data: an existing recording, instead of recording anew.
        frames: frames to record; None plans them by the budget.
        autoencoder_minutes: instead of the planned share.
        cycle_minutes: instead of the planned share, where the last frame is moved; 0 leaves this stage out.
        geometry_minutes: for what moves the last frame, in Doom games in which one walks; 0 leaves it out. None plans
            it where the game to start from is the same and sees it moved, unless there are ``perceptual_minutes``.
        denoiser_minutes: instead of the planned share.
        distill_minutes: instead of the planned share; 0 leaves this stage out.
        lpips_weights: LPIPS weights of VGG; with them the student is trained on by what is seen or, where the last
            frame is moved, the decoder.
        perceptual_minutes: for that, instead of the planned share.
        decoder_minutes: instead of the planned share; 0 leaves this stage out.
        work: folder for everything on the way; None is ``runs/<name of out>``.
    """

    spec: str
    out: Path
    minutes: float = 60.0
    preset: str = "nano"
    init: str | None = None
    from_scratch: bool = False
    data: Path | None = None
    frames: int | None = None
    agent: str | None = None
    workers: int = 2
    frame_skip: int = 2
    height: int = 240
    width: int = 320
    autoencoder_minutes: float | None = None
    cycle_minutes: float | None = None
    geometry_minutes: float | None = None
    denoiser_minutes: float | None = None
    distill_minutes: float | None = None
    lpips_weights: Path | None = None
    perceptual_minutes: float | None = None
    decoder_minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    work: Path | None = None

    def __post_init__(self) -> None:
        skippable = ("cycle_minutes", "geometry_minutes", "distill_minutes", "decoder_minutes")
        others = ("minutes", "autoencoder_minutes", "denoiser_minutes", "perceptual_minutes", "frames")
        for name in (*others, *skippable):
            value = getattr(self, name)
            skipped = name in skippable and value == 0
            if value is not None and not skipped and not 0 < value < float("inf"):
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"must be more than 0, got {value}", flag, "give a positive number")
        if self.init is not None and self.from_scratch:
            raise OptionError("they exclude each other", "--init, --from-scratch", "give one of them")
        out, work = self.out.resolve(), self.work_folder.resolve()
        if out == work or out in work.parents:
            remedy = "give another --out, or a --work outside of it"
            raise OptionError("the work folder would lie in the checkpoint's own folder", self.work_folder, remedy)
        if self.lpips_weights is None and self.perceptual_minutes is not None:
            raise OptionError("it takes --lpips-weights", "--perceptual-minutes", "gamengen lpips makes them")
        if self.lpips_weights is not None and self.distill_minutes == 0 and not self.geometry_minutes:
            raise OptionError("only a student is trained so", "--lpips-weights", "leave --distill-minutes out")
        if self.perceptual_minutes is not None and self.geometry_minutes:
            what = "a student that sees the last frame moved cannot be trained so"
            raise OptionError(what, "--perceptual-minutes", "leave --geometry-minutes out")
        if self.geometry_minutes and not can_replay(self.spec):
            raise OptionError("only Doom tells how far things are", "--geometry-minutes", "leave it out for this game")
        check_frame_size(self.height, self.width)
        check_seed(self.seed)
        self.record_options(self.out, 1)

    @property
    def work_folder(self) -> Path:
        """Where everything on the way is kept."""
        return self.work or Path("runs") / self.out.name

    def record_options(self, folder: Path, frames: int) -> RecordOptions:
        """What to record into ``folder``; refuses what cannot be recorded."""
        # Where little is recorded, episodes must be short, or there are too few to hold some out.
        longest = max(SHORTEST_EPISODE, min(MAX_EPISODE_FRAMES, frames // LEAST_EPISODES))
        return RecordOptions(
            self.spec, folder, frames, self.agent, self.workers, self.seed, self.frame_skip, self.height, self.width,
            longest,
        )  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a budget is spent."""

    frames: int
    record_seconds: float
    autoencoder_minutes: float
    encode_seconds: float
    denoiser_minutes: float
    distill_minutes: float
    decoder_minutes: float
    outcome_minutes: float
    evaluate_seconds: float
    tally_minutes: float = 0.0
    geometry_minutes: float = 0.0
    perceptual_minutes: float = 0.0
    cycle_minutes: float = 0.0


def create_game(options: CreateOptions) -> dict[str, Any]:
    """Make a playable checkpoint; returns a summary.

    Raises:
        GamengenError: the spec, the folders or the data cannot be used.
    """
    device = choose_device(options.device)
    check_writable(options.out)
    init = _find_init(options)
    _check_game(options)
    eyes = load_eyes(options.lpips_weights) if options.lpips_weights is not None else None
    planned = asdict(make_plan(options, device.type, init))  # which may refuse the options
    work = _Work(options)
    # What was planned stays: with other workers or other shipped weights a finished stage would be trained on.
    planned = work.remember("plan", planned)
    try:
        plan = Plan(**planned)
    except TypeError as error:
        raise CheckpointError(f"the plan is damaged ({error})", work.folder, "give another --work") from error
    _announce(options, plan, work.folder, device, init)

    recording = work.timed("record", lambda: _record(options, plan, work.folder))
    stage = Stage(recording, work.folder, options.preset, device, init, options.seed)
    training = TrainOptions(minutes=plan.autoencoder_minutes, seed=options.seed)
    autoencoder = work.timed("autoencoder", lambda: fit_autoencoder(stage, training))
    if plan.cycle_minutes > 0:
        turning, first_decoder = TrainOptions(plan.cycle_minutes, None, *CYCLE_RATES, seed=options.seed), autoencoder
        autoencoder = work.timed("cycle", lambda: fit_cycle(stage, first_decoder, turning, eyes=eyes))
    alone = work.timed("encode", lambda: encode_alone(stage, autoencoder))
    tally = None
    if plan.tally_minutes > 0 and find_levels(recording):
        counting = TrainOptions(minutes=plan.tally_minutes, adam_lr=1e-3, seed=options.seed)
        tally = work.timed("tally", lambda: fit_tally(stage, autoencoder, alone, counting))
    geometry = None
    if plan.geometry_minutes > 0:
        seeing = TrainOptions(minutes=plan.geometry_minutes, adam_lr=RATE, seed=options.seed)
        geometry = work.timed("geometry", lambda: fit_geometry(stage, autoencoder, alone, seeing))
    latents = work.timed("encode", lambda: encode(stage, autoencoder))
    minutes = work.remember("denoiser_minutes", _denoiser_minutes(options, plan, work, tally is not None))
    training = TrainOptions(minutes=minutes, adam_lr=5e-4, seed=options.seed)
    denoiser = work.timed("denoiser", lambda: fit_denoiser(stage, autoencoder, latents, training))
    sampler = SamplerConfig()
    if plan.distill_minutes > 0:
        training, teacher = TrainOptions(plan.distill_minutes, None, *STUDENT_RATES, seed=options.seed), denoiser
        denoiser = work.timed("student", lambda: fit_student(stage, autoencoder, teacher, latents, training))
        sampler = SamplerConfig(STUDENT_STEPS)
    if eyes is not None and plan.perceptual_minutes > 0:
        training, student = TrainOptions(plan.perceptual_minutes, None, *PERCEPTUAL_RATES, seed=options.seed), denoiser
        given = stage, autoencoder, student, latents, eyes, training
        denoiser = work.timed("perceptual", lambda: fit_perceptual(*given))
    plain = autoencoder
    if plan.decoder_minutes > 0:
        refining = TrainOptions(minutes=plan.decoder_minutes, muon_lr=0.01, adam_lr=5e-4, seed=options.seed)
        autoencoder = work.timed("decoder", lambda: fit_decoder(stage, plain, denoiser, latents, refining))
    player = Player(denoiser, sampler, load_mover(stage, plain))
    if tally is not None:
        counting, first = TrainOptions(minutes=plan.tally_minutes, adam_lr=RECOUNT_RATE, seed=options.seed), tally
        tally = work.timed("recount", lambda: fit_recount(stage, first, latents, player, counting))
    telling = TrainOptions(minutes=plan.outcome_minutes, adam_lr=1e-3, seed=options.seed)
    outcome = work.timed("outcome", lambda: fit_outcome(stage, plain, latents, telling, player))
    scope = replace(evaluation_at_end(minutes), seed=options.seed)
    took = {name: round(seconds / 60, 1) for name, seconds in work.stages.items()}
    networks = Networks(autoencoder, denoiser, sampler, outcome, geometry, tally)
    metrics = work.timed(
        "evaluate",
        lambda: finish_checkpoint(stage, networks, latents, options.out, took, scope),
    )
    return {
        "checkpoint": str(options.out),
        "minutes": round(work.seconds() / 60, 1),
        "stages_seconds": {name: round(seconds) for name, seconds in work.stages.items()},
        "frames": sum(info.frames for info in recording.episodes()),
        **summarise(metrics),
        "play": f"gamengen play --checkpoint {options.out}",
    }


def make_plan(options: CreateOptions, device: str, init: Checkpoint | None) -> Plan:
    """Split the budget of a training on ``device``, ``cpu`` or ``cuda``.

    Trained weights need a smaller share for the autoencoder. Where ``init`` is of the same game and its decoder sees
    its latents alone, as had better be where one walks, this one does too; and so it does where the last frame is
    moved, which is what the decoder is trained for cycle consistency for.
    """
    total, recorded_per_second = 60 * options.minutes, RECORDED_PER_SECOND * options.workers
    most = min(MOST_FRAMES[device], RECORDING_SHARE * total * recorded_per_second)
    frames = int(max(LEAST_FRAMES, min(most, FRAMES_PER_MINUTE[device] * options.minutes)))
    frames = options.frames or frames
    record = 0.0 if options.data is not None else frames / recorded_per_second
    encode = frames / ENCODED_PER_SECOND[device]
    evaluate = min(120.0, EVALUATION_SHARE * total)
    same = init is not None and init.config.spec == options.spec
    moves = bool(options.geometry_minutes)
    if options.geometry_minutes is None:
        moves = same and init is not None and init.geometry is not None and options.perceptual_minutes is None
    if options.cycle_minutes and not moves:
        raise OptionError("it is for games whose last frame is moved", "--cycle-minutes", "give --geometry-minutes too")
    if moves:
        encode *= 3  # the games are played once more, and moved frames encoded too
    training = max(total - record - encode - evaluate - 60 * (options.geometry_minutes or 0.0), 0.3 * total) / 60
    shares = [0.2, 0.48, 0.1, 0.15, 0.03] if init is not None else [0.27, 0.41, 0.1, 0.15, 0.03]
    alone = same and init is not None and init.autoencoder.compensation is None
    cycle, geometry = (CYCLE_SHARE, GEOMETRY_SHARE) if moves else (0.0, 0.0)
    if options.geometry_minutes is not None:
        geometry = 0.0  # it is not of the training
    if alone or moves:
        shares[1], shares[3] = shares[1] + shares[3] - cycle - geometry, 0.0
    perceptual = 0.0
    if options.lpips_weights is not None and not moves:
        perceptual = options.perceptual_minutes or PERCEPTUAL_SHARE * training
        shares[1] -= PERCEPTUAL_SHARE
    return Plan(
        frames,
        record,
        options.autoencoder_minutes or shares[0] * training,
        encode,
        options.denoiser_minutes or shares[1] * training,
        options.distill_minutes if options.distill_minutes is not None else shares[2] * training,
        options.decoder_minutes if options.decoder_minutes is not None else shares[3] * training,
        shares[4] * training,
        evaluate,
        TALLY_SHARE * training,
        options.geometry_minutes if options.geometry_minutes is not None else geometry * training,
        perceptual,
        options.cycle_minutes if moves and options.cycle_minutes is not None else cycle * training,
    )


class _Work:
    """The work folder: the options it was begun with, and the seconds that each stage took."""

    def __init__(self, options: CreateOptions) -> None:
        self.folder = options.work_folder
        chosen = {**asdict(options), "agent": options.agent or default_mix(options.spec)}
        wanted = {name: str(value) for name, value in chosen.items() if name not in ("out", "work", "workers")}
        path = self.folder / "plan.json"
        self._path = self.folder / "stages.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.is_file():
                found = _read_object(path)
                # An option that this program has and the one before had not is no difference.
                differing = sorted(name for name in wanted if found.get(name, wanted[name]) != wanted[name])
                if differing:
                    what = f"the work folder was begun with another {', '.join(differing)}"
                    raise OptionError(what, self.folder, "repeat the same command, or give another --work")
            else:
                write_json(path, wanted)
            state = _read_object(self._path) if self._path.is_file() else {}
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"cannot use the work folder ({error})", self.folder, "give another --work"
            ) from error
        self.stages: dict[str, float] = state.get("stages", {})
        self._remembered: dict[str, Any] = state.get("remembered", {})
        if not isinstance(self.stages, dict) or not isinstance(self._remembered, dict):
            raise CheckpointError("it is damaged", self._path, "give another --work")

    def timed(self, name: str, stage: Any) -> Any:
        """Run a stage and add its time to what it took before."""
        began = time.monotonic()
        try:
            return stage()
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - began
            self._write()

    def remember(self, name: str, value: Any) -> Any:
        """``value``, or what it was when this was first asked."""
        self._remembered.setdefault(name, value)
        self._write()
        return self._remembered[name]

    def seconds(self) -> float:
        """Time spent in all."""
        return sum(self.stages.values())

    def _write(self) -> None:
        write_json(self._path, {"stages": self.stages, "remembered": self._remembered})


def _read_object(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} is no JSON object")
    return found


def _find_init(options: CreateOptions) -> Checkpoint | None:
    preset = find_preset(options.preset)
    if options.from_scratch:
        return None
    if options.init is not None:
        init = load_checkpoint(options.init)
        with torch.device("meta"):  # of which only the shapes count
            networks = Autoencoder(preset.autoencoder), Denoiser(preset.denoiser)
        for network, source in zip(networks, (init.autoencoder, init.denoiser), strict=True):
            check_fits(network, source, options.preset, init.config)  # told now, not after the recording
        return init
    for folder in shipped_for(options.spec):
        if replace(read_config(folder).autoencoder, compensation=0, guided=False) == preset.autoencoder:
            return load_checkpoint(folder)
    return None


def _announce(options: CreateOptions, plan: Plan, work: Path, device: torch.device, init: Checkpoint | None) -> None:
    from rich.console import Console

    begin = f"from {init.config.name}" if init is not None else "from scratch"
    Console(stderr=True).print(
        f"making {options.spec} ({options.preset}, {begin}) on {describe_device(device)}\n"
        f"plan: {plan.frames:,} frames recorded in {plan.record_seconds:.0f} s, autoencoder "
        f"{plan.autoencoder_minutes:.1f} min, encoding {plan.encode_seconds:.0f} s, "
        + (f"tally {plan.tally_minutes:.1f} min, " if plan.tally_minutes else "")
        + (f"geometry {plan.geometry_minutes:.1f} min, " if plan.geometry_minutes else "")
        + (f"cycle {plan.cycle_minutes:.1f} min, " if plan.cycle_minutes else "")
        + "denoiser about "
        f"{plan.denoiser_minutes:.1f} min, distillation {plan.distill_minutes:.1f} min, "
        + (f"by what is seen {plan.perceptual_minutes:.1f} min, " if plan.perceptual_minutes else "")
        + f"decoder {plan.decoder_minutes:.1f} min, outcome {plan.outcome_minutes:.1f} min, "
        f"evaluation {plan.evaluate_seconds:.0f} s\n"
        f"work folder {work}: run the same command again to go on after a stop",
        highlight=False,
        markup=False,
    )


def _check_game(options: CreateOptions) -> None:
    """See that there is such a game or recording, before a work folder is begun with these options."""
    if options.data is not None:
        recording = Recording.open(options.data)
        if recording.header.spec != options.spec:
            what = f"the recording is of {recording.header.spec}, not {options.spec}"
            raise OptionError(what, "--data", "give the recording's own spec")
        return
    environment = make_environment(
        options.spec, frame_skip=options.frame_skip, height=options.height, width=options.width
    )
    try:
        for share in parse_mix(options.agent or default_mix(options.spec)):
            make_agent(share.name, environment.action_set, options.frame_skip)
    finally:
        environment.close()


def _record(options: CreateOptions, plan: Plan, work: Path) -> Recording:
    if options.data is not None:
        return Recording.open(options.data)
    folder = work / "recording"
    record_episodes(options.record_options(folder, plan.frames))
    return Recording.open(folder)


def _denoiser_minutes(options: CreateOptions, plan: Plan, work: _Work, counts: bool) -> float:
    if options.denoiser_minutes is not None:
        return options.denoiser_minutes
    left = (
        60
        * (
            options.minutes
            - plan.distill_minutes
            - plan.perceptual_minutes
            - plan.decoder_minutes
            - plan.outcome_minutes
            - (plan.tally_minutes if counts else 0.0)
        )
        - work.seconds()
        - plan.evaluate_seconds
    )
    return max(left / 60, 0.5 * plan.denoiser_minutes)
