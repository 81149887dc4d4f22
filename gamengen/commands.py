"""The commands: each a dataclass of its options with a ``run`` that returns a summary.

Nothing heavy is imported here but inside ``run``, so that ``--help`` is quick and playing imports
neither vizdoom nor stable-baselines3.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from agents.errors import OptionError
from gamengen.bench_command import Bench
from gamengen.collect_commands import AgentEvaluate, AgentTrain, DataExport, DataInfo, DataPreview, DataVerify
from gamengen.evaluate_commands import ConvertLpips, Evaluate, Json
from gamengen.train_commands import (
    TrainAutoencoder,
    TrainCycle,
    TrainDecoder,
    TrainDenoiser,
    TrainDistill,
    TrainGeometry,
    TrainMatch,
    TrainOutcome,
    TrainPerceptual,
    TrainTally,
)

if TYPE_CHECKING:
    from engine.frame_times import PlaySummary
    from engine.game import NeuralGame

__all__ = [
    "AgentEvaluate",
    "AgentTrain",
    "Bench",
    "ConvertLpips",
    "Create",
    "DataExport",
    "DataInfo",
    "DataPreview",
    "DataVerify",
    "Evaluate",
    "Info",
    "Play",
    "Record",
    "TrainAutoencoder",
    "TrainCycle",
    "TrainDecoder",
    "TrainDenoiser",
    "TrainDistill",
    "TrainGeometry",
    "TrainMatch",
    "TrainOutcome",
    "TrainPerceptual",
    "TrainTally",
]

Spec = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]


@dataclass(frozen=True)
class Play:
    """Play a neural game: a window, or --headless into a video.

    Example: gamengen play --steps 2

    Example: gamengen play --headless --frames 300 --video play.mp4 --actions random
    """

    checkpoint: str | None = None
    """Name of a shipped checkpoint or a folder; the default is the first of --list."""
    device: str = "auto"
    """auto, cpu or cuda."""
    steps: int | None = None
    """Sampling steps a frame; the default is the checkpoint's own."""
    seed: int | None = None
    """Seed of spawns and sampling noise; the default is another one at each start, headless 0."""
    spawn: int | None = None
    """Stored start to begin with; the default is a random one."""
    scale: int | None = None
    """Window size in multiples of the frame; the default is chosen by the screen."""
    fullscreen: bool = False
    """Fill the screen."""
    mouse_speed: float = 1.0
    """How far the mouse turns; 2 is twice as far."""
    uncapped: bool = False
    """As fast as possible instead of at the game's own clock."""
    headless: bool = False
    """No window: play --frames frames and write --video."""
    frames: int | None = None
    """Stop after this many frames (headless: 300 if not given)."""
    video: Path | None = None
    """MP4 to write (headless)."""
    actions: str = "random"
    """Headless: random, none, or a file of actions (.json or .npy)."""
    list: bool = False
    """Only list the shipped checkpoints."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Play until the window is closed, or the frames are done."""
        if self.list:
            return _shipped_table()
        if self.frames is not None and self.frames < 1:
            raise OptionError(f"must be at least 1, got {self.frames}", "--frames", "give a positive number")
        if self.video is not None and not self.headless:
            raise OptionError("a video is written without a window", "--video", "add --headless, or press F6 in play")
        if not self.headless:
            from engine.window import check_display

            check_display()
        from engine.game import NeuralGame
        from gamengen.diffusion import LARGEST_SEED

        seed = self.seed if self.seed is not None else 0 if self.headless else secrets.randbelow(LARGEST_SEED)
        game = NeuralGame(self.checkpoint, self.device, self.steps, seed)
        if self.spawn is not None:
            game.reset(self.spawn)
        if self.headless:
            from engine.headless import HeadlessOptions, play_headless

            headless = HeadlessOptions(self.frames or 300, self.video, self.actions, seed)
            return _play_summary(game, play_headless(game, headless))
        from engine.window import WindowOptions, play_window

        window = WindowOptions(
            scale=self.scale, fullscreen=self.fullscreen, uncapped=self.uncapped, mouse_speed=self.mouse_speed,
            frames=self.frames, seed=seed,
        )  # fmt: skip
        return _play_summary(game, play_window(game, window))


