"""Put evaluations of shipped checkpoints into the documentation: ``python docs/make_report.py FOLDER ...``.

Each FOLDER is what ``gamengen evaluate`` wrote of one of them. The report goes to ``docs/report/NAME`` and the figures
to the checkpoint's ``metrics.json`` and model card. The README's table and, of the default checkpoint, that of
``docs/paper.md`` are written anew, so that all of them say the same; without a FOLDER that is all that is done.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from gamengen.checkpoints import DEFAULT_CHECKPOINT, SHIPPED, read_config, shipped_checkpoints
from gamengen.evaluation.tables import steps_label
from gamengen.model_card import write_card
from recorder.recording import write_json

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "report"
STEPS = ("1", "2", "4")
SHEETS = ("teacher_forced.png", "rollout.png")
QUALITY = 70  # of WebP
PAPER_STEPS = {"1": "25.47 (distilled 31.10)", "2": "31.91", "4": "32.58"}


def main() -> None:
    """Copy the reports, then write the figures wherever they are told."""
    for folder in map(Path, sys.argv[1:]):
        copy_report(folder)
    write_block(ROOT / "README.md", readme_figures())
    write_block(ROOT / "docs" / "paper.md", paper_figures())


def copy_report(source: Path) -> None:
    """Copy what ``gamengen evaluate`` wrote to ``docs/report`` and to the checkpoint that it is of."""
    metrics = json.loads((source / "metrics.json").read_text())
    name = metrics["checkpoint"]
    target, weights = REPORT / name, SHIPPED / name
    assert (weights / "config.json").is_file(), f"{name} is not shipped"
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix == ".png" or path.name == "metrics.json":
            shutil.copy(path, target / path.name)
    # The videos are megabytes each: whoever wants them runs the command.
    lines = [line for line in (source / "report.md").read_text().splitlines() if ".mp4" not in line]
    text = "\n".join(lines) + "\n"
    for sheet in SHEETS:
        text = text.replace(sheet, sheet.replace(".png", ".webp"))
    (target / "report.md").write_text(text)
    for sheet in SHEETS:  # half the size is enough for a page
        small = Image.open(source / sheet).convert("RGB").reduce(2)
        small.save((target / sheet).with_suffix(".webp"), quality=QUALITY, method=6)
        (target / sheet).unlink()
    write_json(weights / "metrics.json", metrics)
    (weights / "README.md").write_text(write_card(read_config(weights), metrics))


def read_metrics(name: str = DEFAULT_CHECKPOINT) -> dict[str, Any]:
    """The figures of ``docs/report/NAME``."""
    return json.loads((REPORT / name / "metrics.json").read_text())


def newest_benchmark(name: str = DEFAULT_CHECKPOINT) -> dict[str, Any]:
    """The newest file of ``benchmarks`` whose rows are of the checkpoint ``name`` on a CPU."""
    found = [json.loads(path.read_text()) for path in sorted((ROOT / "benchmarks").glob("*cores*.json"))]
    for bench in reversed(found):
        rows = [row for row in bench["rows"] if row.get("checkpoint") == name]
        if rows:
            return {**bench, "rows": rows}
    raise SystemExit(f"benchmarks holds none of {name}: gamengen bench {name} --json benchmarks/DATE-HARDWARE.json")


def quickest(bench: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """For one player, by number of steps, the row of the number format and mode that is quickest."""
    best: dict[str, dict[str, Any]] = {}
    for row in bench["rows"]:
        steps = str(row["steps"])
        if row["batch"] == 1 and row["fps"] > best.get(steps, {"fps": 0.0})["fps"]:
            best[steps] = row
    return best


def readme_figures() -> str:
    """The README's tables: each shipped checkpoint's, the default one first."""
    others = [name for name in shipped_checkpoints() if name != DEFAULT_CHECKPOINT]
    return "\n\n".join(checkpoint_figures(name) for name in (DEFAULT_CHECKPOINT, *others))


def checkpoint_figures(name: str) -> str:
    """The table and the figures beside it of one shipped checkpoint."""
    metrics, rows, config = read_metrics(name), quickest(newest_benchmark(name)), read_config(SHIPPED / name)
    forced = metrics["teacher_forced"]

    def line(label: str, values: list[str]) -> str:
        return f"| {label} | " + " | ".join(values) + " |"

    own = str(metrics["drift"]["steps"])
    heads = [f"{steps_label(steps)}{' (default)' * (steps == own)}" for steps in STEPS]
    lines = [
        f"**`{name}`**{', the default' * (name == DEFAULT_CHECKPOINT)} (`{config.spec}`, preset `{config.preset}`):",
        "",
        f"| | {' | '.join(heads)} |",
        "| --- | --- | --- | --- |",
        line("frames a second, decoder and conversion to uint8 included", [f"{rows[s]['fps']:.1f}" for s in STEPS]),
        line("p50 / p99 of a frame, ms", [f"{rows[s]['p50_ms']:.1f} / {rows[s]['p99_ms']:.1f}" for s in STEPS]),
        line("next frame from real context, PSNR dB, mean over frames", [f"{forced[s]['psnr']:.2f}" for s in STEPS]),
        line("the same, of the mean squared error", [f"{forced[s]['pooled_psnr']:.2f}" for s in STEPS]),
        line("SSIM", [f"{forced[s]['ssim']:.3f}" for s in STEPS]),
        line("LPIPS (AlexNet)", [_or_dash(forced[s]["lpips"]) for s in STEPS]),
    ]
    ceiling, copied, drift = metrics["autoencoder"], metrics["copy_last"], metrics["drift"]
    marks = [frame for frame in (1, 16, 64, 256) if frame <= len(drift["psnr"]) and drift["psnr"][frame - 1]]
    points = ", ".join(f"{drift['psnr'][frame - 1]:.2f} dB after {frame}" for frame in marks)
    text = f"""
