"""Free plays that go on during training, one frame a training step.

Their contexts are the model's own latents, as in play, so the model learns to lead its own mistakes back
to the game. Each begins in a recorded episode, follows its actions, and gives way to another after a
random number of frames: later the real episode, which is what it is compared with, has gone other ways.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from gamengen.geometry import Mover
from gamengen.latents import LatentEpisodes, gather_windows, window_starts

LONGEST_PLAY = 32  # frames


class FreePlays:
    """``count`` free plays, side by side.

    Where the denoiser sees the last frame moved, that is the play's own too: its latents decoded, moved and encoded.
    The camera moves as the recorded one did. Where it is told the score, that is the recorded one.

    Args:
        episodes: where they begin, and whose actions they follow; with motions and moved latents for a ``mover``.
        count: N, how many.
        context: K, past frames that the model sees.
        longest: frames of the longest play; where an episode ends before, as many as it has.
        mover: moves the last frame, for a denoiser that sees that.
    """

    def __init__(
        self,
        episodes: LatentEpisodes,
        count: int,
        context: int,
        longest: int = LONGEST_PLAY,
        mover: Mover | None = None,
    ) -> None:
        self._episodes, self._context = episodes, context
        self._starts, self._room = play_starts(episodes.lengths, context)
        self._longest = longest
        shape, device = episodes.latents.shape[1:], episodes.latents.device
        self._mover = mover
        self._latents = torch.zeros(count, context, *shape, device=device)
        self._moved = torch.zeros(count, *shape, device=device)
        self._first = torch.zeros(count, dtype=torch.int64)
        self._left = torch.zeros(count, dtype=torch.int64)  # frames until the play gives way; 0 has not begun
        self._began = torch.zeros(count, dtype=torch.int64)  # the recorded frame that the play began after

    def windows(self, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What to train on now.

        Returns:
            Own contexts (N, K, C, h, w), or K + 1 with a mover, or where the score is told; actions (N, K, A); the real
            next latents (N, C, h, w).
        """
        ended = (self._left == 0).nonzero()[:, 0].tolist()
        for number in ended:
            pick = rng.integers(len(self._starts))
            start, longest = self._starts[pick], min(self._longest, self._room[pick])
            self._latents[number] = gather_windows(self._episodes, start[None], self._context)[0][0]
            self._first[number], self._left[number] = int(start), int(rng.integers(1, longest + 1))
            self._began[number] = int(start) + self._context - 1
            if self._episodes.moved is not None:
                self._moved[number] = self._episodes.moved[start + self._context - 1]
        latents, actions = gather_windows(self._episodes, self._first.numpy(), self._context + 1)
        return self._contexts(), actions[:, :-1], latents[:, -1]

    def advance(self, sample: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        """One frame on: ``sample`` makes the next latents (N, C, h, w) from contexts and actions."""
        actions = gather_windows(self._episodes, self._first.numpy(), self._context)[1]
        following = sample(self._contexts(), actions)
        self._latents = torch.cat([self._latents[:, 1:], following[:, None].to(self._latents)], dim=1)
        self._first += 1
        self._left -= 1
        if self._mover is not None:
            actions = gather_windows(self._episodes, self._first.numpy(), self._context)[1]
            newest = self._first + self._context - 1
            self._moved = move_decoded(self._mover, self._latents, actions, self._episodes, newest)

    def past(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the next step of each play follows from, where none has ended.

        Returns:
            Latents (N, K, C, h, w) and actions (N, K, A), and the number of the recorded frame (N,) in its place.
        """
        actions = gather_windows(self._episodes, self._first.numpy(), self._context)[1]
        return self._latents, actions.to(self._latents.device), self._first + self._context

    def newest(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The last step of each play.

        Returns:
            Latents before it and after it, both (N, C, h, w); the actions (N, A) between them; the number of the
            recorded frame (N,) that stands where it led to; and that of the one (N,) that the play began after.
        """
        frames = self._first + self._context - 1
        actions = self._episodes.actions[(frames - 1).to(self._episodes.actions.device)]
        return self._latents[:, -2], self._latents[:, -1], actions.to(self._latents.device), frames, self._began.clone()

    def _contexts(self) -> torch.Tensor:
        past = self._latents
        if self._mover is not None:
            past = torch.cat([past, self._moved[:, None]], dim=1)
        return self._episodes.tell(self._first + self._context, past)

    def state(self) -> dict[str, torch.Tensor]:
        """For the training state: a resumed training goes on with the same plays."""
        played = {"latents": self._latents, "first": self._first, "left": self._left, "began": self._began}
        return played if self._mover is None else played | {"moved": self._moved}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        """Go on with the plays of :meth:`state`; as many others begin where it was of another batch or version."""
        if "began" not in state or len(state["first"]) != len(self._first):
            return
        self._latents = state["latents"].to(self._latents)
        self._first, self._left, self._began = (state[name].cpu() for name in ("first", "left", "began"))
        if self._mover is not None:
            self._moved = state["moved"].to(self._moved)


def play_starts(lengths: tuple[int, ...], context: int) -> tuple[np.ndarray, np.ndarray]:
    """Where plays may start in episodes laid end to end, and how many frames after the context each has then.

    Raises:
        DataError: every episode is shorter than the context and a frame.
    """
    starts = window_starts(lengths, context + 1)
    ends = np.cumsum(lengths)
    return starts, ends[np.searchsorted(ends, starts, side="right")] - starts - context


@torch.no_grad()
def move_decoded(
    mover: Mover, latents: torch.Tensor, actions: torch.Tensor, episodes: LatentEpisodes, newest: torch.Tensor
) -> torch.Tensor:
    """What ``mover`` makes of the newest of latents (B, K, C, h, w), decoded alone, as the recorded camera moved.

    Args:
        mover: with the decoder.
        latents: oldest first.
        actions: (B, K, A); the last is held now.
        episodes: with the motions.
        newest: the recorded frames (B,) that stand in the place of the newest latents.

    Returns:
        Latents of the frames moved (B, C, h, w) float32.
    """
    assert episodes.motions is not None
    frames = mover.autoencoder.decode_frames(latents[:, -1])
    history, motion = episodes.moving(newest), episodes.motions[newest.to(episodes.motions.device)]
    context, _, _ = mover(latents, actions, frames, history.to(latents.device), motion.to(latents.device))
    return context[:, -1].float()
