"""NeuralGame: a game with nothing behind it but the model."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from agents.actions import ActionSet
from agents.errors import ActionError, OptionError
from engine.frame_maker import FrameMaker
from engine.packing import can_pack, pack
from gamengen.autoencoder import Before, pixels_of
from gamengen.checkpoints import Checkpoint, load_checkpoint
from gamengen.devices import Model, choose_device, has_bf16, place, round_weights
from gamengen.diffusion import SamplerConfig, check_seed, sample_next
from gamengen.geometry import FINER, HISTORY, MOTION, Mover
from gamengen.motion_reading import read_motions
from gamengen.outcome import Outcome
from gamengen.tally import Tally

TALLY_DRAWS, SPAWN_DRAW = 1, 2  # which numbers of a frame's seed the tally draws from, and the next start
MAX_CPU_THREADS = 8  # more only wait for each other on a model this small


@dataclass(frozen=True)
class GameState:
    """All that a game is at one moment; a few hundred kB.

    Args:
        latents: past latents (B, K, C, h, w), oldest first.
        actions: past actions (B, K, A); the last slot is filled by the next step.
        frame: the frame on screen, as :attr:`NeuralGame.frame`.
        motions: by which it came (B, HISTORY, 4); none, 0, where the model does not tell that.
        tally: what its score bar counts (B, frames, L); no levels, where the model does not count.
        seeds: of each game.
        counts: frames made with each game's seed.
        spawn: index of the spawn in play, or -1 where the start was given.
    """

    latents: torch.Tensor
    actions: torch.Tensor
    frame: np.ndarray
    motions: torch.Tensor
    tally: torch.Tensor
    seeds: tuple[int, ...]
    counts: tuple[int, ...]
    spawn: int


class NeuralGame:
    """Plays a checkpoint, headless: ``reset() -> frame``, ``step(action) -> frame``.

    The same seed, actions and device give the same frames. Frames are (H, W, 3) uint8; with
    ``batch`` above 1 frames are (B, H, W, 3) and actions (B, A), of independent games, whose seeds are ``seed``,
    ``seed + 1`` and so on.

    Args:
        checkpoint: a shipped name, a folder, a loaded checkpoint, or None for the default one.
        device: ``auto``, ``cpu`` or ``cuda``.
        steps: sampling steps a frame; None takes the checkpoint's own.
        seed: of spawns and sampling noise.
        batch: number of games.
        dtype: ``auto``, ``bfloat16``, ``float32``, or on a GPU ``float16``.
        mode: ``auto``, ``eager``, ``compiled`` or ``graph``; see :class:`engine.frame_maker.FrameMaker`.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        DeviceError: the device is not there.
        OptionError: steps, seed, batch, dtype or mode cannot be used.
    """

    def __init__(
        self,
        checkpoint: str | Path | Checkpoint | None = None,
        device: str = "auto",
        steps: int | None = None,
        seed: int = 0,
        batch: int = 1,
        dtype: str = "auto",
        mode: str = "auto",
    ) -> None:
        if batch < 1:
            raise OptionError(f"batch must be at least 1, got {batch}", "--batch", "give a positive number")
        if dtype not in ("auto", "bfloat16", "float16", "float32"):
            raise OptionError("unknown dtype", dtype, "use auto, bfloat16, float16 or float32")
        # A copy of what is given: another game may compute with it on another device or in another dtype.
        loaded = copy.deepcopy(checkpoint) if isinstance(checkpoint, Checkpoint) else load_checkpoint(checkpoint)
        self.config = loaded.config
        self.device = choose_device(device)
        if self.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(min(MAX_CPU_THREADS, _cores()))
        if dtype == "float16" and self.device.type == "cpu":
            what = "a CPU computes ten times slower in float16 than in bfloat16"
            raise OptionError(what, "--dtype float16", "use auto, bfloat16 or float32")
        self.dtype = _choose_dtype(dtype, self.device)
        self.batch = batch
        self._sampler = loaded.config.sampler
        self._each: list[int] | None = None  # steps of each game, where they differ
        if steps is not None:
            self.steps = steps
        seeing = [part for part in (loaded.autoencoder.compensation, loaded.geometry) if part is not None]
        cameras = [part.camera for part in seeing if part.camera is not None]  # a turn must be exact to part of a pixel

        def placed(model: Model) -> Model:
            return round_weights(place(model, self.device), self.dtype, cameras)

        self._autoencoder, self._denoiser = placed(loaded.autoencoder), placed(loaded.denoiser)
        self._head = placed(loaded.outcome) if loaded.outcome is not None else None
        self._geometry = placed(loaded.geometry) if loaded.geometry is not None else None
        self._teller = placed(loaded.tally).exact() if loaded.tally is not None else None
        if mode in ("auto", "eager") and can_pack(self.device, self.dtype):
            encoder = self._autoencoder.encoder if self._geometry is not None else None
            for network in (*self._of_a_frame(), encoder, self._head):
                if network is not None:
                    pack(network)
        self._mover = Mover(self._geometry, self._autoencoder) if self._geometry is not None else None
        self._maker = FrameMaker(self._autoencoder, self._denoiser, self._head, mode, self._mover, self._teller)
        self._spawns = loaded.spawns
        self.reseed(seed)
        self.frame = np.zeros((self.height, self.width, 3), np.uint8)
        self.outcome: Outcome | None = None
        self.ended = np.zeros(batch, bool)
        self.reset()

    @property
    def name(self) -> str:
        """The checkpoint's name."""
        return self.config.name

    @property
    def action_set(self) -> ActionSet:
        """Buttons and axes of the game."""
        return self.config.action_set

    @property
    def fps(self) -> float:
        """The game's own clock, frames a second."""
        return self.config.fps

    @property
    def height(self) -> int:
        """Frame height in pixels."""
        return self.config.height

    @property
    def width(self) -> int:
        """Frame width in pixels."""
        return self.config.width

    @property
    def steps(self) -> int:
        """Sampling steps a frame, 1 to 64; may be set at any time."""
        return self._sampler.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self._sampler = SamplerConfig(steps, self._sampler.context_noise)
        self._each = None

    @property
    def device_name(self) -> str:
        """The device that the game runs on."""
        return str(self.device)

    @property
    def dtype_name(self) -> str:
        """What the device computes in."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def mode(self) -> str:
        """How frames are computed: ``eager``, ``compiled`` or ``graph``."""
        return self._maker.mode

    @property
    def tells_outcome(self) -> bool:
        """Whether the checkpoint tells rewards; without, ``outcome`` stays None, and only a tally ends a game."""
        return self._head is not None

    @property
    def spawn_count(self) -> int:
        """Number of stored starts."""
        return len(self._spawns.latents)

    def reseed(self, seed: int) -> None:
        """Draw spawns and noise from ``seed`` from now on, as a new game would.

        Raises:
            OptionError: the seed is negative or too large.
        """
        check_seed(seed)
        self.seed = seed
        self._rng = np.random.default_rng(seed)
        self._seeds, self._counts = [seed + number for number in range(self.batch)], [0] * self.batch
        self.spawn = -1

    @torch.inference_mode()
    def reset(
        self, spawn: int | None = None, frames: np.ndarray | None = None, actions: np.ndarray | None = None
    ) -> np.ndarray:
        """Start from a stored spawn, or from frames of the real game.

        Args:
            spawn: index of a stored start; None takes another at random.
            frames: K real frames (K, H, W, 3) uint8, the last of which is on screen.
            actions: K actions (K, A); the last slot is replaced by the next step's.

        Raises:
            OptionError: the spawn does not exist, or the frames have the wrong shape.
            ActionError: the actions do not fit.
        """
        if frames is not None:
            latents, held = self._encode_start(frames, actions)
            shown = torch.from_numpy(frames[-1:].copy()) if self.config.autoencoder.compensation else None
            motions = read_motions(self._mover, latents, held.to(latents)) if self._mover is not None else None
            self.spawn = -1
        else:
            index = self._choose_spawns(spawn)
            latents, held = self._spawns.latents[index], self._spawns.actions[index]
            shown = self._spawns.frames[index] if self._spawns.frames is not None else None
            motions = self._spawns.motions[index] if self._spawns.motions is not None else None
            self.spawn = int(index[0])
        batch = (self.batch, *latents.shape[1:])
        self._latents = latents.expand(batch).to(self.device, self.dtype).contiguous()
        self._actions = held.expand(self.batch, *held.shape[1:]).to(self.device, self.dtype).contiguous()
        self._motions = torch.zeros(self.batch, HISTORY, MOTION, device=self.device)
        if motions is not None:
            self._motions += motions.to(self._motions)
        self._tally = self._count(self._latents, self._actions)
        if shown is None:
            shown = self._autoencoder.decode_frames(self._latents[:, -1])
        self._forget_outcome()
        self._show(shown.expand(self.batch, *shown.shape[1:]).to(self.device))
        return self.frame

    @torch.inference_mode()
    def respawn(self, games: Sequence[int]) -> np.ndarray:
        """Start some games of a batch anew, each from a stored start drawn at random; the others go on.

        Args:
            games: their numbers, from 0 on.

        Returns:
            All frames, as :attr:`frame`.
        """
        starts = [self._spawn_of(self._seeds[game], self._counts[game]) for game in games]
        self._place(games, torch.tensor(starts, dtype=torch.int64))
        return self.frame

    def _spawn_of(self, seed: int, count: int) -> int:
        """Where a game with ``seed`` starts anew after ``count`` frames, whatever games are beside it."""
        return int(np.random.default_rng((seed, count, SPAWN_DRAW)).integers(self.spawn_count))

    @torch.inference_mode()
    def seat(self, game: int, seed: int, spawn: int | None = None, steps: int | None = None) -> np.ndarray:
        """Give one game of a batch to a new player: it starts as a game of its own with ``seed`` would.

        Args:
            game: its number, from 0 on.
            seed: of its spawn and sampling noise.
            spawn: index of a stored start; None takes one that the seed draws.
            steps: sampling steps of this game alone; None takes those of the others.

        Returns:
            Its frame (H, W, 3) uint8.

        Raises:
            OptionError: there is no such game or spawn, or the seed or the steps cannot be used.
        """
        check_seed(seed)
        if not 0 <= game < self.batch:
            raise OptionError("no such game", game, f"use 0 to {self.batch - 1}")
        if spawn is None:
            spawn = int(np.random.default_rng(seed).integers(self.spawn_count))
        elif not 0 <= spawn < self.spawn_count:
            raise OptionError("no such spawn", spawn, f"use 0 to {self.spawn_count - 1}")
        self._sample(game, SamplerConfig(self.steps if steps is None else steps).steps)
        self._seeds[game], self._counts[game] = seed, 0
        self._place([game], torch.tensor([spawn]))
        return self.frame if self.batch == 1 else self.frame[game]

    def vacate(self, game: int) -> None:
        """A player has left this game of a batch: it takes no more sampling steps than the others are asked for."""
        self._sample(game, self.steps)

    def _sample(self, game: int, steps: int) -> None:
        each = self._each or [self.steps] * self.batch
        each[game] = steps
        self._each = None if len(set(each)) == 1 and each[0] == self.steps else each

    def _place(self, games: Sequence[int], index: torch.Tensor) -> None:
        """Start ``games`` from the stored starts ``index``."""
        self._latents, self._actions = self._latents.clone(), self._actions.clone()
        self._motions, screen = self._motions.clone(), self._screen.clone()
        where = torch.tensor(list(games), dtype=torch.int64)
        self._latents[where] = self._spawns.latents[index].to(self._latents)
        self._actions[where] = self._spawns.actions[index].to(self._actions)
        self._tally = self._tally.clone()
        self._tally[where] = self._count(self._latents[where], self._actions[where])
        if self._spawns.frames is not None:
            screen[where] = self._spawns.frames[index].to(self.device)
        else:
            screen[where] = self._autoencoder.decode_frames(self._latents[where, -1])
        if self._spawns.motions is not None:
            self._motions[where] = self._spawns.motions[index].to(self._motions)
        self.ended[list(games)] = False
        self._show(screen)

    @torch.inference_mode()
    def step(self, action: Any) -> np.ndarray:
        """Hold ``action`` (A,), or (B, A) in a batch, for one frame; the next frame.

        Where the checkpoint tells outcomes, :attr:`outcome` then holds what the step came to. :attr:`ended` (B,) says
        which games it ended: drawn from the probabilities told, or lost by what the score bar counts. An ended game may
        be played on all the same.

        Raises:
            ActionError: the length is wrong, or a value is not finite or outside [-1, 1].
        """
        held = self.action_set.check(action)
        if held.shape != ((self.action_set.size,) if self.batch == 1 else (self.batch, self.action_set.size)):
            raise ActionError(f"one action for each of {self.batch} games is needed", held.shape, "give (B, A) values")
        self._actions[:, -1] = torch.from_numpy(held).to(self.device, self.dtype)
        self._tally = self._count_on()
        inputs = (self._latents, self._actions, self._screen, self._motions, self._tally, self.draw_noise())
        latent, frames, logits, self._motions = self._maker(
            inputs, self._sampler, tuple(self._each) if self._each else None
        )
        self._latents = torch.cat([self._latents[:, 1:], latent[:, None]], dim=1)
        self._actions = torch.cat([self._actions[:, 1:], self._actions[:, -1:]], dim=1)
        self._counts = [count + 1 for count in self._counts]
        self.outcome = self._head.tell(logits) if self._head is not None and logits is not None else None
        self.ended = np.zeros(self.batch, bool)
        if self._teller is not None:
            self._tell_counts(self._teller)
        if self.outcome is not None:
            draws = [np.random.default_rng(key).random() for key in zip(self._seeds, self._counts, strict=True)]
            self.ended |= np.array(draws) < self.outcome.ends
        self._show(frames)
        return self.frame

    def _tell_counts(self, teller: Tally) -> None:
        """What the score bar counts is what the outcome says of it; a game that it loses has ended."""
        self.ended |= teller.lost(self._tally).cpu().numpy()
        if self.outcome is None:
            return
        told, before = self._tally[:, -1].cpu().numpy(), self.outcome
        self.outcome = replace(
            before,
            reward=before.reward + np.float32(teller.config.lost_reward) * self.ended,
            ends=np.where(self.ended, np.float32(1), before.ends),
            levels={**before.levels, **{name: told[:, n] for n, name in enumerate(teller.config.levels)}},
        )

    @torch.inference_mode()
    def sample_now(self) -> torch.Tensor:
        """The next latent, without going there: what :meth:`step` does before decoding, for measuring."""
        context = self._maker.look(self._latents, self._actions, self._screen, self._motions, self._count_on())[0]
        return sample_next(self._denoiser, context, self._actions, self.draw_noise(), self._sampler)

    @torch.inference_mode()
    def decode_now(self) -> np.ndarray:
        """The newest latent decoded once more: what :meth:`step` does after sampling, for measuring."""
        still = torch.zeros(self.batch, 2, *(FINER * size for size in self._latents.shape[3:]), device=self.device)
        before = Before(self._latents[:, -1], self._screen, self._actions, still)
        return self._to_numpy(self._autoencoder.decode_frames(self._latents[:, -1], before))

    @torch.inference_mode()
    def make_now(self, noise: torch.Tensor) -> None:
        """Compute the next frame on the device, without going there, for counting what that takes."""
        counts = self._count_on()
        self._maker.make((self._latents, self._actions, self._screen, self._motions, counts, noise), self._sampler)

    def copy_now(self) -> np.ndarray:
        """The frame on screen, copied to the host once more, for measuring."""
        return self._to_numpy(self._screen).copy()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights that a frame reads: the encoder's where it moves frames, the noise network's a step."""
        once: list[torch.Tensor] = [
            parameter for part in self._of_a_frame() if part is not None for parameter in part.parameters()
        ]
        if self._geometry is not None:
            once += self._autoencoder.encoder.parameters()
        if self._teller is not None:
            once += self._teller.buffers()
        again = sum(parameter.nbytes for parameter in self._denoiser.noise_net.parameters())
        return sum(parameter.nbytes for parameter in once) + (self.steps - 1) * again

    def _of_a_frame(self) -> tuple[nn.Module | None, ...]:
        """The networks that make a frame, but for the encoder."""
        return (
            self._autoencoder.decoder, self._autoencoder.compensation, self._denoiser, self._geometry, self._teller
        )  # fmt: skip

    def save(self) -> GameState:
        """The present moment, to go back to with :meth:`load`."""
        frame = self._to_numpy(self._screen).copy()
        seeds, counts = tuple(self._seeds), tuple(self._counts)
        return GameState(
            self._latents, self._actions.clone(), frame, self._motions, self._tally, seeds, counts, self.spawn
        )  # fmt: skip

    def load(self, state: GameState) -> np.ndarray:
        """Go back to a saved moment of this game; its frame.

        Raises:
            OptionError: the state is of a game of another size or batch.
        """
        if state.latents.shape != self._latents.shape or state.actions.shape != self._actions.shape:
            raise OptionError("the state is of another game", f"latents {tuple(state.latents.shape)}", "see save")
        self._latents, self._actions = state.latents, state.actions.clone()
        self._motions, self._tally = state.motions, state.tally
        self._seeds, self._counts, self.spawn = list(state.seeds), list(state.counts), state.spawn
        self._forget_outcome()
        shown = torch.from_numpy(state.frame.copy())
        self._show((shown[None] if self.batch == 1 else shown).to(self.device))
        return self.frame

    def _count(self, latents: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        """What the score bar counts at a start, read from its frames; no levels where the model does not count."""
        if self._teller is None:
            return torch.zeros(len(latents), 1, 0, device=self.device)
        return self._teller.settle(latents, actions)

    def _count_on(self) -> torch.Tensor:
        """What the score bar of the next frame counts, as :attr:`GameState.tally`."""
        if self._teller is None:
            return self._tally
        keys = zip(self._seeds, self._counts, strict=True)
        levels = len(self._teller.config.levels)
        draws = np.stack([np.random.default_rng([*key, TALLY_DRAWS]).random(levels, np.float32) for key in keys])
        return self._teller.advance(
            self._latents, self._actions, self._tally, torch.from_numpy(draws).to(self.device)
        )  # fmt: skip

    def draw_noise(self) -> torch.Tensor:
        """Standard normal noise of the next frame (1, B, C, h, w), or (2, ...) where the context is noised."""
        # A game's noise depends on its seed and the frame's number alone, so that a loaded state goes on
        # as it did before; it is drawn on the CPU, so that it is the same on every device.
        shape = (2 if self._sampler.context_noise else 1, *self._latents.shape[2:])
        drawn = []
        for seed, count in zip(self._seeds, self._counts, strict=True):
            drawn.append(torch.randn(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + count)))
        return torch.stack(drawn, dim=1).to(self.device, self.dtype)

    def _choose_spawns(self, spawn: int | None) -> torch.Tensor:
        if spawn is not None:
            if not 0 <= spawn < self.spawn_count:
                raise OptionError("no such spawn", spawn, f"use 0 to {self.spawn_count - 1}")
            return torch.tensor([spawn])
        draws = self._rng.integers(self.spawn_count, size=self.batch)
        if self.batch == 1 and draws[0] == self.spawn and self.spawn_count > 1:
            draws = (draws + 1) % self.spawn_count  # a new start, not the same once more
        return torch.from_numpy(draws)

    def _encode_start(self, frames: np.ndarray, actions: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
        context = self.config.denoiser.context
        shape = (context, self.height, self.width, 3)
        if frames.shape != shape or frames.dtype != np.uint8:
            raise OptionError(f"start frames must be {shape} uint8", f"got {frames.shape} {frames.dtype}", "see reset")
        held = np.tile(self.action_set.rest, (context, 1)) if actions is None else self.action_set.check(actions)
        if held.shape != (context, self.action_set.size):
            raise ActionError(f"{context} actions are needed with the start frames", held.shape, "give one a frame")
        pixels = pixels_of(torch.from_numpy(frames).to(self.device)).to(self.dtype)
        return self._autoencoder.encode(pixels)[None], torch.from_numpy(held.copy())[None]

    def _forget_outcome(self) -> None:
        self.outcome, self.ended = None, np.zeros(self.batch, bool)

    def _show(self, frames: torch.Tensor) -> None:
        # The decoder sees the last frame, so it is kept apart from what the caller may draw on.
        self._screen = frames
        self.frame = self._to_numpy(frames).copy()

    def _to_numpy(self, frames: torch.Tensor) -> np.ndarray:
        array = frames.cpu().numpy()
        return array[0] if self.batch == 1 else array


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _choose_dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "float32" or (name == "auto" and not has_bf16(device)):
        return torch.float32
    return torch.float16 if name == "float16" else torch.bfloat16
