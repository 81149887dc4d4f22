"""``gamengen bench``: speed on this machine. Nothing heavy is imported but inside ``run``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from agents.errors import OptionError
from gamengen.evaluate_commands import CheckpointName, Json

if TYPE_CHECKING:
    from engine.benchmark import BenchOptions
    from engine.game import NeuralGame

Dtype = Literal["auto", "bfloat16", "float16", "float32"]
Mode = Literal["auto", "eager", "compiled", "graph"]


@dataclass(frozen=True)
class Bench:
    """Measure frames per second on this machine, with the split and the machine's own ceiling.

    Several values of --steps, --dtype, --mode and --batch are all combined. --latency, --soak, --compare and --train
    measure something else instead, with the first value of each; --train takes none of them.

    Example: gamengen bench --json bench.json

    Example: gamengen bench --batch 1 4 16 --dtype bfloat16 float32 --markdown bench.md

    Example: gamengen bench --compare other/checkpoint --steps 4
    """

    checkpoint: CheckpointName = None
    """Name or folder; the default is the one that the command play opens."""
    steps: tuple[int, ...] = (1, 2, 4)
    """Numbers of sampling steps to measure."""
    frames: int = 100
    """Frames measured for each, after a warm-up; with --train, training steps."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: tuple[Dtype, ...] = ("auto",)
    """What to compute in."""
    mode: tuple[Mode, ...] = ("auto",)
    """How: step by step, compiled, or as one CUDA graph."""
    batch: tuple[int, ...] = (1,)
    """Games at once."""
    threads: int | None = None
    """CPU threads; the default is one a core, to play with 8 at most."""
    latency: int | None = None
    """Instead: press a key so many times in a window, and time each until its frame is shown."""
    uncapped: bool = False
    """With --latency: frames as fast as possible, not at the game's own clock."""
    soak: float | None = None
    """Instead: play for so many minutes, and tell how speed and memory change."""
    compare: str | None = None
    """Instead: this other checkpoint in turn with the first, a few frames each; the ratio of their speeds."""
    compare_steps: int | None = None
    """With --compare: steps of the other, where they differ."""
    train: bool = False
    """Instead: samples a second of each training stage."""
    preset: str = "nano"
    """With --train: size of the model."""
    markdown: Path | None = None
    """Write the table of frames a second to this file as Markdown."""
    json: Json = None

    def run(self) -> dict[str, Any]:
        """Measure and print the table."""
        chosen = {"latency": self.latency is not None, "soak": self.soak is not None,
                  "compare": self.compare is not None, "train": self.train}  # fmt: skip
        named = [f"--{name}" for name, wanted in chosen.items() if wanted]
        if len(named) > 1:
            raise OptionError("they measure different things", ", ".join(named), "give one of them")
        if named and self.markdown is not None:
            raise OptionError("only the table of frames a second is Markdown", "--markdown", f"leave {named[0]} out")
        if self.uncapped and self.latency is None:
            raise OptionError("only the window has a clock", "--uncapped", "add --latency 30")
        if self.compare_steps is not None and self.compare is None:
            raise OptionError("there is nothing to compare", "--compare-steps", "add --compare CHECKPOINT")
        if self.train:
            from gamengen.train_speed import measure_training

            return measure_training(self.preset, self.frames, self.device, threads=self.threads)
        return self._measure_play()

    def _measure_play(self) -> dict[str, Any]:
        from engine.benchmark import BenchOptions, measure_speed, write_markdown

        options = BenchOptions(
            self.checkpoint, self.steps, self.frames, self.device, self.dtype, self.mode, self.batch, self.threads
        )
        if self.latency is not None:
            if self.batch != (1,):
                raise OptionError("one window shows one game", "--latency, --batch", "leave --batch out")
            from engine.latency import measure_latency

            game = self._game(options)
            return {**_about(game), **measure_latency(game, self.latency, self.uncapped)}
        if self.soak is not None:
            from engine.endurance import soak

            game = self._game(options)
            return {**_about(game), **soak(game, self.soak)}
        if self.compare is not None:
            from engine.endurance import compare_speed

            game, other = self._game(options), self._game(options, self.compare, self.compare_steps)
            found = compare_speed(game, other, self.frames)
            return {**_about(game), "other": other.name, "other_steps": other.steps, **found}
        report = measure_speed(options)
        if self.markdown is not None:
            write_markdown(self.markdown, report)
        return report

    def _game(self, options: BenchOptions, name: str | None = None, steps: int | None = None) -> NeuralGame:
        from engine.benchmark import start_game
        from gamengen.checkpoints import load_checkpoint

        checkpoint = load_checkpoint(name if name is not None else self.checkpoint)
        steps = self.steps[0] if steps is None else steps
        return start_game(checkpoint, options, self.dtype[0], self.mode[0], self.batch[0], steps)


def _about(game: NeuralGame) -> dict[str, Any]:
    from engine.benchmark import versions
    from gamengen.devices import describe_device

    return {
        "checkpoint": game.name, "device": describe_device(game.device), "versions": versions(), "steps": game.steps,
        "dtype": game.dtype_name, "mode": game.mode, "batch": game.batch,
    }  # fmt: skip
