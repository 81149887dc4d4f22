"""Checkpoints: everything that a neural game needs, in a folder that is safe to load.

``config.json``, ``autoencoder.safetensors``, ``denoiser.safetensors``, ``spawns.safetensors``, ``metrics.json`` and
``README.md``; ``outcome.safetensors`` where the model tells rewards and ends, ``tally.safetensors`` where it counts
what the score bar shows, and ``geometry.safetensors`` where it sees the last frame moved. Spawns are stored as
compressed bytes; weights as bytes, with a float32 scale for each output channel under the same name with ``.scale``,
and what is small, or moves the camera, as float16; in files of at most 16 MiB (larger models are sharded with an index,
as is usual). Format version 1 had all weights as float16, version 2 stored rows that are 0 too. Loading is strict
and runs no pickle.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from agents.actions import ActionSet
from agents.errors import ActionError, CheckpointError, GamengenError, OptionError
from agents.lens import Lens
from gamengen.autoencoder import FACTOR, Autoencoder, AutoencoderConfig, check_frame_size
from gamengen.denoiser import Denoiser, DenoiserConfig
from gamengen.diffusion import SamplerConfig
from gamengen.geometry import HISTORY, MOTION, Geometry, GeometryConfig
from gamengen.outcome import OutcomeConfig, OutcomeHead
from gamengen.storage import packed, restored_weights, stored_weights, unpacked
from gamengen.tally import Tally, TallyConfig
from recorder.recording import write_json

FORMAT_VERSION = 3
READ_VERSIONS = (1, 2, 3)
SHARD_BYTES = 16 * 2**20
SHIPPED = Path(__file__).parent / "weights"
DEFAULT_CHECKPOINT = "defend_the_center"
OWN_FILES = re.compile(  # of a checkpoint's folder; large tensors lie in several files
    r"config\.json|metrics\.json|README\.md"
    r"|(autoencoder|denoiser|outcome|tally|geometry|spawns)(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)


@dataclass(frozen=True)
class CheckpointConfig:
    """What ``config.json`` says."""

    name: str
    spec: str
    preset: str
    action_set: ActionSet
    height: int
    width: int
    frame_skip: int
    fps: float
    autoencoder: AutoencoderConfig
    denoiser: DenoiserConfig
    sampler: SamplerConfig
    data: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    git_commit: str = ""
    notice: str = ""
    outcome: OutcomeConfig | None = None
    geometry: GeometryConfig | None = None
    tally: TallyConfig | None = None
    format_version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return {**asdict(self), "action_set": self.action_set.to_json()}


@dataclass(frozen=True)
class Spawns:
    """Stored starts: latents (S, K, C, h, w), actions (S, K, A), for a compensated decoder the frames on screen
    (S, H, W, 3) uint8, and for a model that moves them the motions by which those came (S, HISTORY, 4) float32."""

    latents: torch.Tensor
    actions: torch.Tensor
    frames: torch.Tensor | None = None
    motions: torch.Tensor | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint; its networks are in evaluation mode, float32, on the CPU."""

    config: CheckpointConfig
    autoencoder: Autoencoder
    denoiser: Denoiser
    spawns: Spawns
    metrics: dict[str, Any]
    outcome: OutcomeHead | None = None
    geometry: Geometry | None = None
    tally: Tally | None = None

    def networks(self) -> dict[str, nn.Module]:
        """All of them, by the names of their files."""
        found = {
            "autoencoder": self.autoencoder, "denoiser": self.denoiser, "outcome": self.outcome,
            "geometry": self.geometry, "tally": self.tally,
        }  # fmt: skip
        return {name: model for name, model in found.items() if model is not None}


def shipped_checkpoints() -> list[str]:
    """Names of the checkpoints in this package."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def shipped_for(spec: str) -> list[Path]:
    """Folders of the shipped checkpoints, the best start for the game ``spec`` first: its own, then the default."""
    configs = {name: read_config(SHIPPED / name) for name in shipped_checkpoints()}
    ranked = sorted(configs, key=lambda name: (configs[name].spec != spec, name != DEFAULT_CHECKPOINT, name))
    return [SHIPPED / name for name in ranked]


def find_checkpoint(name: str | Path | None = None) -> Path:
    """The folder of a shipped checkpoint's name, or of a path; None is the default checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    name = name if name is not None else DEFAULT_CHECKPOINT
    for folder in (Path(name), SHIPPED / str(name)):
        if (folder / "config.json").is_file():
            return folder
    names = ", ".join(shipped_checkpoints()) or "none"
    if Path(name).exists():
        raise CheckpointError("not a checkpoint: it has no config.json", name, f"use a folder or a name ({names})")
    raise CheckpointError("no such checkpoint", name, f"use a folder or a shipped name ({names})")


