"""Checkpoints: round trip, shards, every damaged or foreign file, and folders that cannot be written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import gamengen.checkpoints
from agents.errors import CheckpointError
from engine.game import NeuralGame
from gamengen.checkpoints import (
    FORMAT_VERSION,
    Checkpoint,
    check_writable,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
    shipped_checkpoints,
    shipped_for,
)
from gamengen.latents import weights_hash
from gamengen.storage import as_stored, restored_weights, stored_weights

Damage = Callable[[Path], Any]


@pytest.fixture
def checkpoint(made_up: Callable[..., Checkpoint]) -> Checkpoint:
    return made_up()


def test_one_with_a_geometry_comes_back(made_up: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = made_up(geometry=True)
    save_checkpoint(checkpoint, tmp_path / "game", "# a card")
    found = load_checkpoint(tmp_path / "game")
    assert found.config == checkpoint.config
    assert found.spawns.motions is not None
    assert checkpoint.spawns.motions is not None
    assert torch.equal(found.spawns.motions, checkpoint.spawns.motions)
    assert found.geometry is not None
    assert checkpoint.geometry is not None
    assert weights_hash(found.geometry.camera) == weights_hash(checkpoint.geometry.camera), "a turn stays exact"
    (tmp_path / "game" / "geometry.safetensors").write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"geometry\.safetensors"):
        load_checkpoint(tmp_path / "game")
    (tmp_path / "game" / "geometry.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"geometry\.safetensors"):
        load_checkpoint(tmp_path / "game")


@pytest.fixture
def folder(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    save_checkpoint(checkpoint, tmp_path / "game", "# a card")
    return tmp_path / "game"


def assert_same(found: Checkpoint, expected: Checkpoint) -> None:
    assert found.config == expected.config
    assert found.metrics == expected.metrics
    for name in ("autoencoder", "denoiser"):
        weights, wanted = getattr(found, name).state_dict(), as_stored(getattr(expected, name)).state_dict()
        assert list(weights) == list(wanted)
        for key, value in wanted.items():
            assert weights[key].dtype == torch.float32
            assert torch.equal(weights[key], value), key
        assert not getattr(found, name).training
    # Spawns are stored as bytes.
    torch.testing.assert_close(found.spawns.latents.float(), expected.spawns.latents.float(), rtol=0, atol=0.02)
    assert torch.equal(found.spawns.actions, expected.spawns.actions)
    assert found.spawns.frames is not None
    assert expected.spawns.frames is not None
    assert torch.equal(found.spawns.frames, expected.spawns.frames)


def test_round_trip(folder: Path, checkpoint: Checkpoint) -> None:
    assert_same(load_checkpoint(folder), checkpoint)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md", "autoencoder.safetensors", "config.json", "denoiser.safetensors", "metrics.json",
        "spawns.safetensors",
    ]  # fmt: skip
    assert (folder / "README.md").read_text() == "# a card"
    assert not list(folder.parent.glob("game.*")), "nothing is left beside it"
    modes = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert len(modes) == 1, "weights can be read by whoever can read the rest"


def test_saving_again_keeps_it_the_same(folder: Path, tmp_path: Path) -> None:
    once = load_checkpoint(folder)
    save_checkpoint(once, tmp_path / "again", "")
    for path in folder.glob("*.safetensors"):
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_an_older_checkpoint_is_replaced(folder: Path, made_up: Callable[..., Checkpoint]) -> None:
    (folder / "denoiser.safetensors.index.json").write_text('{"weight_map": {}}')  # of a larger one before
    newer = made_up(seed=1)
    save_checkpoint(newer, folder, "")
    assert_same(load_checkpoint(folder), newer)


def test_a_save_that_stops_half_way(
    folder: Path, checkpoint: Checkpoint, made_up: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old checkpoint stays, wherever the save stops; what others have beside it is theirs."""
    newer, rename = made_up(seed=1), Path.rename
    for ending in (".old", ".partial"):
        shutil.copytree(folder, folder.with_name(folder.name + ending))

    def fails(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails)
        with pytest.raises(CheckpointError, match="Input/output error"):
            save_checkpoint(newer, folder, "")
    assert_same(load_checkpoint(folder), checkpoint)
    unfinished = folder.parent / ".game.unfinished"
    unfinished.mkdir(exist_ok=True)
    folder.rename(unfinished / "old")  # killed between the last two steps; the next save fails, too
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fails)
        with pytest.raises(CheckpointError, match="Input/output error"):
            save_checkpoint(newer, folder, "")
    assert_same(load_checkpoint(folder), checkpoint)
    save_checkpoint(newer, folder, "")
    assert_same(load_checkpoint(folder), newer)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["game", "game.old", "game.partial"]


