"""Several processes that train one model: what one trains alone, and a run goes on with another number of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents.errors import OptionError
from gamengen import processes
from gamengen.checkpoints import load_checkpoint
from recorder.recording import Recording

LENGTHS = (14, 12, 16, 11, 15)
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node")
# In float32, where sums in another order differ by little.
EXACTLY = """
import gamengen.devices
gamengen.devices.has_bf16 = lambda device: False
from gamengen.cli import main
main()
"""


def train(stage: str, folder: Path, steps: int, count: int = 1, exactly: bool = False) -> str:
    """``gamengen train STAGE`` by ``count`` processes; returns what they printed."""
    script = folder.parent / "exactly.py"
    script.write_text(EXACTLY)
    program = [str(script)] if exactly else ["-m", "gamengen"]
    command = [sys.executable, *((*TORCHRUN, str(count)) if count > 1 else ()), *program, "train", stage]
    command += ["--data", str(folder.parent / "data"), "--preset", "tiny", "--steps", str(steps), "--device", "cpu"]
    if stage == "autoencoder":
        command += ["--out", str(folder)]
    else:
        command += ["--work", str(folder)]
        command += [] if stage == "outcome" else ["--out", str(folder / f"with_{stage}")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def weights(folder: Path, stage: str) -> torch.Tensor:
    parts = load_file(folder / stage / "final.safetensors")
    return torch.cat([parts[name].float().flatten() for name in sorted(parts)])


@pytest.mark.timeout(600)
def test_two_processes_train_what_one_trains(make_recording: Callable[..., Recording], tmp_path: Path) -> None:
    make_recording(tmp_path / "data", LENGTHS)
    alone, together = tmp_path / "alone", tmp_path / "together"
    train("autoencoder", alone, 3, exactly=True)
    begun = weights(alone, "autoencoder")
    train("autoencoder", alone, 6, exactly=True)
    printed = train("autoencoder", together, 3, count=2, exactly=True)
    assert printed.count("train autoencoder") == 1, "one process speaks for all"
    near(begun, weights(together, "autoencoder"), begun)
    train("autoencoder", together, 6, exactly=True)  # goes on with one
    near(weights(alone, "autoencoder"), weights(together, "autoencoder"), begun)

    (together / "autoencoder" / "final.safetensors").write_bytes(
        (alone / "autoencoder" / "final.safetensors").read_bytes()
    )
    train("denoiser", alone, 2, exactly=True)
    begun = weights(alone, "denoiser")
    train("denoiser", alone, 5, exactly=True)
    train("denoiser", together, 2, exactly=True)
    train("denoiser", together, 5, count=2, exactly=True)  # goes on with two, free plays included
    near(weights(alone, "denoiser"), weights(together, "denoiser"), begun)


@pytest.mark.timeout(600)
def test_two_processes_make_a_game(make_recording: Callable[..., Recording], tmp_path: Path) -> None:
    make_recording(tmp_path / "data", LENGTHS)
    work = tmp_path / "work"
    for stage in ("autoencoder", "denoiser", "distill", "outcome", "decoder"):
        train(stage, work, 3, count=2)
    game = load_checkpoint(work / "with_decoder")
    assert list(game.config.training["minutes"]) == ["autoencoder", "denoiser", "student", "decoder", "outcome"]


def near(alone: torch.Tensor, together: torch.Tensor, begun: torch.Tensor) -> None:
    """Equal up to rounding, which Muon's Newton-Schulz steps in bfloat16 make larger; other batches differ wholly."""
    moved = float((alone - begun).norm()) or float(alone.norm())
    assert float((alone - together).norm()) < 0.1 * moved


def test_alone_there_is_nothing_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = torch.arange(6)
    assert processes.share(batch) is batch
    assert processes.gather(batch) is batch
    assert torch.equal(processes.spread(lambda part: 2 * part, batch), 2 * batch)
    assert processes.average(1.5, torch.device("cpu")) == 1.5
    assert processes.join(torch.device("cpu")) == torch.device("cpu")
    processes.check_batch(7)


def test_what_is_shared_in_larger_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.even(8) == 8
    monkeypatch.setattr(processes, "count", lambda: 16)
    assert [processes.even(number) for number in (8, 16, 17)] == [16, 16, 32]


def test_what_cannot_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "count", lambda: 3)
    with pytest.raises(OptionError, match="3 processes cannot share a batch of 16 evenly"):
        processes.check_batch(16)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="each process takes a GPU of its own"):
        processes.join(torch.device("cuda:0"))
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(OptionError, match="need accelerate"):
        processes.join(torch.device("cpu"))
