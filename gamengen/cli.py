"""The front desk: ``gamengen COMMAND``. It alone reaches every room, and each one only when asked."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from agents.errors import GamengenError, OptionError

# Command words -> (class in gamengen.commands, what it does)
COMMANDS: dict[tuple[str, ...], tuple[str, str]] = {
    ("play",): ("Play", "play a neural game in a window, or headless into a video"),
    ("create",): ("Create", "make a neural copy of a game: record, train, evaluate"),
    ("agent", "train"): ("AgentTrain", "train a PPO agent, recording it if wished"),
    ("agent", "evaluate"): ("AgentEvaluate", "let an agent play and tell how well"),
    ("record",): ("Record", "record agents playing the real game"),
    ("data", "info"): ("DataInfo", "what a recording holds"),
    ("data", "verify"): ("DataVerify", "read a recording whole and name what is damaged"),
    ("data", "preview"): ("DataPreview", "a contact sheet and a video of a recording"),
    ("data", "export"): ("DataExport", "a recording as MP4, NPZ or PNG files"),
    ("train", "autoencoder"): ("TrainAutoencoder", "train an autoencoder on a recording"),
    ("train", "cycle"): ("TrainCycle", "train the decoder so that what it shows encodes to the same again"),
    ("train", "geometry"): (
        "TrainGeometry",
        "train what tells motion and distances, for Doom games in which one walks",
    ),
    ("train", "tally"): ("TrainTally", "train the network that counts what the score bar shows"),
    ("train", "denoiser"): ("TrainDenoiser", "train a denoiser on a recording, given an autoencoder"),
    ("train", "distill"): ("TrainDistill", "train a student that needs one sampling step, given a denoiser"),
    ("train", "perceptual"): ("TrainPerceptual", "train a checkpoint's student on by what is seen (LPIPS)"),
    ("train", "match"): ("TrainMatch", "train a checkpoint's student on to match what a teacher would sample"),
    ("train", "decoder"): ("TrainDecoder", "train the decoder on, with motion compensation"),
    ("train", "outcome"): ("TrainOutcome", "train the head that tells reward and the game's end"),
    ("evaluate",): ("Evaluate", "measure a checkpoint against the real game"),
    ("lpips",): ("ConvertLpips", "convert LPIPS weights, for evaluate --lpips-weights"),
    ("bench",): ("Bench", "measure speed on this machine"),
    ("info",): ("Info", "versions, devices, shipped checkpoints and presets"),
}
INTERRUPTED = 130
SPINS = "10000"  # by which a thread waits for the others before it sleeps: a fraction of a millisecond


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; exits with 0, or with another code and one line about what is wrong."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return
    if words[0] == "--version":
        from gamengen import __version__

        print(f"gamengen {__version__}")
        return
    command = next((c for c in (tuple(words[:1]), tuple(words[:2])) if c in COMMANDS), None)
    if command is None:
        if any(c[0] == words[0] for c in COMMANDS) and (len(words) == 1 or words[1] in ("-h", "--help")):
            print(overview(words[0]))
            return
        _fail(f"unknown command ; {' '.join(words[:2])} ; see gamengen --help")
    if "OMP_WAIT_POLICY" not in os.environ:  # read when torch is imported, which comes later
        # By default PyTorch's threads spin for milliseconds, and where other programs want the cores too they wait for
        # those that have none: a frame then takes a second.
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    sys.exit(_run(command, words[len(command) :]))


def overview(group: str | None = None) -> str:
    """All commands, or those of one group, a line each."""
    chosen = {c: text for c, (_, text) in COMMANDS.items() if group in (None, c[0])}
    lines = [f"  {' '.join(command):<18} {text}" for command, text in chosen.items()]
    return "\n".join(
        [
            "usage: gamengen COMMAND [OPTIONS]",
            "",
            "A neural game engine: agents play, a diffusion model learns, you play the model.",
            "",
            *lines,
            "",
            "gamengen COMMAND --help tells the options of a command, with an example.",
        ]
    )


def _run(command: tuple[str, ...], words: list[str]) -> int:
    from agents import engine_process

    engine_process.when_stuck = _stuck
    signal.signal(signal.SIGTERM, _terminate)  # so that engines are closed on the way out
    try:
        import tyro

        from gamengen import commands

        chosen: Any = getattr(commands, COMMANDS[command][0])
        options = tyro.cli(chosen, args=words, prog=f"gamengen {' '.join(command)}")
        for written in (options.json, getattr(options, "markdown", None)):
            if written is not None:
                _check_output(written)
        summary = options.run()
        if summary is not None and os.environ.get("RANK", "0") == "0":  # of torchrun's processes one speaks
            _print_summary(" ".join(command), summary)
            if options.json is not None:
                write_summary(options.json, summary)
            sys.stdout.flush()
    except GamengenError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return INTERRUPTED
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        _fail(f"there is not enough memory ({reason}) ; {' '.join((*command, *words))} ; give smaller numbers")
    except BrokenPipeError:  # who reads has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        _fail(f"{error.strerror or error} ; {error.filename or 'the system'} ; check the path and the free space")
    return 0


def _lacks_memory(error: Exception) -> bool:
    """Whether it says so: Python's, or torch's of a GPU or of a CPU, which are RuntimeErrors."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def _check_output(path: Path) -> None:
    """See that a summary may be written to ``path``, before anything slow."""
    if path.is_dir() or not path.name:
        raise OptionError("a file is written there, and this is a folder", path, "give the name of a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a"):
        pass
    if new:
        path.unlink(missing_ok=True)  # of torchrun's processes another may have been quicker


def _stuck() -> None:
    """An engine has died in the middle of a message: ViZDoom would wait for it for ever."""
    print(
        "error: the Doom engine was killed ; this machine ; see if it has memory left, and run it again",
        file=sys.stderr,
    )
    os._exit(1)


def _terminate(signum: int, frame: Any) -> None:
    raise SystemExit(128 + signum)


def _fail(message: str) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)  # one line, whatever other libraries say
    sys.exit(1)


def _print_summary(title: str, summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in summary.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            continue  # rows of measurements have a table of their own
        table.add_row(name.replace("_", " "), Text(_plain(value)))
    Console().print(table)


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 1e15 else str(value)
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_plain(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return str(value) if value is not None else "not measured"


def write_summary(path: Path, summary: dict[str, Any]) -> None:
    """Write a command's summary as JSON, whole or not at all."""
    from recorder.recording import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, summary)