def test_large_weights_are_sharded(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 2**16 + 12_000  # what is left of it is more than the largest tensor
    monkeypatch.setattr(gamengen.checkpoints, "SHARD_BYTES", limit)
    save_checkpoint(checkpoint, tmp_path / "game", "")
    index = json.loads((tmp_path / "game" / "denoiser.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1
    assert shards[0] == f"denoiser-00001-of-{len(shards):05d}.safetensors"
    assert all(path.stat().st_size <= limit for path in (tmp_path / "game").glob("*.safetensors"))
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "game" / file)
    assert_same(load_checkpoint(tmp_path / "game"), checkpoint)


# --- what can be wrong with a file ---


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def truncate(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-50])


def replace_by(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def pickle_as(name: str) -> Damage:
    return lambda folder: torch.save({"weight": torch.zeros(3)}, folder / name)


def other_tensors(name: str) -> Damage:
    return lambda folder: save_file({"weight": torch.zeros(3)}, folder / name)


def change_tensors(name: str, **changes: torch.Tensor) -> Damage:
    return lambda folder: save_file({**load_file(folder / name), **changes}, folder / name)


def change_config(**changes: Any) -> Damage:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for name, value in changes.items():
            place, _, inner = name.partition("__")
            if inner:
                config[place][inner] = value
            else:
                config[place] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def drop_config(name: str) -> Damage:
    def drop(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config[name]
        (folder / "config.json").write_text(json.dumps(config))

    return drop


FAULTS: list[tuple[str, str, Damage]] = [
    ("missing", "a file of the checkpoint is missing", remove("autoencoder.safetensors")),
    ("missing", "a file of the checkpoint is missing", remove("denoiser.safetensors")),
    ("missing", "a file of the checkpoint is missing", remove("spawns.safetensors")),
    ("missing", "not a checkpoint", remove("config.json")),
    ("truncated", "truncated or not safetensors", truncate("autoencoder.safetensors")),
    ("truncated", "truncated or not safetensors", truncate("denoiser.safetensors")),
    ("truncated", "truncated or not safetensors", truncate("spawns.safetensors")),
    ("truncated", "cannot read it", truncate("config.json")),
    ("empty", "truncated or not safetensors", replace_by("denoiser.safetensors", b"")),
    ("text", "truncated or not safetensors", replace_by("denoiser.safetensors", b"<html>not found</html>" * 50)),
    ("pickle", "truncated or not safetensors", pickle_as("denoiser.safetensors")),
    ("pickle", "truncated or not safetensors", pickle_as("spawns.safetensors")),
    ("foreign", "do not fit config.json", other_tensors("autoencoder.safetensors")),
    ("foreign", "do not fit config.json", other_tensors("denoiser.safetensors")),
    ("foreign", "stored starts do not fit", other_tensors("spawns.safetensors")),
    ("surplus", "do not fit config.json", change_tensors("denoiser.safetensors", more=torch.zeros(1))),
    ("shape", "do not fit config.json", change_tensors("denoiser.safetensors", **{"last.bias": torch.zeros(9)})),
    ("no spawn", "stored starts do not fit",
     lambda folder: save_file({"latents": torch.zeros(0, 4, 8, 3, 5), "actions": torch.zeros(0, 4, 2)},
                              folder / "spawns.safetensors")),
    ("spawn actions", "stored starts do not fit",
     change_tensors("spawns.safetensors", actions=torch.zeros(3, 4, 7))),
    ("damaged frames", "stored starts do not fit",
     change_tensors("spawns.safetensors", frames=torch.zeros(50, dtype=torch.uint8))),
    ("frames of another size", "stored starts do not fit",
     change_tensors("spawns.safetensors", frames=torch.zeros(3, 32, 80, 3, dtype=torch.uint8))),
    ("spawn size", "stored starts do not fit", change_config(height=64)),
    ("version", f"format version 4, this program reads 1, 2 and {FORMAT_VERSION}", change_config(format_version=4)),
    ("version", "format version None", drop_config("format_version")),
    ("config", "cannot read it", replace_by("config.json", b"{")),
    ("config", "cannot read it", replace_by("config.json", b"\xff\xfe\x00")),
    ("config", "not a JSON object", replace_by("config.json", b"[1]")),
    ("config", "config.json is damaged", drop_config("action_set")),
    ("config", "config.json is damaged", drop_config("denoiser")),
    ("config", "config.json is damaged", drop_config("fps")),
    ("config", "config.json is damaged", change_config(surprise=1)),
    ("config", "config.json is damaged", change_config(action_set=["LEFT"])),
    ("config", "config.json is damaged", change_config(action_set__buttons=["LEFT", "LEFT"])),
    ("config", "the action set does not fit", change_config(action_set__buttons=["LEFT"])),
    ("config", "the autoencoder does not fit", change_config(autoencoder__channels=16)),
    ("config", "the decoder does not see the actions", change_config(autoencoder__compensation=5)),
    ("config", "height must be a multiple of 16, got 50", change_config(height=50)),
    ("config", "height is no whole number", change_config(height="48")),
    ("config", "height is no whole number", change_config(height=48.0)),
    ("config", "spec is no text", change_config(spec=5)),
    ("config", "config.json is damaged", change_config(fps="fast")),
    ("config", "frame_skip and fps must be positive", change_config(fps=0)),
    ("config", "config.json is damaged", change_config(sampler__steps=0)),
    ("config", "config.json is damaged", change_config(sampler__steps="two")),
    ("config", "config.json is damaged", change_config(sampler=None)),
    ("config", "config.json is damaged", change_config(denoiser__widths="wide")),
    ("config", "no model has the sizes", change_config(denoiser__widths=[16])),
    ("config", "no model has the sizes", change_config(autoencoder__widths=[16, 16])),
    ("config", "no model has the sizes", change_config(denoiser__embedding=-1)),
    ("config", "do not fit config.json", change_config(denoiser__widths=[16, 32])),
    ("metrics", "cannot read it", replace_by("metrics.json", b"{")),
    ("index", "index of shards is damaged", replace_by("denoiser.safetensors.index.json", b"{}")),
    ("index", "index of shards is damaged",
     replace_by("denoiser.safetensors.index.json", b'{"weight_map": {"a": "../x.safetensors"}}')),
    ("shard", "a file of the checkpoint is missing",
     replace_by("denoiser.safetensors.index.json", b'{"weight_map": {"a": "x.safetensors"}}')),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "damage"), FAULTS, ids=[f"{kind}-{text}" for kind, text, _ in FAULTS])
def test_damaged_checkpoint(kind: str, text: str, damage: Damage, folder: Path) -> None:
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    error = caught.value
    assert text in error.what
    assert "\n" not in str(error)
    assert len(str(error)) < 600
    assert str(folder) in error.where, "it names the file"
    assert error.remedy


def test_a_missing_shard_is_named(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gamengen.checkpoints, "SHARD_BYTES", 2**16 + 12_000)
    save_checkpoint(checkpoint, tmp_path / "game", "")
    shard = next((tmp_path / "game").glob("denoiser-00002-of-*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match="is missing") as caught:
        load_checkpoint(tmp_path / "game")
    assert caught.value.where == str(shard)


def test_no_metrics_are_no_fault(folder: Path) -> None:
    (folder / "metrics.json").unlink()
    assert load_checkpoint(folder).metrics == {}


@pytest.mark.parametrize("name", ["nonsense", "no/such/folder", "defend_the_centre"])
def test_unknown_name(name: str) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint") as caught:
        find_checkpoint(name)
    assert caught.value.where == name


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="it has no config.json"):
        find_checkpoint(tmp_path)


def test_names_of_shipped_checkpoints(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gamengen.checkpoints, "SHIPPED", folder.parent)
    shutil.copytree(folder, folder.parent / ".game.unfinished" / "new")  # what a killed save may leave
    assert shipped_checkpoints() == ["game"]
    assert find_checkpoint("game") == folder
    with pytest.raises(CheckpointError, match=r"shipped name \(game\)"):
        find_checkpoint("other")


# --- where it cannot be written ---


@pytest.mark.parametrize(
    ("prepare", "text"),
    [
        (lambda place: (place.mkdir(), (place / "thesis.txt").touch()), "exists and is not a checkpoint"),
        (lambda place: place.write_text("a file"), "exists and is not a checkpoint"),
        (lambda place: (place.mkdir(), (place / "config.json").write_text("{}")), "exists and is not a checkpoint"),
        (lambda place: (_fake(place), (place / "notes.txt").touch()), "also holds notes.txt, which would be lost"),
        (lambda place: (_fake(place), (place / "spawns.safetensors").mkdir()), "also holds spawns.safetensors"),
        (lambda place: place.parent.rmdir() or place.parent.write_text("a file"), "cannot write here"),
    ],
)
def test_folders_that_cannot_be_taken(
    prepare: Callable[[Path], Any], text: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    place = tmp_path / "inner" / "game"
    place.parent.mkdir()
    prepare(place)
    before = sorted(tmp_path.rglob("*"))
    for attempt in (check_writable, lambda path: save_checkpoint(checkpoint, path, "")):
        with pytest.raises(CheckpointError, match=text) as caught:
            attempt(place)
        assert "--out" in caught.value.remedy
    assert sorted(tmp_path.rglob("*")) == before, "nothing is changed"


@pytest.mark.parametrize("name", [".", ".."])
def test_a_checkpoint_needs_a_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="needs a name of its own"):
        check_writable(Path(name))


def _fake(place: Path) -> None:
    """What looks like a checkpoint."""
    place.mkdir()
    (place / "config.json").write_text('{"spec": "doom/basic", "preset": "tiny", "denoiser": {}}')


def test_folders_that_can_be_taken(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "new.probe").mkdir()  # what a killed check left
    for place in (folder, tmp_path / "empty", tmp_path / "new", tmp_path / "deep" / "new"):
        check_writable(place)


def test_where_a_game_starts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the weights of the same game, else from the default checkpoint's."""
    shipped = folder.parent
    for name, spec in (("a", "doom/a"), ("b", "doom/b"), ("c", "doom/c")):
        shutil.copytree(folder, shipped / name)
        change_config(spec=spec)(shipped / name)
    shutil.rmtree(folder)
    monkeypatch.setattr(gamengen.checkpoints, "SHIPPED", shipped)
    monkeypatch.setattr(gamengen.checkpoints, "DEFAULT_CHECKPOINT", "b")
    assert [path.name for path in shipped_for("doom/c")] == ["c", "b", "a"]
    assert [path.name for path in shipped_for("doom/x")] == ["b", "a", "c"]


@pytest.mark.parametrize("call", ["write_json", "_save_file"])
def test_a_full_disk_harms_nothing(
    call: str, folder: Path, checkpoint: Checkpoint, made_up: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gamengen.checkpoints, call, full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(made_up(seed=1), folder, "")
    monkeypatch.undo()
    assert_same(load_checkpoint(folder), checkpoint)
    assert not list(folder.parent.glob("game.*"))


def test_a_saved_checkpoint_plays_as_the_one_in_memory(checkpoint: Checkpoint, folder: Path) -> None:
    stored = replace(
        checkpoint, autoencoder=as_stored(checkpoint.autoencoder), denoiser=as_stored(checkpoint.denoiser),
        spawns=load_checkpoint(folder).spawns,
    )  # fmt: skip
    one, other = (NeuralGame(source, "cpu", dtype="float32") for source in (stored, folder))
    for action in ([1, 0], [0, 1], [0, 0]):
        assert (one.step(action) == other.step(action)).all()


def test_weights_in_bytes(folder: Path, checkpoint: Checkpoint) -> None:
    weight = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(1))
    weight *= torch.logspace(-6, 3, 32)[:, None, None, None]
    weight[3] = 0
    stored = stored_weights({"large": weight, "small": weight[:2], "bias": weight.flatten()})
    assert {name: value.dtype for name, value in stored.items()} == {
        "large": torch.int8, "large.scale": torch.float32, "small": torch.float16, "bias": torch.float16,
    }  # fmt: skip
    assert len(stored["large"]) == 31, "what is 0 takes no room"
    restored = restored_weights(stored)
    assert list(restored) == ["large", "small", "bias"]
    assert not restored["large"][3].any()
    rows = weight.flatten(1)
    scale = (rows.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    before = {"large": (rows / scale[:, None]).round().to(torch.int8).view(weight.shape), "large.scale": scale}
    assert torch.equal(restored_weights(before)["large"], restored["large"]), "as format version 2 has it"
    steps = weight.flatten(1).abs().amax(1)[:, None, None, None] / 127
    assert ((restored["large"] - weight).abs() <= 0.51 * steps).all()
    again = stored_weights(restored)
    assert all(torch.equal(again[name], stored[name]) for name in ("large", "small"))
    for broken in (
        {"large": stored["large"]},
        {"large": stored["large"], "large.scale": stored["large.scale"][1:]},
    ):
        with pytest.raises(RuntimeError, match="no fitting scale"):
            restored_weights(broken)
    path = folder / "denoiser.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.endswith(".scale"))
    save_file({key: value for key, value in tensors.items() if key != name}, path)
    with pytest.raises(CheckpointError, match="do not fit config.json .* no fitting scale"):
        load_checkpoint(folder)


def test_the_first_format_is_read(folder: Path, checkpoint: Checkpoint) -> None:
    for name in ("autoencoder", "denoiser"):
        half = {key: value.half() for key, value in getattr(checkpoint, name).state_dict().items()}
        save_file(half, folder / f"{name}.safetensors")
    change_config(format_version=1)(folder)
    found = load_checkpoint(folder)
    assert found.config == checkpoint.config
    for key, value in checkpoint.denoiser.state_dict().items():
        assert torch.equal(found.denoiser.state_dict()[key], value.half().float()), key
