"""What plays freely beside a training that learns from the frames which it makes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gamengen.denoiser import Denoiser
from gamengen.diffusion import SamplerConfig, sample_next
from gamengen.free_plays import FreePlays
from gamengen.geometry import Mover
from gamengen.latents import LatentEpisodes
from gamengen.processes import spread
from gamengen.training import Task

LONGEST_PLAY = 32  # frames


@dataclass(frozen=True)
class Player:
    """What makes the frames of free plays: a denoiser, how it samples, and what moves the last frame for it."""

    denoiser: Denoiser
    sampler: SamplerConfig
    mover: Mover | None = None

    def advance(self, plays: FreePlays, generator: torch.Generator, together: bool = True) -> None:
        """Each of ``plays`` one frame on; several processes do a share each, where they are ``together``."""

        def sample(context: torch.Tensor, actions: torch.Tensor, *noise: torch.Tensor) -> torch.Tensor:
            return sample_next(self.denoiser, context, actions, torch.stack(noise), self.sampler)

        def follow(context: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            shape = (2, len(context), *context.shape[2:])
            noise = torch.randn(shape, generator=generator, device=context.device)
            given = (context, actions, *noise)
            return spread(sample, *given) if together else sample(*given)

        plays.advance(follow)


class PlayedTask(Task):
    """A task that learns from free plays too, where it has a player."""

    _device: torch.device
    _player: Player | None
    _plays: FreePlays | None

    def _begin_plays(self, episodes: LatentEpisodes, count: int) -> FreePlays | None:
        if self._player is None:
            return None
        context = self._player.denoiser.config.context
        return FreePlays(episodes.to(self._device), count, context, LONGEST_PLAY, self._player.mover)

    def state(self) -> dict[str, torch.Tensor]:
        """The free plays that go on from step to step."""
        return self._plays.state() if self._plays is not None else {}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on with the plays of :meth:`state`."""
        if self._plays is not None and state:
            self._plays.load_state(state)