@dataclass(frozen=True)
class Create:
    """Make a neural copy of a game in one command: record, train, evaluate, checkpoint.

    Killed anywhere and run again, it goes on.

    Example: gamengen create doom/basic --minutes 6 --out mygame

    Example: gamengen create gym/CartPole-v1 --minutes 30 --out pole
    """

    spec: Spec
    """The game: doom/<scenario>, doom/freedoom1:E1M1 or gym/<id>."""
    out: Path
    """Folder of the checkpoint."""
    minutes: float = 60.0
    """Time budget for everything."""
    preset: str = "nano"
    """nano plays on a CPU; small and base want a GPU."""
    init: str | None = None
    """Checkpoint to start from; the default is a shipped one that fits, of the same game if there is one."""
    from_scratch: bool = False
    """Start from fresh weights."""
    data: Path | None = None
    """Use this recording instead of recording anew."""
    frames: int | None = None
    """Frames to record; the default is planned by the budget."""
    agent: str | None = None
    """Who plays for the recording: random, scripted, a trained agent's file, or a mix with shares; the default is
    scripted:0.6,random:0.4 in Doom, random elsewhere."""
    workers: int = 2
    """Recording processes."""
    frame_skip: int = 2
    """Tics a frame."""
    height: int = 240
    """Frame height, a multiple of 16."""
    width: int = 320
    """Frame width, a multiple of 16."""
    autoencoder_minutes: float | None = None
    """Instead of the planned share."""
    cycle_minutes: float | None = None
    """Instead of the planned share, for games whose last frame is moved; 0 leaves this stage out."""
    geometry_minutes: float | None = None
    """For what moves the last frame, in Doom games in which one walks; without it the camera only turns. The default
    plans it where it starts from weights of the same game that see the last frame moved; 0 leaves it out."""
    denoiser_minutes: float | None = None
    """Instead of the planned share."""
    distill_minutes: float | None = None
    """Instead of the planned share; 0 leaves this stage out."""
    lpips_weights: Path | None = None
    """LPIPS weights of VGG (gamengen lpips --network vgg): the student is trained on by what is seen, too; where the
    last frame is moved, the decoder is, in its place."""
    perceptual_minutes: float | None = None
    """For that: instead of the planned share."""
    decoder_minutes: float | None = None
    """Instead of the planned share; 0 leaves this stage out."""
    seed: int = 0
    """Seed of everything."""
    device: str = "auto"
    """auto, cpu or cuda."""
    work: Path | None = None
    """Folder for everything on the way; the default is runs/<name of out>."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Make the game."""
        from gamengen.create import CreateOptions, create_game

        return create_game(CreateOptions(**_without_json(self)))


@dataclass(frozen=True)
class Record:
    """Record agents playing the real game, until the folder holds --frames frames.

    Run again on the same folder, it goes on with new seeds.

    Example: gamengen record doom/defend_the_center --frames 20000 --out data/center
    """

    spec: Spec
    """The game: doom/<scenario>, doom/freedoom1:E1M1 or gym/<id>."""
    out: Path
    """Folder of the recording."""
    frames: int = 10_000
    """Frames that the folder is to hold in all."""
    agent: str | None = None
    """random, scripted, a trained agent's file, or a mix with shares; the default is scripted:0.6,random:0.4 in Doom,
    random elsewhere."""
    workers: int = 2
    """Processes, each with a game of its own."""
    seed: int = 0
    """Episode n is played with seed + n."""
    frame_skip: int = 2
    """Tics a frame."""
    height: int = 240
    """Frame height."""
    width: int = 320
    """Frame width."""
    max_episode_frames: int = 2100
    """Longest episode."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Record."""
        from recorder.record import RecordOptions, record_episodes

        return asdict(record_episodes(RecordOptions(**_without_json(self))))


@dataclass(frozen=True)
class Info:
    """Versions, devices, shipped checkpoints, and presets with what was measured of them.

    Example: gamengen info
    """

    json: Json = None

    def run(self) -> dict[str, Any]:
        """Collect."""
        import platform
        from importlib import metadata

        import torch

        from gamengen import __version__
        from gamengen.devices import choose_device, describe_device, has_bf16
        from gamengen.presets import PRESETS

        def version(name: str) -> str:
            try:
                return metadata.version(name)
            except metadata.PackageNotFoundError:
                return "not installed"

        device = choose_device()
        packages = ("torch", "numpy", "vizdoom", "gymnasium", "stable-baselines3", "pygame-ce", "av")
        return {
            "gamengen": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in packages},
            "device": describe_device(device),
            "computes_in": "bfloat16" if has_bf16(device) else "float32",
            "cuda_devices": torch.cuda.device_count(),
            **_shipped_table(),
            "presets": {name: preset.measured for name, preset in PRESETS.items()},
        }


def _play_summary(game: NeuralGame, played: PlaySummary) -> dict[str, Any]:
    about = {"checkpoint": game.name, "device": game.device_name, "steps": game.steps, "seed": game.seed}
    return {**about, **asdict(played)}


def _shipped_table() -> dict[str, Any]:
    from gamengen.checkpoints import DEFAULT_CHECKPOINT, SHIPPED, read_config, read_figures, shipped_checkpoints

    shipped = {}
    for name in sorted(shipped_checkpoints(), key=lambda name: (name != DEFAULT_CHECKPOINT, name)):
        config = read_config(SHIPPED / name)
        about = f"{config.spec}, {config.width}x{config.height} at {config.fps:.4g} Hz, {config.preset}"
        shipped[name] = f"{about}; {_next_frame(read_figures(SHIPPED / name), config.sampler.steps)}"
    if DEFAULT_CHECKPOINT in shipped:
        shipped[DEFAULT_CHECKPOINT] += "; the default"
    return {"shipped_checkpoints": shipped}


def _next_frame(metrics: dict[str, Any], steps: int) -> str:
    """How good the next frame is, in a few words."""
    figure = (metrics.get("teacher_forced") or {}).get(str(steps))
    if figure is None:
        return "not measured"
    lpips = f", LPIPS {figure['lpips']:.3f}" if figure.get("lpips") is not None else ""
    return f"{figure['psnr']:.2f} dB{lpips} (copying the last frame {metrics['copy_last']['psnr']:.2f} dB)"


def _without_json(command: Any) -> dict[str, Any]:
    return {name: getattr(command, name) for name in command.__dataclass_fields__ if name != "json"}
