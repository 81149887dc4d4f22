"""Denoiser: the next latent from a noisy one, past latents and past actions.

Two U-Nets: a *context* network, which sees only past latents and actions and so runs once a frame,
and a *noise* network, which also sees the noisy latent and runs once a sampling step. Past latents
are concatenated in channels; the actions and the two noise levels enter by FiLM. What the networks
predict is added to the newest latent, moved by the actions.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from agents.errors import OptionError
from gamengen.layers import LevelEmbedding, ResidualBlock

MOTION_FRAMES = 2
MOTION_KERNEL = (3, 5)  # turning moves the picture sideways by up to two positions a frame


@dataclass(frozen=True)
class DenoiserConfig:
    """Sizes of a denoiser.

    Args:
        context: K, the number of past frames.
        channels: C, channels of a latent.
        actions: A, channels of an action.
        widths: convolution widths at the latent's size and at half of it.
        context_blocks: residual blocks of the context network: on the way down, at half size, on the way up.
        noise_blocks: likewise for the noise network.
        motions: kernels of the learned motion that moves the newest latents by the actions.
        embedding: width of the FiLM embedding.
        moved: whether the context ends with one latent more, of the last frame moved; see :mod:`gamengen.geometry`.
        told: whether it begins with one more, of what the score bar will show; see :mod:`gamengen.tally`.
    """

    context: int = 8
    channels: int = 32
    actions: int = 3
    widths: tuple[int, int] = (128, 224)
    context_blocks: tuple[int, int, int] = (1, 3, 2)
    noise_blocks: tuple[int, int, int] = (1, 2, 1)
    motions: int = 8
    embedding: int = 128
    moved: bool = False
    told: bool = False

    @property
    def latents(self) -> int:
        """Latents of a context: K, and one more each where the last frame is also given moved, or the score told."""
        return self.context + self.moved + self.told

    @property
    def newest(self) -> int:
        """Which latent of a context is that of the last frame as it was."""
        return self.context + self.told - 1

    def __post_init__(self) -> None:
        if self.context < 1 or self.actions < 1 or self.channels < 1:
            raise OptionError("context, actions and channels must be at least 1", "denoiser", "use a preset")
        if any(width % 8 or width < 8 for width in self.widths):
            raise OptionError(f"widths must be multiples of 8, got {self.widths}", "denoiser", "use 128, 224")


class UNet(nn.Module):
    """Two resolutions, residual blocks with FiLM, one skip connection."""

    def __init__(self, widths: tuple[int, int], blocks: tuple[int, int, int], embedding: int) -> None:
        super().__init__()
        wide, narrow = widths
        self.down = nn.ModuleList(ResidualBlock(wide, embedding) for _ in range(blocks[0]))
        self.shrink = nn.Conv2d(wide, narrow, 3, stride=2, padding=1)
        self.middle = nn.ModuleList(ResidualBlock(narrow, embedding) for _ in range(blocks[1]))
        self.grow = nn.Conv2d(narrow, 4 * wide, 1)
        self.up = nn.ModuleList(ResidualBlock(wide, embedding) for _ in range(blocks[2]))

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        """``x`` (B, widths[0], h, w), ``embedding`` (B, E) -> the same shape; h and w may be odd."""
        for block in self.down:
            x = block(x, embedding)
        hidden = self.shrink(x)
        for block in self.middle:
            hidden = block(hidden, embedding)
        grown = F.pixel_shuffle(self.grow(hidden), 2)
        x = x + grown[:, :, : x.shape[2], : x.shape[3]]
        for block in self.up:
            x = block(x, embedding)
        return x


class Motion(nn.Module):
    """Moves the two newest latents by the actions: a few wide kernels, mixed by what was held.

    Turning shifts the whole picture, which is nearly linear in the latents; a convolution that the
    actions choose learns it at once, where residual blocks with FiLM take long. Starts at zero.
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.frames = min(MOTION_FRAMES, config.latents)
        self.motions, self.channels = config.motions, config.channels
        self.kernels = nn.Conv2d(
            self.frames * config.channels, config.motions * config.channels, MOTION_KERNEL,
            padding=(MOTION_KERNEL[0] // 2, MOTION_KERNEL[1] // 2), bias=False,
        )  # fmt: skip
        self.mix = nn.Linear(config.context * config.actions, config.motions)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, context: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """``context`` (B, K, C, h, w), ``actions`` (B, K, A) -> what to add to the newest latent (B, C, h, w)."""
        moved = self.kernels(context[:, -self.frames :].flatten(1, 2))
        moved = moved.unflatten(1, (self.motions, self.channels))
        return (moved * self.mix(actions.flatten(1))[:, :, None, None, None]).sum(1)


class Denoiser(nn.Module):
    """Predicts the clean next latent (x-prediction)."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        self.config = config
        wide, embedding = config.widths[0], config.embedding
        self.actions = nn.Sequential(
            nn.Linear(config.context * config.actions, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.context_level = LevelEmbedding(embedding)
        self.sigma = LevelEmbedding(embedding)
        self.context_first = nn.Conv2d(config.latents * config.channels, wide, 3, padding=1)
        self.context_net = UNet(config.widths, config.context_blocks, embedding)
        self.motion = Motion(config)
        self.noise_first = nn.Conv2d(config.channels, wide, 3, padding=1)
        self.base_first = nn.Conv2d(config.channels, wide, 3, padding=1)
        nn.init.zeros_(self.base_first.weight)
        self.noise_net = UNet(config.widths, config.noise_blocks, embedding)
        self.norm = nn.GroupNorm(8, wide)
        self.last = nn.Conv2d(wide, config.channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)

    def encode_context(
        self, context: torch.Tensor, actions: torch.Tensor, level: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What depends only on the past, once a frame.

        Args:
            context: past latents (B, K, C, h, w), oldest first. Where the denoiser sees the last frame moved, that
                comes last, one latent more, and the prediction is added to it; where it is told the score, that comes
                first, likewise.
            actions: (B, K, A); the last is the one held now.
            level: noise level of the context (B,).

        Returns:
            Features (B, widths[0], h, w), an embedding (B, E) and the base of the prediction (B, C, h, w).
        """
        embedding = self.actions(actions.flatten(1)) + self.context_level(level)
        features = self.context_net(self.context_first(context.flatten(1, 2)), F.silu(embedding))
        # The best linear guess of a unit-variance latent seen under this much noise.
        base = context[:, -1] / (1 + level.float().square())[:, None, None, None].to(context.dtype)
        base = base + self.motion(context, actions)
        return features + self.base_first(base), embedding, base

    def denoise(
        self, noisy: torch.Tensor, sigma: torch.Tensor, encoded: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Noisy latent (B, C, h, w) at noise level ``sigma`` (B,) -> the clean latent (B, C, h, w)."""
        features, embedding, base = encoded
        hidden = self.noise_net(features + self.noise_first(noisy), F.silu(embedding + self.sigma(sigma)))
        return base + self.last(F.silu(self.norm(hidden)))

    def forward(
        self,
        noisy: torch.Tensor,
        sigma: torch.Tensor,
        context: torch.Tensor,
        actions: torch.Tensor,
        level: torch.Tensor,
    ) -> torch.Tensor:
        """Both networks; see :meth:`encode_context` and :meth:`denoise`."""
        return self.denoise(noisy, sigma, self.encode_context(context, actions, level))


def seeing(source: Denoiser, moved: bool, told: bool) -> Denoiser:
    """A copy of ``source`` that sees the last frame moved, or is told the score, or neither, to be trained on.

    What it had not seen counts nothing at first, and begins the same each time, so that a training goes on from it.
    """
    config = source.config
    if (config.moved, config.told) == (moved, told):
        return copy.deepcopy(source)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = Denoiser(replace(config, moved=moved, told=told))
    state = source.state_dict()
    if config.moved != moved:
        state = {name: value for name, value in state.items() if not name.startswith("motion.")}
    seen = state["context_first.weight"]
    unseen = seen.new_zeros(len(seen), config.channels, *seen.shape[2:])
    frames = seen[:, config.told * config.channels :][:, : config.context * config.channels]
    score = seen[:, : config.channels] if config.told else unseen
    motion = seen[:, -config.channels :] if config.moved else unseen
    state["context_first.weight"] = torch.cat([score] * told + [frames] + [motion] * moved, dim=1)
    model.load_state_dict({**model.state_dict(), **state})
    return model
