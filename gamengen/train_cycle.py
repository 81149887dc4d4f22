"""Training the decoder for cycle consistency: what it shows encodes to the latent that it was decoded from.

Where the last frame is moved, each frame of play is decoded, moved and encoded again. A decoder that was only asked to
show what a frame looks like gives back another latent than it was given, and what is lost or added in one turn is lost
or added in each: after eight of them bricks are gone and what lies about glitters, before any denoiser has erred. So it
is asked for the latent too, of the picture as it is and moved by any smooth flow, as an image translator is asked to
lead back to where it began (Zhu et al., arXiv 1703.10593). The encoder, and with it every latent, stays as it is.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from gamengen.autoencoder import FACTOR, Autoencoder, pixels_of
from gamengen.compensation import warp
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.diffusion import SamplerConfig
from gamengen.discriminator import Critic, Discriminator
from gamengen.evaluation.similarity import sharpness
from gamengen.free_plays import FreePlays
from gamengen.geometry import FINER, Mover
from gamengen.latents import LatentEpisodes
from gamengen.processes import check_batch, share
from gamengen.train_autoencoder import CROP, LATENT_NOISE, FramePool, crop_offset, frame_psnr, reconstruction_loss
from gamengen.train_denoiser import follow
from gamengen.train_matching import LONGEST_PLAY
from gamengen.train_student import STUDENT_STEPS
from gamengen.training import Task, step_generator

RATES = (0.003, 1.5e-4)  # learning rates of Muon and AdamW
MOST_TURNS = 3  # of decoding and encoding, that some latents have behind them
CYCLE_WEIGHT = 0.5  # of the latents' errors, beside those of the pictures
PLAYED_CYCLE, PLAYED_PICTURE = 0.5, 0.3  # of free plays: of their latents' errors, and of their pictures'
SEEN_WEIGHT, PLAYED_SEEN = 0.25, 0.5  # of what is seen (LPIPS), beside errors; and of free plays in that
CRITIC_ALONE = 0.06  # share of the budget in which the discriminator learns before the decoder does
CRITIC_SHARE = 0.5  # of the gradient's length, that the discriminator's is
SHIFT, SPREAD, SHEAR = (8.0, 1.5), (6.0, 6.0), (4.0, 1.5)  # pixels of the flows right and down, root mean square
HELD_OUT_TURNS = 8


class CycleTask(Task):
    """Decode frames so that they encode to the same latents; see :class:`gamengen.training.Task`.

    With a ``denoiser`` half of the batch are latents of its free plays, whose pictures are to stay as they were.

    Args:
        model: the autoencoder; only its decoder learns.
        pool: recorded frames.
        seed, batch: as of other tasks.
        denoiser: plays with one step, and sees the last frame moved.
        mover: for that; it decodes and encodes with ``model``.
        train: the recorded latents, with the frames moved, where its plays begin.
        eyes: tells how far pictures (B, 3, H, W) are from others, (B,): LPIPS of VGG; without it pictures are softer.
    """

    name = "cycle"

    def __init__(
        self,
        model: Autoencoder,
        pool: FramePool,
        seed: int,
        batch: int = 12,
        denoiser: Denoiser | None = None,
        mover: Mover | None = None,
        train: LatentEpisodes | None = None,
        eyes: nn.Module | None = None,
    ) -> None:
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        model.encoder.requires_grad_(False)
        model.decoder.requires_grad_(True)
        self._autoencoder, self._before = model, place(copy.deepcopy(model), self._device).eval().requires_grad_(False)
        self._pool, self._seed = pool, seed
        self._denoiser, self._plays = denoiser, None
        self._recorded = batch if denoiser is None else batch // 2
        check_batch(self._recorded)
        if denoiser is not None:
            assert mover is not None and train is not None
            played = batch - self._recorded
            self._plays = FreePlays(train.to(self._device), played, denoiser.config.context, LONGEST_PLAY, mover)
        self._critic = Critic(Discriminator(), self._device)
        self._eyes = place(eyes, self._device) if eyes is not None else None

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Errors of the pictures and of the latents that they encode to."""
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        picks = rng.integers(len(self._pool.train), size=self._recorded)
        pixels = pixels_of(torch.from_numpy(self._pool.train[picks]).to(self._device))
        height, width = (side * FINER // FACTOR for side in pixels.shape[2:])
        flow = smooth_flow(self._recorded, height, width, generator)
        turns = int(rng.integers(MOST_TURNS + 1))
        pixels, flow = share(pixels), share(flow)
        with torch.no_grad():
            wanted = self._autoencoder.encode(pixels).float()
            moved = self._autoencoder.encode(warp(pixels, flow)).float()
            latents, turned = wanted.clone(), share(torch.arange(self._recorded) % 2 == 0).to(self._device)
            for _ in range(turns if turned.any() else 0):
                latents[turned] = self._again(self._autoencoder.decode(latents[turned]))
            latents += share(self._noise(generator, wanted))
        own = self._play(rng, generator) if self._plays is not None else wanted[:0]
        torch.clear_autocast_cache()  # weights that were cast without gradients have none
        shown = self._autoencoder.decode(torch.cat([latents, own])).float()
        picture, played = shown[: len(pixels)].clamp(-1, 1), shown[len(pixels) :]
        errors = reconstruction_loss(shown[: len(pixels)], pixels)
        loss = errors + self._see(rng, picture, pixels, 1.0)
        cycle = _error(self._again(picture), wanted) + _error(self._again(warp(picture, flow)), moved)
        if len(own):
            with torch.no_grad():
                as_before = self._before.decode(own).float().clamp(-1, 1)
            loss = loss + PLAYED_PICTURE * reconstruction_loss(played, as_before)
            loss = loss + self._see(rng, played.clamp(-1, 1), as_before, PLAYED_SEEN)
            cycle = cycle + PLAYED_CYCLE * _error(self._again(played), own)
        self._critic.learn(pixels, shown[: len(pixels)])
        if progress < CRITIC_ALONE:
            return shown.sum() * 0
        return loss + CYCLE_WEIGHT * cycle + self._critic.loss(shown, errors, CRITIC_SHARE)

    def _see(self, rng: np.random.Generator, shown: torch.Tensor, wanted: torch.Tensor, weight: float) -> torch.Tensor:
        """What a crop of pictures (B, 3, H, W) costs by what is seen; 0 without eyes."""
        if self._eyes is None:
            return shown.new_zeros(())
        height, width = (min(crop, size) for crop, size in zip(CROP, shown.shape[2:], strict=True))
        top, left = (crop_offset(rng, *pair) for pair in zip(shown.shape[2:], (height, width), strict=True))
        wanted, shown = (part[..., top : top + height, left : left + width] for part in (wanted, shown))
        return SEEN_WEIGHT * weight * self._eyes(wanted, shown).mean()

    def _again(self, pixels: torch.Tensor) -> torch.Tensor:
        """The latents (B, C, h, w) float32 of pixels (B, 3, H, W), as far as a screen shows them."""
        return self._autoencoder.encode(pixels.float().clamp(-1, 1)).float()

    def _noise(self, generator: torch.Generator, like: torch.Tensor) -> torch.Tensor:
        shape = (self._recorded, *like.shape[1:])
        scale = LATENT_NOISE * torch.rand(self._recorded, 1, 1, 1, generator=generator, device=self._device)
        return scale * torch.randn(shape, generator=generator, device=self._device)

    def _play(self, rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
        """This process's share of the next latents of all plays (N, C, h, w)."""
        assert self._plays is not None

        def sample(context: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(context[:, 0].shape, generator=generator, device=self._device)
            assert self._denoiser is not None
            return follow(self._denoiser, SamplerConfig(STUDENT_STEPS), context, actions, noise)

        self._plays.windows(rng)  # another begins where one has ended
        self._plays.advance(sample)
        return share(self._plays.past()[0][:, -1]).float()

    def state(self) -> dict[str, torch.Tensor]:
        """The plays that go on from step to step, the decoder as it was, and the discriminator."""
        before = {f"before.{name}": value for name, value in self._before.decoder.state_dict().items()}
        plays = self._plays.state() if self._plays is not None else {}
        return plays | before | self._critic.state()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`."""
        if self._plays is not None:
            self._plays.load_state(state)
        head = "before."
        before = {name.removeprefix(head): value for name, value in state.items() if name.startswith(head)}
        self._before.decoder.load_state_dict(before)
        self._critic.load_state(state)

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Held-out PSNR and sharpness (1 is the real frames') of frames decoded once and after eight turns.

        And how far their latents are then from where they began. A turn is decoding and encoding.
        """
        frames = torch.from_numpy(self._pool.held_out)
        wanted = self._encode(frames)
        once = shown = self._decode(wanted)
        figures = {"psnr": float(frame_psnr(frames, once).mean())}
        figures["sharpness"] = float(sharpness(once.numpy()).mean() / sharpness(frames.numpy()).mean())
        for turn in range(1, HELD_OUT_TURNS + 1):
            latents = self._encode(shown)
            if turn in (1, HELD_OUT_TURNS):
                figures[f"latent_error_{turn}"] = float((latents - wanted).square().mean())
            shown = self._decode(latents)
        figures[f"psnr_{HELD_OUT_TURNS}"] = float(frame_psnr(frames, shown).mean())
        picks = np.linspace(0, len(frames) - 1, 6).astype(int)
        rows = [np.concatenate(list(part[picks].numpy()), axis=1) for part in (frames, once, shown)]
        return figures, {"original_decoded_turned": np.concatenate(rows)}

    def _encode(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._again(pixels_of(part.to(self._device))) for part in frames.split(8)])

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._autoencoder.decode_frames(part).cpu() for part in latents.split(8)])


def smooth_flow(count: int, height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """Flows (count, 2, height, width) in pixels: shifts, and what grows evenly to the sides, of random size."""
    device = generator.device
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height, device=device), torch.linspace(-1, 1, width, device=device), indexing="ij"
    )
    parts = torch.stack([torch.ones_like(x), x, y])  # of the flow to the right; down, y is along and x across
    flows = []
    for side, across in enumerate((parts, parts[[0, 2, 1]])):
        sizes = torch.tensor([SHIFT[side], SPREAD[side], SHEAR[side]], device=device)
        drawn = sizes * torch.randn(count, 3, generator=generator, device=device)
        flows.append((drawn[:, :, None, None] * across).sum(1))  # no product of matrices: those may be in bfloat16
    return torch.stack(flows, dim=1)


def _error(latents: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (latents - wanted).square().mean()
