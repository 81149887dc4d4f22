"""Outcome head: reward, the game's end, and what the score bar says, read from latents.

It sees the newest latent, the one before and the action between them, and costs under a hundredth of a frame.
Numbers are told as probabilities over bins, two of which share a value between them ("two-hot", as in DreamerV3,
Hafner et al., arXiv 2301.04104), so that a rare reward is an expectation and not a compromise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from agents.errors import OptionError

REWARD_BINS, REWARD_REACH = 41, 10.0  # from -e^10 to e^10, finest around 0
LEVEL_BINS = 41
DROPOUT = 0.3


@dataclass(frozen=True)
class OutcomeConfig:
    """Sizes of an outcome head, and what it tells.

    Args:
        channels: C, channels of a latent.
        actions: A, channels of an action.
        height: h, of a latent; so ``width``.
        levels: game variables that a frame shows, by name, such as health.
        scales: the largest value of each.
        counters: game variables that count events, such as kills; what is told is whether they rise.
        features: width of the layers.
    """

    channels: int
    actions: int
    height: int
    width: int
    levels: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
    counters: tuple[str, ...] = ()
    features: int = 64

    def __post_init__(self) -> None:
        if min(self.channels, self.actions, self.height, self.width, self.features) < 1:
            raise OptionError("an outcome head's sizes must be at least 1", "outcome", "restore config.json")
        if len(self.levels) != len(self.scales) or any(not 0 < scale < math.inf for scale in self.scales):
            raise OptionError("each level needs a positive scale", "outcome", "restore config.json")

    @property
    def outputs(self) -> int:
        """Numbers that the network puts out."""
        return REWARD_BINS + 1 + len(self.counters) + LEVEL_BINS * len(self.levels)


@dataclass(frozen=True)
class Outcome:
    """What a step came to, in each of B games.

    Args:
        reward: expected, (B,) float32.
        ends: the probability that the game ends here, (B,) float32.
        rises: the probability that a counter rose, by name, each (B,) float32.
        levels: what the score bar says, by name, each (B,) float32 in the game's units.
    """

    reward: np.ndarray
    ends: np.ndarray
    rises: dict[str, np.ndarray] = field(default_factory=dict)
    levels: dict[str, np.ndarray] = field(default_factory=dict)


class OutcomeHead(nn.Module):
    """Two latents and an action to logits; see :meth:`read` for what they mean."""

    def __init__(self, config: OutcomeConfig) -> None:
        super().__init__()
        self.config = config
        width = config.features
        self.first = nn.Conv2d(2 * config.channels, width, 1)
        self.actions = nn.Linear(config.actions, width)
        self.near = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.far = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        positions = -(-config.height // 4) * -(-config.width // 4)
        self.hidden = nn.Linear(2 * width * positions, 4 * width)
        self.last = nn.Linear(4 * width, config.outputs)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def expect(self, ends: float, rises: torch.Tensor) -> None:
        """Begin at the rates of a recording: ``ends`` and each of ``rises`` (M,), shares of frames."""
        rates = torch.cat([torch.tensor([ends]), rises.cpu()]).clamp(1e-4, 1 - 1e-4)
        with torch.no_grad():
            self.last.bias[REWARD_BINS : REWARD_BINS + len(rates)] = rates.logit()

    def forward(
        self, before: torch.Tensor, now: torch.Tensor, action: torch.Tensor, kept: Sequence[torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Latents (B, C, h, w) of the last frame and of this, the action (B, A) between them -> logits (B, outputs).

        ``kept`` is what dropout multiplies with in training, as of :meth:`draw_dropout`.
        """
        features = self.first(torch.cat([before, now], dim=1)) + self.actions(action)[:, :, None, None]
        features = self.far(F.silu(self.near(F.silu(features))))
        features = F.silu(features).flatten(1)
        hidden = F.silu(self.hidden(features if kept is None else features * kept[0]))
        return self.last(hidden if kept is None else hidden * kept[1])

    def draw_dropout(self, batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """What dropout leaves of features (B, F) and hidden units (B, H): 0, or 1 over the share that is kept.

        A few hundred ends of games are soon learned by heart.
        """
        device = self.hidden.weight.device

        def draw(width: int) -> torch.Tensor:
            chance = torch.rand(batch, width, generator=generator, device=device)
            return (chance >= DROPOUT).float() / (1 - DROPOUT)

        return draw(self.hidden.in_features), draw(self.hidden.out_features)

    def parts(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits (B, outputs) of the reward (B, bins), the end (B,), counters (B, M) and levels (B, L, bins)."""
        config = self.config
        sizes = [REWARD_BINS, 1, len(config.counters), LEVEL_BINS * len(config.levels)]
        reward, ends, rises, levels = logits.float().split(sizes, dim=1)
        return reward, ends[:, 0], rises, levels.unflatten(1, (len(config.levels), LEVEL_BINS))

    @torch.inference_mode()
    def read(self, before: torch.Tensor, now: torch.Tensor, action: torch.Tensor) -> Outcome:
        """What the step between two latents came to; see :meth:`forward`."""
        return self.tell(self(before, now, action))

    def tell(self, logits: torch.Tensor) -> Outcome:
        """What logits (B, outputs) say."""
        reward, ends, rises, levels = self.parts(logits)
        config = self.config
        expected = (levels.softmax(-1) * level_bins(levels.device)).sum(-1).cpu()
        return Outcome(
            (reward.softmax(-1) * reward_bins(reward.device)).sum(-1).cpu().numpy(),
            ends.sigmoid().cpu().numpy(),
            {name: rises[:, n].sigmoid().cpu().numpy() for n, name in enumerate(config.counters)},
            {name: (config.scales[n] * expected[:, n]).numpy() for n, name in enumerate(config.levels)},
        )


def reward_bins(device: torch.device | str = "cpu") -> torch.Tensor:
    """The rewards that the bins stand for, rising (REWARD_BINS,)."""
    even = torch.linspace(-REWARD_REACH, REWARD_REACH, REWARD_BINS, device=device)
    return even.sign() * even.abs().expm1()


def level_bins(device: torch.device | str = "cpu") -> torch.Tensor:
    """The shares of a level's scale that the bins stand for, rising (LEVEL_BINS,)."""
    return torch.linspace(0, 1, LEVEL_BINS, device=device)


def two_hot(values: torch.Tensor, bins: torch.Tensor) -> torch.Tensor:
    """Weights over ``bins`` (K,) for ``values`` (...), (..., K): two neighbours whose mean is the value."""
    values = values.clamp(bins[0], bins[-1])
    upper = torch.searchsorted(bins, values.contiguous()).clamp(1, len(bins) - 1)
    low, high = bins[upper - 1], bins[upper]
    share = ((values - low) / (high - low))[..., None]
    return F.one_hot(upper - 1, len(bins)) * (1 - share) + F.one_hot(upper, len(bins)) * share