def load_checkpoint(name: str | Path | None = None) -> Checkpoint:
    """Load a checkpoint by name or path.

    Raises:
        CheckpointError: a file is missing, truncated, foreign, or of another format version.
    """
    folder = find_checkpoint(name)
    config = read_config(folder)
    try:
        autoencoder, denoiser = Autoencoder(config.autoencoder), Denoiser(config.denoiser)
        outcome = OutcomeHead(config.outcome).eval() if config.outcome is not None else None
        geometry = Geometry(config.geometry).eval() if config.geometry is not None else None
        tally = Tally(config.tally).eval() if config.tally is not None else None
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        what = f"no model has the sizes in config.json ({' '.join(str(error).split())[:80]})"
        raise CheckpointError(what, folder / "config.json", "restore the file") from error
    spawns, metrics = _load_spawns(folder, config), read_figures(folder)
    checkpoint = Checkpoint(config, autoencoder.eval(), denoiser.eval(), spawns, metrics, outcome, geometry, tally)
    for name, model in checkpoint.networks().items():
        _load_model(model, folder, name)
    return checkpoint


def read_figures(folder: Path) -> dict[str, Any]:
    """What ``metrics.json`` says; nothing where a checkpoint was not measured.

    Raises:
        CheckpointError: it is damaged.
    """
    path = folder / "metrics.json"
    return _read_json(path) if path.is_file() else {}


def read_config(folder: Path) -> CheckpointConfig:
    """Read and check ``config.json``.

    Raises:
        CheckpointError: it is damaged or of another version.
    """
    path = folder / "config.json"
    data = _read_json(path)
    version = data.get("format_version")
    if version not in READ_VERSIONS:
        readable = f"{', '.join(map(str, READ_VERSIONS[:-1]))} and {READ_VERSIONS[-1]}"
        what = f"the checkpoint has format version {version}, this program reads {readable}"
        raise CheckpointError(what, path, "make it anew, or install the gamengen that made it")
    try:
        if data.pop("flow", None) is not None:  # of before there was a geometry
            raise ValueError("its last frame is moved by a network that there is no more")
        data["action_set"] = ActionSet.from_json(data["action_set"])
        for name, kind in (
            ("autoencoder", AutoencoderConfig),
            ("denoiser", DenoiserConfig),
            ("sampler", SamplerConfig),
            ("outcome", OutcomeConfig),
            ("geometry", GeometryConfig),
            ("tally", TallyConfig),
        ):
            if name in ("outcome", "geometry", "tally") and data.get(name) is None:
                continue
            values: Any = {key: tuple(v) if isinstance(v, list) else v for key, v in data[name].items()}
            if "lens" in values:
                values["lens"] = Lens(**values["lens"])
            data[name] = kind(**values)
        config = CheckpointConfig(**{**data, "format_version": FORMAT_VERSION})
        _check_config(config)
    except (KeyError, TypeError, ValueError, AttributeError, ActionError, OptionError) as error:
        reason = error.what if isinstance(error, GamengenError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"config.json is damaged ({reason})", path, "restore the file") from error
    return config


