"""The commands that train one stage: ``gamengen train autoencoder``, ``cycle``, ``geometry``, ``tally``,
``denoiser``, ``distill``, ``perceptual``, ``match``, ``decoder`` and ``outcome``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gamengen.evaluate_commands import Json

if TYPE_CHECKING:
    from gamengen.training import TrainOptions


@dataclass(frozen=True, kw_only=True)
class _Budget:
    data: Path
    """The recording."""
    minutes: float | None = None
    """Budget by time (either this or --steps)."""
    steps: int | None = None
    """Budget by training steps."""
    muon_lr: float = 0.02
    """Learning rate of the hidden convolutions."""
    adam_lr: float = 5e-4
    """Learning rate of everything else."""
    seed: int = 0
    """Seed of weights and batches."""
    device: str = "auto"
    """auto, cpu or cuda."""
    json: Json = None

    def options(self) -> TrainOptions:
        """The budget and the learning rates."""
        from gamengen.training import TrainOptions

        return TrainOptions(self.minutes, self.steps, self.muon_lr, self.adam_lr, seed=self.seed)


@dataclass(frozen=True, kw_only=True)
class _Training(_Budget):
    preset: str = "nano"
    """Size of the model."""


@dataclass(frozen=True, kw_only=True)
class _FromCheckpoint(_Training):
    init: str | None = None
    """Checkpoint to start from."""


@dataclass(frozen=True, kw_only=True)
class _Student(_Budget):
    init: str
    """Checkpoint whose student is trained on; it is meant for one sampling step then."""
    work: Path
    """Work folder; latents and training state go there."""
    out: Path
    """Folder of the checkpoint."""
    outcome_minutes: float = 0.0
    """Then train an outcome head anew for so long, on what the student now shows; and a tally on, for half as long."""


@dataclass(frozen=True, kw_only=True)
class TrainAutoencoder(_FromCheckpoint):
    """Train an autoencoder on a recording. Run again, it goes on.

    Example: gamengen train autoencoder --data data/center --out runs/center --minutes 20
    """

    out: Path
    """Work folder: the autoencoder lies in its sub-folder autoencoder/."""
    adam_lr: float = 1e-3
    """Learning rate of everything else."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import train_autoencoder

        figures = train_autoencoder(self.data, self.out, self.preset, self.init, self.options(), self.device)
        return {"folder": str(self.out / "autoencoder"), **figures}


@dataclass(frozen=True, kw_only=True)
class TrainCycle(_Budget):
    """Train a checkpoint's decoder so that what it shows encodes to the same latents again. Run again, it goes on.

    For games whose last frame is moved: there each frame is decoded, moved and encoded, and what that changes, adds up
    from frame to frame. Encoder, denoiser and outcome head stay as they are.

    Example: gamengen train cycle --init game --data data/deathmatch --work runs/steady --minutes 12 --out steady
    """

    init: str
    """Checkpoint whose decoder is trained on."""
    work: Path
    """Work folder of its own: a checkpoint's encoder is stored rounded, so it is another than in the folder where it
    was trained. Latents and training state go there."""
    out: Path
    """Folder of the checkpoint."""
    lpips_weights: Path | None = None
    """LPIPS weights of VGG, as gamengen lpips --network vgg converts them: what is shown is judged by them too, or it
    gets softer."""
    muon_lr: float = 0.003
    """Learning rate of the hidden convolutions."""
    adam_lr: float = 1.5e-4
    """Learning rate of everything else."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import train_cycle

        return train_cycle(self.data, self.work, self.out, self.init, self.lpips_weights, self.options(), self.device)


@dataclass(frozen=True, kw_only=True)
class TrainGeometry(_FromCheckpoint):
    """Train what tells how the camera moves and how far things are, for Doom games in which one walks.

    The recorded games are played once more for their distances. The work folder holds the autoencoder that gamengen
    train autoencoder made there. What is trained there afterwards sees the last frame moved. Run again, it goes on.

    Example: gamengen train geometry --data data/deathmatch --work runs/deathmatch --minutes 12
    """

    work: Path
    """Work folder with a trained autoencoder; the networks lie in its sub-folder geometry/."""
    adam_lr: float = 1e-3
    """Learning rate of everything else."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import train_geometry

        figures = train_geometry(self.data, self.work, self.preset, self.init, self.options(), self.device)
        return {"folder": str(self.work / "geometry"), **figures}


@dataclass(frozen=True, kw_only=True)
class TrainTally(_FromCheckpoint):
    """Train the network that counts what Doom shows: health, armor, ammunition, the held weapon. Run again, it goes on.

    The work folder holds the autoencoder that gamengen train autoencoder made there; else that of --init is used. What
    is trained there afterwards is told the score. With --out the checkpoint of --init is told it at once.

    Example: gamengen train tally --data data/center --work runs/center --minutes 3
    """

    work: Path
    """Work folder with a trained autoencoder; the network lies in its sub-folder tally/."""
    out: Path | None = None
    """Folder of a checkpoint: that of --init, its autoencoder and denoiser as they are, told the score."""
    outcome_minutes: float = 4.0
    """With --out: train an outcome head anew for so long, on what is shown now, and the tally on for half as long."""
    adam_lr: float = 1e-3
    """Learning rate of everything else."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import tell_score, train_tally

        if self.out is not None:
            how = self.options(), self.outcome_minutes, self.device
            return tell_score(self.data, self.work, self.out, self.init, *how)
        figures = train_tally(self.data, self.work, self.preset, self.init, self.options(), self.device)
        return {"folder": str(self.work / "tally"), **figures}


@dataclass(frozen=True, kw_only=True)
class TrainDenoiser(_FromCheckpoint):
    """Train a denoiser on a recording and write a checkpoint. Run again, it goes on.

    The work folder holds the autoencoder that gamengen train autoencoder made there; else that of --init is used.

    Example: gamengen train denoiser --data data/center --work runs/center --minutes 60 --out center
    """

    work: Path
    """Work folder with a trained autoencoder; latents and training state go there."""
    out: Path
    """Folder of the checkpoint."""
    faithful: bool = False
    """Ask for what is rare no more strongly than it is likely, for a teacher of gamengen train match. With few
    sampling steps such a denoiser itself shows too little of it."""
    plays_of: str | None = None
    """Checkpoint whose student makes half of the free plays, so that the denoiser learns to lead its mistakes back to
    the game too: for the next teacher of a student that has been matched once and makes mistakes of its own."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import train_denoiser

        how = self.options(), self.device, self.faithful, self.plays_of
        return train_denoiser(self.data, self.work, self.out, self.preset, self.init, *how)


