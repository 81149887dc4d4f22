"""The curves and bars of an evaluation as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recorder.pictures import save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS, DRIFT, SHARPNESS = "steps.png", "drift.png", "sharpness.png"
ACTION_F1, ACTION_SHIFT, COMPARISON = "action_f1.png", "action_shift.png", "comparison.png"

NEURAL, REAL, COPY, CEILING = "#1f5fa8", "#2b2b2b", "#d9822b", "#3a8f5c"
GRID, FAINT = "#dddddd", "#9a9a9a"
STYLE: dict[Any, Any] = {
    "figure.dpi": 120, "figure.facecolor": "white", "axes.facecolor": "white", "font.family": "DejaVu Sans",
    "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": FAINT, "axes.axisbelow": True,
    "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.6, "lines.linewidth": 1.6, "legend.frameon": False,
    "legend.fontsize": 9, "xtick.color": "#444444", "ytick.color": "#444444",
}  # fmt: skip


def save_plots(folder: Path, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Draw what ``metrics`` has figures for into ``folder``.

    Args:
        folder: where the PNG files go.
        metrics: by the schema of ``metrics.json``; what is null is skipped.

    Returns:
        (title, file name) of each plot.

    Raises:
        DataError: a file cannot be written.
    """
    drawn: list[tuple[str, str]] = []
    plots: tuple[tuple[str, str, Callable[[dict[str, Any]], Figure | None]], ...] = (
        ("Next frame from real frames, by sampling steps", STEPS, _steps),
        ("Free play: distance from the real game under the same actions", DRIFT, _drift),
        ("Sharpness in free play", SHARPNESS, _sharpness),
        ("Actions read back from frames", ACTION_F1, _action_f1),
        ("When an action shows", ACTION_SHIFT, _action_shift),
        ("Free play: difference between the checkpoints", COMPARISON, _comparison),
    )
    with _style():
        for title, name, draw in plots:
            figure = draw(metrics)
            if figure is not None:
                save_png(folder / name, _pixels(figure))
                drawn.append((title, name))
    return drawn


def _steps(metrics: dict[str, Any]) -> Figure | None:
    figures = {steps: figure for steps, figure in (metrics.get("teacher_forced") or {}).items() if figure}
    if not figures:
        return None
    figure = _figure(8.2, 3.6)
    panels = figure.subplots(1, 2, sharey=True)
    at = np.arange(len(figures))
    for axes, key, title in ((panels[0], "psnr", "Mean over frames"), (panels[1], "pooled_psnr", "Of the mean error")):
        values = _array([one.get(key) for one in figures.values()])
        errors = _array([one.get("ci95") if key == "psnr" else None for one in figures.values()])
        for name, label, colour in (
            ("autoencoder", "autoencoder ceiling", CEILING), ("copy_last", "copy last frame", COPY)
        ):  # fmt: skip
            level = (metrics.get(name) or {}).get(key)
            if level is not None:
                axes.axhline(level, color=colour, linestyle="--", label=label)
        axes.errorbar(at, values, yerr=np.nan_to_num(errors), color=NEURAL, marker="o", capsize=3, label="neural game")
        axes.set_title(title)
        axes.set_xticks(at, list(figures))
        axes.set_xlim(-0.4, len(figures) - 0.6)
        axes.set_xlabel("sampling steps")
        axes.grid(axis="x", visible=False)
        axes.margins(y=0.15)
    panels[0].set_ylabel("PSNR, dB")
    _legend_below(figure, panels[0])
    return figure


