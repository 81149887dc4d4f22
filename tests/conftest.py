"""What many tests share: a tiny real recording, a tiny checkpoint made by ``gamengen create``, and made-up ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch or SDL are imported, here and in every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")

import numpy as np
import pytest

if TYPE_CHECKING:
    import torch

    from engine.clip_pairs import Pair
    from gamengen.checkpoints import Checkpoint
    from gamengen.training import Task, Trainer, TrainOptions
    from recorder.recording import Recording

SPEC = "doom/basic"
FRAMES = 400


@pytest.fixture(scope="session", autouse=True)
def few_windows() -> Iterator[None]:
    """A few windows and frames are measured of each checkpoint that is made: their frames are of full size."""
    import gamengen.finish

    few = replace(gamengen.finish.SHORT, windows=8, rollouts=2, rollout_frames=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gamengen.finish, "SHORT", few)
        patch.setattr(gamengen.finish, "LONG", few)
        yield


@pytest.fixture(scope="session")
def basic_recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of random play: a few episodes of ``doom/basic``, the first of them held out. Do not change it."""
    from recorder.record import RecordOptions, record_episodes

    folder = tmp_path_factory.mktemp("data") / "recording"
    record_episodes(RecordOptions(SPEC, folder, FRAMES, agent="random", workers=1))
    return folder


