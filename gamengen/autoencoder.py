"""Autoencoder: frames to latents, 16 times smaller each way, and back.

Space-to-depth goes in and pixel-shuffle comes out, with no convolution at full resolution: those
would cost a CPU its real time. Latents are RMS-normalised at each position, with no KL term.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from agents.errors import OptionError
from gamengen.compensation import Compensation
from gamengen.layers import ResidualBlock

PATCH = 4  # space-to-depth
FACTOR = 16  # pixels a latent position, each way


@dataclass(frozen=True)
class AutoencoderConfig:
    """Sizes of an autoencoder.

    Args:
        channels: C, channels of a latent.
        widths: convolution widths at 1/4, 1/8 and 1/16 of the frame's size.
        encoder_blocks: residual blocks at each of the three sizes.
        decoder_blocks: likewise, at the same sizes.
        compensation: action channels, of all past frames together, that the decoder sees with the frame before, see
            :mod:`gamengen.compensation`; 0 where it sees its latent alone.
        guided: whether the flow of compensation is given, see :mod:`gamengen.geometry`, in place of a camera's.
    """

    channels: int = 32
    widths: tuple[int, int, int] = (64, 128, 256)
    encoder_blocks: tuple[int, int, int] = (1, 1, 1)
    decoder_blocks: tuple[int, int, int] = (2, 2, 1)
    compensation: int = 0
    guided: bool = False

    def __post_init__(self) -> None:
        if self.channels < 1 or any(width % 8 or width < 8 for width in self.widths):
            raise OptionError(f"widths must be multiples of 8, got {self.widths}", "autoencoder", "use 64, 128, 256")
        if self.guided and not self.compensation:
            raise OptionError("a flow guides compensation, and there is none", "autoencoder", "leave guided out")
        if self.compensation < 0:
            raise OptionError(f"compensation must be 0 or more, got {self.compensation}", "autoencoder", "use 0")


@dataclass(frozen=True)
class Before:
    """What a compensated decoder sees of the past.

    Args:
        latents: of the frame before (B, C, h, w).
        frames: that frame, as it was shown (B, 16 h, 16 w, 3) uint8.
        actions: (B, K, A); the last is held now.
        flow: by which the frame is moved, in pixels (B, 2, 2 h, 2 w); None where the decoder has a camera.
    """

    latents: torch.Tensor
    frames: torch.Tensor
    actions: torch.Tensor
    flow: torch.Tensor | None = None


def check_frame_size(height: int, width: int) -> None:
    """Raise OptionError unless both are positive multiples of 16."""
    for name, value in (("height", height), ("width", width)):
        if value < FACTOR or value % FACTOR:
            raise OptionError(f"{name} must be a multiple of {FACTOR}, got {value}", f"--{name}", "use 320x240")


class Autoencoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] to latents (B, C, H/16, W/16) and back."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        near, middle, far = config.widths
        patch = 3 * PATCH**2

        def blocks(width: int, count: int) -> list[nn.Module]:
            return [ResidualBlock(width) for _ in range(count)]

        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(PATCH),
            _Edge("first", nn.Conv2d(patch, near, 3, padding=1)),
            *blocks(near, config.encoder_blocks[0]),
            nn.Conv2d(near, middle, 3, stride=2, padding=1),
            *blocks(middle, config.encoder_blocks[1]),
            nn.Conv2d(middle, far, 3, stride=2, padding=1),
            *blocks(far, config.encoder_blocks[2]),
            _Edge("last", nn.Conv2d(far, config.channels, 3, padding=1)),
        )
        of_camera = 0 if config.guided else config.compensation
        self.compensation = (
            Compensation(config.channels, config.widths, PATCH, of_camera) if config.compensation else None
        )
        self.decoder = nn.Sequential(
            _Edge("first", nn.Conv2d(config.channels, far, 3, padding=1)),
            *blocks(far, config.decoder_blocks[2]),
            nn.Conv2d(far, 4 * middle, 1),
            nn.PixelShuffle(2),
            *blocks(middle, config.decoder_blocks[1]),
            nn.Conv2d(middle, 4 * near, 1),
            nn.PixelShuffle(2),
            *blocks(near, config.decoder_blocks[0]),
            _Edge("last", nn.Conv2d(near, patch, 3, padding=1)),
        )

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, H/16, W/16) of RMS 1 at each position."""
        return normalise(self.encoder(pixels))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (B, C, h, w) -> pixels (B, 3, 16 h, 16 w), about in [-1, 1]."""
        return F.pixel_shuffle(self.decoder(latents), PATCH)

    def decode_next(self, latents: torch.Tensor, before: Before) -> tuple[torch.Tensor, torch.Tensor]:
        """Decode with the frame before in view; needs a compensated decoder.

        Args:
            latents: (B, C, h, w).
            before: what came before.

        Returns:
            Pixels (B, 3, 16 h, 16 w), and the flow (B, 2, 2 h, 2 w) in pixels by which the last frame was moved.
        """
        patches, flow = self._decode_next(latents, before)
        return F.pixel_shuffle(patches, PATCH), flow

    def decode_frames(self, latents: torch.Tensor, before: Before | None = None) -> torch.Tensor:
        """Latents (B, C, h, w) -> frames (B, 16 h, 16 w, 3) uint8.

        A compensated decoder sees what came ``before`` where it is given.
        """
        if self.compensation is None or before is None:
            patches = self.decoder(latents)
        else:
            patches, _ = self._decode_next(latents, before)
        # Rounded to bytes before the pixel shuffle, so that only bytes are shuffled.
        patches = patches.float().add_(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)
        batch, _, h, w = patches.shape
        split = patches.view(batch, 3, PATCH, PATCH, h, w).permute(0, 4, 2, 5, 3, 1)
        return split.reshape(batch, h * PATCH, w * PATCH, 3)

    def _decode_next(self, latents: torch.Tensor, before: Before) -> tuple[torch.Tensor, torch.Tensor]:
        assert self.compensation is not None
        _, in_middle, in_far = self.config.decoder_blocks
        near = in_far + in_middle + 5  # where the sizes of the layers change
        features = self.decoder[0](latents) + self.compensation.latent_first(before.latents)
        features = self.decoder[1 : near - 2](features)
        flow = self.compensation.flow(features, before.actions, before.flow)
        pictures = self.compensation.move(before.frames, flow)
        features = self.decoder[near - 2 : near](features) + self.compensation.see(pictures, features.dtype)
        features = self.decoder[near:-1](features)
        return self.compensation.mix(self.decoder[-1](features), features, pictures), flow


def normalise(latents: torch.Tensor) -> torch.Tensor:
    """Scale latents (B, C, h, w) to RMS 1 over the channels of each position."""
    scale = latents.float().square().mean(dim=1, keepdim=True).add_(1e-6).rsqrt()
    return latents * scale.to(latents.dtype)


def pixels_of(frames: torch.Tensor) -> torch.Tensor:
    """Frames (B, H, W, 3) uint8 -> pixels (B, 3, H, W) float32 in [-1, 1], channels-last in memory."""
    return frames.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


class _Edge(nn.Sequential):
    """A first or last convolution, under the name by which the optimizer knows it."""

    def __init__(self, name: str, conv: nn.Conv2d) -> None:
        super().__init__()
        self.add_module(name, conv)
