"""The front desk: help, wrong input told in one line, summaries as JSON, and what is not imported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import gamengen
import gamengen.checkpoints
from engine.frame_times import PlaySummary
from engine.game import NeuralGame
from engine.window import WindowOptions
from gamengen import cli, commands
from gamengen.cli import COMMANDS, overview

ROOT = Path(__file__).parents[1]
Run = Callable[..., tuple[int, str, str]]


def in_python(code: str, folder: Path) -> str:
    """What a fresh Python prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def words_of(text: str) -> str:
    """The text without the boxes that are drawn around it."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


# --- help ---


def test_overview(run: Run) -> None:
    for words in ((), ("--help",), ("-h",)):
        code, out, _ = run(*words)
        assert code == 0
        for command, (_, text) in COMMANDS.items():
            assert f"{' '.join(command):<18} {text}" in out
    assert run("--version")[1] == f"gamengen {gamengen.__version__}\n"
    code, out, _ = run("train")
    assert code == 0
    assert "train autoencoder" in out
    assert "bench" not in out
    assert out == run("train", "--help")[1] == overview("train") + "\n"


def test_every_command_exists() -> None:
    for command, (name, text) in COMMANDS.items():
        chosen = getattr(commands, name)
        assert chosen.__doc__, command
        assert "json" in chosen.__dataclass_fields__, command
        assert callable(chosen.run)
        assert text


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_an_example(command: tuple[str, ...], run: Run) -> None:
    code, out, _ = run(*command, "--help")
    assert code == 0
    assert f"Example: gamengen {' '.join(command)}" in words_of(out)
    assert "--json" in out
    for name, field in getattr(commands, COMMANDS[command][0]).__dataclass_fields__.items():
        assert name.replace("_", "-") in out.lower().replace("_", "-"), field


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_example_is_one(command: tuple[str, ...]) -> None:
    """The options in a command's examples are options that it has."""
    import tyro

    chosen = getattr(commands, COMMANDS[command][0])
    examples = re.findall(r"^\s*Example: gamengen (.*)$", chosen.__doc__, re.MULTILINE)
    assert examples
    for example in examples:
        words = example.split()
        assert tuple(words[: len(command)]) == command
        tyro.cli(chosen, args=words[len(command) :])


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom gamengen.cli import main\nmain(['--help'])\n"
        "print([m for m in ('torch', 'vizdoom', 'numpy', 'tyro', 'pygame', 'h5py', 'rich') if m in sys.modules])"
    )
    assert in_python(code, tmp_path).splitlines()[-1] == "[]"


def test_a_commands_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom gamengen.cli import main\n"
        "try:\n    main(['create', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'vizdoom', 'numpy', 'pygame', 'stable_baselines3') if m in sys.modules])"
    )
    assert in_python(code, tmp_path).splitlines()[-1] == "[]"


