"""Training a flow network on flows that were measured between recorded frames."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from gamengen.devices import place
from gamengen.flow import FlowNetwork
from gamengen.latents import LatentEpisodes, gather_windows, window_starts
from gamengen.processes import check_batch, share, spread
from gamengen.training import Task, step_generator

LATENT_NOISE = 0.5  # highest, of what it sees of the past
OWN_SHARE = 0.5  # of the batch whose last flow is what the network itself tells
CHAIN = 5  # flows one after the other, of which the last is measured
HELD_OUT_WINDOWS = 192


class FlowTask(Task):
    """Tell the flow of the next frame; see :class:`gamengen.training.Task`.

    Args:
        model: the network; its camera is learned already and stays as it is.
        train, held_out: with the flows measured.
        seed: of windows and noise.
        batch: samples a step.
    """

    name = "flow"

    def __init__(
        self, model: FlowNetwork, train: LatentEpisodes, held_out: LatentEpisodes, seed: int, batch: int = 48
    ) -> None:
        model.camera.requires_grad_(False)
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        self._network, self._seed, self._batch = model, seed, batch
        self._train, self._held_out = train, held_out
        check_batch(batch)
        self._starts = window_starts(train.lengths, model.config.context + CHAIN)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Mean absolute error in pixels."""
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        starts = rng.choice(self._starts, self._batch)
        last = self._flows(self._train, starts, CHAIN - 2)
        own = int(self._batch * OWN_SHARE)
        if own:  # as in play, where it is told what it told the frame before
            before = self._flows(self._train, starts[:own], CHAIN - 3)
            latents, actions = self._windows(self._train, starts[:own], CHAIN - 2)
            with torch.no_grad():
                last[:own] = spread(self._network, latents, actions, before)
        latents, actions = self._windows(self._train, starts, CHAIN - 1)
        level = LATENT_NOISE * torch.rand(self._batch, generator=generator, device=self._device).square()
        noise = torch.randn(latents.shape, generator=generator, device=self._device)
        noised = latents + level[:, None, None, None, None] * noise
        given = (share(part) for part in (noised, actions, last))
        return (self._network(*given) - share(self._flows(self._train, starts, CHAIN - 1))).abs().mean()

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Held-out error in pixels, told the measured last flow and at the end of a chain of own ones; that of none."""
        picks = window_starts(self._held_out.lengths, self._network.config.context + CHAIN)
        picks = picks[np.unique(np.linspace(0, len(picks) - 1, HELD_OUT_WINDOWS).astype(int))]
        errors: dict[str, list[torch.Tensor]] = {"error": [], "chain_error": [], "none_error": []}
        for starts in np.array_split(picks, -(-len(picks) // 48)):
            real = self._flows(self._held_out, starts, CHAIN - 1)
            flow = self._flows(self._held_out, starts, -1)
            for at in range(CHAIN):
                flow = self._network(*self._windows(self._held_out, starts, at), flow).float()
            told = self._network(
                *self._windows(self._held_out, starts, CHAIN - 1), self._flows(self._held_out, starts, CHAIN - 2)
            )
            for name, found in (("error", told), ("chain_error", flow), ("none_error", torch.zeros_like(real))):
                errors[name].append((found.float() - real).abs().mean(dim=(1, 2, 3)))
        return {name: float(torch.cat(parts).mean()) for name, parts in errors.items()}, {}

    def _windows(self, episodes: LatentEpisodes, starts: np.ndarray, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        latents, actions = gather_windows(episodes, starts + at, self._network.config.context)
        return latents.to(self._device), actions.to(self._device)

    def _flows(self, episodes: LatentEpisodes, starts: np.ndarray, at: int) -> torch.Tensor:
        """The flows that follow the windows of :meth:`_windows`."""
        assert episodes.flows is not None
        frames = torch.from_numpy(starts + at + self._network.config.context - 1)
        return episodes.flows[frames.to(episodes.flows.device)].float().to(self._device)