def _drift(metrics: dict[str, Any]) -> Figure | None:
    drift = metrics.get("drift")
    if not drift or not _known(drift.get("psnr")):
        return None
    frames, psnr = _array(drift["frames"]), _array(drift["psnr"])
    lpips = _array(drift.get("lpips") or [])
    both = bool(len(lpips)) and bool((~np.isnan(lpips)).any())
    figure = _figure(8.2, 5.6 if both else 3.9)
    ratios = [2, 1] if both else [1]
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    axes = panels[0]
    half = _array(drift.get("ci95") or [None] * len(frames))
    axes.fill_between(frames, psnr - half, psnr + half, color=NEURAL, alpha=0.18, linewidth=0, label="95 % interval")
    if _known(drift.get("still_psnr")):
        axes.plot(frames, _array(drift["still_psnr"]), color=COPY, label="start frame held still")
    axes.plot(frames, psnr, color=NEURAL, label="neural game")
    # Where two or three plays are left the interval is wider than the page.
    curves = np.concatenate([line.get_ydata() for line in axes.lines])
    axes.set_ylim(np.nanmin(curves) - 2, np.nanmax(curves) + 3)
    axes.set_ylabel("PSNR, dB")
    axes.set_title("Free play against the real game under the same actions", pad=8)
    _mark_segments(axes, drift.get("segments") or [], "psnr")
    first = [frame for frame in (metrics.get("collapse") or {}).get("first") or [] if frame is not None]
    if first:
        floor = axes.get_ylim()[0]
        axes.plot(
            first, [floor] * len(first), linestyle="", marker="^", color="#b3261e", clip_on=False, zorder=5,
            label="one play collapses",
        )  # fmt: skip
        axes.set_ylim(bottom=floor)
    if both:
        shown = ~np.isnan(lpips)
        panels[1].plot(frames[shown], lpips[shown], color=NEURAL, marker=".", markersize=4)
        panels[1].set_ylabel("LPIPS")
        panels[1].set_ylim(bottom=0)
    panels[-1].set_xlabel("frame of free play")
    panels[-1].set_xlim(0, frames[-1] + 1)
    _seconds(axes, metrics.get("fps"))
    _legend_below(figure, axes)
    return figure


def _sharpness(metrics: dict[str, Any]) -> Figure | None:
    plays = (("Under recorded actions", metrics.get("drift")), ("Without a key", metrics.get("no_action")))
    shown = [(title, play) for title, play in plays if play and _known(play.get("sharpness"))]
    if not shown:
        return None
    figure = _figure(4.1 * len(shown) + (0 if len(shown) > 1 else 2.2), 3.6)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (title, play) in zip(panels, shown, strict=True):
        frames = _array(play["frames"])
        if _known(play.get("real_sharpness")):
            axes.plot(frames, _array(play["real_sharpness"]), color=REAL, label="real game")
        axes.plot(frames, _array(play["sharpness"]), color=NEURAL, label="neural game")
        axes.set_title(title)
        axes.set_xlabel("frame of free play")
        axes.set_xlim(0, frames[-1] + 1)
        _mark_segments(axes, play.get("segments") or [], None)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("mean absolute Laplacian")
    _legend_below(figure, panels[0])
    return figure


def _action_f1(metrics: dict[str, Any]) -> Figure | None:
    found = metrics.get("action_f1")
    if not found or not found.get("neural"):
        return None
    real, neural = found.get("real") or {}, found["neural"]
    names = [name for name in neural if name != "mean"] + ["mean"] * ("mean" in neural)
    at = np.arange(len(names))
    figure = _figure(max(5.0, 0.95 * len(names) + 1.6), 3.6)
    axes = figure.subplots()
    for shift, values, colour, label in ((-0.2, real, REAL, "real frames"), (0.2, neural, NEURAL, "neural frames")):
        heights = _array([values.get(name) for name in names])
        axes.bar(at + shift, np.nan_to_num(heights), 0.38, color=colour, label=label)
        for x, height in zip(at + shift, heights, strict=True):
            text = "-" if np.isnan(height) else f"{height:.2f}"
            axes.annotate(text, (x, np.nan_to_num(height)), (0, 2), textcoords="offset points", ha="center", fontsize=8)
    if "mean" in neural and len(names) > 1:
        axes.axvline(len(names) - 1.5, color=FAINT, linewidth=0.8)
    axes.set_xticks(at, [name.replace("_", "\n").lower() for name in names], fontsize=8)
    axes.set_ylim(0, 1.08)
    axes.set_ylabel("F1")
    axes.set_title("Actions read back from frames")
    axes.grid(axis="x", visible=False)
    _legend_below(figure, axes)
    return figure


