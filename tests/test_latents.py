"""The latent cache: windows within episodes, stale and foreign caches, interrupted encoding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import gamengen.latents
from agents.errors import DataError
from gamengen.autoencoder import Autoencoder
from gamengen.latents import (
    LatentEpisodes,
    encode_recording,
    gather_windows,
    load_latents,
    weights_hash,
    window_starts,
)
from gamengen.presets import PRESETS
from gamengen.spawns import AHEAD, choose_spawns, middles
from gamengen.train_autoencoder import encode_frames
from gamengen.train_decoder import Footage, find_footage
from recorder.episodes import read_episode
from recorder.recording import Recording

LENGTHS = (12, 9, 14)


@pytest.fixture
def recording(tmp_path: Path, make_recording: Callable[..., Recording]) -> Recording:
    return make_recording(tmp_path / "data", LENGTHS)


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(PRESETS["tiny"].autoencoder).eval()


@pytest.mark.parametrize("window", [1, 4, 9, 10])
def test_no_window_crosses_an_episode(window: int) -> None:
    lengths = (12, 3, 9, 1, 14)
    owner = torch.cat([torch.full((length,), float(n)) for n, length in enumerate(lengths)])
    inside = torch.cat([torch.arange(float(length)) for length in lengths])
    episodes = LatentEpisodes(torch.stack([owner, inside], 1)[:, :, None, None], inside[:, None], lengths)
    starts = window_starts(lengths, window)
    assert len(starts) == sum(max(0, length - window + 1) for length in lengths), "and none is missing"
    latents, actions = gather_windows(episodes, starts, window)
    assert latents.shape == (len(starts), window, 2, 1, 1)
    assert (latents[:, :, 0] == latents[:, :1, 0]).all(), "one episode"
    assert (latents[:, :, 1, 0, 0].diff(dim=1) == 1).all(), "one frame after another"
    assert torch.equal(actions[:, :, 0], latents[:, :, 1, 0, 0]), "actions go with their frames"
    spawns = choose_spawns(Footage((), episodes), window, frames=False, seed=0)
    assert spawns.frames is None
    assert (spawns.latents[:, :, 0] == spawns.latents[:, :1, 0]).all()


def test_episodes_too_short_for_a_window() -> None:
    with pytest.raises(DataError, match=r"no episode has the 10 frames .* ; longest: 9 ; record longer episodes"):
        window_starts((9, 3), 10)


def test_encoded_by_episode_and_split_by_episode(recording: Recording, model: Autoencoder, tmp_path: Path) -> None:
    encode_recording(recording, model, tmp_path / "cache")
    train, held_out = load_latents(tmp_path / "cache", model)
    assert held_out.lengths == (12,), "episode 0 is held out"
    assert train.lengths == (9, 14)
    assert train.latents.dtype == torch.float16
    episodes = [read_episode(path) for path in recording.episode_paths()]
    for part, of in ((held_out, episodes[:1]), (train, episodes[1:])):
        assert torch.equal(part.latents, torch.cat([encode_frames(model, episode.frames) for episode in of]))
        np.testing.assert_array_equal(part.actions.numpy(), np.concatenate([episode.actions for episode in of]))


def test_stale_cache_is_refused(recording: Recording, model: Autoencoder, tmp_path: Path) -> None:
    encode_recording(recording, model, tmp_path / "cache")
    other = Autoencoder(model.config)
    other.load_state_dict(model.state_dict())
    assert weights_hash(other) == weights_hash(model)
    with torch.no_grad():
        next(other.parameters()).view(-1)[0] += 0.1
    cache = tmp_path / "cache"
    for use in (lambda: load_latents(cache, other), lambda: encode_recording(recording, other, cache)):
        with pytest.raises(DataError, match="another encoder"):
            use()
    load_latents(tmp_path / "cache", model)  # nothing was harmed


def test_cache_of_another_recording_is_refused(
    recording: Recording, make_recording: Callable[..., Recording], model: Autoencoder, tmp_path: Path
) -> None:
    encode_recording(recording, model, tmp_path / "cache")
    longer = make_recording(tmp_path / "longer", (12, 9, 15))
    fewer = make_recording(tmp_path / "fewer", LENGTHS[:2])
    elsewhere = make_recording(tmp_path / "elsewhere", LENGTHS, spec="gym/other")
    for other in (longer, fewer, elsewhere):
        with pytest.raises(DataError, match="here are of"):
            encode_recording(other, model, tmp_path / "cache")
    more = make_recording(tmp_path / "more", (*LENGTHS, 5))
    encode_recording(more, model, tmp_path / "cache")  # the same recording, gone on with
    assert load_latents(tmp_path / "cache", model)[0].lengths == (9, 14, 5)


def test_interrupted_encoding_goes_on(
    recording: Recording, model: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []

    def encode(autoencoder: Autoencoder, frames: np.ndarray) -> torch.Tensor:
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(len(frames))
        return encode_frames(autoencoder, frames)

    monkeypatch.setattr(gamengen.latents, "encode_frames", encode)
    with pytest.raises(KeyboardInterrupt):
        encode_recording(recording, model, tmp_path / "cache")
    assert encoded == [12, 9]
    (tmp_path / "cache" / "000002.partial").write_bytes(b"what a kill left")
    encoded.clear()
    encode_recording(recording, model, tmp_path / "cache")
    assert encoded == [14], "what was done is not done again"
    assert load_latents(tmp_path / "cache", model)[0].lengths == (9, 14)


def test_full_disk(recording: Recording, model: Autoencoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gamengen.latents, "save_file", full)
    with pytest.raises(DataError, match="No space left"):
        encode_recording(recording, model, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["cache.json"]


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda cache: shutil.rmtree(cache), "no cache here"),
        (lambda cache: (cache / "cache.json").write_text("{"), "cache is damaged"),
        (lambda cache: (cache / "cache.json").write_text("[]"), "cache is damaged"),
        (lambda cache: (cache / "000001.safetensors").write_bytes(b"short"), "it is damaged"),
        (lambda cache: torch.save({}, cache / "000001.safetensors"), "it is damaged"),
    ],
)
def test_damaged_cache(
    damage: Callable[[Path], None], text: str, recording: Recording, model: Autoencoder, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    encode_recording(recording, model, cache)
    damage(cache)
    with pytest.raises(DataError, match=text) as caught:
        load_latents(cache, model)
    assert "\n" not in str(caught.value)
    if cache.exists():
        with pytest.raises(DataError, match=text):
            encode_recording(recording, model, cache)


def test_spawns_differ(recording: Recording, model: Autoencoder, tmp_path: Path) -> None:
    encode_recording(recording, model, tmp_path / "cache")
    train, _ = find_footage(recording, load_latents(tmp_path / "cache", model))
    spawns, again = (choose_spawns(train, 4, frames=True, seed=3) for _ in range(2))
    assert spawns.frames is not None
    again_encoded = encode_frames(model, spawns.frames.numpy())
    torch.testing.assert_close(again_encoded, spawns.latents[:, -1], atol=0.02, rtol=0.02)
    assert torch.equal(spawns.latents, again.latents)
    assert spawns.latents.shape == (17, 4, 8, 2, 3), "all there are"
    assert spawns.actions.shape == (17, 4, 2)
    assert len({tuple(look.flatten().tolist()) for look in spawns.latents}) > 8


def test_each_cluster_has_its_middle() -> None:
    """Two heaps and a stray: a start in the middle of each."""
    heaps = torch.tensor([[0.0, 0], [1, 0], [0.4, 0.1], [20, 20], [21, 20], [20.4, 20.1], [-40, 3]])
    assert sorted(middles(heaps, 3)) == [2, 5, 6]
    assert sorted(middles(heaps, 99)) == list(range(7)), "no more than there are, and none twice"


def test_no_spawn_is_near_an_end() -> None:
    lengths = (40, 35, 60)
    inside = torch.cat([torch.arange(float(length)) for length in lengths])
    left = torch.cat([length - 1 - torch.arange(float(length)) for length in lengths])
    latents = torch.stack([inside, left], 1)[:, :, None, None]
    spawns = choose_spawns(Footage((), LatentEpisodes(latents, inside[:, None], lengths)), 4, frames=False, seed=0)
    assert spawns.latents[:, -1, 1].min() >= AHEAD