def _check_config(config: CheckpointConfig) -> None:
    for name in ("name", "spec", "preset", "git_commit", "notice"):
        if not isinstance(getattr(config, name), str):
            raise TypeError(f"{name} is no text")
    for name in ("height", "width", "frame_skip"):
        if type(getattr(config, name)) is not int:
            raise TypeError(f"{name} is no whole number")
    if not isinstance(config.data, dict) or not isinstance(config.training, dict):
        raise TypeError("data and training must be objects")
    check_frame_size(config.height, config.width)
    if config.frame_skip < 1 or not 0 < config.fps < float("inf"):
        raise ValueError("frame_skip and fps must be positive")
    if config.action_set.size != config.denoiser.actions:
        raise ValueError("the action set does not fit the denoiser")
    if Path(config.name).name != config.name or config.name == "..":
        raise ValueError("the name is a path")
    if config.autoencoder.channels != config.denoiser.channels:
        raise ValueError("the autoencoder does not fit the denoiser")
    outcome, sizes = config.outcome, (config.height // FACTOR, config.width // FACTOR)
    if outcome is not None and (outcome.channels, outcome.actions, outcome.height, outcome.width) != (
        config.denoiser.channels, config.denoiser.actions, *sizes
    ):  # fmt: skip
        raise ValueError("the outcome head does not fit the denoiser")
    if config.autoencoder.compensation not in (0, config.denoiser.context * config.denoiser.actions):
        raise ValueError("the decoder does not see the actions that the denoiser sees")
    seen = (config.denoiser.context, config.denoiser.channels, config.denoiser.actions)
    geometry = config.geometry
    if geometry is not None and (
        geometry.context, geometry.channels, geometry.actions, geometry.height, geometry.width
    ) != (*seen, *sizes):  # fmt: skip
        raise ValueError("the geometry does not fit the denoiser")
    tally = config.tally
    if config.denoiser.told != (tally is not None):
        raise ValueError("a tally is for a denoiser that is told the score")
    if tally is not None and (tally.context, tally.channels, tally.actions, tally.height, tally.width) != (
        *seen, *sizes
    ):  # fmt: skip
        raise ValueError("the tally does not fit the denoiser")
    moves = geometry is not None
    if config.denoiser.moved != moves or config.autoencoder.guided != (moves and config.autoencoder.compensation > 0):
        raise ValueError("a geometry is for a denoiser and a decoder that see the last frame moved")


def save_checkpoint(checkpoint: Checkpoint, folder: Path, card: str) -> None:
    """Write a checkpoint whole or not at all; an older checkpoint there is replaced.

    Raises:
        CheckpointError: the folder holds something else or cannot be written.
    """
    check_writable(folder)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    partial, old = unfinished / "new", unfinished / "old"
    try:
        if old.is_dir() and not folder.exists():  # a save was killed between its last two steps
            old.rename(folder)
        shutil.rmtree(unfinished, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(partial / "config.json", checkpoint.config.to_json())
        write_json(partial / "metrics.json", checkpoint.metrics)
        (partial / "README.md").write_text(card)
        for name, model in checkpoint.networks().items():
            _save_tensors(stored_weights(model.state_dict()), partial, name)
        latents = checkpoint.spawns.latents.float() / _spawn_unit(checkpoint.config.denoiser.channels)
        spawns = {
            "latents": packed(latents.round().clamp(-127, 127).to(torch.int8)),
            "actions": checkpoint.spawns.actions.float().contiguous(),
        }
        if checkpoint.spawns.frames is not None:
            spawns["frames"] = packed(checkpoint.spawns.frames)
        if checkpoint.spawns.motions is not None:
            spawns["motions"] = checkpoint.spawns.motions.float().contiguous()
        _save_tensors(spawns, partial, "spawns")
        if folder.is_dir():  # at every moment one of the two is whole
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:
            if old.is_dir():
                old.rename(folder)
            raise
        shutil.rmtree(unfinished, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        if not old.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(f"cannot write the checkpoint ({error})", folder, "free some space") from error


def _load_spawns(folder: Path, config: CheckpointConfig) -> Spawns:
    tensors = _load_tensors(folder, "spawns")
    context, channels = config.denoiser.context, config.denoiser.channels
    actions = tensors.get("actions", torch.empty(0))
    count = len(actions) if actions.ndim else 0
    wanted: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "latents": ((count, context, channels, config.height // FACTOR, config.width // FACTOR), torch.int8),
        "actions": ((count, context, config.action_set.size), torch.float32),
    }
    if config.autoencoder.compensation:
        wanted["frames"] = ((count, config.height, config.width, 3), torch.uint8)
    if config.geometry is not None:
        wanted["motions"] = ((count, HISTORY, MOTION), torch.float32)
    fits = count > 0 and set(tensors) == set(wanted)
    found = {name: unpacked(tensors[name], *wanted[name]) for name in wanted} if fits else {}
    if not fits or any((tuple(found[name].shape), found[name].dtype) != wanted[name] for name in wanted):
        path = folder / "spawns.safetensors"
        raise CheckpointError("the stored starts do not fit the model", path, "restore the file")
    return Spawns(found["latents"].half() * _spawn_unit(channels), actions, found.get("frames"), found.get("motions"))


def _spawn_unit(channels: int) -> float:
    """One step of the bytes in which spawns are stored: a latent of RMS 1 is at most sqrt(C) in any channel."""
    return float(channels**0.5 / 127)


def check_writable(folder: Path) -> None:
    """See that a checkpoint may be written to ``folder``: it is new, empty, or an older checkpoint.

    Raises:
        CheckpointError: it may not.
    """
    if folder.name in ("", ".."):
        raise CheckpointError("the folder needs a name of its own", folder, "give --out a new folder's name")
    if folder.exists() and not folder.is_dir():
        raise CheckpointError("it exists and is not a checkpoint", folder, "choose another --out")
    if folder.is_dir() and any(folder.iterdir()):  # it will be replaced as a whole
        config = folder / "config.json"
        if not config.is_file() or not {"spec", "preset", "denoiser"} <= set(_read_json(config)):
            raise CheckpointError("the folder exists and is not a checkpoint", folder, "choose another --out")
        foreign = sorted(path.name for path in folder.iterdir() if path.is_dir() or not OWN_FILES.fullmatch(path.name))
        if foreign:
            what = f"the folder also holds {foreign[0]}, which would be lost"
            raise CheckpointError(what, folder, "move it away, or choose another --out")
    parent = next(path for path in folder.absolute().parents if path.exists())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own, as several processes that train together each look.
        with tempfile.TemporaryDirectory(prefix=folder.name, suffix=".probe", dir=folder.parent):
            pass
    except OSError as error:
        raise CheckpointError(f"cannot write here ({error.strerror})", parent, "choose another --out") from error


def load_fitting(model: nn.Module, source: nn.Module) -> list[str]:
    """Copy into ``model`` each tensor of ``source`` that fits by name and shape; names of those left fresh."""
    own, found = model.state_dict(), source.state_dict()
    fitting = {name: value for name, value in found.items() if name in own and own[name].shape == value.shape}
    model.load_state_dict({**own, **fitting})
    return [name for name in own if name not in fitting]


def check_fits(model: nn.Module, source: nn.Module, preset: str, config: CheckpointConfig) -> None:
    """See that at least one tensor of ``source``, of the checkpoint of ``config``, fits ``model``, of ``preset``.

    Raises:
        CheckpointError: none does.
    """
    own, found = model.state_dict(), source.state_dict()
    if not any(name in own and own[name].shape == value.shape for name, value in found.items() if value.ndim > 1):
        what = f"nothing of the checkpoint fits the preset {preset}: it is {config.preset}"
        raise CheckpointError(what, config.name, "give that --preset, or leave --init out")


def git_commit() -> str:
    """The commit of the source tree that runs, or "" outside one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # installed into some other project's repository
        return ""
    try:
        command = ["git", "-C", str(root), "rev-parse", "--short", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot read it ({' '.join(str(error).split())[:80]})", path, "restore the file"
        ) from error
    if not isinstance(data, dict):
        raise CheckpointError("it is not a JSON object", path, "restore the file")
    return data


def _load_model(model: nn.Module, folder: Path, name: str) -> None:
    tensors = _load_tensors(folder, name)
    try:
        model.load_state_dict(restored_weights(tensors))
    except RuntimeError as error:
        what = f"its tensors do not fit config.json ({' '.join(str(error).split())[:120]})"
        raise CheckpointError(what, folder / f"{name}.safetensors", "restore the file") from error


def _load_tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    index_path = folder / f"{name}.safetensors.index.json"
    names = [f"{name}.safetensors"]
    if index_path.is_file():
        weight_map = _read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or any(Path(str(file)).name != file for file in weight_map.values()):
            raise CheckpointError("the index of shards is damaged", index_path, "restore the file")
        names = sorted(set(weight_map.values()))
    tensors: dict[str, torch.Tensor] = {}
    for file in names:
        path = folder / file
        if not path.is_file():
            raise CheckpointError("a file of the checkpoint is missing", path, "restore the file")
        try:
            tensors.update(load_file(path))
        except (OSError, SafetensorError) as error:
            what = f"truncated or not safetensors ({' '.join(str(error).split())[:80]})"
            raise CheckpointError(what, path, "restore the file; pickled weights are never read") from error
    return tensors


def _save_file(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path.write_bytes(save(tensors))  # safetensors' own save_file makes files that only the owner can read


def _save_tensors(tensors: dict[str, torch.Tensor], folder: Path, name: str) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for key, value in tensors.items():
        size += value.nbytes
        if size > SHARD_BYTES - 2**16 and shards[-1]:  # room for the header
            shards.append({})
            size = value.nbytes
        shards[-1][key] = value
    if len(shards) == 1:
        _save_file(shards[0], folder / f"{name}.safetensors")
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"{name}-{number:05d}-of-{len(shards):05d}.safetensors"
        _save_file(shard, folder / file)
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(value.nbytes for value in tensors.values())
    write_json(folder / f"{name}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
