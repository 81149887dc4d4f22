"""The report, its plots, and paired differences between two checkpoints: cases whose answer is known."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agents.errors import DataError
from gamengen.evaluation import plots
from gamengen.evaluation.compare import compare, comparison_table, read_metrics, read_values
from gamengen.evaluation.plots import save_plots
from gamengen.evaluation.report import write_report
from gamengen.evaluation.report_sections import SECTIONS

FRAMES = 128
WINDOWS, EPISODES = 12, 4
STEPS = ("1", "2", "4", "8")


def figure(psnr: float, lpips: float = 0.125) -> dict[str, float | None]:
    return {"psnr": psnr, "pooled_psnr": psnr - 1.5, "ssim": 0.875, "lpips": lpips, "ci95": 0.25}


def by_picture(psnr: float) -> dict[str, float]:
    return {"autoencoder": psnr + 2, "copy_last": psnr - 3.25, **dict.fromkeys(STEPS, psnr)}


def curve(begin: float, end: float) -> list[float]:
    return [round(float(value), 2) for value in np.linspace(begin, end, FRAMES)]


def full_metrics() -> dict[str, Any]:
    frames = list(range(1, FRAMES + 1))
    drift = {
        "steps": 4, "starts": 16, "frames": frames, "compared": [16] * 64 + [9] * 64, "psnr": curve(29, 22.5),
        "still_psnr": curve(27, 16), "sharpness": curve(9, 8), "real_sharpness": curve(9.25, 9.5),
        "lpips": [0.25 if frame % 8 == 1 else None for frame in frames], "ci95": curve(0.25, 1.25),
        "segments": [
            {"from": 1, "to": 64, "psnr": 27.13, "still_psnr": 23.17, "lpips": 0.211, "sharpness": 8.81,
             "real_sharpness": 9.31, "unusual": 0.0213, "real_unusual": 0.0237, "sights": 0.25,
             "real_sights": 0.5},
            {"from": 65, "to": 128, "psnr": 24.19, "still_psnr": 18.23, "lpips": 0.317, "sharpness": 8.37,
             "real_sharpness": 9.43, "unusual": 0.0117, "real_unusual": 0.0241, "sights": 0.125,
             "real_sights": None},
        ],
    }  # fmt: skip
    played = {"kills": {"mean": 4.25, "ci95": 0.75}, "survival_frames": {"mean": 301.5, "ci95": 20.5}}
    return {
        "checkpoint": "demo", "spec": "doom/defend_the_center", "episodes": 16, "frames": 256, "fps": 17.5, "seed": 0,
        "autoencoder": figure(31.97, 0.061), "copy_last": figure(30.01, 0.143),
        "teacher_forced": {steps: figure(28.5 + int(steps) / 4, 0.171) for steps in STEPS},
        "regions": {"hud": by_picture(33.25), "weapon": by_picture(30.5), "world": by_picture(27.75)},
        "motion": {
            "still": {"share": 0.37, **by_picture(36.5)}, "moving": {"share": 0.63, **by_picture(26.25)},
            "turning": {"share": 0.211, **by_picture(25.75)},
        },
        "rare": {"share": 0.023, "frames": 87, **by_picture(23.75)},
        "events": {"shot": {"frames": 31, **by_picture(27.25)}, "kill": {"frames": 9, **by_picture(26.75)}},
        "outcome": {
            "frames": 5871, "ends": 14, "reward_error": 0.011, "reward_error_zero": 0.037, "ends_auc": 0.953,
            "ends_expected": 0.87, "KILLCOUNT_auc": 0.991, "KILLCOUNT_expected": 1.03, "HEALTH_error": 0.517,
        },
        "drift": drift,
        "turns": {
            "spans": [
                {"from": 1, "to": 16, "turns": 131, "real": {"right_way": 0.91, "degrees": 6.25},
                 "neural": {"right_way": 0.437, "degrees": 1.75}},
            ],
        },
        "no_action": {
            "frames": frames, "psnr": [26.25] * FRAMES, "sharpness": [8.75] * FRAMES, "real_sharpness": [9.25] * FRAMES
        },
        "collapse": {
            "false_alarm_rate": 0.035, "starts": 16, "collapsed": 2, "first": [None] * 14 + [77, 101],
            "real_episodes": 24, "detector": "brightness beyond what real play shows",
        },
        "long": {
            "random": {
                "starts": 16, "frames": 2000, "collapsed": 1, "first": [None] * 15 + [1713], "false_alarm_rate": 0.0,
                "early": [51, 550], "late": [1501, 2000],
                "looks": {"sharpness": {"early": 14.125, "late": 13.0}, "unusual": {"early": 0.0, "late": 0.125}},
            },
            "cloned": {
                "starts": 16, "frames": 2000, "collapsed": None, "first": None, "false_alarm_rate": None,
                "early": [51, 550], "late": [1501, 2000], "looks": {"motion": {"early": 3.0, "late": None}},
            },
        },
        "action_f1": {
            "real": {"TURN_LEFT": 0.913, "TURN_RIGHT": 0.897, "ATTACK": 0.831, "mean": 0.881},
            "neural": {"TURN_LEFT": 0.853, "TURN_RIGHT": 0.847, "ATTACK": None, "mean": 0.709},
        },
        "action_shift": {
            "offsets": [-2, -1, 0, 1, 2], "real": [0.311, 0.523, 0.881, 0.519, 0.307],
            "neural": [0.313, 0.509, 0.711, 0.503, 0.299], "real_peak": 0, "neural_peak": 0,
        },
        "agent": {
            "agent": "ppo.zip", "seeds": 16, "frames": 350, "real": played, "neural": played,
            "real_true": {"kills": {"mean": 4.5, "ci95": None}, "ammo_used": None},
            "difference": {"kills": {"mean": 0.0, "ci95": 1.25}, "survival_frames": {"mean": -12.5, "ci95": 9.5}},
        },
        "frechet": {"name": "clip_frechet", "16": 41.25, "32": 63.75, "real_halves_16": 12.5, "real_halves_32": None,
                    "clips_16": {"real": 256, "neural": 250}},
        "return": {
            "there_and_back": {"frames": 48, "starts": 8, "psnr_neural": 24.25, "psnr_real": 33.75, "psnr_away": 15.25},
            "full_circle": {"frames": 59.5, "starts": 8, "psnr_neural": 19.25, "psnr_real": 31.25, "psnr_copy": 14.5},
        },
        "raters": {
            "1.6": {"rate": 0.71, "low": 0.61, "high": 0.793, "n": 100},
            "3.2": {"rate": 0.8, "low": 0.711, "high": 0.867, "n": 100},
        },
        "not_measured": {"fvd": "give the I3D network with --i3d FILE"},
    }  # fmt: skip


def made_values(psnr: float = 28.0, lpips: float | None = 0.25, frames: int = 70) -> dict[str, Any]:
    """Figures that differ from window to window, as real ones do."""
    rng = np.random.default_rng(0)
    scene = rng.uniform(-4, 4, WINDOWS)

    def part(mean: float) -> dict[str, Any]:
        return {"psnr": (mean + scene).tolist(), "lpips": None if lpips is None else [lpips] * WINDOWS}

    drift = (psnr + rng.uniform(-3, 3, (EPISODES, frames))).tolist()
    drift[-1][-5:] = [None] * 5
    return {
        "teacher_forced": {"autoencoder": part(32), "copy_last": part(27), "1": part(psnr - 1), "4": part(psnr)},
        "owners": [window % EPISODES for window in range(WINDOWS)],
        "drift": drift,
        "drift_owners": list(range(EPISODES)),
    }


def named(name: str, **changes: Any) -> dict[str, Any]:
    return {**full_metrics(), "checkpoint": name, **changes}


# --- paired differences


def test_identical_checkpoints_differ_by_nothing() -> None:
    found = compare(named("one"), named("one"), made_values(), made_values())
    assert (found["first"], found["second"]) == ("one (first)", "one (second)")
    assert (found["windows"], found["episodes"]) == (WINDOWS, EPISODES)
    assert {row["measure"] for row in found["rows"]} == {
        "autoencoder ceiling", "copy last frame", "next frame, 1 step", "next frame, 4 steps",
        "free play, frames 1-64", "free play, frames 65-70",
    }  # fmt: skip
    for row in found["rows"]:
        assert (row["difference"], row["ci95"], row["clear"], row["favours"]) == (0, 0, False, None)
    assert set(found["drift"]["difference"]) == {0.0}
    assert "+0.00 ± 0.00 | no" in comparison_table(found)


def test_a_constant_decibel_is_found_whatever_the_scenes() -> None:
    """The scenes' own spread of +-4 dB has no part in the interval of a paired difference."""
    found = compare(named("old"), named("new"), made_values(28), made_values(29))
    rows = {(row["measure"], row["unit"]): row for row in found["rows"]}
    for measure in ("next frame, 1 step", "next frame, 4 steps", "free play, frames 1-64", "free play, frames 65-70"):
        row = rows[measure, "psnr"]
        assert (row["difference"], row["ci95"], row["clear"], row["favours"]) == (1, 0, True, "new")
    assert rows["copy last frame", "psnr"]["difference"] == 0
    assert set(found["drift"]["difference"]) == {1.0}
    assert set(found["drift"]["ci95"]) == {0.0}
    assert "**+1.00 ± 0.00** | yes, new is better" in comparison_table(found)


