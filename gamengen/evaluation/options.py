"""What to evaluate, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from agents.errors import OptionError
from gamengen.diffusion import check_seed

# Beside the teacher-forced figures, which are always measured.
MEASURES = ("drift", "no_action", "collapse", "actions", "agent", "frechet", "return", "outcome")
ON_DEMAND = ("long",)  # takes as long as all of the others
COUNTS = (
    "windows", "rollouts", "rollout_frames", "agent_seeds", "agent_frames", "judge_steps", "long_starts", "long_frames",
)  # fmt: skip
QUICK = ("drift", "outcome")  # what gamengen create takes at its end


@dataclass(frozen=True)
class EvaluateOptions:
    """What to evaluate, and how much of it.

    Args:
        windows: teacher-forced predictions, spread evenly over the held-out episodes.
        rollouts: free plays under recorded actions.
        rollout_frames: frames of each.
        measures: which of ``MEASURES`` and ``ON_DEMAND``, beside the teacher-forced figures.
        seed: of the sampling noise and of everything else that is drawn.
        lpips_weights: converted LPIPS weights; None leaves LPIPS out.
        i3d: I3D TorchScript file for FVD; None takes the project's own features.
        agent: the agent in the loop, a file of ``gamengen agent train``; None takes one cloned from the recording.
        agent_seeds: games that it plays.
        agent_frames: frames of each.
        judge_steps: training steps of the judge, which reads frames.
        long_starts: long plays under random keys, and as many under the agent.
        long_frames: frames of each.
    """

    windows: int = 256
    rollouts: int = 16
    rollout_frames: int = 512
    measures: tuple[str, ...] = MEASURES
    seed: int = 0
    lpips_weights: Path | None = None
    i3d: Path | None = None
    agent: str | None = None
    agent_seeds: int = 16
    agent_frames: int = 350
    judge_steps: int = 1500
    long_starts: int = 16
    long_frames: int = 2000

    def __post_init__(self) -> None:
        for name in COUNTS:
            if getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"must be at least 1, got {getattr(self, name)}", flag, "give a positive number")
        unknown = sorted(set(self.measures) - {*MEASURES, *ON_DEMAND})
        if unknown or not self.measures:
            what = f"no such measure: {', '.join(unknown)}" if unknown else "nothing to measure"
            raise OptionError(what, "--measures", f"use some of {', '.join((*MEASURES, *ON_DEMAND))}")
        check_seed(self.seed)
