"""The training loop: budgets, schedule, EMA, exact resume, logs. What is trained is a ``Task``."""

from __future__ import annotations

import contextlib
import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from agents.errors import CheckpointError, DataError, OptionError
from gamengen import processes
from gamengen.diffusion import check_seed
from gamengen.muon import MuonAdamW
from recorder.progress import progress

STATE_VERSION = 2
SAVE_SECONDS = 60.0
WARMUP, COOLDOWN = 0.02, 0.4  # shares of the budget


class Task(ABC):
    """Something to train; its ``model`` is what is trained, and its state goes on from step to step.

    Where several processes train together, each draws the whole batch and computes its share of it, see
    :mod:`gamengen.processes`.
    """

    name: str
    model: nn.Module

    @abstractmethod
    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Mean loss of this process's share of the batch of ``step``.

        The batch is drawn from the seed, ``step`` and the task's state alone.

        ``progress`` in [0, 1) is the share of the budget that is spent.
        """

    def draw(self, step: int) -> Any:  # noqa: B027 - only what is timed alone needs it
        """The data of the batch of ``step``, on the device, as :meth:`loss` draws it, for measuring."""

    @abstractmethod
    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Figures and pictures (H, W, 3) uint8 by name, on held-out data."""

    def state(self) -> dict[str, torch.Tensor]:
        """What goes on from one step to the next beside the weights: for most tasks nothing."""
        return {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:  # noqa: B027 - most tasks have no state
        """Go on from :meth:`state`."""


@dataclass(frozen=True)
class TrainOptions:
    """How long and how to train. With ``steps`` a resumed run equals an uninterrupted one exactly;
    with ``minutes`` the schedule follows the clock (time spent before a stop is counted)."""

    minutes: float | None = None
    steps: int | None = None
    muon_lr: float = 0.02
    adam_lr: float = 1e-3
    ema: float = 0.998
    evaluate_seconds: float = 300.0
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise OptionError("give either minutes or steps", "--minutes, --steps", "for example --minutes 30")
        for name in ("minutes", "steps", "muon_lr", "adam_lr", "evaluate_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"must be more than 0, got {value}", flag, "give a positive number")
        check_seed(self.seed)

    def spent(self, step: int, seconds: float) -> float:
        """Share of the budget, in [0, 1], that so many steps and seconds have spent."""
        if self.steps is not None:
            return min(1.0, step / self.steps)
        assert self.minutes is not None
        return min(1.0, seconds / (60 * self.minutes))


class Trainer:
    """Trains ``task.model`` in ``folder``, going on from ``state.pt`` where there is one."""

    def __init__(self, task: Task, options: TrainOptions, folder: Path) -> None:
        self.task, self.options, self.folder = task, options, folder
        self.device = next(task.model.parameters()).device
        self.optimizer = MuonAdamW(task.model, options.muon_lr, options.adam_lr)
        self.step, self.seconds = 0, 0.0
        self.average = {name: value.detach().clone() for name, value in task.model.state_dict().items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"cannot make the folder ({error.strerror})", folder, "choose another folder") from error
        if self._state_path.is_file():
            self._load()

    @property
    def _state_path(self) -> Path:
        return self.folder / "state.pt"

    @property
    def done(self) -> float:
        """Share of the budget that is spent, in [0, 1]."""
        return self.options.spent(self.step, self.seconds)

    def run(self) -> dict[str, float]:
        """Train to the end of the budget; returns the figures of the last evaluation.

        At the end ``task.model`` holds the averaged (EMA) weights.
        """
        model = self.task.model.train()
        processes.agree(model)
        losses: list[float] = []
        with self._board() as board, progress(f"training {self.task.name}", 100, "%") as show:
            saved = evaluated = time.monotonic()
            show(100 * self.done, "")
            while self.done < 1:
                processes.meet()  # the first may have evaluated meanwhile, which no budget pays for
                began = time.monotonic()
                self.optimizer.scale_lr(learning_rate_factor(self.done))
                with autocast(self.device):
                    loss = self.task.loss(self.step, self.done)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                processes.average_gradients(model)
                self.optimizer.step()
                self._update_average()
                losses.append(processes.average(float(loss.detach()), self.device))
                if not math.isfinite(losses[-1]):
                    raise DataError(
                        "training diverged (the loss is not finite)", self.folder, "lower --muon-lr and --adam-lr"
                    )
                self.step += 1
                now = time.monotonic()
                self.seconds = processes.average(self.seconds + now - began, self.device)
                if self.step % 20 == 0 and board is not None:
                    board.add_scalar("loss", float(np.mean(losses[-20:])), self.step)
                    note = (
                        f"step {self.step}, loss {np.mean(losses[-100:]):.4f}, {self.step / self.seconds:.1f} steps/s"
                    )
                    show(100 * self.done, note)
                if now - evaluated > self.options.evaluate_seconds and self.done < 1:
                    self._evaluate(board)
                    evaluated = time.monotonic()
                if now - saved > SAVE_SECONDS:
                    self._save()
                    saved = time.monotonic()
            self._save()
            figures = self._evaluate(board)
            show(100, "")
        model.load_state_dict(self.average)
        model.eval()
        with processes.first_goes_first():
            self._finish()
        return figures

    @contextlib.contextmanager
    def _board(self) -> Iterator[Any]:
        """Tensorboard's writer of the first process; None in the others."""
        if not processes.is_first():
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(str(self.folder)) as board:
            yield board

    def _update_average(self) -> None:
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        current = self.task.model.state_dict()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [current[name] for name in self.average], 1 - decay)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[nn.Module]:
        """The model with its averaged weights, for as long as the block lasts."""
        model = self.task.model
        trained = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.average)
        model.eval()
        try:
            yield model
        finally:
            model.load_state_dict(trained)
            model.train()

    def _evaluate(self, board: Any) -> dict[str, float]:
        if board is None:
            return {}
        with self._averaged() as model, torch.no_grad(), autocast(self.device):
            figures, pictures = self.task.evaluate(model)
        for name, value in figures.items():
            board.add_scalar(name, value, self.step)
        for name, picture in pictures.items():
            board.add_image(name, picture, self.step, dataformats="HWC")
        line = {"step": self.step, "seconds": round(self.seconds, 1), **figures}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return figures

    def _save(self) -> None:
        if not processes.is_first():
            return
        state = {
            "version": STATE_VERSION,
            "task": self.task.name,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.task.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "state": self.task.state(),
        }
        partial = self._state_path.with_suffix(".partial")
        try:
            torch.save(state, partial)
            partial.replace(self._state_path)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            raise DataError(f"cannot save the training state ({error})", self.folder, "free some space") from error

    def _finish(self) -> None:
        """Leave the averaged weights, and what was spent on them, for :func:`load_finished`."""
        leave_weights(self.average, self.folder, {"step": str(self.step), "seconds": str(self.seconds)})

    def _load(self) -> None:
        remedy = "delete the file to start this stage anew"
        try:
            state = torch.load(self._state_path, map_location=self.device, weights_only=True)
            if state["version"] != STATE_VERSION or state["task"] != self.task.name:
                raise CheckpointError("the training state is of another version or task", self._state_path, remedy)
            self.task.model.load_state_dict(state["model"])
            self.average = {name: value.to(self.device) for name, value in state["average"].items()}
            self.optimizer.load_state_dict(state["optimizer"])
            self.optimizer.set_rates(self.options.muon_lr, self.options.adam_lr)  # which may be others now
            self.task.load_state(state["state"])
            self.step, self.seconds = state["step"], state["seconds"]
        except CheckpointError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError) as error:
            what = f"the training state is damaged or of another shape ({' '.join(str(error).split())[:80]})"
            raise CheckpointError(what, self._state_path, remedy) from error
        except Exception as error:  # pickle.UnpicklingError: not a state that weights_only admits
            raise CheckpointError("the training state is not one of ours", self._state_path, remedy) from error


