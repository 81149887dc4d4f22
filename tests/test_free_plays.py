"""Free plays in training: whose latents they see, when they give way to another, and that they can be resumed."""

from __future__ import annotations

import numpy as np
import torch

from gamengen.free_plays import FreePlays
from gamengen.latents import LatentEpisodes

CONTEXT = 4


def numbered(*lengths: int) -> LatentEpisodes:
    """Latents that tell which frame of all they are; actions that tell it too."""
    total = sum(lengths)
    count = torch.arange(total, dtype=torch.float32)
    return LatentEpisodes(count[:, None, None, None].expand(total, 2, 1, 1).half(), count[:, None], lengths)


def own(context: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
    return -context.new_ones(context[:, 0].shape)


def test_contexts_are_real_at_first_and_then_the_own() -> None:
    plays = FreePlays(numbered(40, 30), 3, CONTEXT, longest=6)
    rng = np.random.default_rng(0)
    ages = np.zeros(3, int)
    seen = set()
    for _ in range(60):
        context, actions, target = plays.windows(rng)
        for number in range(3):
            values, next_frame = context[number, :, 0, 0, 0], float(target[number, 0, 0, 0])
            if values[-1] >= 0:
                ages[number] = 0
            else:
                ages[number] += 1
            age = ages[number]
            seen.add(int(age))
            assert (values[CONTEXT - min(age, CONTEXT) :] == -1).all(), "its own latents come last"
            real = next_frame - CONTEXT + torch.arange(CONTEXT)
            assert torch.equal(values[: CONTEXT - min(age, CONTEXT)], real[: CONTEXT - min(age, CONTEXT)])
            assert torch.equal(actions[number, :, 0], real), "the actions are the episode's, up to the one held now"
            assert not 40 - 1 < next_frame < 40 + CONTEXT, "no play crosses an episode"
        plays.advance(own)
    assert seen == set(range(6)), "no play is longer than 6 frames, and some are that long"


def test_the_newest_step_stands_for_a_recorded_one() -> None:
    plays, rng = FreePlays(numbered(40, 30), 3, CONTEXT, longest=6), np.random.default_rng(0)
    for _ in range(20):
        _, held, target = plays.windows(rng)
        plays.advance(own)
        before, now, actions, frames, began = plays.newest()
        assert (now == -1).all()
        assert torch.equal(frames.float(), target[:, 0, 0, 0]), "the frame that it was to be"
        assert torch.equal(actions, held[:, -1]), "what was held before it"
        fresh = before[:, 0, 0, 0] >= 0
        assert torch.equal(before[fresh, 0, 0, 0], frames[fresh].float() - 1)
        assert torch.equal(began[fresh], frames[fresh] - 1), "a play begins after the last real frame"
        assert ((frames - began >= 1) & (frames - began <= 6)).all()


def test_short_episodes_have_short_plays() -> None:
    plays = FreePlays(numbered(CONTEXT + 1), 2, CONTEXT)
    for step in range(5):
        context, _, target = plays.windows(np.random.default_rng(step))
        assert context[:, -1, 0, 0, 0].tolist() == [3, 3]
        assert target[:, 0, 0, 0].tolist() == [4, 4]
        plays.advance(own)


def test_short_episodes_are_played_beside_long_ones() -> None:
    plays = FreePlays(numbered(9, 40), 4, CONTEXT)
    seen = set()
    for step in range(400):
        _, _, target = plays.windows(np.random.default_rng(step))
        seen |= set(target[:, 0, 0, 0].int().tolist())
        plays.advance(own)
    assert set(range(CONTEXT, 9)) <= seen
    assert not set(range(9, 9 + CONTEXT)) & seen


def test_a_state_of_another_batch_is_left() -> None:
    plays, more = FreePlays(numbered(40), 2, CONTEXT), FreePlays(numbered(40), 5, CONTEXT)
    plays.windows(np.random.default_rng(0))
    more.load_state(plays.state())
    assert len(more.windows(np.random.default_rng(0))[0]) == 5


def test_resumed_plays_go_on() -> None:
    episodes = numbered(40, 30)
    plays, resumed = FreePlays(episodes, 3, CONTEXT), FreePlays(episodes, 3, CONTEXT)
    rng = np.random.default_rng(1)
    for _ in range(5):
        plays.windows(rng)
        plays.advance(own)
    resumed.load_state(plays.state())
    for one, other in zip(*(p.windows(np.random.default_rng(2)) for p in (plays, resumed)), strict=True):
        assert torch.equal(one, other)