@pytest.fixture(scope="session")
def tiny_work(basic_recording: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ``gamengen create`` made :func:`tiny`; ``work`` is what it left on the way. Do not change it."""
    from gamengen.cli import main

    folder = tmp_path_factory.mktemp("tiny")
    words = ["create", SPEC, "--preset", "tiny", "--from-scratch", "--minutes", "0.2", "--data", str(basic_recording)]
    words += ["--out", str(folder / "tiny"), "--work", str(folder / "work"), "--json", str(folder / "summary.json")]
    with pytest.raises(SystemExit) as left:
        main([*words, "--device", "cpu"])
    assert left.value.code == 0
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_work: Path) -> Path:
    """A checkpoint of the preset ``tiny``, trained for seconds. Do not change it."""
    return tiny_work / "tiny"


@pytest.fixture(scope="session")
def lpips_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LPIPS weights of the right shapes that have learned nothing. Do not change the file."""
    return _save_lpips(tmp_path_factory.mktemp("lpips") / "lpips.safetensors", "alex")


@pytest.fixture(scope="session")
def vgg_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``lpips_weights``, of the network that is trained by."""
    return _save_lpips(tmp_path_factory.mktemp("lpips") / "vgg.safetensors", "vgg")


def _save_lpips(path: Path, network: str) -> Path:
    import torch
    from safetensors.torch import save_file

    from gamengen.evaluation.lpips import FORMAT, VERSION, Lpips

    torch.manual_seed(0)
    state = {name: value.abs() if "heads" in name else value for name, value in Lpips(network).state_dict().items()}
    save_file(state, path, {"format": FORMAT, "version": VERSION, "network": network})
    return path


@pytest.fixture
def train_until(monkeypatch: pytest.MonkeyPatch) -> Callable[[Task, TrainOptions, Path, int], Trainer]:
    """Trains a task and stops it, as a full disk or a pressed Ctrl-C would, before a step; all before it is saved."""
    import gamengen.training

    class Stopped(Exception):
        pass

    def train(task: Task, options: TrainOptions, folder: Path, stop_at: int) -> Trainer:
        monkeypatch.setattr(gamengen.training, "SAVE_SECONDS", 0.0)
        loss = task.loss

        def stopping(step: int, progress: float) -> torch.Tensor:
            if step == stop_at:
                raise Stopped
            return loss(step, progress)

        monkeypatch.setattr(task, "loss", stopping)
        trainer = gamengen.training.Trainer(task, options, folder)
        with pytest.raises(Stopped):
            trainer.run()
        return trainer

    return train


@pytest.fixture(scope="session")
def make_recording() -> Callable[..., Recording]:
    """Makes a recording without a game: moving stripes of another colour in each episode, random keys."""
    from agents.actions import ActionSet
    from recorder.episodes import EpisodeWriter
    from recorder.recording import Recording, RecordingHeader

    def make(
        folder: Path, lengths: Sequence[int] = (12, 9, 14), height: int = 32, width: int = 48, **changes: Any
    ) -> Recording:
        values: dict[str, Any] = {
            "spec": "gym/stripes", "action_set": ActionSet(("LEFT", "RIGHT")), "height": height, "width": width,
            "frame_skip": 1, "fps": 30.0, "variable_names": (), "agents": {"random": ""}, "seed": 0, "packages": {},
        }  # fmt: skip
        made = Recording.create_or_resume(folder, RecordingHeader(**{**values, **changes}))
        rng = np.random.default_rng(0)
        x = np.arange(width)
        for number, length in enumerate(lengths):
            seed = made.header.seed + number
            with EpisodeWriter(made.episode_path(number), height, width, 2, (), seed, "random") as writer:
                at = 0
                for _ in range(length):
                    frame = np.zeros((height, width, 3), np.uint8)
                    frame[:, (x + at) % 8 < 4] = (40 * number % 256, 200, 255 - 40 * number % 256)
                    action = rng.permutation([0, 1]).astype(np.float32)
                    writer.append(frame, action, 0.0, {})
                    at += int(action[1] - action[0])
                writer.finish(terminated=False, truncated=True)
        return made

    return make


@pytest.fixture(scope="session")
def made_up() -> Callable[..., Checkpoint]:
    """Makes a checkpoint in memory with random weights, whose next frame depends on everything it is given.

    ``geometry``: it sees the last frame moved as distances say, in place of a camera. ``tally``: it counts health and
    ammunition.
    """
    import torch

    from agents.actions import ActionSet
    from gamengen.autoencoder import Autoencoder, AutoencoderConfig
    from gamengen.checkpoints import Checkpoint, CheckpointConfig, Spawns
    from gamengen.denoiser import Denoiser, DenoiserConfig
    from gamengen.diffusion import SamplerConfig
    from gamengen.geometry import HISTORY, MOTION, MOTION_UNIT, Geometry, GeometryConfig
    from gamengen.tally import Tally, TallyConfig

    def make(
        height: int = 48, width: int = 80, seed: int = 0, geometry: bool = False, tally: bool = False, **changes: Any
    ) -> Checkpoint:
        torch.manual_seed(seed)
        encoder_config = AutoencoderConfig(
            channels=8,
            widths=(16, 16, 16),
            encoder_blocks=(0, 0, 1),
            decoder_blocks=(1, 0, 1),
            compensation=4 * 2,
            guided=geometry,
        )
        config = DenoiserConfig(
            context=4, channels=8, actions=2, widths=(16, 24), context_blocks=(1, 1, 1), noise_blocks=(0, 1, 1),
            embedding=32, moved=geometry, told=tally,
        )  # fmt: skip
        geometry_config = GeometryConfig(
            4, 8, 2, height // 16, width // 16, widths=(16, 16), blocks=(0, 1, 0), embedding=32
        )
        tally_config = TallyConfig(
            4, 8, 2, height // 16, width // 16, ("HEALTH", "SELECTED_WEAPON_AMMO"), ((0, 100), (0, 26)),
            ((-8, -4, 0, 1), (-1, 0)), features=16,
        )  # fmt: skip
        values: dict[str, Any] = {
            "name": "made-up", "spec": "gym/stripes", "preset": "made-up", "action_set": ActionSet(("LEFT", "RIGHT")),
            "height": height, "width": width, "frame_skip": 1, "fps": 30.0, "autoencoder": encoder_config,
            "denoiser": config, "sampler": SamplerConfig(), "data": {"seeds": [0, 99], "seed": 0, "frames": 1},
            "geometry": geometry_config if geometry else None, "tally": tally_config if tally else None,
        }  # fmt: skip
        autoencoder, denoiser = Autoencoder(encoder_config), Denoiser(config)
        network = Geometry(geometry_config).eval() if geometry else None
        teller = Tally(tally_config).eval() if tally else None
        with torch.no_grad():
            for model in (autoencoder, denoiser, *(part for part in (network, teller) if part is not None)):
                for name, parameter in model.named_parameters():
                    if parameter.ndim > 1:
                        parameter.normal_(std=0.5 / parameter[0].numel() ** 0.5)
                    if name.startswith("actions."):
                        parameter.mul_(8)
            if teller is not None:
                teller.pictures.normal_()
                teller.clear.fill_(1.0)
            latents = autoencoder.encode(torch.randn(3 * 4, 3, height, width))
        frames = torch.randint(0, 256, (3, height, width, 3), dtype=torch.uint8)
        motions = torch.randn(3, HISTORY, MOTION) * torch.tensor(MOTION_UNIT) if geometry else None
        spawns = Spawns(latents.unflatten(0, (3, 4)).half(), torch.randint(0, 2, (3, 4, 2)).float(), frames, motions)
        made = CheckpointConfig(**{**values, **changes})
        return Checkpoint(made, autoencoder.eval(), denoiser.eval(), spawns, {"note": "made up"}, None, network, teller)

    return make


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Four pairs for raters without a game: the real clip is red, the neural one blue, brighter frame by frame."""
    from engine.clip_pairs import Pair

    fps, made = 5.0, []
    for number in range(1, 5):
        path, seconds = tmp_path / f"{number}.npz", (1.0, 2.0)[number % 2]
        frames = round(seconds * fps)
        real, neural = np.zeros((2, frames, 12, 16, 3), np.uint8)
        real[..., 0] = neural[..., 2] = 100 + 10 * np.arange(frames)[:, None, None]
        np.savez(path, real=real, neural=neural)
        made.append(Pair(f"abcd-{number:03d}", seconds, frames, fps, "0.h5", 0, 0, 0, "red", "f00d", path))
    return made


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in an empty folder: (exit code, standard output, standard error)."""
    from gamengen.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        code: Any = 0
        capsys.readouterr()
        try:
            main(words)
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        return code or 0, out, err

    return run
