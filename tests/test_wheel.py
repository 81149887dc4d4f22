"""The wheel: what is in it, and that a clean environment plays with it."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import av
import pytest

import gamengen
from gamengen.checkpoints import DEFAULT_CHECKPOINT, SHIPPED, shipped_checkpoints

ROOT = Path(__file__).parents[1]
ROOMS = ("agents", "recorder", "gamengen", "engine")
SHIPS = (SHIPPED / DEFAULT_CHECKPOINT / "config.json").is_file()
LARGEST_FILE = 16 * 2**20
LARGEST_CHECKPOINT = 20_000_000


def run(*words: object, cwd: Path) -> str:
    # Nothing of this source tree may be found by its path.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling", reason="needs the dev extra: pip install -e '.[dev]'")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a clean environment with the wheel, and this one's other packages."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    paths = {
        name: sysconfig.get_path(name, vars={"base": str(folder), "platbase": str(folder)}) for name in ("purelib",)
    }
    theirs = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    # A folder named in a .pth file is searched after the environment's own, and its own .pth files, such as
    # that of an editable install, are not read.
    (Path(paths["purelib"]) / "packages.pth").write_text("\n".join(theirs))
    python = programs / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", "-q", wheel, cwd=folder)
    return programs


def test_what_is_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {info.filename: info.file_size for info in archive.infolist()}
    rooms = {name.partition("/")[0] for name in names}
    information = f"gamengen-{gamengen.__version__}.dist-info"
    assert rooms == {*ROOMS, information}
    for room in ROOMS:
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / room).rglob("*.py")}
        assert modules <= set(names)
    for name in ("LICENSE", "THIRD_PARTY_NOTICES.md"):
        assert f"{information}/licenses/{name}" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith((".partial", ".ini", ".pt"))]


@pytest.mark.parametrize("name", shipped_checkpoints())
def test_the_weights_are_in_the_wheel(name: str, wheel: Path) -> None:
    """Hatchling leaves out what git ignores, and says nothing."""
    with zipfile.ZipFile(wheel) as archive:
        names = {info.filename: info.file_size for info in archive.infolist()}
    folder = SHIPPED / name
    shipped = {f"gamengen/weights/{name}/{path.name}": path.stat().st_size for path in folder.iterdir()}
    assert shipped.items() <= names.items()
    assert {path.name for path in folder.iterdir()} >= {
        "config.json", "autoencoder.safetensors", "denoiser.safetensors", "spawns.safetensors", "metrics.json",
        "README.md",
    }  # fmt: skip
    assert max(shipped.values()) <= LARGEST_FILE
    assert sum(shipped.values()) <= LARGEST_CHECKPOINT


def test_the_installed_package_is_the_wheels(environment: Path, tmp_path: Path) -> None:
    code = "\n".join(f"import {room}; print({room}.__file__)" for room in ROOMS)
    found = run(environment / "python", "-c", code, cwd=tmp_path)
    assert all(str(environment.parent) in path for path in found.split())
    assert run(environment / "gamengen", "--version", cwd=tmp_path) == f"gamengen {gamengen.__version__}\n"


@pytest.mark.parametrize("which", ["shipped", "tiny"])
def test_the_installed_command_plays(which: str, environment: Path, tiny: Path, tmp_path: Path) -> None:
    if which == "shipped" and not SHIPS:
        pytest.skip(f"the package holds no checkpoint {DEFAULT_CHECKPOINT}")
    words = [] if which == "shipped" else ["--checkpoint", tiny]
    run(
        environment / "gamengen", "play", "--headless", "--frames", "5", "--video", "x.mp4", "--device", "cpu", *words,
        cwd=tmp_path,
    )  # fmt: skip
    with av.open(str(tmp_path / "x.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == 5
    assert frames[-1].shape == (240, 320, 3)
    assert frames[-1].std() > 5