def moments(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, torch.Tensor]:
    """What a task's own optimizer remembers of the parameters of ``model``, for :meth:`Task.state`."""
    return {
        f"moments.{number}.{name}": value
        for number, parameter in enumerate(model.parameters())
        for name, value in optimizer.state[parameter].items()
    }


def load_moments(optimizer: torch.optim.Optimizer, model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Go on from :func:`moments`, which ``state`` holds beside others."""
    for number, parameter in enumerate(model.parameters()):
        head = f"moments.{number}."
        found = {name.removeprefix(head): value for name, value in state.items() if name.startswith(head)}
        optimizer.state[parameter] = {
            name: value.clone() if name == "step" else value.to(parameter) for name, value in found.items()
        }


def leave_weights(weights: dict[str, torch.Tensor], folder: Path, spent: dict[str, str]) -> None:
    """Write ``weights`` into ``folder``, with what was ``spent`` on them, for :func:`load_finished`.

    Raises:
        DataError: they cannot be written.
    """
    if not processes.is_first():
        return
    partial = folder / "final.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.cpu().contiguous() for name, value in weights.items()}, partial, spent)
        partial.replace(folder / "final.safetensors")
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot save the weights ({error})", folder, "free some space") from error


def load_finished(model: nn.Module, folder: Path, options: TrainOptions | None) -> bool:
    """Load into ``model`` the weights that a finished training left; False where it must go on.

    Args:
        model: of the same sizes.
        folder: the trainer's.
        options: the budget that must be spent; None takes any finished training.

    Raises:
        CheckpointError: the weights are damaged or of other sizes.
    """
    path = folder / "final.safetensors"
    if not path.is_file():
        return False
    try:
        with safe_open(path, "pt") as file:
            spent = file.metadata() or {}
            if options is not None and options.spent(int(spent["step"]), float(spent["seconds"])) < 1:
                return False
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError, KeyError, ValueError) as error:
        what = f"the trained weights are of another --preset or damaged ({' '.join(str(error).split())[:80]})"
        raise CheckpointError(what, path, "give the --preset that they were made with, or another folder") from error
    return True


def learning_rate_factor(done: float) -> float:
    """Linear warm-up, constant, linear to zero, by the share of the budget that is spent."""
    return min(1.0, (done + 1e-3) / WARMUP, (1 - done) / COOLDOWN)


def autocast(device: torch.device) -> Any:
    """bf16 where the device computes in it, else nothing."""
    from gamengen.devices import has_bf16

    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device))


def step_generator(seed: int, step: int, device: torch.device | str = "cpu") -> torch.Generator:
    """The generator of one training step: the same for a resumed run."""
    mixed = int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> np.uint64(1))
    return torch.Generator(device=device).manual_seed(mixed)