def _action_shift(metrics: dict[str, Any]) -> Figure | None:
    found = metrics.get("action_shift")
    if not found or not _known(found.get("neural")):
        return None
    offsets = _array(found["offsets"])
    figure = _figure(5.6, 3.6)
    axes = figure.subplots()
    for name, colour, label in (("real", REAL, "real frames"), ("neural", NEURAL, "neural frames")):
        if not _known(found.get(name)):
            continue
        values = _array(found[name])
        axes.plot(offsets, values, color=colour, marker="o", markersize=4, label=label)
        peak = offsets == found.get(f"{name}_peak")
        axes.plot(offsets[peak], values[peak], linestyle="", marker="o", markersize=11, markerfacecolor="none",
                  markeredgecolor=colour)  # fmt: skip
    axes.axvline(0, color=FAINT, linewidth=0.8, linestyle=":")
    axes.set_xticks(offsets, ["0" if offset == 0 else f"{offset:+.0f}" for offset in offsets])
    axes.set_xlabel("frames from the action held (-1: it shows a frame late)")
    axes.set_ylabel("mean F1")
    axes.set_title("When an action shows (circle: the peak)")
    axes.margins(y=0.15)
    _legend_below(figure, axes)
    return figure


def _comparison(metrics: dict[str, Any]) -> Figure | None:
    comparison = metrics.get("comparison") or {}
    drift = comparison.get("drift")
    if not drift or not _known(drift["difference"]):
        return None
    frames, values, half = (_array(drift[name]) for name in ("frames", "difference", "ci95"))
    figure = _figure(8.2, 3.6)
    axes = figure.subplots()
    axes.axhline(0, color=REAL, linewidth=0.9)
    axes.fill_between(
        frames, values - half, values + half, color=NEURAL, alpha=0.18, linewidth=0, label="95 % interval"
    )
    axes.plot(frames, values, color=NEURAL, label="paired difference")
    axes.set_title(f"{comparison['second']} minus {comparison['first']}")
    axes.set_xlabel("frame of free play")
    axes.set_ylabel("difference of PSNR, dB")
    axes.set_xlim(0, frames[-1] + 1)
    _legend_below(figure, axes)
    return figure


def _mark_segments(axes: Axes, segments: Sequence[dict[str, Any]], key: str | None) -> None:
    """A faint line where a segment begins, and its mean at the top."""
    for segment in segments:
        if segment["from"] > 1:
            axes.axvline(segment["from"] - 0.5, color=FAINT, linewidth=0.7, linestyle=":")
        value = segment.get(key) if key else None
        if value is not None:
            middle = (segment["from"] + segment["to"]) / 2
            axes.annotate(
                f"{value:.1f}", (middle, 0.97), xycoords=("data", "axes fraction"), ha="center", va="top", fontsize=8,
                color=NEURAL,
            )  # fmt: skip
    if key and segments:
        low, high = axes.get_ylim()
        axes.set_ylim(low, high + 0.12 * (high - low))


def _seconds(axes: Axes, fps: float | None) -> None:
    if not fps:
        return
    clock = float(fps)

    def seconds(frame: Any) -> Any:
        return np.asarray(frame) / clock

    def frames(second: Any) -> Any:
        return np.asarray(second) * clock

    top = axes.secondary_xaxis("top", functions=(seconds, frames))
    top.set_xlabel("seconds", fontsize=8, labelpad=2)
    top.tick_params(labelsize=8)


def _legend_below(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width, height), layout="constrained")


def _pixels(figure: Figure) -> np.ndarray:
    """The drawn figure (H, W, 3) uint8."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


@contextmanager
def _style() -> Iterator[None]:
    """The same look whatever the user's matplotlibrc says."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _array(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], float)


def _known(values: Any) -> bool:
    return bool(values) and any(value is not None for value in values)
