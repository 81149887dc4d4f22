"""The folder that an evaluation ends in: figures, report, and what is added to it later."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

from agents.errors import DataError
from gamengen.evaluation.options import EvaluateOptions
from gamengen.evaluation.subject import short_hash
from recorder.recording import write_json

VIDEOS = 2
PICTURES = (
    ("The next frame from real frames", "teacher_forced.png"),
    ("Free play under the recorded actions, real above neural", "rollout.png"),
    *((f"Free play {number + 1}, real beside neural", f"rollout_{number}.mp4") for number in range(VIDEOS)),
)


def write_results(out: Path, metrics: dict[str, Any], values: dict[str, Any]) -> None:
    """Write ``metrics.json``, ``values.json`` (each window's figures), the plots and ``report.md``.

    Raises:
        DataError: they cannot be written.
    """
    (out / "comparison.json").unlink(missing_ok=True)  # it was of other figures
    _write(out / "metrics.json", metrics)
    _write(out / "values.json", values)
    write_report_again(out)


def add_comparison(out: Path, other: Path) -> None:
    """Put the paired differences to the evaluation in ``other`` into the report in ``out``.

    Raises:
        DataError: they were not measured on the same windows.
    """
    from gamengen.evaluation.compare import compare, read_metrics, read_values

    found = compare(read_metrics(other), read_metrics(out), read_values(other), read_values(out))
    _write(out / "comparison.json", found)
    write_report_again(out)


def write_report_again(out: Path) -> None:
    """Write ``report.md`` from what lies in ``out``: the figures, a comparison and the raters' answers, if any.

    Raters who saw another model than that of the figures are left out.
    """
    from gamengen.evaluation.compare import read_metrics
    from gamengen.evaluation.plots import save_plots
    from gamengen.evaluation.report import write_report

    metrics = read_metrics(out)
    command = metrics.get("command") or command_line(metrics["checkpoint"], EvaluateOptions())
    comparison, answers = (_read(out / name) for name in ("comparison.json", "raters/summary.json"))
    if comparison is not None:
        metrics["comparison"] = comparison
        command += f" --compare {comparison['first']}"
    if answers is not None and answers["checkpoint_hash"] == short_hash(metrics.get("model", [])):
        metrics["raters"] = _rates(answers)
    pictures = [*save_plots(out, metrics), *((title, name) for title, name in PICTURES if (out / name).is_file())]
    write_report(out, metrics, pictures, [command])


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.is_file() else None


def _rates(summary: dict[str, Any]) -> dict[str, Any]:
    """How often all raters together took the real clip for real, by the clips' seconds."""
    return {
        f"{row['length']:g}": {"rate": row["rate"], "low": row["ci95"][0], "high": row["ci95"][1], "n": row["n"]}
        for row in summary["rows"]
        if row["rater"] is None
    }


def command_line(name: str, options: EvaluateOptions) -> str:
    """The command that gives these figures, with what is not the default."""
    words = ["gamengen evaluate", name, "--data RECORDING --out FOLDER"]
    for field in fields(options):
        value = getattr(options, field.name)
        if value != field.default:
            text = " ".join(value) if isinstance(value, tuple) else "FILE" if isinstance(value, Path) else str(value)
            words.append(f"--{field.name.replace('_', '-')} {text}")
    return " ".join(words)


def summarise(metrics: dict[str, Any]) -> dict[str, Any]:
    """The few figures that a command's summary shows."""
    found = {
        "autoencoder_psnr": metrics["autoencoder"]["psnr"],
        "copy_last_psnr": metrics["copy_last"]["psnr"],
        **{f"psnr_{steps}_steps": figure["psnr"] for steps, figure in metrics["teacher_forced"].items()},
    }
    drift, collapse, actions = (metrics.get(name) for name in ("drift", "collapse", "action_f1"))
    if drift is not None:
        found["free_play_psnr"] = {f"frames {part['from']}-{part['to']}": part["psnr"] for part in drift["segments"]}
    if collapse is not None:
        found["collapsed"] = f"{collapse['collapsed']} of {collapse['starts']} free plays"
    if actions is not None:
        found["action_f1"] = {which: actions[which]["mean"] for which in ("real", "neural")}
    return found


def _write(path: Path, data: dict[str, Any]) -> None:
    try:
        write_json(path, data)
    except OSError as error:
        raise DataError(f"cannot write the report ({error.strerror})", path, "free some space") from error
