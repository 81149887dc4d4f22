"""Training a denoiser on windows of latents."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from agents.errors import DataError
from gamengen.autoencoder import Autoencoder
from gamengen.denoiser import Denoiser
from gamengen.devices import place
from gamengen.diffusion import CONTEXT_NOISE_MAX, LOW_SHARE, SamplerConfig, denoising_loss, sample_next
from gamengen.evaluation.similarity import STILL_PSNR, frame_ssim, sharpness
from gamengen.free_plays import LONGEST_PLAY, FreePlays, move_decoded
from gamengen.geometry import Mover
from gamengen.latents import LatentEpisodes, gather_steps, gather_windows, window_starts
from gamengen.processes import check_batch, share, spread
from gamengen.rarity import Rarity, steady_positions
from gamengen.train_autoencoder import frame_psnr
from gamengen.training import Task, step_generator

UNROLL_START = 0.6  # share of the budget after which training also follows the model's own frames
UNROLL_SHARE = 0.375  # of the batch
UNROLL_STEPS = (1, 2)  # sampling steps of the model's own frames
FAITHFUL_PLAY = 12  # frames of its longest: after more the recorded frame is no longer what should follow
HELD_PLAY = 20  # likewise where the camera moves as the recorded one did
REACH = 3  # positions: what is unusual is no further away a frame later
STEADY = 4.0  # added to the weight of a position that never moves: what changes in a score bar is small
HELD_OUT_WINDOWS = 48
VISIBLE_PIXELS = 8
NUDGE = 0.2  # of a latent channel, whose RMS is 1
PLAIN_SHARE = 0.3
ROLLOUT_FRAMES = 32


class DenoiserTask(Task):
    """Predict the next latent; see :class:`gamengen.training.Task`.

    Errors count more where the frame is unusual, or the one before was, and unusual frames are drawn more often. So
    what is rare is asked for more strongly than its absence, which makes up for what a few sampling steps fade.
    A ``faithful`` denoiser is told how often it comes: weights and draws depend on the frames before alone. They count
    what is small and stands still, such as a score bar, and low noise levels, at which that is decided, too.
    In the last part of the budget some samples take the model's own frames as their
    context: see :class:`gamengen.free_plays.FreePlays`. Half of those are played by ``player``, where there is one: its
    mistakes are others, and must be led back too. A denoiser that sees the last frame moved takes a ``mover``, and
    latents with the frames moved; one that is told the score takes latents with counts and a tally.

    Raises:
        DataError: every episode, or every one held out, is shorter than a window.
    """

    name = "denoiser"

    def __init__(
        self,
        model: Denoiser,
        autoencoder: Autoencoder,
        train: LatentEpisodes,
        held_out: LatentEpisodes,
        seed: int,
        batch: int = 32,
        context_noise: float = CONTEXT_NOISE_MAX,
        mover: Mover | None = None,
        faithful: bool = False,
        player: Denoiser | None = None,
    ) -> None:
        assert model.config.moved == (mover is not None) and model.config.told == (train.tally is not None)
        self._device = next(model.parameters()).device
        self.model: nn.Module = place(model, self._device)
        self._denoiser, self._autoencoder = model, autoencoder
        self._train, self._held_out = train.to(self._device), held_out
        self._seed, self._batch, self._context_noise = seed, batch, context_noise
        check_batch(batch)
        self._metric = visible_metric(autoencoder, self._train.latents, seed)
        self._window = model.config.context + 1
        self._starts = window_starts(train.lengths, self._window)
        self._rarity, self._faithful = Rarity(self._train.latents), faithful
        telling = self._starts + self._window - (2 if faithful else 1)  # frames that say how often each is drawn
        self._chances = self._rarity.frame_weights(self._train.latents).numpy()[telling].cumsum()
        self._steady = 1 + STEADY * steady_positions(self._train) if faithful else torch.ones(())
        self._mover, self._player = mover, player
        held = FAITHFUL_PLAY if mover is None else HELD_PLAY
        longest = held if faithful else LONGEST_PLAY
        self._plays = FreePlays(self._train, int(batch * UNROLL_SHARE), model.config.context, longest, mover)
        if max(held_out.lengths) < self._window:  # told now, not after minutes of training
            what = f"no held-out episode has the {self._window} frames that a training window takes"
            raise DataError(what, f"longest: {max(held_out.lengths)}", "record more or longer episodes")

    def loss(self, step: int, progress: float) -> torch.Tensor:
        """Mean denoising loss of the batch of ``step``."""
        rng = np.random.default_rng([self._seed, step])
        generator = step_generator(self._seed, step, self._device)
        unrolled = int(self._batch * UNROLL_SHARE) if progress >= UNROLL_START else 0
        context, held, target, weight = (share(part) for part in self._draw(rng, unrolled))
        losses = denoising_loss(
            self._denoiser, context, held, target, generator, self._metric, self._context_noise, weight,
            LOW_SHARE if self._faithful else 0.0,
        )  # fmt: skip
        if unrolled:
            self._advance_plays(SamplerConfig(int(rng.choice(UNROLL_STEPS))), generator)
        return losses.mean()

    def draw(self, step: int) -> Any:
        """Windows of recorded play, as :meth:`loss` draws them before free plays are mixed in."""
        return self._draw(np.random.default_rng([self._seed, step]), 0)

    def _draw(
        self, rng: np.random.Generator, unrolled: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Contexts, actions, next latents and the weight of each position; the last ``unrolled`` are of free plays."""
        draws = rng.random(self._batch - unrolled) * self._chances[-1]
        starts = self._starts[np.searchsorted(self._chances[:-1], draws, side="right")]
        context, held, target = gather_steps(self._train, starts, self._window - 1)
        if unrolled:
            own = self._plays.windows(rng)
            context, held, target = (torch.cat(parts) for parts in zip((context, held, target), own, strict=True))
        # Where something was a frame ago counts too: it must have moved on, or a fog stays behind. Not so in free
        # plays: where they have gone wrong everything is unusual, and they would outweigh all else.
        real = self._batch - unrolled
        before = self._rarity.weight(context[:real, self._denoiser.config.newest])
        if self._faithful:
            weight = torch.ones_like(target[:, 0])
            weight[:real] = F.max_pool2d(before[:, None], REACH, 1, REACH // 2)[:, 0] * self._steady
        else:
            weight = self._rarity.weight(target)
            weight[:real] = torch.maximum(weight[:real], before)
        return context, held, target, weight

    def _advance_plays(self, config: SamplerConfig, generator: torch.Generator) -> None:
        def sample(context: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(context[:, 0].shape, generator=generator, device=self._device)
            given = context, actions, noise
            if self._player is None:
                return follow(self._denoiser, config, *given)
            half = len(context) // 2
            own = follow(self._denoiser, config, *(part[half:] for part in given))
            return torch.cat([follow(self._player, SamplerConfig(1), *(part[:half] for part in given)), own])

        self._plays.advance(sample)

    def state(self) -> dict[str, torch.Tensor]:
        """The free plays that go on from step to step."""
        return self._plays.state()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on with the plays of :meth:`state`."""
        self._plays.load_state(state)

    def evaluate(self, model: nn.Module) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """A cheap version of what ``gamengen evaluate`` measures, and a rollout.

        Latent error, PSNR and SSIM at 1 and 4 steps, PSNR of still and of moving frames, copy-last beside them;
        after 32 frames of free play PSNR and sharpness (1 is the real game's). All against decoded latents.
        """
        context = self._denoiser.config.context
        window = min(context + ROLLOUT_FRAMES, max(self._held_out.lengths))
        all_starts = window_starts(self._held_out.lengths, window)
        picks = np.linspace(0, len(all_starts) - 1, min(HELD_OUT_WINDOWS, len(all_starts))).astype(int)
        latents, actions = (part.to(self._device) for part in gather_windows(self._held_out, all_starts[picks], window))
        generator = step_generator(self._seed, 0, self._device)
        real = self._frames(latents[:, context])
        copied = frame_psnr(real, self._frames(latents[:, context - 1]))
        still = copied >= STILL_PSNR
        target = latents[:, context]
        rare = self._rarity.rare(target)
        figures = {"copy_last_psnr": float(copied.mean())}
        given = gather_steps(self._held_out, all_starts[picks], context)[0].to(self._device)
        sheet = [real[:6]]
        for steps in (1, 4):
            noise = torch.randn(1, *latents[:, 0].shape, generator=generator, device=self._device)
            sampled = sample_next(self._denoiser, given, actions[:, :context], noise, SamplerConfig(steps))
            error = (sampled.float() - target).square().mean(1)
            figures[f"latent_error_{steps}"] = float(error.mean())
            if rare.any():
                figures[f"rare_error_{steps}"] = float(error[rare].mean())
            frames = self._frames(sampled)
            psnr = frame_psnr(real, frames)
            figures[f"psnr_{steps}"] = float(psnr.mean())
            figures[f"ssim_{steps}"] = float(frame_ssim(real.numpy(), frames.numpy()).mean())
            for name, chosen in (("still", still), ("moving", ~still)):
                if chosen.any():
                    figures[f"{name}_psnr_{steps}"] = float(psnr[chosen].mean())
            sheet.append(frames[:6])
        played, past = latents[:8].clone(), given[:8]
        following_frames = torch.from_numpy(all_starts[picks][:8]) + context + 1
        for frame in range(window - context):
            noise = torch.randn(1, *played[:, 0].shape, generator=generator, device=self._device)
            following = sample_next(self._denoiser, past, actions[:8, frame : frame + context], noise, SamplerConfig(1))
            played[:, frame + context] = following
            past = played[:, frame + 1 : frame + 1 + context]
            if self._mover is not None:
                held, newest = actions[:8, frame + 1 : frame + 1 + context], following_frames + frame - 1
                moved = move_decoded(self._mover, past, held, self._held_out, newest)
                past = torch.cat([past, moved[:, None]], dim=1)
            if frame + 1 < window - context:
                past = self._held_out.tell(following_frames + frame, past).to(self._device)
        last, last_real = self._frames(played[:, -1]), self._frames(latents[:8, -1])
        figures["rollout_psnr"] = float(frame_psnr(last_real, last).mean())
        figures["rollout_sharpness"] = float(sharpness(last.numpy()).mean() / sharpness(last_real.numpy()).mean())
        rows = [*sheet, last_real[:6], last[:6]]
        return figures, {
            "real_predicted_rollout": np.concatenate([np.concatenate(list(row.numpy()), axis=1) for row in rows])
        }

    def _frames(self, latents: torch.Tensor) -> torch.Tensor:
        return torch.cat([self._autoencoder.decode_frames(part) for part in latents.split(8)]).cpu()


def follow(
    denoiser: Denoiser, config: SamplerConfig, context: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """The next latents of plays (N, C, h, w), sampled from ``noise``."""
    return spread(
        lambda past, held, start: sample_next(denoiser, past, held, start[None], config), context, actions, noise
    )


@torch.no_grad()
def visible_metric(autoencoder: Autoencoder, latents: torch.Tensor, seed: int) -> torch.Tensor:
    """A square root of how much an error in each latent direction shows from afar, (C, C).

    Most directions of a latent hold fine texture, which cannot be predicted exactly; a few hold what a
    player sees at a glance: monsters, flashes, lines. The decoder is nudged in each channel, and what
    that changes after averaging over 8x8 pixels is counted; the plain squared error keeps a share of
    0.3. Scaled to trace C, so that the loss keeps its size.
    """
    channels = latents.shape[1]
    picks = np.random.default_rng(seed).integers(len(latents), size=4)
    base = latents[torch.from_numpy(picks).to(latents.device)].float()
    pictures = []
    still = autoencoder.decode(base)
    for channel in range(channels):
        nudged = base.clone()
        nudged[:, channel, 1::4, 2::4] += NUDGE  # far apart, so that the changes do not overlap
        pictures.append(F.avg_pool2d((autoencoder.decode(nudged) - still).float(), VISIBLE_PIXELS).flatten())
    change = torch.stack(pictures)
    gram = change @ change.T
    plain = torch.eye(channels, device=gram.device)
    total = PLAIN_SHARE * plain + (1 - PLAIN_SHARE) * gram * channels / gram.trace().clamp(min=1e-12)
    values, vectors = torch.linalg.eigh(total)
    return (vectors * values.clamp(min=0).sqrt()).T.contiguous()
