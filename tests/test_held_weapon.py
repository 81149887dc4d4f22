"""The held weapon: when it is counted, how it is read, and what it may change to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.actions import ActionSet
from agents.errors import OptionError
from gamengen.latents import LatentEpisodes
from gamengen.tally import TELLING, Tally, TallyConfig
from gamengen.train_tally import find_levels, find_names, find_pictures
from recorder.episodes import EpisodeWriter
from recorder.recording import Recording, RecordingHeader

CONFIG = TallyConfig(
    4,
    8,
    2,
    3,
    4,
    levels=("HEALTH", "SELECTED_WEAPON"),
    ranges=((0, 100), (1, 5)),
    changes=((-8, 0, 1), (-3, -1, 0, 1, 3)),
    features=16,
    named=("SELECTED_WEAPON",),
)


@pytest.mark.parametrize("ammunition", ["any", "counted"])
def test_the_held_weapon_is_counted_by_its_number(ammunition: str, tmp_path: Path) -> None:
    """Where there is more than one, and ammunition changes with it by any number; else that is what is counted."""
    names, actions = ("HEALTH", "SELECTED_WEAPON", "SELECTED_WEAPON_AMMO"), ActionSet(("LEFT", "RIGHT"))
    header = RecordingHeader("gym/stripes", actions, 32, 48, 1, 30.0, names, {"random": ""}, 0, {})
    recording = Recording.create_or_resume(tmp_path / "data", header)
    rng = np.random.default_rng(0)
    with EpisodeWriter(recording.episode_path(0), 32, 48, 2, names, 0, "random") as writer:
        for number, weapon in enumerate([-1] + [2] * 10 + [3, 5, 1, 2] * 40):
            left = int(rng.integers(200)) if ammunition == "any" else 200 - number
            held = {"HEALTH": 100, "SELECTED_WEAPON": weapon, "SELECTED_WEAPON_AMMO": left}
            writer.append(np.zeros((32, 48, 3), np.uint8), actions.rest, 0.0, held)
        writer.finish(terminated=False, truncated=True)
    found = find_levels(recording)
    if ammunition == "any":
        assert found == {"SELECTED_WEAPON": ((0.0, 5.0), (-4.0, 0.0, 1.0, 2.0))}, "0 is none"
    else:
        assert list(found) == ["SELECTED_WEAPON_AMMO"]


def test_a_held_weapon_is_read_before_a_moving_world() -> None:
    """And no change is drawn to one that was never seen."""
    torch.manual_seed(0)
    tally = Tally(CONFIG)
    weapons = torch.tensor([1, 2, 3, 5])[torch.randint(4, (1200,))]
    guns = torch.randn(6, 8, 3, 4) * (torch.arange(3) == 2).view(1, 1, 3, 1)  # in the lowest row
    world = torch.randn(1200, 8, 3, 4) * torch.randn(1200, 1, 1, 1)
    health = torch.randint(101, (1200,)).float()
    counts = torch.stack([health, weapons.float()], dim=1)
    shown = LatentEpisodes((world + guns[weapons]).half(), torch.zeros(1200, 2), (1200,), counts=counts)
    train = replace(shown, latents=shown.latents[:1000], counts=counts[:1000], lengths=(1000,))
    find_pictures(tally, train)
    find_names(tally, train)
    read = tally.read(shown.latents[1000:].float())
    assert (read[:, 1] == counts[1000:, 1]).float().mean() > 0.9
    assert CONFIG.names("SELECTED_WEAPON") == slice(0, 5)
    drawn = set()
    for seed in range(60):
        draws = torch.rand(4, 2, generator=torch.Generator().manual_seed(seed))
        past = torch.zeros(4, 4, 8, 3, 4)
        now = torch.tensor([1.0, 2, 3, 5])[:, None, None].expand(4, TELLING + 1, 1)
        after = tally.advance(past, torch.zeros(4, 4, 2), torch.cat([now * 0 + 50, now], dim=2), draws)
        drawn |= set(zip([1, 2, 3, 5], after[:, -1, 1].int().tolist(), strict=True))
    assert drawn == {(1, 1), (1, 2), (2, 1), (2, 2), (2, 3), (2, 5), (3, 2), (3, 3), (5, 5), (5, 2)}


@pytest.mark.parametrize("named", [("ARMOR",), ("HEALTH",)])
def test_what_is_named_is_a_level_that_cannot_be_lost(named: tuple[str, ...]) -> None:
    with pytest.raises(OptionError, match="what is named is one of the levels"):
        replace(CONFIG, vital="HEALTH", named=named)