Beside them: the autoencoder's ceiling is {ceiling["psnr"]:.2f} dB ({ceiling["pooled_psnr"]:.2f} of the mean error),
and copying the last frame gives {copied["psnr"]:.2f} dB ({copied["pooled_psnr"]:.2f}): perfect where nothing moves,
poor where the player turns, so the mean over frames flatters it.
{_motion(metrics)}

Free play under recorded actions: {points} frames. The full report: [{name}](docs/report/{name}/report.md)."""
    return "\n".join(lines) + "\n" + text


def paper_figures() -> str:
    """The table of ``docs/paper.md``, of the default checkpoint."""
    metrics, bench = read_metrics(), newest_benchmark()
    forced, drift = metrics["teacher_forced"], metrics["drift"]
    own = str(drift["steps"])
    stages: list[str] = []
    training = read_config(SHIPPED / DEFAULT_CHECKPOINT).training
    while training:  # and of what it began from
        stages += training.get("minutes", {})
        training = training.get("init_training") or {}
    made = ("student", "perceptual", "matched")  # each makes a model for one step
    distilled = "distilled" if any(stage.startswith(made) for stage in stages) else "not distilled"
    fps = {steps: row["fps"] for steps, row in quickest(bench).items()}
    after = round(3 * metrics["fps"])
    free = drift["psnr"][after - 1] if len(drift["psnr"]) >= after else None
    frechet = metrics.get("frechet") or {}
    fvd = [_or_dash(frechet.get(length) if frechet.get("name") == "fvd" else None, 0) for length in ("16", "32")]
    evaluate, bench_command = "`gamengen evaluate`", "`gamengen bench`"
    rows = [
        (f"teacher-forced PSNR, dB (ours: {steps_label(own)})", "29.43", f"{forced[own]['psnr']:.2f}", evaluate),
        ("teacher-forced LPIPS", "0.249", _or_dash(forced[own]["lpips"]), f"{evaluate} `--lpips-weights FILE`"),
        *(
            (f"PSNR, dB, sampling steps: {steps}", theirs, f"{forced[steps]['psnr']:.2f}", evaluate)
            for steps, theirs in PAPER_STEPS.items()
        ),
        ("PSNR after 3 s of free play, dB", "19.0", _or_dash(free, 2), evaluate),
        ("FVD of 16 / 32 frames", "114 / 186", " / ".join(fvd), f"{evaluate} `--i3d FILE`"),
        ("raters take the real clip for real, 1.6 s / 3.2 s", "58 % / 60 %", "- / -", f"{evaluate} `--raters NAME`"),
        ("frames a second, 4 steps", "20 (one TPU-v5)", f"{fps['4']:.1f} (two CPU cores)", bench_command),
        (
            "frames a second, 1 step",
            "50 (distilled, one TPU-v5)",
            f"{fps['1']:.1f} (two CPU cores, {distilled})",
            bench_command,
        ),
    ]
    lines = ["| | the paper | here | command |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows), "", "A dash is what was not measured."])


def write_block(path: Path, text: str) -> None:
    """Replace what stands between the two marks of figures in ``path``."""
    path.write_text(re.sub(BLOCK, lambda found: f"{found[1]}\n{text}\n{found[3]}", path.read_text(), flags=re.DOTALL))


def read_block(path: Path) -> str:
    """What stands between the two marks of figures in ``path``."""
    found = re.search(BLOCK, path.read_text(), flags=re.DOTALL)
    assert found, f"{path.name} has no marks of figures"
    return found[2].strip()


BLOCK = r"(<!-- figures[^>]*-->)(.*?)(<!-- end of figures -->)"


def _motion(metrics: dict[str, Any]) -> str:
    own = str(metrics["drift"]["steps"])
    parts = [
        f"{kind} frames ({part['share']:.0%} of them) {part[own]:.2f} dB against {part['copy_last']:.2f}"
        for kind, part in metrics["motion"].items()
    ]
    rare = metrics.get("rare") or {}
    if own in rare:
        parts.append(f"what is unusual, such as monsters, {rare[own]:.2f} dB against {rare['copy_last']:.2f}")
    return f"At {steps_label(own)} against copying: {', '.join(parts)}."


def _or_dash(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


if __name__ == "__main__":
    main()
