"""Training the decoder on, with motion compensation; encoder and denoiser stay as they are.

It learns in plays that go on from step to step, one frame a step, each of which decodes with its own last
frame in view: so it learns both to carry over what is sharp and not to carry over its mistakes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from gamengen.autoencoder import FACTOR, Autoencoder, Before, pixels_of
from gamengen.camera import Pairs, fit_camera, moved_error
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.diffusion import SamplerConfig, sample_next
from gamengen.discriminator import Critic, Discriminator
from gamengen.evaluation.similarity import sharpness
from gamengen.free_plays import play_starts
from gamengen.geometry import Mover
from gamengen.latents import LatentEpisodes, gather_windows, window_starts
from gamengen.processes import agree, check_batch, count, gather, share, spread
from gamengen.rarity import Rarity
from gamengen.train_autoencoder import LATENT_NOISE, frame_psnr, reconstruction_loss
from gamengen.training import Task, step_generator
from recorder.episodes import read_episode
from recorder.progress import progress
from recorder.recording import Recording, split_held_out

STEPS = (1, 2, 4)
ALONE = 4  # one frame in so many is decoded from its true latent alone, as the autoencoder does
MOVED_WEIGHT = 0.5  # of the moved last frame in the loss, beside the mixed one
CRITIC_START = 0.1  # share of the budget in which the critic alone learns
CRITIC_SHARE = 0.8  # of the reconstruction's gradient
CAMERA_PAIRS = 640  # of frames, from which the camera is learned
HELD_OUT_WINDOWS, HELD_OUT_PLAYS, PLAYED_FRAMES = 48, 8, 32


@dataclass(frozen=True)
class PlayKind:
    """How long a play lasts, in frames, and whether its latents follow from its own latents or from real ones."""

    longest: int
    own: bool


# In turn over the batch: real last frames are frequent, long plays teach to stay stable, own ones are what is played.
KINDS = (PlayKind(3, False), PlayKind(32, True), PlayKind(64, False), PlayKind(32, True))


@dataclass(frozen=True)
class Footage:
    """Episodes as latents, and where their frames are."""

    paths: tuple[Path, ...]
    episodes: LatentEpisodes

    def frames(self, first: int, count: int) -> np.ndarray:
        """``count`` frames (count, H, W, 3) uint8 from the ``first`` of all episodes laid end to end."""
        ends = np.cumsum(self.episodes.lengths)
        number = int(np.searchsorted(ends, first, side="right"))
        start = first - int(ends[number]) + self.episodes.lengths[number]
        return read_episode(self.paths[number], start, start + count).frames


def find_footage(recording: Recording, latents: tuple[LatentEpisodes, LatentEpisodes]) -> tuple[Footage, Footage]:
    """The recording's episodes with their latents: (train, held out)."""
    parts = split_held_out([info.path for info in recording.episodes()])
    return Footage(tuple(parts[0]), latents[0]), Footage(tuple(parts[1]), latents[1])