def test_of_lpips_less_is_better() -> None:
    found = compare(named("old"), named("new"), made_values(lpips=0.25), made_values(lpips=0.375))
    row = next(row for row in found["rows"] if row["unit"] == "lpips" and "4 steps" in row["measure"])
    assert (row["difference"], row["favours"]) == (0.125, "old")
    without = compare(named("old"), named("new"), made_values(lpips=None), made_values())
    assert {row["unit"] for row in without["rows"]} == {"psnr"}


def test_the_interval_is_between_episodes_not_windows() -> None:
    """Mean differences 0, 1, 2 and 3 dB in four episodes: 1.5 +- 3.182 * 1.291 / 2."""
    first, second = made_values(), made_values()
    for window, owner in enumerate(second["owners"]):
        second["teacher_forced"]["4"]["psnr"][window] += owner
    row = next(row for row in compare(named("a"), named("b"), first, second)["rows"] if "4 steps" in row["measure"])
    assert row["difference"] == 1.5
    assert row["ci95"] == pytest.approx(2.054, abs=0.001)
    assert not row["clear"], "many windows of few episodes are no proof"


def test_one_episode_has_no_interval() -> None:
    first, second = made_values(28), made_values(29)
    for values in (first, second):
        values.update(owners=[7] * WINDOWS, drift=[], drift_owners=[])
    found = compare(named("a"), named("b"), first, second)
    assert found["drift"] is None
    assert {(row["ci95"], row["clear"]) for row in found["rows"]} == {(None, False)}
    assert "unknown: one episode" in comparison_table(found)


