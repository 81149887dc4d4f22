"""The shape of the project: which room may import which, where heavy packages are, and the versions."""

from __future__ import annotations

import ast
import functools
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("agents", "recorder", "gamengen", "engine")
# The front desk reaches every room, but only inside functions.
FRONT_DESK = {
    f"gamengen/{name}.py" for name in ("cli", "commands", "bench_command", "collect_commands", "evaluate_commands")
}
# Who may import what is slow to import or needs a display, a game or a compiler.
HEAVY = {
    "vizdoom": {"agents/doom.py"},
    "stable_baselines3": {"agents/ppo.py", "agents/policy.py", "engine/dream.py"},
    "gymnasium": {
        "agents/doom.py",
        "agents/gym.py",
        "agents/policy.py",
        "agents/ppo.py",
        "engine/dream.py",
        "engine/environment.py",
    },
    "pygame": {"engine/window.py", "engine/panels.py", "engine/raters.py", "engine/latency.py"},
    "av": {"recorder/pictures.py"},
    "h5py": {"recorder/episodes.py"},
    "hdf5plugin": {"recorder/episodes.py"},
    "matplotlib": {"gamengen/evaluation/plots.py", "recorder/coverage.py"},
    "accelerate": {"gamengen/processes.py"},
    "torchmetrics": {"gamengen/evaluation/similarity.py", "gamengen/train_outcome.py"},
    "tensorboard": set(),
    "tyro": FRONT_DESK,
}
# Rooms that have nothing to do with the model: agents/ppo.py is the one that learns.
WITHOUT_TORCH = {"agents", "recorder"}
SHAPELESS = {"utils", "util", "common", "helpers", "helper", "misc", "base", "core"}


def modules() -> list[Path]:
    return sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """All modules that ``path`` imports, and whether that happens as soon as it is imported itself."""
    found: list[tuple[str, bool]] = []

    def walk(node: ast.AST, at_once: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if is_type_checking(child):
                continue
            if isinstance(child, ast.Import):
                found.extend((alias.name, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name_of(path)}: imports are absolute"
                assert child.module is not None
                found.append((child.module, at_once))
                found.extend((f"{child.module}.{alias.name}", at_once) for alias in child.names)
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            walk(child, at_once and not inner)

    walk(ast.parse(path.read_text()), True)
    return found


def top(module: str) -> str:
    return module.partition(".")[0]


def everything_imported_with(module: str) -> set[str]:
    """Own modules and other packages that importing ``module`` imports at once, through all of ours."""
    seen: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        own = ROOT / (name.replace(".", "/") + ".py")
        package = ROOT / name.replace(".", "/") / "__init__.py"
        path = own if own.is_file() else package
        if top(name) in ROOMS and not path.is_file():
            continue  # a function or class of a module
        seen_as = name if top(name) in ROOMS else top(name)
        if seen_as in seen:
            continue
        seen.add(seen_as)
        if top(name) in ROOMS:
            left += [imported for imported, at_once in imports(path) if at_once]
    return seen


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_rooms_import_only_rooms_to_their_left(path: Path) -> None:
    room = ROOMS.index(path.relative_to(ROOT).parts[0])
    for module, at_once in imports(path):
        if top(module) in ROOMS and ROOMS.index(top(module)) > room:
            assert name_of(path) in FRONT_DESK, f"{name_of(path)} imports {module}"
            assert not at_once, f"{name_of(path)} imports {module} outside of a function"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_heavy_packages_are_where_they_belong(path: Path) -> None:
    for module, _ in imports(path):
        allowed = HEAVY.get(top(module))
        assert allowed is None or name_of(path) in allowed, f"{name_of(path)} imports {module}"
        if top(module) == "torch" and path.parent.name in WITHOUT_TORCH:
            assert name_of(path) in ("agents/policy.py", "agents/ppo.py"), f"{name_of(path)} imports {module}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_own_modules_alone_are_imported_by_full_name(path: Path) -> None:
    """Every package imported is ours, Python's, or declared in pyproject.toml."""
    known = {"numpy", "torch", "gymnasium", "vizdoom", "stable_baselines3", "h5py", "hdf5plugin", "safetensors",
             "tyro", "rich", "pygame", "av", "PIL", "tensorboard", "matplotlib", "torchmetrics",
             "accelerate"}  # fmt: skip
    for module, _ in imports(path):
        assert top(module) in {*known, *ROOMS, *sys.stdlib_module_names}, f"{name_of(path)} imports {module}"


def test_what_playing_imports() -> None:
    found = set().union(*map(everything_imported_with, ("engine.game", "engine.headless", "engine.window")))
    assert {"torch", "pygame", "gamengen.checkpoints"} <= found
    assert not found & {"vizdoom", "stable_baselines3", "tensorboard", "gymnasium", "tyro"}


def test_what_help_imports() -> None:
    assert everything_imported_with("gamengen.cli") <= {
        "gamengen", "gamengen.cli", "agents", "agents.errors", *sys.stdlib_module_names
    }  # fmt: skip
    commands = everything_imported_with("gamengen.commands")
    assert not commands & {"torch", "vizdoom", "stable_baselines3", "pygame", "av", "h5py", "numpy"}


def test_the_alignment_law_is_written_once() -> None:
    law = [name_of(path) for path in modules() if "The alignment law" in path.read_text()]
    assert law == ["recorder/episodes.py"]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_modules_are_nouns_of_bearable_length(path: Path) -> None:
    assert path.stem not in SHAPELESS
    assert len(path.read_text().splitlines()) <= 500, "split it"


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    lines = [line.partition("#")[0].partition(";")[0].strip() for line in lines]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=\s]+", line) for line in lines if line and not line.startswith("-"))
    pairs = (line.split("==") for line in lines if "==" in line)
    return {plain(name): version for name, version in pairs}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {plain(re.split(r"[<>=!~ \[;]", requirement)[0]) for requirement in wanted}
    assert "pygame-ce" in names
    assert "pygame" not in names | set(pins()), "it and pygame-ce own the same folder"
    assert names <= set(pins()), "constraints.txt pins them all"
    assert pins()["torch"] == "2.13.0"


def test_what_is_installed_is_what_is_pinned() -> None:
    """Of the packages that the project asks for itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in project["dependencies"]:
        name = re.split(r"[<>=!~ \[;]", requirement)[0]
        installed = metadata.version(name).partition("+")[0]
        assert installed == pins()[plain(name)], f"{name}: install with -c constraints.txt"


def test_pins_of_dependencies_of_dependencies() -> None:
    """Whatever the project's packages need here has a version too, so that an install is the same tomorrow."""
    missing, seen = set(), set()
    left = ["torch", "vizdoom", "stable-baselines3", "tensorboard", "tyro", "rich", "h5py", "pytest", "mypy", "build"]
    left += ["matplotlib", "torchmetrics"]
    while left:
        name = plain(left.pop())
        if name in seen:
            continue
        seen.add(name)
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another system
        if name not in pins():
            missing.add(name)
        left += [re.split(r"[<>=!~ \[;(]", text)[0] for text in needed if "extra ==" not in text]
    assert missing <= {"setuptools", "pip", "wheel"}, "add them to constraints.txt"


def test_one_version() -> None:
    import gamengen

    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {gamengen.__version__}" in changelog.replace("[", "").replace("]", "")