class Plays:
    """Plays side by side, each at its own frame of a recorded episode."""

    def __init__(self, footage: Footage, count: int, context: int, rarity: Rarity) -> None:
        self._footage, self._context = footage, context
        lengths = footage.episodes.lengths
        self._kinds = [KINDS[number % len(KINDS)] for number in range(count)]
        self._starts, self._room = play_starts(lengths, context)
        self._chance = rarity.frame_weights(footage.episodes.latents).numpy()[self._starts + context].cumsum()
        self.real = torch.tensor([not kind.own for kind in self._kinds])  # (N,) whose latents follow from real ones
        self._first, self._left = np.zeros(count, np.int64), np.zeros(count, np.int64)  # none has begun
        self._frames: list[np.ndarray] = [np.zeros(0, np.uint8)] * count  # those to come, of each
        self._last: list[torch.Tensor] = [torch.zeros(0)] * count
        self._own: list[torch.Tensor] = [torch.zeros(0)] * count

    def begin(self, rng: np.random.Generator) -> None:
        """Begin another play wherever one has ended."""
        for number in np.flatnonzero(self._left == 0).tolist():
            pick = np.searchsorted(self._chance, rng.random() * self._chance[-1], side="right")
            self._first[number] = self._starts[pick]
            self._left[number] = rng.integers(1, min(self._kinds[number].longest, self._room[pick]) + 1)
            self._own[number] = self._windows([number], self._context)[0][0]
            frames = self._read(number, 1 + self._left[number])
            self._last[number] = torch.from_numpy(frames[0])
            self._frames[number] = frames[1:]

    def contexts(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Past latents (N, K, C, h, w), real or own by the kind of play, and actions (N, K, A)."""
        latents, actions = self._windows(range(len(self._kinds)), self._context)
        parts = [self._own[number] if kind.own else latents[number] for number, kind in enumerate(self._kinds)]
        return torch.stack([part.float() for part in parts]), actions

    def tell(self, past: torch.Tensor) -> torch.Tensor:
        """Contexts (N, K, C, h, w), told the score of the next frames where that is."""
        return self._footage.episodes.tell(torch.from_numpy(self._first) + self._context, past)

    def last(self) -> torch.Tensor:
        """The frame on screen in each play (N, H, W, 3) uint8."""
        return torch.stack(self._last)

    def newest(self) -> torch.Tensor:
        """The numbers of the recorded frames (N,) that stand in the place of those on screen."""
        return torch.from_numpy(self._first) + self._context - 1

    def targets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The real next frames (N, H, W, 3) uint8 and their latents (N, C, h, w)."""
        latents, _ = self._windows(range(len(self._kinds)), self._context + 1)
        return torch.from_numpy(np.stack([frames[0] for frames in self._frames])), latents[:, -1]

    def advance(self, latents: torch.Tensor, frames: torch.Tensor) -> None:
        """One frame on, to the latents (N, C, h, w) and frames (N, H, W, 3) uint8 that were made."""
        for number in range(len(self._kinds)):
            self._own[number] = torch.cat([self._own[number][1:], latents[number : number + 1].to(self._own[number])])
            self._last[number] = frames[number]
            self._frames[number] = self._frames[number][1:]
        self._first += 1
        self._left -= 1

    def state(self) -> dict[str, torch.Tensor]:
        """For the training state."""
        if not len(self._last[0]):
            return {}
        return {
            "first": torch.from_numpy(self._first), "left": torch.from_numpy(self._left),
            "last": torch.stack(self._last), "own": torch.stack(self._own),
        }  # fmt: skip

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on with the plays of :meth:`state`; as many others begin where it was of another batch."""
        if "first" not in state or len(state["first"]) != len(self._kinds):
            return
        self._first, self._left = state["first"].cpu().numpy().copy(), state["left"].cpu().numpy().copy()
        self._last = list(state["last"].cpu())
        self._own = list(state["own"].to(self._footage.episodes.latents.device))
        for number in np.flatnonzero(self._left).tolist():
            self._frames[number] = self._read(number, 1 + self._left[number])[1:]

    def _read(self, number: int, count: int) -> np.ndarray:
        return self._footage.frames(int(self._first[number]) + self._context - 1, int(count))

    def _windows(self, numbers: Sequence[int], window: int) -> tuple[torch.Tensor, torch.Tensor]:
        return gather_windows(self._footage.episodes, self._first[list(numbers)], window)


class DecoderTask(Task):
    """Decode the next frame of plays, and some frames from their latents alone.

    With ``compensation_only`` the decoder's own layers stay as they are, and only those that bring in the last frame
    are trained: what long training has made sharp, a short one at usual rates would undo.
    """

    name = "decoder"

    def __init__(
        self,
        model: Autoencoder,
        denoiser: Denoiser,
        train: Footage,
        held_out: Footage,
        seed: int,
        batch: int = 8,
        camera_pairs: int = CAMERA_PAIRS,
        mover: Mover | None = None,
        compensation_only: bool = False,
    ) -> None:
        assert model.compensation is not None
        assert (model.compensation.camera is None) == denoiser.config.moved == (mover is not None)
        model.encoder.requires_grad_(False)
        model.decoder.requires_grad_(not compensation_only)
        if model.compensation.camera is not None:
            model.compensation.camera.requires_grad_(False)  # learned at once at the first step
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        self._autoencoder, self._denoiser, self._seed, self._batch = model, denoiser, seed, batch
        self._camera_pairs, self._mover, self._compensation_only = camera_pairs, mover, compensation_only
        check_batch(batch)
        self._rarity = Rarity(train.episodes.latents.to(self._device))
        self._plays = Plays(train, batch, denoiser.config.context, self._rarity)
        self._train, self._held_out = train, held_out
        self._critic = Critic(Discriminator(), self._device)

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Reconstruction loss of one frame of each play."""
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        if step == 0 and self._mover is None:
            self._fit_camera(rng)
        self._plays.begin(rng)
        context, actions = (part.to(self._device) for part in self._plays.contexts())
        last, flow = context[:, -1], None
        if self._mover is not None:
            context, flow = self._look(context, actions, self._plays.last(), self._plays.newest(), self._train)
        context = self._plays.tell(context)
        noise = torch.randn(context[:, 0].shape, generator=generator, device=self._device)
        steps = int(rng.choice(STEPS))
        predicted = spread(lambda past, held, start: self._predict(past, held, start, steps), context, actions, noise)
        real, latents = (share(part).to(self._device) for part in self._plays.targets())
        target = pixels_of(real)
        before = Before(
            share(last),
            share(self._plays.last()).to(self._device),
            share(actions),
            share(flow) if flow is not None else None,
        )
        pixels, moved_by = self._autoencoder.decode_next(share(predicted + self._noise(predicted, generator)), before)
        weight = self._rarity.weight(latents)
        real_play = share(self._plays.real).to(self._device)
        shown = self._shown(share(predicted), latents, target, ~real_play)
        played = torch.where(real_play[:, None, None], weight, self._rarity.weight(share(predicted)))
        loss = reconstruction_loss(pixels, shown, played)
        self._critic.learn(target, pixels)
        if progress > CRITIC_START:
            loss = loss + self._critic.loss(pixels, loss, CRITIC_SHARE)
        loss = loss + MOVED_WEIGHT * moved_error(moved_by, pixels_of(before.frames), target)
        if not self._compensation_only:
            alone = latents.float() + share(self._noise(predicted, generator))
            loss = loss + self._loss_alone(step, alone, target, weight)
        frames = pixels.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        self._plays.advance(predicted, gather(frames).permute(0, 2, 3, 1).cpu())
        return loss

    @torch.no_grad()
    def _shown(
        self, predicted: torch.Tensor, latents: torch.Tensor, real: torch.Tensor, own: torch.Tensor
    ) -> torch.Tensor:
        """What each play should show (B, 3, H, W): the ``real`` pixels; in an ``own`` play (B,) its own monsters.

        After its own latents a play has gone its own way: what is rare stands elsewhere than in the real frame, and
        a decoder that is asked for the real one learns to fade it out. There the play should show what its latents
        do, decoded alone.
        """
        if not own.any():
            return real
        rare = self._rarity.rare(predicted[own]) | self._rarity.rare(latents[own])
        near = F.max_pool2d(rare[:, None].float(), 3, stride=1, padding=1)
        near = F.interpolate(near, scale_factor=float(FACTOR), mode="nearest")
        shown = real.clone()
        shown[own] = torch.where(near > 0, self._autoencoder.decode(predicted[own]).to(real.dtype), real[own])
        return shown

    def _loss_alone(self, step: int, latents: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Of some frames of the batch, decoded from their true latents alone."""
        chosen = torch.arange(self._batch) % ALONE == step % ALONE % self._batch
        mine = share(chosen).to(self._device)
        if not mine.any():
            return target.new_zeros(())
        loss = reconstruction_loss(self._autoencoder.decode(latents[mine]), target[mine], weight[mine])
        return loss * (int(mine.sum()) * count() / int(chosen.sum())) / ALONE

    def _fit_camera(self, rng: np.random.Generator) -> None:
        context = self._denoiser.config.context
        starts = window_starts(self._train.episodes.lengths, context + 1)
        picks = rng.choice(starts, min(self._camera_pairs, len(starts)), replace=False)
        frames = torch.from_numpy(np.stack([self._train.frames(int(n) + context - 1, 2) for n in picks]))
        frames = frames.to(self._device)
        actions = gather_windows(self._train.episodes, picks, context)[1].to(self._device)
        assert self._autoencoder.compensation is not None and self._autoencoder.compensation.camera is not None
        with (
            torch.autocast(self._device.type, enabled=False),
            progress("learning how actions move the camera", 100, "%") as show,
        ):
            pairs = Pairs(frames[:, 0], frames[:, 1], actions)
            fit_camera(self._autoencoder.compensation.camera, pairs, self._seed, lambda done: show(100 * done, ""))
        agree(self._autoencoder.compensation)

    def state(self) -> dict[str, torch.Tensor]:
        """The plays that go on from step to step, and the critic."""
        return self._plays.state() | self._critic.state()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from :meth:`state`."""
        self._plays.load_state(state)
        self._critic.load_state(state)

    @torch.no_grad()
    def _look(
        self,
        latents: torch.Tensor,
        actions: torch.Tensor,
        frames: torch.Tensor,
        newest: torch.Tensor,
        footage: Footage,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Contexts with the last frames moved as the recorded camera did, and the flows by which they are.

        ``newest`` are the numbers of the recorded frames (N,) in the place of the last. A few at once.
        """
        motions = footage.episodes.motions
        assert self._mover is not None
        assert motions is not None
        history, motion = footage.episodes.moving(newest), motions[newest.to(motions.device)]
        given = (part.to(self._device).split(8) for part in (latents, actions, frames, history, motion))
        contexts, flows, _ = zip(*(self._mover(*part) for part in zip(*given, strict=True)), strict=True)
        return torch.cat(contexts).float(), torch.cat(flows)

    def _noise(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        scale = LATENT_NOISE * torch.rand(len(latents), 1, 1, 1, generator=generator, device=self._device)
        return scale * torch.randn(latents.shape, generator=generator, device=self._device)

    def _predict(self, context: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor, steps: int) -> torch.Tensor:
        return sample_next(self._denoiser, context, actions, noise[None], SamplerConfig(steps)).float()

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Held-out PSNR of frames decoded alone, from true and from predicted latents, and after 32 frames of play.

        Sharpness after the play is a share of the real frames'.
        """
        context = self._denoiser.config.context
        room = min(PLAYED_FRAMES, max(self._held_out.episodes.lengths) - context)
        starts = window_starts(self._held_out.episodes.lengths, context + room)
        picks = starts[np.unique(np.linspace(0, len(starts) - 1, HELD_OUT_WINDOWS).astype(int))]
        generator = step_generator(self._seed, 0, self._device)
        real = torch.from_numpy(np.stack([self._held_out.frames(int(first) + context - 1, 2) for first in picks]))
        latents, actions = (
            part.to(self._device) for part in gather_windows(self._held_out.episodes, picks, context + 1)
        )
        noise = torch.randn(latents[:, 0].shape, generator=generator, device=self._device)
        seen, flow = latents[:, :-1], None
        if self._mover is not None:
            newest = torch.from_numpy(picks) + context - 1
            seen, flow = self._look(seen, actions[:, :-1], real[:, 0], newest, self._held_out)
        seen = self._held_out.episodes.tell(torch.from_numpy(picks) + context, seen)
        predicted = self._predict(seen, actions[:, :-1], noise, 4)
        before = Before(latents[:, -2], real[:, 0], actions[:, :-1], flow)
        decoded = {
            "alone_psnr": self._decode(latents[:, -1]),
            "psnr": self._decode(latents[:, -1], before),
            "predicted_psnr": self._decode(predicted, before),
        }
        figures = {name: float(frame_psnr(real[:, 1], part).mean()) for name, part in decoded.items()}
        rows = [part[:6] for part in (real[:, 1], *decoded.values())]

        picks = picks[:: max(1, len(picks) // HELD_OUT_PLAYS)]
        past, actions = (
            part.to(self._device) for part in gather_windows(self._held_out.episodes, picks, context + room)
        )
        past = past[:, :context]
        shown = torch.from_numpy(np.concatenate([self._held_out.frames(int(n) + context - 1, 1) for n in picks]))
        for frame in range(room):
            held = actions[:, frame : frame + context]
            noise = torch.randn(past[:, 0].shape, generator=generator, device=self._device)
            seen, flow = past, None
            if self._mover is not None:
                newest = torch.from_numpy(picks) + context - 1 + frame
                seen, flow = self._look(past, held, shown, newest, self._held_out)
            seen = self._held_out.episodes.tell(torch.from_numpy(picks) + context + frame, seen)
            following = self._predict(seen, held, noise, 4)
            shown = self._decode(following, Before(past[:, -1], shown, held, flow))
            past = torch.cat([past[:, 1:], following[:, None]], dim=1)
        last = np.concatenate([self._held_out.frames(int(n) + context + room - 1, 1) for n in picks])
        figures["rollout_psnr"] = float(frame_psnr(torch.from_numpy(last), shown).mean())
        figures["rollout_sharpness"] = float(sharpness(shown.numpy()).mean() / sharpness(last).mean())
        rows += [torch.from_numpy(last)[:6], shown[:6]]
        pictures = [np.concatenate(list(row.numpy()), axis=1) for row in rows if len(row) == len(rows[0])]
        return figures, {"real_alone_true_predicted_real_played": np.concatenate(pictures)}

    def _decode(self, latents: torch.Tensor, before: Before | None = None) -> torch.Tensor:
        """Frames (N, H, W, 3) uint8 on the CPU."""
        parts = []
        for first in range(0, len(latents), 8):
            part, given = slice(first, first + 8), None
            if before is not None:
                frames = before.frames[part].to(self._device)
                flow = before.flow[part] if before.flow is not None else None
                given = Before(before.latents[part], frames, before.actions[part], flow)
            parts.append(self._autoencoder.decode_frames(latents[part], given).cpu())
        return torch.cat(parts)