def test_other_windows_are_refused() -> None:
    first, metrics = made_values(), named("a")
    owners, scenes, drift, spec = (made_values() for _ in range(4))
    owners["owners"] = owners["owners"][::-1]
    scenes["teacher_forced"]["copy_last"]["psnr"][3] += 0.5  # copying needs no model: another real frame
    drift["drift"] = [row[:-1] for row in drift["drift"]]
    for second, other in (
        (owners, metrics), (scenes, metrics), (drift, metrics), (spec, named("b", spec="doom/basic"))
    ):  # fmt: skip
        with pytest.raises(DataError, match="same options") as caught:
            compare(metrics, other, first, second)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("broken", [{}, {"owners": []}, {"teacher_forced": 3}, {"drift": [[1.0], [2.0, 3.0]]}])
def test_damaged_values_are_refused(broken: dict[str, Any], tmp_path: Path) -> None:
    values = {**made_values(), **broken} if broken else {}
    with pytest.raises(DataError, match="damaged"):
        compare(named("a"), named("b"), made_values(), values)
    (tmp_path / "values.json").write_text(json.dumps(values))
    with pytest.raises(DataError, match="damaged"):
        read_values(tmp_path)


def test_values_come_back_from_disk(tmp_path: Path) -> None:
    (tmp_path / "values.json").write_text(json.dumps(made_values()))
    assert read_values(tmp_path) == read_values(tmp_path / "values.json") == made_values()


