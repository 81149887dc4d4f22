"""``report.md``: what an evaluation found, beside copying the last frame and the figures of the GameNGen paper."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from agents.errors import DataError
from gamengen.evaluation import plots
from gamengen.evaluation.compare import comparison_table
from gamengen.evaluation.lpips import HOW_TO
from gamengen.evaluation.report_sections import PAPER_FVD, PAPER_RATERS, SECTIONS, Lines, Metrics, find_figure
from gamengen.evaluation.tables import MISSING, number, percent, steps_label, table, with_interval
from recorder.episodes import PARTIAL_SUFFIX

AFTER_SECONDS = 3  # of the paper's free play
# Valevski, Leviathan, Arar, Fruchter: Diffusion Models Are Real-Time Game Engines, arXiv 2408.14837.
PAPER_PSNR, PAPER_LPIPS, PAPER_FREE_PLAY = "29.43", "0.249", "19.0"
PAPER_STEPS = {"1": "25.47 (distilled: 31.10)", "2": "31.91", "4": "32.58"}

INTRODUCTION = """Every figure is of episodes that the model never saw in training. Read each beside *copy last frame*,
the picture before, repeated. Where nothing moves that is perfect, so a mean over frames flatters a model and a copy
alike; the PSNR of the mean squared error and the split by motion below do not. PSNR is in dB, and higher is better; of
LPIPS lower is."""

PAPER_NOTE = """The last column is of the GameNGen paper ([arXiv 2408.14837](https://arxiv.org/abs/2408.14837)). **Game,
agent, amount of data, network and protocol differ from ours**, so it says where the field stands and not which model is
better: PSNR depends above all on how much changes between two frames, which *copy last frame* and the ceiling show. The
ceiling is the decoder's picture of the real frame's own latent; for clips it is one half of the real ones against the
other half; for actions it is what is read back from real frames; for raters it is guessing. `-` is not measured, or not
reported by the paper."""

INTERVALS = """`±` is half of the 95 % interval of the mean. Frames of one episode resemble each other, so they do not
count as independent: a mean is taken of each episode, and the interval comes from the spread of these means (Student's
t, with one degree of freedom less than there are episodes). It tells how other episodes of the same game would move the
figure; it does not cover another training run. With one episode there is none. An agent's figures are over its games,
and a rate of the raters' answers has Wilson's interval. The same checkpoint, recording, options and seed give the same
figures on the same device."""

REASONS = {
    "lpips": HOW_TO,
    "regions": "where the HUD and the weapon are is known for Doom's pictures only",
    "long": "it takes as long as all the rest, so only `--measures` with `long` among them asks for it",
    "raters": "it takes people: `gamengen evaluate --raters`",
}
LEFT_OUT = "it was left out of this run"
TITLES = {"lpips": "LPIPS", "fvd": "FVD", "frechet": "Fréchet distance", "action_f1": "action F1"}


def write_report(folder: Path, metrics: Metrics, pictures: Sequence[tuple[str, str]], commands: Sequence[str]) -> Path:
    """Write ``report.md``, whole or not at all.

    Args:
        folder: where it goes, and where the pictures lie.
        metrics: by the schema of ``metrics.json``; what is null is reported as not measured, with the reason in
            ``not_measured``. ``comparison``, where there is one, is what
            :func:`gamengen.evaluation.compare.compare` found.
        pictures: (title, file name) of plots, contact sheets and videos. Plots stand in their sections.
        commands: what was run to make this report.

    Returns:
        The file.

    Raises:
        DataError: it cannot be written.
    """
    path = folder / "report.md"
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8") as file:
            file.write(report_text(metrics, pictures, commands))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        what = f"cannot write the report ({(error.strerror or str(error)).lower()})"
        raise DataError(what, path, "choose another --out, with space") from error
    return path


def report_text(metrics: Metrics, pictures: Sequence[tuple[str, str]], commands: Sequence[str]) -> str:
    """The Markdown of :func:`write_report`."""
    parts: list[Lines] = [[f"# Evaluation of {metrics['checkpoint']}"], _about(metrics), [INTRODUCTION]]
    parts += [["## Summary"], _in_short(metrics), _summary(metrics), [PAPER_NOTE]]
    placed: set[str] = set()
    if metrics.get("comparison"):
        parts += [["## Against another checkpoint"], *_comparison(metrics), _shown(pictures, (plots.COMPARISON,))]
        placed.add(plots.COMPARISON)
    missing = _not_measured(metrics)
    for section in SECTIONS:
        parts.append([f"## {section.title}"])
        if any(metrics.get(key) for key in section.keys):
            parts += [*section.write(metrics), _shown(pictures, section.plots)]
            placed.update(section.plots)
        else:
            reasons = [missing[key] for key in section.keys if key in missing]
            parts.append([f"Not measured: {reasons[0]}."])
    left = [(title, name) for title, name in pictures if name not in placed]
    if left:
        parts += [["## Pictures and videos"], _shown(left, [name for _, name in left])]
    parts += [["## How the intervals are made"], [INTERVALS], ["## What was not measured, and how to get it"]]
    parts.append(
        [f"- {TITLES.get(key) or key.replace('_', ' ')}: {why}" for key, why in missing.items()] or ["Nothing."]
    )
    if commands:
        parts += [["## How to make this report"], ["```", *commands, "```"]]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def _about(metrics: Metrics) -> Lines:
    speed = f" at {metrics['fps']:.4g} frames a second" if metrics.get("fps") else ""
    seed = f", seed {metrics['seed']}" if metrics.get("seed") is not None else ""
    text = f"A neural copy of `{metrics['spec']}`{speed}, measured on {metrics['frames']} windows of "
    return [f"{text}{metrics['episodes']} held-out episodes{seed}."]


def _in_short(metrics: Metrics) -> Lines:
    """The main findings in words, those that speak against the model too."""
    lines, steps = [], _own_steps(metrics)
    figure, copied, ceiling = (find_figure(metrics, key) or {} for key in (steps, "copy_last", "autoencoder"))
    for key, label in (("psnr", "mean over frames"), ("pooled_psnr", "of the mean squared error")):
        if figure.get(key) is None or copied.get(key) is None:
            continue
        text = f"- Next frame, {steps_label(steps)}, PSNR {label}: {number(figure[key])} dB, "
        text += f"{_beside(figure[key] - copied[key])} copying the last frame ({number(copied[key])})"
        if ceiling.get(key) is not None:
            text += f" and {_beside(figure[key] - ceiling[key])} the autoencoder's ceiling ({number(ceiling[key])})"
        lines.append(f"{text}.")
    frame, psnr, still = _after(metrics)
    if psnr is not None:
        beside = "" if still is None else f"; the start frame held still has {number(still)} dB"
        lines.append(f"- Free play after {AFTER_SECONDS} s (frame {frame}): {number(psnr)} dB{beside}.")
    collapse = metrics.get("collapse")
    if collapse:
        text = f"- {collapse['collapsed']} of {collapse['starts']} free plays collapse; the detector raises a false "
        lines.append(f"{text}alarm in {percent(collapse['false_alarm_rate'])} of real episodes.")
    neural, real = _mean_f1(metrics)
    if neural is not None and real is not None:
        lines.append(f"- Actions read back from its frames: F1 {number(neural, 3)}; from real ones {number(real, 3)}.")
    return lines


def _summary(metrics: Metrics) -> Lines:
    rows: list[Lines] = []

    def add(label: str, steps: str, key: str, digits: int, paper: str) -> None:
        sides = [find_figure(metrics, picture) for picture in (steps, "copy_last", "autoencoder")]
        rows.append([label, *(with_interval(side, key, digits) for side in sides), paper])

    own = _own_steps(metrics)
    label = f"next frame, its own {steps_label(own)}" if own else "next frame"
    add(f"{label}: PSNR", own, "psnr", 2, PAPER_PSNR)
    add(f"{label}: LPIPS", own, "lpips", 3, PAPER_LPIPS)
    add(f"{label}: SSIM", own, "ssim", 3, MISSING)
    for steps in dict.fromkeys([*PAPER_STEPS, *(metrics.get("teacher_forced") or {})]):
        add(f"next frame, {steps_label(steps)}: PSNR", steps, "psnr", 2, PAPER_STEPS.get(steps, MISSING))
    frame, psnr, still = _after(metrics)
    label = f"free play after {AFTER_SECONDS} s ({f'frame {frame}' if frame else 'not reached'}): PSNR"
    held = MISSING if still is None else f"{number(still)} (start held)"
    rows.append([label, number(psnr), held, MISSING, PAPER_FREE_PLAY])
    rows += _clips(metrics)
    collapse = metrics.get("collapse")
    if collapse:
        share = f"{collapse['collapsed']} of {collapse['starts']}"
        rows.append(["free plays that collapse", share, MISSING, MISSING, MISSING])
    neural, real = _mean_f1(metrics)
    rows.append(["actions read back: mean F1", number(neural, 3), MISSING, number(real, 3), MISSING])
    for seconds, paper in PAPER_RATERS.items():
        found = (metrics.get("raters") or {}).get(seconds)
        rate = percent(found["rate"]) if found else MISSING
        rows.append([f"raters who pick the real game, {seconds} s", rate, MISSING, "50 %", paper])
    return table(["measure", "this model", "copy last frame", "ceiling", "paper"], rows)


def _clips(metrics: Metrics) -> list[Lines]:
    found = metrics.get("frechet") or {}
    is_fvd = found.get("name", "fvd") == "fvd"
    rows = []
    for length, paper in PAPER_FVD.items():
        name = "FVD" if is_fvd else f"`{found['name']}` (not FVD)"
        sides = [number(found.get(length)), MISSING, number(found.get(f"real_halves_{length}"))]
        rows.append([f"{name}, clips of {length} frames", *sides, paper if is_fvd else f"not comparable (FVD {paper})"])
    return rows


def _comparison(metrics: Metrics) -> list[Lines]:
    found = metrics["comparison"]
    text = (
        f"On the same {found['windows']} windows of {found['episodes']} episodes. Differences are {found['second']} "
        f"minus {found['first']}, window by window, so that a scene which is hard for both does not blur them. Bold "
        "are those whose 95 % interval leaves out zero; one row of twenty would do so by chance."
    )
    return [[text], [comparison_table(found)]]


def _not_measured(metrics: Metrics) -> dict[str, str]:
    """Why each thing that is null was not measured."""
    found = {key: why.rstrip(".") for key, why in (metrics.get("not_measured") or {}).items()}
    figures = [figure for figure in (metrics.get("teacher_forced") or {}).values() if figure]
    if all(figure.get("lpips") is None for figure in figures):
        found.setdefault("lpips", REASONS["lpips"])
    for section in SECTIONS:
        if not any(metrics.get(key) for key in section.keys) and not any(key in found for key in section.keys):
            found[section.keys[0]] = REASONS.get(section.keys[0], LEFT_OUT)
    return found


def _shown(pictures: Sequence[tuple[str, str]], names: Iterable[str]) -> Lines:
    """Pictures in place, other files as a list of links."""
    wanted = set(names)
    chosen = [(title, name) for title, name in pictures if name in wanted]
    images = [f"![{title}]({quote(name)})\n" for title, name in chosen if name.endswith(".png")]
    links = [f"- [{title}]({quote(name)})" for title, name in chosen if not name.endswith(".png")]
    lines = [*images, *links]
    return [*lines[:-1], lines[-1].rstrip()] if lines else []


def _own_steps(metrics: Metrics) -> str:
    """The steps that the checkpoint plays with; else the most that were measured; "" where none were."""
    measured = [steps for steps, figure in (metrics.get("teacher_forced") or {}).items() if figure]
    own = str((metrics.get("drift") or {}).get("steps", ""))
    return own if own in measured else max(measured, key=int, default="")


def _after(metrics: Metrics) -> tuple[int | None, float | None, float | None]:
    """The frame after three seconds of free play, its PSNR, and that of the start held; None where not reached."""
    drift = metrics.get("drift")
    frame = round(AFTER_SECONDS * (metrics.get("fps") or 0))
    if not drift or frame not in drift["frames"]:
        return None, None, None
    at = drift["frames"].index(frame)
    still = drift.get("still_psnr")
    return frame, drift["psnr"][at], still[at] if still else None


def _mean_f1(metrics: Metrics) -> tuple[float | None, float | None]:
    neural, real = (((metrics.get("action_f1") or {}).get(side) or {}).get("mean") for side in ("neural", "real"))
    return neural, real


def _beside(difference: float) -> str:
    return f"{number(abs(difference))} dB {'below' if difference < 0 else 'above'}"
