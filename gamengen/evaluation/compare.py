"""Two checkpoints on the same windows: paired differences, which a common hard or easy scene does not blur."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from agents.errors import DataError
from gamengen.evaluation.intervals import ci95, rounded, rounded_list
from gamengen.evaluation.tables import number, signed, steps_label, table

PICTURES = ("autoencoder", "copy_last")
DIGITS = {"psnr": 3, "lpips": 4}
UNITS = {"psnr": "PSNR, dB", "lpips": "LPIPS"}
SEGMENT = 64  # frames, where the metrics name no segments
SAME_REAL_DB = 1e-3  # copying the last frame needs no model: on the same windows it gives the same figures
FLOAT_NOISE = 1e-9
REMEDY = "evaluate both with the same options on the same recording"


def read_metrics(path: Path) -> dict[str, Any]:
    """Read a ``metrics.json``; ``path`` is the file or its folder.

    Raises:
        DataError: it is missing, damaged, or something else.
    """
    path = path / "metrics.json" if path.is_dir() else path
    data = _read_json(path, "metrics")
    for name, kind in (("checkpoint", str), ("spec", str), ("episodes", int), ("frames", int)):
        if type(data.get(name)) is not kind:
            raise DataError(f"this is no metrics.json: {name} is missing or wrong", path, "name a folder of evaluate")
    try:
        steps = data["teacher_forced"] or {}
        for figure in (data["autoencoder"], data["copy_last"], *steps.values()):
            if figure is not None:
                _numbers([figure["psnr"], figure.get("pooled_psnr"), figure.get("lpips"), figure.get("ci95")])
        drift = data.get("drift")
        if drift is not None and len(_numbers(drift["psnr"])) != len(_numbers(drift["frames"])):
            raise ValueError("drift has as many frames as figures")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError("metrics.json is damaged", path, "evaluate the checkpoint again") from error
    return data


def read_values(path: Path) -> dict[str, Any]:
    """Read a ``values.json``, the figures of each window and free play; ``path`` is the file or its folder.

    Raises:
        DataError: it is missing, damaged, or something else.
    """
    path = path / "values.json" if path.is_dir() else path
    data = _read_json(path, "values")
    _check_values(data, path)
    return data


def compare(
    first: dict[str, Any], second: dict[str, Any], first_values: dict[str, Any], second_values: dict[str, Any]
) -> dict[str, Any]:
    """Differences second - first, each the mean of differences between the same windows.

    Intervals are 95 %, from the spread between the episodes' mean differences.

    Args:
        first: metrics of the one, the yardstick.
        second: metrics of the other.
        first_values: its figures: ``teacher_forced`` holds by picture (``autoencoder``, ``copy_last``, ``1``, ...)
            ``psnr`` and ``lpips`` (N,), or None; ``owners`` (N,) the episode of each window; ``drift`` (S, T) PSNR
            in dB of each start's frames, null where unknown; ``drift_owners`` (S,) the episode of each start.
        second_values: those of the other.

    Returns:
        ``first`` and ``second``, their names; ``spec``, ``windows``, ``episodes``; ``rows`` with ``measure``,
        ``unit``, ``first``, ``second``, ``difference``, ``ci95`` (null with one episode), ``clear`` of zero or not,
        ``favours`` (a name, or null while not clear); ``drift``: ``starts``, ``frames``, ``difference`` and ``ci95``
        (T,), or null where either has no free play.

    Raises:
        DataError: they were not measured on the same windows.
    """
    names = _names(first, second)
    where = " and ".join(names)
    for values, name in ((first_values, names[0]), (second_values, names[1])):
        _check_values(values, name)
    if first["spec"] != second["spec"]:
        raise DataError(f"they play different games: {first['spec']} and {second['spec']}", where, REMEDY)
    owners = np.asarray(first_values["owners"])
    if first_values["owners"] != second_values["owners"] or not _same_scenes(first_values, second_values):
        raise DataError("they were not evaluated on the same windows", where, REMEDY)

    row = _row_maker(names)
    ours, theirs = first_values["teacher_forced"], second_values["teacher_forced"]
    rows = [
        row(_label(picture), unit, ours[picture][unit], theirs[picture][unit], owners)
        for unit in UNITS
        for picture in sorted(ours.keys() & theirs.keys(), key=_order)
        if ours[picture].get(unit) is not None and theirs[picture].get(unit) is not None
    ]
    drift = None
    if first_values.get("drift") and second_values.get("drift"):
        curves = _curve(first_values["drift"]), _curve(second_values["drift"])
        starts = _drift_owners(first_values)
        if curves[0].shape != curves[1].shape or starts != _drift_owners(second_values):
            raise DataError("their free plays have other starts or lengths", where, REMEDY)
        for begin, end in _segments(first, curves[0].shape[1]):
            parts = [curve[:, begin - 1 : end] for curve in curves]
            known = ~np.isnan(parts[0] + parts[1])
            if known.any():
                repeated = np.repeat(np.asarray(starts)[:, None], end - begin + 1, axis=1)[known]
                label = f"free play, frames {begin}-{end}"
                rows.append(row(label, "psnr", parts[0][known], parts[1][known], repeated))
        drift = _drift(curves[1] - curves[0], starts)
    return {
        "first": names[0], "second": names[1], "spec": first["spec"], "windows": len(owners),
        "episodes": len(np.unique(owners)), "rows": rows, "drift": drift,
    }  # fmt: skip


def comparison_table(comparison: dict[str, Any]) -> str:
    """What :func:`compare` found as a Markdown table; bold differences are clear of zero."""
    rows = []
    for row in comparison["rows"]:
        digits = DIGITS[row["unit"]] - 1
        difference = signed(row["difference"], digits)
        if row["ci95"] is None:
            verdict = "unknown: one episode has no interval"
        else:
            difference += f" ± {number(row['ci95'], digits)}"
            verdict = f"yes, {row['favours']} is better" if row["clear"] else "no"
        difference = f"**{difference}**" if row["clear"] else difference
        sides = [number(row[side], digits) for side in ("first", "second")]
        rows.append([row["measure"], UNITS[row["unit"]], *sides, difference, verdict])
    head = ["measure", "unit", comparison["first"], comparison["second"], "difference", "clear of zero"]
    return "\n".join(table(head, rows))


def _row_maker(names: tuple[str, str]) -> Callable[..., dict[str, Any]]:
    def row(measure: str, unit: str, first: Any, second: Any, owners: np.ndarray) -> dict[str, Any]:
        before, after = np.asarray(first, float), np.asarray(second, float)
        differences = after - before
        mean, half = float(differences.mean()), ci95(differences, owners)
        clear = half is not None and abs(mean) > half + FLOAT_NOISE
        better = (mean > 0) == (unit == "psnr")
        digits = DIGITS[unit]
        return {
            "measure": measure, "unit": unit, "first": rounded(float(before.mean()), digits),
            "second": rounded(float(after.mean()), digits), "difference": rounded(mean, digits),
            "ci95": rounded(half, digits), "clear": clear,
            "favours": (names[1] if better else names[0]) if clear else None,
        }  # fmt: skip

    return row


def _drift(differences: np.ndarray, owners: Sequence[int]) -> dict[str, Any]:
    known = (~np.isnan(differences)).sum(axis=0)
    means = np.where(known > 0, np.nansum(differences, axis=0) / np.maximum(known, 1), np.nan)
    return {
        "starts": len(differences),
        "frames": list(range(1, differences.shape[1] + 1)),
        "difference": rounded_list(means, 3),
        "ci95": [rounded(ci95(column, owners)) for column in differences.T],
    }


def _segments(metrics: dict[str, Any], count: int) -> list[tuple[int, int]]:
    named = [(part["from"], part["to"]) for part in (metrics.get("drift") or {}).get("segments") or []]
    if named and named[-1][1] == count:
        return named
    return [(begin, min(begin + SEGMENT - 1, count)) for begin in range(1, count + 1, SEGMENT)]


def _same_scenes(first: dict[str, Any], second: dict[str, Any]) -> bool:
    sides = [values["teacher_forced"].get("copy_last") for values in (first, second)]
    if sides[0] is None or sides[1] is None:
        return True
    return bool(np.allclose(sides[0]["psnr"], sides[1]["psnr"], rtol=0, atol=SAME_REAL_DB))


def _names(first: dict[str, Any], second: dict[str, Any]) -> tuple[str, str]:
    names = first["checkpoint"], second["checkpoint"]
    return names if names[0] != names[1] else (f"{names[0]} (first)", f"{names[1]} (second)")


def _label(picture: str) -> str:
    if picture in PICTURES:
        return {"autoencoder": "autoencoder ceiling", "copy_last": "copy last frame"}[picture]
    return f"next frame, {steps_label(picture)}"


def _order(picture: str) -> tuple[int, int]:
    return (PICTURES.index(picture), 0) if picture in PICTURES else (len(PICTURES), int(picture))


def _drift_owners(values: dict[str, Any]) -> list[int]:
    """The episode of each start; where that is not told, each is taken for one of its own."""
    return list(values.get("drift_owners") or range(len(values["drift"])))


def _curve(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    return np.array([[np.nan if value is None else value for value in row] for row in rows], float)


def _check_values(values: Any, where: object) -> None:
    try:
        count = len(values["owners"])
        for picture, figures in values["teacher_forced"].items():
            _order(picture)
            for unit in UNITS:
                numbers = figures.get(unit)
                if numbers is not None and (len(_numbers(numbers)) != count or None in numbers):
                    raise ValueError(f"{unit} of {picture} is not of {count} windows")
        drift = values.get("drift") or []
        if len({len(_numbers(row)) for row in drift}) > 1 or len(values.get("drift_owners") or drift) != len(drift):
            raise ValueError("the free plays differ in length")
        if not count:
            raise ValueError("no windows")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError("the figures of each window are damaged", where, "evaluate the checkpoint again") from error


def _numbers(values: Any) -> list[float | None]:
    if not isinstance(values, list) or any(value is not None and type(value) not in (int, float) for value in values):
        raise ValueError("not a list of numbers")
    return values


def _read_json(path: Path, kind: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no number")

    try:
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except OSError as error:
        what = f"cannot read the {kind} ({(error.strerror or str(error)).lower()})"
        raise DataError(what, path, "make them with gamengen evaluate CHECKPOINT --out DIR") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{kind}.json is damaged", path, "evaluate the checkpoint again") from error
    if not isinstance(data, dict):
        raise DataError(f"this is no {kind}.json", path, "name a folder of gamengen evaluate")
    return data