# --- metrics.json


def test_metrics_come_back_from_disk(tmp_path: Path) -> None:
    for metrics in (full_metrics(), empty_metrics()):
        (tmp_path / "metrics.json").write_text(json.dumps(metrics))
        assert read_metrics(tmp_path) == read_metrics(tmp_path / "metrics.json") == metrics


WRONG = ({"spec": 3}, {"autoencoder": {"psnr": "high"}}, {"teacher_forced": 4}, {"drift": {"frames": [1], "psnr": []}})
DAMAGED = (
    "", "nonsense", "[]", '"text"', "{}", '{"a": NaN}', "[" * 100_000,
    *(json.dumps({**full_metrics(), **wrong}) for wrong in WRONG),
    json.dumps({key: value for key, value in full_metrics().items() if key != "copy_last"}),
)  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_metrics_are_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text)
    with pytest.raises(DataError, match=re.escape(str(path))) as caught:
        read_metrics(path)
    assert "\n" not in str(caught.value)


def test_metrics_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(DataError, match="gamengen evaluate"):
            read_metrics(path)
    (tmp_path / "metrics.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="damaged"):
        read_metrics(tmp_path)


# --- the report


def empty_metrics() -> dict[str, Any]:
    """All that can be null is null."""
    metrics: dict[str, Any] = dict.fromkeys(full_metrics())
    kept = ("checkpoint", "spec", "episodes", "frames", "fps", "seed")
    return {**metrics, **{key: full_metrics()[key] for key in kept}, "regions": {}, "not_measured": {}}


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def report(folder: Path, metrics: dict[str, Any], pictures: list[tuple[str, str]] | None = None) -> str:
    path = write_report(folder, metrics, pictures or [], ["gamengen evaluate demo --record 6000 --out report"])
    assert path == folder / "report.md"
    assert [left.name for left in folder.glob("*.partial")] == []
    return path.read_text()


def test_all_sections_are_there(tmp_path: Path) -> None:
    text = report(tmp_path, full_metrics())
    for part in SECTIONS:
        assert "Not measured" not in section(text, part.title), part.title
        assert "| --- |" in section(text, part.title) or part.title == "Collapse"
    for paper in ("29.43", "0.249", "25.47", "31.10", "31.91", "32.58", "114", "186", "19.0", "58 %", "60 %"):
        assert paper in section(text, "Summary"), paper
    assert "not comparable (FVD 114)" in text
    assert "gamengen evaluate demo --record 6000 --out report" in section(text, "How to make this report")
    assert "--i3d FILE" in section(text, "What was not measured, and how to get it")
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1, table
    assert "None" not in text
    assert "nan" not in text.lower().split()


def numbers_in(text: str) -> set[float]:
    return {float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", text)}


def numbers_of(value: Any) -> Iterator[float]:
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from numbers_of(inner)
    if isinstance(value, (int, float)):
        yield float(value)


def test_the_numbers_are_those_of_the_metrics(tmp_path: Path) -> None:
    """What is in ``metrics`` is shown, and a section that derives nothing shows nothing else."""
    metrics = full_metrics()
    text = report(tmp_path, metrics)
    for title, keys, derives in (
        ("Next frame from real frames", ("autoencoder", "copy_last", "teacher_forced"), True),
        ("Regions of the picture", ("regions",), False),
        ("Still, moving and turning", ("motion",), False),
        ("What is rare", ("rare", "events"), False),
        ("Outcomes", ("outcome",), False),
        ("Actions", ("action_f1", "action_shift"), False),
        ("An agent in the loop", ("agent",), False),
        ("Fréchet distance of clips", ("frechet",), False),
        ("Coming back", ("return",), False),
        ("Human raters", ("raters",), True),
    ):
        shown = numbers_in(section(text, title))
        known = {number for key in keys for number in numbers_of(metrics[key])}
        percentages = {round(100 * number, 1) for number in known}
        assert all(shown & {number, round(100 * number, 1)} for number in known), title
        cells = [cell for line in section(text, title).splitlines() if line[:2] == "| " for cell in line.split("|")[2:]]
        labels = {1.0, 2.0, 4.0, 8.0, -2.0, -1.0}  # of columns
        assert derives or numbers_in(" ".join(cells)) <= known | percentages | labels, title
    for part in metrics["drift"]["segments"]:
        line = f"| {part['from']}-{part['to']} | {part['psnr']:.2f} | {part['still_psnr']:.2f} | {part['lpips']:.3f} | "
        assert line + f"{part['sharpness']:.2f} | {part['real_sharpness']:.2f} | {part['unusual']:.4f} |" in section(
            text, "Free play"
        )
    assert "| 1-64 | 26.25 | 8.75 | 9.25 |" in section(text, "Free play without a key")
    collapse = section(text, "Collapse")
    assert "2 of 16 free plays collapse" in collapse
    assert "3.5 % of 24 real episodes" in collapse
    assert "77, 101" in collapse
    assert "| survival, frames | 301.50 ± 20.50 | 301.50 ± 20.50 | -12.50 ± 9.50 | - |" in text
    row = "| next frame, its own 4 steps: PSNR | 29.50 ± 0.25 | 30.01 ± 0.25 | 31.97 ± 0.25 | 29.43 |"
    assert row in section(text, "Summary")
    assert "| 4 steps | 29.50 ± 0.25 | -0.51 | 28.00 | -0.51 | 0.875 | 0.171 |" in text


def test_the_summary_hides_nothing(tmp_path: Path) -> None:
    """A model that is worse than copying the last frame is told to be so, in words."""
    text = section(report(tmp_path, full_metrics()), "Summary")
    assert "29.50 dB, 0.51 dB below copying the last frame (30.01)" in text
    assert "2.47 dB below the autoencoder's ceiling (31.97)" in text
    at = round(3 * 17.5) - 1  # frame 52, of which the first has the number 1
    after, still = (full_metrics()["drift"][name][at] for name in ("psnr", "still_psnr"))
    assert f"Free play after 3 s (frame 52): {after:.2f} dB; the start frame held still has {still:.2f} dB" in text
    short = full_metrics()
    short["drift"].update({name: part[:40] for name, part in short["drift"].items() if isinstance(part, list)})
    assert "free play after 3 s (not reached): PSNR | - | - | - | 19.0 |" in report(tmp_path, short)


def test_what_is_null_is_not_measured(tmp_path: Path) -> None:
    reasons = {"agent": "no agent was given", "actions": "too few episodes", "lpips": "convert its weights"}
    text = report(tmp_path, {**empty_metrics(), "not_measured": reasons})
    for part in SECTIONS:
        assert "Not measured: " in section(text, part.title), part.title
    assert "Not measured: no agent was given." in section(text, "An agent in the loop")
    assert "Not measured: too few episodes." in section(text, "Actions")
    assert "gamengen evaluate --raters" in section(text, "Human raters")
    missing = section(text, "What was not measured, and how to get it")
    assert "- LPIPS: convert its weights" in missing
    assert missing.count("\n- ") == len(SECTIONS) + 1


def test_any_one_null_leaves_the_rest(tmp_path: Path) -> None:
    fixed = ("checkpoint", "spec", "episodes", "frames")
    for key in set(full_metrics()) - set(fixed):
        for metrics in ({**full_metrics(), key: None}, {k: v for k, v in full_metrics().items() if k != key}):
            assert "| --- |" in report(tmp_path, metrics), key
    nothing = full_metrics()
    for steps in STEPS:
        nothing["teacher_forced"][steps] = None
    assert "| 4 steps | - | - | - | - | - | - |" in report(tmp_path, nothing)


def test_the_shipped_metrics_of_the_first_release_can_be_reported(tmp_path: Path) -> None:
    """They have neither frames a second, nor sharpness, nor a reason for what is missing."""
    old = {key: full_metrics()[key] for key in ("checkpoint", "spec", "episodes", "frames")}
    bare = {"psnr": 29.0, "pooled_psnr": 28.0, "ssim": None, "lpips": None, "ci95": 0.4}
    drift = {"steps": 4, "frames": [1, 2], "psnr": [28.0, 27.5], "still_psnr": [27.0, 26.0]}
    old |= {"autoencoder": bare, "copy_last": bare, "teacher_forced": {"4": bare}, "drift": drift, "action_f1": None}
    text = report(tmp_path, old, save_plots(tmp_path, old))
    assert "gamengen lpips --sdist" in text
    assert "](drift.png)" in text


def test_fvd_alone_is_called_fvd(tmp_path: Path) -> None:
    metrics = full_metrics()
    metrics["frechet"]["name"] = "fvd"
    assert "| FVD, clips of 16 frames | 41.25 | - | 12.50 | 114 |" in report(tmp_path, metrics)
    assert "| 16 | 250 against 256 | 41.25 | 12.50 | 114 |" in report(tmp_path, metrics)
    assert "This is not FVD" in section(report(tmp_path, full_metrics()), "Fréchet distance of clips")


def test_a_shifted_action_is_told(tmp_path: Path) -> None:
    metrics = full_metrics()
    assert "at 0 in the real game and at 0 in the neural game: the same" in report(tmp_path, metrics)
    metrics["action_shift"]["neural_peak"] = -1
    assert "at 0 in the real game and at -1 in the neural game: **not the same**" in report(tmp_path, metrics)


def test_the_comparison_stands_in_the_report(tmp_path: Path) -> None:
    metrics = full_metrics()
    metrics["comparison"] = compare(named("old"), named("new"), made_values(28), made_values(29))
    text = report(tmp_path, metrics, save_plots(tmp_path, metrics))
    part = section(text, "Against another checkpoint")
    assert "Differences are new minus old" in part
    assert comparison_table(metrics["comparison"]) in part
    assert f"]({plots.COMPARISON})" in part


def test_pictures_stand_where_they_belong(tmp_path: Path) -> None:
    pictures = [("drift", plots.DRIFT), ("sheet", "contact sheet.png"), ("side by side", "rollout_0.mp4")]
    text = report(tmp_path, full_metrics(), pictures)
    assert f"![drift]({plots.DRIFT})" in section(text, "Free play")
    rest = section(text, "Pictures and videos")
    assert "![sheet](contact%20sheet.png)" in rest
    assert "- [side by side](rollout_0.mp4)" in rest
    unplaced = report(tmp_path, {**full_metrics(), "drift": None}, pictures)
    assert f"]({plots.DRIFT})" in section(unplaced, "Pictures and videos")


def test_a_report_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(tmp_path / "file", full_metrics(), [], [])
    (tmp_path / "report.md").mkdir()
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(tmp_path, full_metrics(), [], [])
    assert not list(tmp_path.glob("*.partial"))


# --- plots


def test_every_plot_is_drawn_and_stands_in_the_report(tmp_path: Path) -> None:
    metrics = full_metrics()
    before = copy.deepcopy(metrics)
    drawn = save_plots(tmp_path, metrics)
    assert [name for _, name in drawn] == [
        plots.STEPS, plots.DRIFT, plots.SHARPNESS, plots.ACTION_F1, plots.ACTION_SHIFT
    ]  # fmt: skip
    assert metrics == before
    text = report(tmp_path, metrics, drawn)
    for title, name in drawn:
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
            assert np.asarray(picture.convert("L")).min() < 60, "something is drawn"
        assert f"![{title}]({name})" in text
    assert "## Pictures and videos" not in text


def test_nulls_are_not_drawn(tmp_path: Path) -> None:
    assert save_plots(tmp_path, empty_metrics()) == []
    gaps = full_metrics()
    gaps["drift"]["psnr"][-9:] = gaps["drift"]["ci95"][-9:] = [None] * 9
    gaps["drift"]["lpips"] = gaps["collapse"] = gaps["no_action"] = gaps["copy_last"] = None
    gaps["teacher_forced"]["8"] = gaps["action_f1"]["real"] = gaps["action_shift"]["real"] = None
    assert len(save_plots(tmp_path, gaps)) == 5


def test_plots_leave_matplotlib_as_it_was(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    save_plots(tmp_path, {"teacher_forced": {"4": figure(29)}})
    assert dict(matplotlib.rcParams) == before
