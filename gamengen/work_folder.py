"""Where the stages of making a game meet: the work folder, and the notes in it of what was made for what."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from agents.errors import CheckpointError, DataError
from gamengen.autoencoder import FACTOR
from gamengen.checkpoints import Checkpoint
from gamengen.evaluation.lpips import Lpips
from gamengen.latents import weights_hash
from gamengen.processes import first_goes_first, is_first
from recorder.recording import Recording, write_json

BATCH = {
    "autoencoder": 16,
    "cycle": 12,
    "geometry": 64,
    "tally": 128,
    "denoiser": 32,
    "student": 16,
    "perceptual": 24,
    "matched": 24,
    "decoder": 8,
    "outcome": 128,
}
BEGUN = "begun.json"  # what a denoiser's training started from
STAGES = (
    "autoencoder",
    "cycle",
    "geometry",
    "tally",
    "denoiser",
    "student",
    "perceptual",
    "matched",
    "decoder",
    "recount",
    "outcome",
)
CUDA_BATCH_FACTOR = 8  # a GPU is only busy with many samples at once


@dataclass(frozen=True)
class Stage:
    """What every stage needs to know: where, on what, from which weights, with which seed."""

    recording: Recording
    work: Path
    preset: str
    device: torch.device
    init: Checkpoint | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        header = self.recording.header
        if header.height % FACTOR or header.width % FACTOR:
            what = f"frame height and width must be multiples of {FACTOR}, got {header.height} and {header.width}"
            raise DataError(what, self.recording.folder, "record anew with such a --height and --width")

    @property
    def moves(self) -> bool:
        """Whether the last frame is moved: by the work folder's geometry, or the checkpoint's whose encoder is used."""
        if (self.work / "geometry" / "final.safetensors").is_file():
            return True
        if self.init is None or self.init.geometry is None or (self.work / "autoencoder").is_dir():
            return False
        return self.init.config.spec == self.recording.header.spec

    @property
    def counts(self) -> bool:
        """Whether the score is told: by the work folder's tally, or that of the checkpoint whose encoder is used."""
        if (self.work / "tally" / "final.safetensors").is_file():
            return True
        if self.init is None or self.init.tally is None or (self.work / "autoencoder").is_dir():
            return False
        return self.init.config.spec == self.recording.header.spec  # another game counts to other numbers

    def batch(self, name: str) -> int:
        """Samples a training step of the stage ``name``."""
        return BATCH[name] * (CUDA_BATCH_FACTOR if self.device.type == "cuda" else 1)


def note_beginning(init: Checkpoint, folder: Path) -> None:
    """Write what a training started from, for the checkpoint to tell."""
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / BEGUN, {"init": init.config.name, "init_training": init.config.training})


def check_made_for(folder: Path, part: str, model: nn.Module) -> None:
    """See that what ``folder`` holds was trained for this very ``part`` of the model, and note that it is."""
    _check_note(folder, part, weights_hash(model), f"for another {part}")


def check_trained_by(folder: Path, eyes: Lpips | None) -> None:
    """See that what ``folder`` holds was trained with ``eyes`` that compare pictures, or without, and note it."""
    given = "" if eyes is None else eyes.network
    _check_note(folder, "eyes", given, "with LPIPS weights" if eyes is None else "without LPIPS weights")


def _check_note(folder: Path, name: str, value: str, what: str) -> None:
    path = folder / f"{name}.json"
    try:
        if path.is_file() and _read_note(path) != {name: value}:
            what = f"the {folder.name} in the work folder was trained {what}"
            raise CheckpointError(what, folder, "delete this folder to train it anew")
        with first_goes_first():
            folder.mkdir(parents=True, exist_ok=True)
            if is_first():
                write_json(path, {name: value})
    except OSError as error:
        raise CheckpointError(f"cannot use it ({error})", path, "delete this folder to train it anew") from error


def was_made_for(folder: Path, part: str, model: nn.Module) -> bool:
    """Whether ``folder`` notes that what it holds was trained for this very ``part`` of the model."""
    path = folder / f"{part}.json"
    return path.is_file() and _read_note(path) == {part: weights_hash(model)}


def _read_note(path: Path) -> dict[str, str]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot use it ({error})", path, "delete this folder to train it anew") from error