def test_playing_imports_no_game_and_no_trainer(tiny: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom gamengen.cli import main\n"
        f"try:\n    main(['play', '--checkpoint', {str(tiny)!r}, '--headless', '--frames', '2', '--video', 'x.mp4'])\n"
        "except SystemExit as left:\n    assert left.code == 0, left.code\n"
        "heavy = ('vizdoom', 'stable_baselines3', 'gymnasium', 'tensorboard', 'matplotlib')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    assert in_python(code, tmp_path).splitlines()[-1] == "[]"
    assert (tmp_path / "x.mp4").stat().st_size > 500


def test_play_py_is_gamengen_play(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "play.py"), "--checkpoint", "nonsense", "--headless"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: no such checkpoint ; nonsense ; ")


# --- wrong input ---

CREATE = ("create", "doom/basic", "--out", "out")
TRAIN = ("train", "autoencoder", "--data", "{data}", "--out", "work")
PLAY = ("play", "--checkpoint", "{tiny}", "--headless")

# Words, and what the line is about; None where the parser of the command line says it in its own way.
WRONG: list[tuple[tuple[str, ...], str | None]] = [
    (("nonsense",), "nonsense"),
    (("--nonsense",), "--nonsense"),
    (("train", "nonsense"), "train nonsense"),
    (("play", "--nonsense"), None),
    (("play", "--checkpoint", "nonsense", "--headless"), "nonsense"),
    (("play", "--checkpoint", "{data}", "--headless"), "{data}"),
    ((*PLAY, "--frames", "0"), "--frames"),
    ((*PLAY, "--frames", "-5"), "--frames"),
    ((*PLAY, "--frames", "many"), None),
    ((*PLAY, "--frames", "1.5"), None),
    ((*PLAY, "--steps", "0"), "--steps"),
    ((*PLAY, "--steps", "100"), "--steps"),
    ((*PLAY, "--seed", "-1"), "--seed"),
    ((*PLAY, "--spawn", "99"), "99"),
    ((*PLAY, "--device", "tpu"), "tpu"),
    ((*PLAY, "--device", "cuda:99"), "cuda:99"),
    ((*PLAY, "--video", "x.avi"), "x.avi"),
    ((*PLAY, "--frames", "2", "--video", "file/x.mp4"), "file/x.mp4"),
    (("play", "--checkpoint", "{tiny}", "--video", "x.mp4"), "--video"),
    ((*PLAY, "--actions", "nonsense"), "nonsense"),
    ((*PLAY, "--actions", "file"), "file"),
    (("create", "doom/basic"), None),
    (("create", "--out", "out"), None),
    (("create", "doom/nonsense", "--out", "out"), "nonsense"),
    (("create", "gym/Nonsense-v7", "--out", "out"), "Nonsense-v7"),
    (("create", "tetris", "--out", "out"), "tetris"),
    ((*CREATE, "--minutes", "0"), "--minutes"),
    ((*CREATE, "--minutes", "-3"), "--minutes"),
    ((*CREATE, "--minutes", "nan"), "--minutes"),
    ((*CREATE, "--minutes", "soon"), None),
    ((*CREATE, "--frames", "0"), "--frames"),
    ((*CREATE, "--preset", "huge"), "huge"),
    ((*CREATE, "--height", "100"), "--height"),
    ((*CREATE, "--agent", "expert"), "expert"),
    ((*CREATE, "--workers", "0"), "--workers"),
    ((*CREATE, "--init", "nonsense"), "nonsense"),
    ((*CREATE, "--init", "nonsense", "--from-scratch"), "--init, --from-scratch"),
    ((*CREATE, "--data", "nowhere"), "nowhere"),
    ((*CREATE, "--device", "tpu"), "tpu"),
    (("create", "doom/basic", "--out", "file"), "file"),
    (("create", "doom/basic", "--out", "file/out"), ""),
    (("create", "doom/basic", "--out", "full"), "full"),
    (("record", "doom/basic"), None),
    (("record", "doom/nonsense", "--out", "out"), "nonsense"),
    (("record", "doom/basic", "--out", "out", "--frames", "0"), "--frames"),
    (("record", "doom/basic", "--out", "full"), "full"),
    ((*TRAIN,), "--minutes, --steps"),
    ((*TRAIN, "--minutes", "1", "--steps", "1"), "--minutes, --steps"),
    ((*TRAIN, "--steps", "0"), "--steps"),
    ((*TRAIN, "--steps", "1", "--muon-lr", "0"), "--muon-lr"),
    ((*TRAIN, "--steps", "1", "--preset", "huge"), "huge"),
    (("train", "autoencoder", "--data", "nowhere", "--out", "work", "--steps", "1"), "nowhere"),
    (("train", "denoiser", "--data", "{data}", "--work", "work", "--out", "out", "--steps", "1"), "work"),
    (("train", "denoiser", "--data", "{data}", "--work", "work", "--out", "full", "--steps", "1"), "full"),
    (("train", "decoder", "--data", "{data}", "--work", "work", "--out", "out", "--steps", "1"), "work"),
    (("train", "decoder", "--data", "{data}", "--work", "work", "--out", "full", "--steps", "1"), "full"),
    (("evaluate", "{tiny}"), "--data, --record"),
    (("evaluate", "{tiny}", "--data", "{data}", "--record", "100"), "--data, --record"),
    (("evaluate", "{tiny}", "--record", "0"), "--record"),
    (("evaluate", "{tiny}", "--data", "nowhere"), "nowhere"),
    (("evaluate", "{tiny}", "--data", "{data}", "--windows", "0"), "--windows"),
    (("evaluate", "{tiny}", "--data", "{data}", "--out", "file/out"), "file/out"),
    (("evaluate", "nonsense", "--data", "{data}"), "nonsense"),
    (("evaluate", "{tiny}", "--record", "100", "--device", "tpu"), "tpu"),
    (("bench", "{tiny}", "--frames", "0"), "--frames"),
    (("bench", "{tiny}", "--batch", "0"), "--batch"),
    (("bench", "{tiny}", "--threads", "0"), "--threads"),
    (("bench", "{tiny}", "--steps", "0"), "--steps"),
    (("bench", "{tiny}", "--dtype", "float8"), None),
    (("bench", "nonsense"), "nonsense"),
    (("bench", "{tiny}", "--device", "cpu", "--mode", "graph"), "--mode graph"),
    (("bench", "{tiny}", "--device", "cpu", "--dtype", "float16"), "--dtype float16"),
    (("bench", "{tiny}", "--latency", "0"), "--latency"),
    (("bench", "{tiny}", "--soak", "0"), "--soak"),
    (("bench", "{tiny}", "--soak", "1", "--train"), "--soak, --train"),
    (("bench", "{tiny}", "--uncapped"), "--uncapped"),
    (("bench", "{tiny}", "--compare-steps", "1"), "--compare-steps"),
    (("bench", "{tiny}", "--train", "--frames", "0"), "--frames"),
    (("bench", "{tiny}", "--train", "--markdown", "x.md"), "--markdown"),
    (("data", "info", "nowhere"), "nowhere"),
    (("data", "verify", "nowhere"), "nowhere"),
    (("data", "preview", "nowhere"), "nowhere"),
    (("data", "export", "nowhere", "--out", "out"), "nowhere"),
    (("agent", "evaluate", "doom/nonsense", "--agent", "random"), "nonsense"),
    (("agent", "train", "doom/nonsense", "--out", "agent.safetensors"), "nonsense"),
    (("info", "--json", "file/x.json"), ""),
    (("info", "--json", "full"), "full"),
    (("evaluate", "{tiny}", "--record", "100", "--agent", "nobody"), "nobody"),
    (("evaluate", "{tiny}", "--record", "100", "--measures"), "--measures"),
    (("evaluate", "{tiny}", "--record", "100", "--long-frames", "0"), "--long-frames"),
    (("bench", "{tiny}", "--latency", "1", "--batch", "2"), "--latency, --batch"),
    (("bench", "{tiny}", "--markdown", "file/x.md"), ""),
    (("agent", "train", "doom/basic", "--out", "a.safetensors", "--entropy", "nan"), "--entropy"),
    (("agent", "train", "doom/basic", "--out", "a.safetensors", "--learning-rate", "inf"), "--learning-rate"),
    (("agent", "train", "doom/basic", "--out", "a.safetensors", "--seed", "4294967296"), "--seed"),
]


@pytest.mark.parametrize(("words", "about"), WRONG, ids=[" ".join(words) for words, _ in WRONG])
def test_wrong_input_is_told_in_one_line(
    words: tuple[str, ...], about: str | None, run: Run, tiny: Path, basic_recording: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not what is wanted")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    places = {"tiny": str(tiny), "data": str(basic_recording)}
    before = sorted(tmp_path.rglob("*"))

    code, out, err = run(*(word.format(**places) for word in words))

    assert code not in (0, None)
    assert "Traceback" not in out + err
    if about is not None:
        assert code == 1
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, err
        assert err.splitlines()[-1] == lines[0]
        what, where, remedy = lines[0].removeprefix("error: ").split(" ; ")
        assert what
        assert remedy
        assert about.format(**places) in where
    else:
        assert code == 2
        assert words_of(err)
    left = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.name != "work"]
    assert not left, "nothing half-written is left"
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_missing_device_is_no_silent_fall_back(run: Run, tiny: Path) -> None:
    for words in (("play", "--headless", "--checkpoint", str(tiny)), ("bench", str(tiny)), CREATE):
        code, _, err = run(*words, "--device", "cuda")
        assert code == 1
        assert err == "error: no CUDA device was found ; cuda ; use --device cpu, or install torch with CUDA\n"


def test_no_display(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = run("play", "--checkpoint", str(tiny))
    assert code == 1
    assert err.startswith("error: ")
    assert "--headless --frames N --video OUT.mp4" in err
    assert err.count("\n") == 1


def test_a_missing_file_of_a_checkpoint(run: Run, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "game").mkdir()
    for path in tiny.iterdir():
        if path.name != "denoiser.safetensors":
            (tmp_path / "game" / path.name).write_bytes(path.read_bytes())
    code, _, err = run("play", "--headless", "--checkpoint", "game")
    assert (code, err) == (
        1, "error: a file of the checkpoint is missing ; game/denoiser.safetensors ; restore the file\n"
    )  # fmt: skip


def test_errors_of_several_lines_become_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from agents.errors import DataError

    def fail(self: Any) -> None:
        raise DataError("one\n\ttwo", "here", "mend it")

    monkeypatch.setattr(commands.Info, "run", fail)
    assert run("info") == (1, "", "error: one two ; here ; mend it\n")


def test_a_full_disk_and_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise OSError(28, "No space left on device", "big.bin")

    def interrupt(self: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands.Info, "run", fail)
    code, _, err = run("info")
    assert (code, err) == (1, "error: No space left on device ; big.bin ; check the path and the free space\n")
    monkeypatch.setattr(commands.Info, "run", interrupt)
    assert run("info")[0] == 130


def raising(error: Exception) -> Callable[[Any], None]:
    def fail(self: Any) -> None:
        raise error

    return fail


def test_too_little_memory_and_names_with_brackets(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any) -> None:
        raise MemoryError("of 9 TB")

    monkeypatch.setattr(commands.Info, "run", fail)
    assert run("info") == (1, "", "error: there is not enough memory (of 9 TB) ; info ; give smaller numbers\n")
    for error in (torch.OutOfMemoryError("CUDA out of memory\nand more"), RuntimeError("you can't allocate memory")):
        monkeypatch.setattr(commands.Info, "run", raising(error))
        code, _, told = run("info")
        assert code == 1 and told.startswith("error: there is not enough memory (") and told.count("\n") == 1
    monkeypatch.setattr(commands.Info, "run", raising(RuntimeError("a mistake of ours")))
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run("info")
    monkeypatch.setattr(commands.Info, "run", lambda self: {"video": "v[/b].mp4", "folder": "run[old]"})
    code, out, _ = run("info")
    assert code == 0 and "v[/b].mp4" in out and "run[old]" in out


# --- what they do ---


def test_who_plays_where_nobody_is_named(run: Run, tmp_path: Path) -> None:
    """The scripted agent knows Doom alone."""
    for spec, agent in (("gym/CartPole-v1", "random"), ("doom/basic", "scripted")):
        words = ("agent", "evaluate", spec, "--episodes", "1", "--max-frames", "5", "--json", str(tmp_path / "json"))
        assert run(*words)[0] == 0
        assert json.loads((tmp_path / "json").read_text())["agent"] == agent


def test_play_headless(run: Run, tiny: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "play", "--checkpoint", str(tiny), "--headless", "--frames", "3", "--video", "deep/x.mp4", "--steps", "1",
        "--device", "cpu", "--spawn", "1", "--json", "deep/x.json",
    )  # fmt: skip
    assert code == 0
    summary = json.loads((tmp_path / "deep" / "x.json").read_text())
    assert (summary["checkpoint"], summary["device"], summary["steps"], summary["frames"]) == ("tiny", "cpu", 1, 3)
    assert summary["files"] == ["deep/x.mp4"]
    assert (tmp_path / "deep" / "x.mp4").stat().st_size > 500
    for name in summary:
        assert name.replace("_", " ") in out


def test_play_in_a_window(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    code, out, err = run(
        "play", "--checkpoint", str(tiny), "--frames", "3", "--steps", "1", "--uncapped", "--seed", "0"
    )
    assert code == 0, err
    assert re.search(r"frames\s*│\s*3\s", out)


def test_play_lists_what_is_shipped(run: Run, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights"
    figures = {"copy_last": {"psnr": 20.5}, "teacher_forced": {"1": {"psnr": 25.25, "lpips": 0.1234}}}
    for name, metrics in (("measured", figures), ("new", {})):
        shutil.copytree(tiny, weights / name)
        (weights / name / "metrics.json").write_text(json.dumps(metrics))
    monkeypatch.setattr(gamengen.checkpoints, "SHIPPED", weights)
    monkeypatch.setattr(gamengen.checkpoints, "DEFAULT_CHECKPOINT", "measured")
    code, out, _ = run("play", "--list", "--json", "list.json")
    assert code == 0
    assert "measured: doom/basic, 320x240 at 17.5 Hz, tiny" in out
    assert json.loads((tmp_path / "list.json").read_text())["shipped_checkpoints"] == {
        "measured": "doom/basic, 320x240 at 17.5 Hz, tiny; 25.25 dB, LPIPS 0.123 (copying the last frame 20.50 dB); "
        "the default",
        "new": "doom/basic, 320x240 at 17.5 Hz, tiny; not measured",
    }


def test_evaluate(run: Run, tiny: Path, basic_recording: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "evaluate", str(tiny), "--data", str(basic_recording), "--out", "report", "--windows", "3", "--rollouts", "1",
        "--rollout-frames", "2", "--measures", "drift", "--device", "cpu", "--json", "summary.json",
    )  # fmt: skip
    assert code == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    metrics = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert summary["psnr_4_steps"] == metrics["teacher_forced"]["4"]["psnr"]
    assert metrics["agent"] is metrics["collapse"] is None
    assert "report.md" in out


def test_every_measure_can_be_named() -> None:
    from gamengen.evaluate_commands import Measure
    from gamengen.evaluation.options import MEASURES, ON_DEMAND

    assert set(get_args(Measure)) == {*MEASURES, *ON_DEMAND}


def test_info(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("info", "--json", "info.json")
    assert code == 0
    summary = json.loads((tmp_path / "info.json").read_text())
    assert summary["gamengen"] == gamengen.__version__
    assert summary["torch"] == torch.__version__
    assert {"python", "vizdoom", "device", "computes_in", "cuda_devices", "shipped_checkpoints"} <= set(summary)
    assert summary["torch"] in out


def test_info_without_a_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    version = metadata.version

    def missing(name: str) -> str:
        if name == "vizdoom":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", missing)
    code, out, _ = run("info")
    assert code == 0
    assert "not installed" in out


def test_threads_do_not_spin_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the user says how they should wait."""
    monkeypatch.setattr(cli, "_run", lambda *_: 0)
    for given, expected in (({}, cli.SPINS), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            cli.main(["info"])
        assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_told_to_end_it_leaves_in_order(tmp_path: Path) -> None:
    code = (
        "import time\nfrom gamengen import cli, commands\n"
        "commands.Info.run = lambda self: (print('on', flush=True), time.sleep(60))\ncli.main(['info'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "on\n"
        process.terminate()
        assert process.wait(30) == 143


def test_what_play_hands_to_the_window(run: Run, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    given: list[Any] = []

    def play(game: NeuralGame, options: WindowOptions) -> PlaySummary:
        given.append((game.spawn, game.steps, options))
        return PlaySummary(0, 0.0, 0.0, 0.0, 0.0)

    monkeypatch.setattr("engine.window.play_window", play)
    words = "--device cpu --spawn 5 --steps 2 --seed 3 --scale 2 --mouse-speed 1.5 --uncapped --fullscreen --frames 4"
    assert run("play", "--checkpoint", str(tiny), *words.split())[0] == 0
    window = WindowOptions(scale=2, fullscreen=True, uncapped=True, mouse_speed=1.5, frames=4, seed=3)
    assert given == [(5, 2, window)]
