"""Training the geometry networks on how far things were, and on how the camera moved."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gamengen.devices import place
from gamengen.geometry import FINER, MOTION_UNIT, USUAL_DISTANCE, Geometry, motion_flow
from gamengen.geometry_cache import Scenes
from gamengen.latents import gather_windows, window_starts
from gamengen.processes import average_gradients, check_batch, share
from gamengen.training import Task, learning_rate_factor, load_moments, moments, step_generator
from recorder.replay import CELL

LATENT_NOISE = 0.5  # highest, of what it sees of the past
HISTORY_NOISE, MOTION_NOISE = 0.03, 0.02  # of the motions, in their units
DISTANCE_WEIGHT, MOTION_WEIGHT = 0.5, 5.0  # beside pixels of flow: of log distances, and of motions in their units
LARGEST_FLOW, LARGEST_MOTION = 40.0, 10.0  # pixels, units: beyond, an error counts no more
CAMERA_BATCH = 2  # windows of the camera network, beside one of that of distances
TURN_BATCH, TURN_STEPS, TURN_RATE = 8, 5, 3e-3  # likewise of turns, in each of so many steps of their own
BESIDE_TURN = (0, 1, 3)  # forward, aside, up: turns are learned apart
HELD_OUT_WINDOWS = 192
RATE = 1e-3  # of AdamW; weights of two or more dimensions learn by Muon


class GeometryTask(Task):
    """Tell distances and motions; see :class:`gamengen.training.Task`.

    Args:
        model: the networks.
        train, held_out: with the real ones.
        seed: of windows and noise.
        batch: samples a step.
    """

    name = "geometry"

    def __init__(self, model: Geometry, train: Scenes, held_out: Scenes, seed: int, batch: int = 64) -> None:
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        self._geometry, self._seed, self._batch = model, seed, batch
        self._unit = torch.tensor(MOTION_UNIT, device=self._device)
        self._train, self._held_out = train, held_out
        check_batch(batch)
        self._starts = window_starts(train.episodes.lengths, model.config.context + 1)
        self._turns = torch.optim.AdamW(model.camera.turn.parameters(), weight_decay=0.0)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Errors of the flow, with the real motion, in pixels; of log distances; and of motions in their units."""
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        starts = rng.choice(self._starts, self._batch)
        latents, _, history, motion, distances = self._windows(self._train, starts)

        def noise(like: torch.Tensor) -> torch.Tensor:
            return torch.randn(like.shape, generator=generator, device=self._device)

        level, doubt = torch.rand(2, self._batch, generator=generator, device=self._device)
        latents = latents + LATENT_NOISE * level.square()[:, None, None, None, None] * noise(latents)
        doubted = history + HISTORY_NOISE * self._unit * doubt[:, None, None] * noise(history)
        near = motion + MOTION_NOISE * self._unit * noise(motion)
        latents, doubted, near, motion, distances = (
            share(part) for part in (latents, doubted, near, motion, distances)
        )
        flow, inverse, moves = self._labels(distances, motion)
        told, share_told = self._geometry.distance(latents, doubted, near)
        flow_error = self._flow_error(told, share_told, motion, flow)
        distance_error = ((told.log() - inverse.log()).abs() * moves).mean()
        self._learn_turns(rng, progress)
        motion_error = self._motion_error(rng, generator)
        return flow_error.mean() + DISTANCE_WEIGHT * distance_error + MOTION_WEIGHT * motion_error

    def _motion_error(self, rng: np.random.Generator, generator: torch.Generator) -> torch.Tensor:
        """Mean absolute error of the motions beside turns in their units, on windows of their own."""
        starts, context = rng.choice(self._starts, CAMERA_BATCH * self._batch), self._geometry.config.context
        episodes, newest = self._train.episodes, torch.from_numpy(starts + context - 1)
        assert episodes.motions is not None
        latents, _ = gather_windows(episodes, starts + context - 2, 2)
        held = torch.from_numpy(starts[:, None] + np.arange(context))
        given = (latents, episodes.actions[held], episodes.moving(newest), episodes.motions[newest])
        latents, actions, history, motion = (part.to(self._device) for part in given)
        doubt, level = torch.rand(2, len(motion), generator=generator, device=self._device)
        noise = torch.randn(history.shape, generator=generator, device=self._device)
        history = history + HISTORY_NOISE * self._unit * doubt[:, None, None] * noise
        noise = torch.randn(latents.shape, generator=generator, device=self._device)
        latents = latents + LATENT_NOISE * level.square()[:, None, None, None, None] * noise
        kept = self._geometry.camera.draw_dropout(len(motion), generator)
        latents, actions, history, motion, kept = (share(part) for part in (latents, actions, history, motion, kept))
        error = ((self._geometry.camera(latents, actions, history, kept) - motion).abs() / self._unit)[:, BESIDE_TURN]
        return error.clamp(max=LARGEST_MOTION).mean()

    def _learn_turns(self, rng: np.random.Generator, progress: float) -> None:
        """Steps of the network that tells turns: it looks at keys alone, and becomes exact after thousands of steps."""
        episodes, context = self._train.episodes, self._geometry.config.context
        camera, unit = self._geometry.camera, MOTION_UNIT[2]
        assert episodes.motions is not None
        for group in self._turns.param_groups:
            group["lr"] = TURN_RATE * learning_rate_factor(progress)
        for _ in range(TURN_STEPS):
            starts = rng.choice(self._starts, TURN_BATCH * self._batch)
            actions = episodes.actions[torch.from_numpy(starts[:, None] + np.arange(context))]
            turns = episodes.motions[torch.from_numpy(starts + context - 1)][:, 2]
            actions, turns = (share(part.to(self._device)) for part in (actions, turns))
            self._turns.zero_grad(set_to_none=True)
            ((camera.tell_turn(actions) - turns).abs().mean() / unit).backward()
            average_gradients(camera.turn)
            self._turns.step()

    def state(self) -> dict[str, torch.Tensor]:
        """The moments of the turns' own optimizer."""
        return moments(self._turns, self._geometry.camera.turn)

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`."""
        load_moments(self._turns, self._geometry.camera.turn, state)

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Held-out errors: of flows in pixels, with the told motion and the real one, of none; of each motion."""
        picks = window_starts(self._held_out.episodes.lengths, self._geometry.config.context + 1)
        picks = picks[np.unique(np.linspace(0, len(picks) - 1, HELD_OUT_WINDOWS).astype(int))]
        errors: dict[str, list[torch.Tensor]] = {}
        for starts in np.array_split(picks, -(-len(picks) // 48)):
            latents, actions, history, motion, distances = self._windows(self._held_out, starts)
            flow, _, _ = self._labels(distances, motion)
            told = self._geometry.camera(latents, actions, history)
            found = {"none_error": flow.abs().clamp(max=LARGEST_FLOW).mean(dim=(1, 2, 3))}
            for name, by in (("error", told), ("real_motion_error", motion)):
                inverse, moves = self._geometry.distance(latents, history, by)
                found[name] = self._flow_error(inverse, moves, by, flow)
            for number, name in enumerate(("forward", "aside", "turn", "up")):
                found[f"{name}_error"] = (told - motion)[:, number].abs()
            for name, part in found.items():
                errors.setdefault(name, []).append(part)
        return {name: float(torch.cat(parts).mean()) for name, parts in errors.items()}, {}

    def _windows(self, scenes: Scenes, starts: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Latents and actions, the motions before, the next motion, and the distances that it leads to."""
        latents, actions = gather_windows(scenes.episodes, starts, self._geometry.config.context)
        newest = torch.from_numpy(starts + self._geometry.config.context - 1)
        assert scenes.episodes.motions is not None
        history, motion = scenes.episodes.moving(newest), scenes.episodes.motions[newest]
        given = (latents, actions, history, motion, scenes.distances[newest + 1].float())
        return tuple(part.to(self._device) for part in given)

    def _labels(self, distances: torch.Tensor, motion: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The real flow (B, 2, 2 h, 2 w), and inverse distances and what moves with the world, (B, 1, 2 h, 2 w) each.

        Of distances (B, H/4, W/4) and motions (B, 4).
        """
        height = distances.shape[1]
        rows = (torch.arange(height, device=distances.device) + 0.5) / height < self._geometry.config.lens.bottom
        moves = ((distances > 0) & rows[:, None])[:, None].float()
        inverse = 1 / torch.where(distances > 0, distances, USUAL_DISTANCE)[:, None]
        flow = moves * motion_flow(inverse, motion, self._geometry.config.lens, CELL)
        scale = (FINER * self._geometry.config.height, FINER * self._geometry.config.width)
        flow, inverse, moves = (F.interpolate(part, size=scale, mode="area") for part in (flow, inverse, moves))
        return flow, inverse, moves

    def _flow_error(
        self, inverse: torch.Tensor, moves: torch.Tensor, motion: torch.Tensor, flow: torch.Tensor
    ) -> torch.Tensor:
        """Mean absolute error in pixels (B,)."""
        error = (moves * motion_flow(inverse, motion, self._geometry.config.lens) - flow).abs()
        return error.clamp(max=LARGEST_FLOW).mean(dim=(1, 2, 3))