@dataclass(frozen=True, kw_only=True)
class TrainDistill(_Training):
    """Distil the denoiser into a student that needs one sampling step, and write a checkpoint. Run again, it goes on.

    The work folder holds what gamengen train autoencoder and gamengen train denoiser made there.

    Example: gamengen train distill --data data/center --work runs/center --minutes 15 --out center
    """

    work: Path
    """Work folder with a trained autoencoder and denoiser; the training state goes there."""
    out: Path
    """Folder of the checkpoint."""
    muon_lr: float = 0.005
    """Learning rate of the hidden convolutions."""
    adam_lr: float = 2e-4
    """Learning rate of everything else."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import distill

        return distill(self.data, self.work, self.out, self.preset, self.options(), self.device)


@dataclass(frozen=True, kw_only=True)
class TrainPerceptual(_Student):
    """Train a checkpoint's denoiser on by what is seen (LPIPS), for one sampling step. Run again, it goes on.

    Its autoencoder stays as it is, and its outcome head too unless --outcome-minutes says otherwise.

    Example: gamengen train perceptual --init a --data d --work w --lpips-weights vgg.safetensors --minutes 20 --out b
    """

    lpips_weights: Path
    """LPIPS weights of VGG, as gamengen lpips --network vgg converts them."""
    muon_lr: float = 0.003
    """Learning rate of the hidden convolutions."""
    adam_lr: float = 1.5e-4
    """Learning rate of everything else."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import train_perceptual

        how = self.options(), self.outcome_minutes
        return train_perceptual(self.data, self.work, self.out, self.init, self.lpips_weights, *how, self.device)


@dataclass(frozen=True, kw_only=True)
class TrainMatch(_Student):
    """Train a checkpoint's student on to make what a teacher would, as often as that would. Run again, it goes on.

    The work folder holds the teacher, a denoiser that gamengen train denoiser --init --faithful made there. The
    autoencoder stays as it is, and the outcome head too unless --outcome-minutes says otherwise.

    Example: gamengen train match --init game --data data/center --work runs/center --minutes 20 --out matched
    """

    muon_lr: float = 0.002
    """Learning rate of the hidden convolutions."""
    adam_lr: float = 1e-4
    """Learning rate of everything else."""

    share: float = 1.0
    """Share of what was learned in the student's weights, of which the rest is what they were. Less plays calmer and
    softer: where what is rare breeds, as in a game that is hardly learned yet, 0.7 holds it."""
    lpips_weights: Path | None = None
    """LPIPS weights of VGG, as gamengen lpips --network vgg converts them: what follows real frames is compared by them
    with the recorded one too."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import match

        how = self.options(), self.outcome_minutes, self.device, self.share, self.lpips_weights
        return match(self.data, self.work, self.out, self.init, *how)


@dataclass(frozen=True, kw_only=True)
class TrainDecoder(_FromCheckpoint):
    """Train the decoder on, with the frame before in view, and write a checkpoint. Run again, it goes on.

    The work folder holds what gamengen train autoencoder and gamengen train denoiser made there; if gamengen train
    distill or gamengen train match has made a student there, the decoder is trained for that.

    Example: gamengen train decoder --data data/center --work runs/center --minutes 20 --out center
    """

    work: Path
    """Work folder with a trained autoencoder and denoiser; the training state goes there."""
    out: Path
    """Folder of the checkpoint."""
    muon_lr: float = 0.01
    """Learning rate of the hidden convolutions."""
    compensation_only: bool = False
    """Train only the layers that bring in the last frame, and leave the decoder itself as it is: for one that long
    training has made sharper than this one can."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import train_decoder

        how = self.options(), self.device, self.compensation_only
        return train_decoder(self.data, self.work, self.out, self.preset, self.init, *how)


@dataclass(frozen=True, kw_only=True)
class TrainOutcome(_Training):
    """Train the outcome head: reward, the game's end, health and ammunition, read from latents. Run again, it goes on.

    The work folder holds what gamengen train autoencoder made there; gamengen train decoder puts the head into the
    checkpoint.

    Example: gamengen train outcome --data data/center --work runs/center --minutes 3
    """

    work: Path
    """Work folder with a trained autoencoder, and a denoiser if the head is to learn from frames of free play too; it
    lies in the sub-folder outcome/."""
    adam_lr: float = 1e-3
    """Learning rate of everything else."""

    def run(self) -> dict[str, Any]:
        """Train."""
        from gamengen.single_stages import train_outcome

        figures = train_outcome(self.data, self.work, self.preset, self.options(), self.device)
        return {"folder": str(self.work / "outcome"), **figures}
