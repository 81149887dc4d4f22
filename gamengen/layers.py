"""Layers that the autoencoder and the denoiser share."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

NORM_GROUPS = 8
EMBEDDING_FREQUENCIES = 16


class ResidualBlock(nn.Module):
    """Norm, convolution, activation, convolution, added to the input; FiLM where ``embedding`` > 0.

    The last convolution starts at zero, so that a fresh block is the identity.
    """

    def __init__(self, width: int, embedding: int = 0) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(NORM_GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        self.film = nn.Linear(embedding, 2 * width) if embedding else None
        if self.film is not None:
            nn.init.zeros_(self.film.weight)
            nn.init.zeros_(self.film.bias)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` (B, width, h, w), ``embedding`` (B, E) -> (B, width, h, w)."""
        hidden = self.conv1(F.silu(self.norm(x)))
        if self.film is not None:
            assert embedding is not None
            scale, shift = self.film(embedding)[:, :, None, None].chunk(2, dim=1)
            hidden = torch.addcmul(hidden + shift, hidden, scale)
        return x + self.conv2(F.silu(hidden))


class LevelEmbedding(nn.Module):
    """Fourier features of a noise level in [0, 1], then a linear layer.

    The frequencies are no buffer: in bfloat16 they would be others than those of training.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * EMBEDDING_FREQUENCIES, width)

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        """``level`` (B,) -> (B, width)."""
        frequencies = torch.logspace(-1, 1.5, EMBEDDING_FREQUENCIES, device=level.device)
        angle = level.float()[:, None] * frequencies * torch.pi
        return self.linear(torch.cat([angle.cos(), angle.sin()], dim=1).to(self.linear.weight.dtype))
