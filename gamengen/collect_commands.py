"""The commands of those who collect: what a recording holds, and agents.

Like :mod:`gamengen.commands`, nothing heavy is imported but inside ``run``.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from agents.errors import DataError, OptionError

if TYPE_CHECKING:
    from engine.dream import DreamGames
    from recorder.record import StreamRecorder

Json = Annotated[Path | None, tyro.conf.arg(help="write the summary to this file as JSON too")]
Spec = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SPEC")]
Folder = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]


@dataclass(frozen=True)
class DataInfo:
    """What a recording holds: game, episodes, frames, agents, how often each button is held.

    Example: gamengen data info data/center
    """

    folder: Folder
    """The recording."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Describe the recording."""
        from recorder.preview import describe_recording

        return asdict(describe_recording(self.folder))


@dataclass(frozen=True)
class DataVerify:
    """Read every episode whole and name what is damaged; the exit code is not 0 if any is and stays.

    Example: gamengen data verify data/center --repair
    """

    folder: Folder
    """The recording."""
    repair: bool = False
    """Move damaged episodes to quarantine/ and remove what a killed recorder left half-written."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Verify the recording."""
        from gamengen.cli import write_summary
        from recorder.verify import verify_recording

        summary = verify_recording(self.folder, self.repair)
        if summary.bad and not self.repair:
            if self.json is not None:
                write_summary(self.json, asdict(summary))
            named = ", ".join(f"{Path(bad.path).name} ({bad.reason})" for bad in summary.bad[:5])
            what = f"{len(summary.bad)} of {summary.episodes + len(summary.bad)} episodes are damaged: {named}"
            raise DataError(what, self.folder, "run it again with --repair to move them away")
        return asdict(summary)


@dataclass(frozen=True)
class DataPreview:
    """A contact sheet (preview.png) and a video (preview.mp4) of a recording, held keys drawn in.

    Where the game tells positions, a map too of where the recording has been (coverage.png).

    Example: gamengen data preview data/center --out preview
    """

    folder: Folder
    """The recording."""
    out: Path = Path("preview")
    """Folder for the files."""
    rows: int = 4
    """Episodes shown."""
    columns: int = 6
    """Frames of each on the sheet."""
    seconds: float = 20.0
    """Length of the video."""
    seed: int = 0
    """Draws episodes and stretches."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Write the preview."""
        from recorder.preview import preview_recording

        summary = preview_recording(self.folder, self.out, self.seed, self.rows, self.columns, self.seconds)
        return asdict(summary)


@dataclass(frozen=True)
class DataExport:
    """A recording as MP4, NPZ or PNG files, for other programs.

    Example: gamengen data export data/center --out frames --format png
    """

    folder: Folder
    """The recording."""
    out: Path
    """A new folder."""
    format: Literal["mp4", "npz", "png"] = "mp4"
    """mp4 is slightly lossy; npz and png are lossless."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Export."""
        from recorder.export import export_recording

        return asdict(export_recording(self.folder, self.out, self.format))


@dataclass(frozen=True)
class AgentTrain:
    """Train a PPO agent as in the GameNGen paper; an agent that exists at --out goes on.

    Example: gamengen agent train doom/defend_the_center --steps 200000 --out agent.safetensors --record data/ppo

    Example: gamengen agent train doom/defend_the_center --inside defend_the_center --out dreamer.safetensors
    """

    spec: Spec
    """The game: doom/<scenario>, doom/freedoom1:E1M1 or gym/<id>."""
    out: Path
    """The agent's file."""
    steps: int = 1_000_000
    """Decisions in all."""
    minutes: float | None = None
    """Stop after so many minutes at the latest."""
    environments: int = 8
    """Games played side by side."""
    hold: int = 2
    """Frames that a decision is held."""
    frame_skip: int = 2
    """Tics a frame."""
    max_frames: int = 2100
    """Longest episode."""
    n_steps: int = 512
    """Decisions of each game between updates."""
    batch_size: int = 64
    """Samples of a gradient step."""
    epochs: int = 10
    """Passes over each update's samples."""
    learning_rate: float = 1e-4
    """Of Adam."""
    entropy: float = 0.1
    """Weight of the entropy bonus."""
    seed: int = 0
    """Seed of weights and games."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto, cpu or cuda."""
    inside: str | None = None
    """Train inside this checkpoint's neural game, by the rewards that it tells, and never in the real one."""
    record: Path | None = None
    """Record all that is played, from no skill to full skill, into this folder."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Train."""
        from agents.ppo import PPOOptions, train_ppo
        from recorder.progress import progress

        skipped = ("json", "record")
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in skipped}
        options = PPOOptions(**values)
        if self.inside is not None and self.record is not None:
            raise OptionError("what is dreamed is not recorded", "--inside, --record", "give one of them")
        games = self._dream(self.inside) if self.inside is not None else None
        with contextlib.ExitStack() as stack:
            listener = None if self.record is None else stack.enter_context(self._recorder(self.record))
            show = stack.enter_context(progress(f"training on {self.spec}", self.steps, "decisions"))
            summary = asdict(train_ppo(options, listener, show, games))
        return {**summary, "recorded_frames": listener.frames if listener is not None else 0}

    def _dream(self, checkpoint: str) -> DreamGames:
        from engine.dream import DreamGames
        from engine.game import NeuralGame

        game = NeuralGame(checkpoint, self.device, seed=self.seed, batch=self.environments)
        config = game.config
        for name, own in (("spec", self.spec), ("frame_skip", self.frame_skip)):
            if getattr(config, name) != own:
                what = f"the checkpoint's {name} is {getattr(config, name)}, not {own}"
                raise OptionError(what, "--inside", "train for the game that the checkpoint is of")
        return DreamGames(game, self.hold, self.max_frames)

    def _recorder(self, folder: Path) -> StreamRecorder:
        from agents.environments import FRAME_HEIGHT, FRAME_WIDTH, make_environment
        from recorder.record import StreamRecorder
        from recorder.recording import Recording, RecordingHeader

        environment: Any = make_environment(self.spec, frame_skip=self.frame_skip)
        try:
            header = RecordingHeader.of(environment, FRAME_HEIGHT, FRAME_WIDTH, {"ppo in training": ""}, self.seed)
        finally:
            environment.close()
        recording = Recording.create_or_resume(folder, header)
        return StreamRecorder(recording, self.environments, recording.header.seed, "ppo in training")


@dataclass(frozen=True)
class AgentEvaluate:
    """Let an agent play the real game and tell how well, with 95 % intervals.

    Example: gamengen agent evaluate doom/defend_the_center --agent scripted --episodes 20
    """

    spec: Spec
    """The game: doom/<scenario>, doom/freedoom1:E1M1 or gym/<id>."""
    agent: str | None = None
    """random, scripted or a trained agent's file; the default is scripted in Doom, random elsewhere."""
    episodes: int = 20
    """How many to play."""
    frame_skip: int = 2
    """Tics a frame."""
    max_frames: int = 2100
    """Longest episode."""
    seed: int = 0
    """Seed of the first episode."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Play and sum up."""
        from agents.agent import default_agent
        from agents.evaluate import evaluate_agent
        from recorder.progress import progress

        agent = self.agent or default_agent(self.spec)
        with progress(f"{agent} plays {self.spec}", self.episodes, "episodes") as show:
            summary = evaluate_agent(agent, self.spec, self.episodes, self.seed, self.frame_skip, self.max_frames, show)
        return asdict(summary)
