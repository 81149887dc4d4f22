"""Evaluation: known answers, the schema of metrics.json, and which episodes count as unseen."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gamengen.evaluation.drift
import gamengen.evaluation.evaluate
import gamengen.evaluation.frechet
import gamengen.evaluation.teacher_forced
from agents.actions import ActionSet
from agents.errors import DataError, OptionError
from gamengen.checkpoints import Checkpoint
from gamengen.cli import main
from gamengen.evaluation.evaluate import evaluate_checkpoint
from gamengen.evaluation.options import MEASURES, ON_DEMAND, QUICK, EvaluateOptions
from gamengen.evaluation.results import add_comparison, write_report_again
from gamengen.evaluation.subject import short_hash
from gamengen.evaluation.windows import seen_episodes, unseen_episodes
from gamengen.model_card import write_card
from recorder.recording import Recording

SMALL = EvaluateOptions(windows=6, rollouts=2, rollout_frames=3, measures=QUICK)
UNSEEN = {"seed": 1000, "height": 48, "width": 80}
Make = Callable[..., Recording]


@pytest.fixture
def checkpoint(made_up: Callable[..., Checkpoint]) -> Checkpoint:
    return made_up()


@pytest.fixture
def recording(tmp_path: Path, make_recording: Make) -> Recording:
    return make_recording(tmp_path / "data", **UNSEEN)


def test_schema(checkpoint: Checkpoint, recording: Recording, tmp_path: Path) -> None:
    metrics = evaluate_checkpoint(checkpoint, recording, tmp_path / "out" / "deep", SMALL, "cpu")
    assert json.loads((tmp_path / "out" / "deep" / "metrics.json").read_text()) == metrics
    assert (metrics["checkpoint"], metrics["spec"]) == ("made-up", "gym/stripes")
    assert (metrics["episodes"], metrics["frames"]) == (3, 6)
    assert list(metrics["teacher_forced"]) == ["1", "2", "4", "8"]
    for figure in (metrics["autoencoder"], metrics["copy_last"], *metrics["teacher_forced"].values()):
        assert set(figure) == {"psnr", "pooled_psnr", "ssim", "lpips", "ci95"}
        assert 0 < figure["psnr"] <= 60
        assert figure["ci95"] >= 0
        assert -1 <= figure["ssim"] <= 1
        assert figure["lpips"] is None
    assert "lpips.safetensors" in metrics["not_measured"]["lpips"]
    assert metrics["drift"]["frames"] == [1, 2, 3]
    assert metrics["drift"]["steps"] == checkpoint.config.sampler.steps
    assert len(metrics["drift"]["psnr"]) == len(metrics["drift"]["still_psnr"]) == 3
    assert metrics["action_f1"] is None
    for name in ("teacher_forced.png", "rollout.png"):
        assert (tmp_path / "out" / "deep" / name).stat().st_size > 500
    card = write_card(checkpoint.config, metrics)
    for text in ("# made-up", "48", "teacher-forced, 1 step |", "gamengen play --checkpoint made-up"):
        assert text in card


def test_measures_that_are_asked_for_later(checkpoint: Checkpoint, recording: Recording, tmp_path: Path) -> None:
    """What was measured of free play without a judge does not serve where one is asked for."""
    out = tmp_path / "out"
    for measures in (("drift",), ("drift", "actions"), ("drift",)):
        options = EvaluateOptions(6, 2, 8, measures, judge_steps=2)
        metrics = evaluate_checkpoint(checkpoint, recording, out, options, "cpu")
        assert (metrics["action_f1"] is not None) == ("actions" in measures)
        alone = evaluate_checkpoint(checkpoint, recording, None, options, "cpu")
        assert metrics["drift"] == alone["drift"]
        assert metrics["episodes"] == alone["episodes"]


def test_clips_of_one_length_are_enough(
    checkpoint: Checkpoint, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where those of 32 frames are too few, those of 16 count all the same."""
    told = {"16": 1.5, "32": None}

    def report(real: Any, neural: Any, length: int) -> dict[str, Any]:
        if told[str(length)] is None:
            raise DataError(f"too few clips of {length}", "here", "more")
        return {str(length): told[str(length)]}

    monkeypatch.setattr(gamengen.evaluation.frechet, "frechet_report", report)
    found = gamengen.evaluation.evaluate._Evaluation(checkpoint, recording, None, SMALL, "cpu")
    found._plays = {f"{which}_clips_{length}": torch.ones(3) for which in ("real", "neural") for length in (16, 32)}
    assert found._frechet("ours") == {"name": "ours", "16": 1.5}
    assert "too few clips of 32" in found._not_measured["frechet, clips of 32 frames"]
    told["16"] = None
    with pytest.raises(DataError, match="too few clips of 16"):
        found._frechet("ours")


def test_another_file_of_the_same_name(checkpoint: Checkpoint, recording: Recording, tmp_path: Path) -> None:
    keys = []
    for content in (b"one agent", b"another", b"another"):
        (tmp_path / "agent").write_bytes(content)
        options = EvaluateOptions(6, 2, 3, QUICK, agent=str(tmp_path / "agent"))
        evaluate_checkpoint(checkpoint, recording, tmp_path / "out", options, "cpu")
        keys.append((tmp_path / "out" / "parts" / "key.json").read_text())
    assert keys[0] != keys[1] == keys[2]


def test_the_report_written_again_tells_its_own_command(
    checkpoint: Checkpoint, recording: Recording, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    metrics = evaluate_checkpoint(checkpoint, recording, out, SMALL, "cpu")
    said = "gamengen evaluate made-up --data RECORDING --out FOLDER --windows 6"
    assert metrics["command"].startswith(said)
    (out / "raters").mkdir()
    row = {"rater": None, "length": 1.6, "rate": 0.71, "ci95": [0.6, 0.8], "n": 20}
    for model, shown in ((metrics["model"], True), (["another"], False)):
        summary = {"checkpoint_hash": short_hash(model), "rows": [row]}
        (out / "raters" / "summary.json").write_text(json.dumps(summary))
        write_report_again(out)
        report = (out / "report.md").read_text()
        assert said in report
        assert ("71" in report.split("raters", 1)[-1]) == shown
    add_comparison(out, out)
    assert f"{metrics['command']} --compare made-up" in (out / "report.md").read_text()


def test_the_same_seed_gives_the_same_figures(checkpoint: Checkpoint, recording: Recording) -> None:
    first, again = (evaluate_checkpoint(checkpoint, recording, None, SMALL, "cpu") for _ in range(2))
    assert first == again
    other = evaluate_checkpoint(checkpoint, recording, None, EvaluateOptions(6, 2, 3, QUICK, seed=1), "cpu")
    assert other["teacher_forced"] != first["teacher_forced"]
    assert other["copy_last"] == first["copy_last"]


@pytest.fixture
def still_life(recording: Recording, monkeypatch: pytest.MonkeyPatch) -> Recording:
    """A recording in which nothing ever moves."""
    read = gamengen.evaluation.drift.read_episode

    def read_still(*arguments: Any) -> Any:
        episode = read(*arguments)
        episode.frames[:] = read(arguments[0], 0, 1).frames
        return episode

    for module in (gamengen.evaluation.drift, gamengen.evaluation.teacher_forced):
        monkeypatch.setattr(module, "read_episode", read_still)
    return recording


def test_where_nothing_moves_copying_is_perfect(checkpoint: Checkpoint, still_life: Recording) -> None:
    metrics = evaluate_checkpoint(checkpoint, still_life, None, SMALL, "cpu")
    assert metrics["copy_last"]["psnr"] == 60
    assert metrics["copy_last"]["ci95"] == 0
    assert metrics["drift"]["still_psnr"] == [60, 60, 60]
    assert metrics["autoencoder"]["psnr"] < 60


def test_a_model_that_copies_reaches_the_ceiling(checkpoint: Checkpoint, still_life: Recording) -> None:
    """Where nothing moves, the best next latent is the newest one; then only the autoencoder is in the way."""
    with torch.no_grad():
        for parameter in checkpoint.denoiser.parameters():
            parameter.zero_()
        compensation = checkpoint.autoencoder.compensation
        assert compensation is not None
        for parameter in compensation.parameters():
            parameter.zero_()
        assert compensation.masks_last.bias is not None
        compensation.masks_last.bias.fill_(-100)  # what an untrained decoder copies is not the ceiling
    metrics = evaluate_checkpoint(checkpoint, still_life, None, SMALL, "cpu")
    ceiling = metrics["autoencoder"]["psnr"]
    for figure in metrics["teacher_forced"].values():
        assert figure["psnr"] == pytest.approx(ceiling, abs=0.1)
    assert metrics["drift"]["psnr"] == pytest.approx([ceiling] * 3, abs=0.3)


# --- which episodes ---


@pytest.mark.parametrize(
    ("seed", "episodes", "expected"),
    [
        (0, 12, [0, 10]),  # the recording that it was trained on: what was held out
        (1000, 3, [1000, 1001, 1002]),  # all new
        (5, 20, [10, 20]),  # recorded anew, with seeds that overlap
        (95, 8, [100, 101, 102]),  # some seen, some new
    ],
)
def test_unseen_episodes(
    seed: int, episodes: int, expected: list[int], checkpoint: Checkpoint, make_recording: Make, tmp_path: Path
) -> None:
    recording = make_recording(tmp_path / "data", [1] * episodes, seed=seed)
    assert [info.seed for info in unseen_episodes(recording, checkpoint)] == expected


def test_of_two_checkpoints_what_neither_has_seen(
    checkpoint: Checkpoint, made_up: Callable[..., Checkpoint], make_recording: Make, tmp_path: Path
) -> None:
    recording = make_recording(tmp_path / "data", [1] * 12, seed=95)
    other = made_up(data={"seeds": [101, 104], "seed": 91})
    assert [info.seed for info in unseen_episodes(recording, checkpoint, other)] == [100, 101, 105, 106]
    assert [info.seed for info in seen_episodes(recording, checkpoint, other)] == [95, 96, 97, 98, 99, 102, 103, 104]
    with pytest.raises(DataError, match="one or the other checkpoint was trained on all"):
        unseen_episodes(make_recording(tmp_path / "more", [1, 1], seed=51), checkpoint, other)


def test_nothing_unseen(checkpoint: Checkpoint, make_recording: Make, tmp_path: Path) -> None:
    recording = make_recording(tmp_path / "data", [1, 1, 1], seed=51)
    with pytest.raises(DataError, match="trained on all of these episodes"):
        unseen_episodes(recording, checkpoint)


def test_a_checkpoint_that_does_not_tell_its_seeds(
    made_up: Callable[..., Checkpoint], make_recording: Make, tmp_path: Path
) -> None:
    recording = make_recording(tmp_path / "data", [1, 1, 1])
    assert len(unseen_episodes(recording, made_up(data={}))) == 3


# --- what cannot be evaluated ---


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"spec": "gym/other"}, "spec"),
        ({"action_set": ActionSet(("RIGHT", "LEFT"))}, "action_set"),
        ({"height": 64}, "height"),
        ({"width": 96}, "width"),
        ({"frame_skip": 2}, "frame_skip"),
    ],
)
def test_another_games_recording(
    changes: dict[str, Any], name: str, checkpoint: Checkpoint, make_recording: Make, tmp_path: Path
) -> None:
    recording = make_recording(tmp_path / "data", **{**UNSEEN, **changes})
    with pytest.raises(DataError, match=f"the recording's {name} is ") as caught:
        evaluate_checkpoint(checkpoint, recording, None, SMALL, "cpu")
    assert caught.value.where == str(tmp_path / "data")


def test_episodes_too_short(made_up: Callable[..., Checkpoint], make_recording: Make, tmp_path: Path) -> None:
    recording = make_recording(tmp_path / "data", [4, 3], **UNSEEN)
    with pytest.raises(DataError, match="no held-out episode has 5 frames"):
        evaluate_checkpoint(made_up(), recording, None, SMALL, "cpu")


def test_free_play_outlasts_the_episode(checkpoint: Checkpoint, recording: Recording) -> None:
    """Then there is nothing to compare with, and that is said."""
    options = EvaluateOptions(2, 2, 14, QUICK)
    drift = evaluate_checkpoint(checkpoint, recording, None, options, "cpu")["drift"]
    assert len(drift["psnr"]) == len(drift["sharpness"]) == 14
    assert drift["compared"][0] == 2
    assert drift["compared"][-1] == 0, "the longest episode has 14 frames, of which 4 are the start"
    assert drift["psnr"][-1] is None
    assert drift["sharpness"][-1] > 0


@pytest.mark.parametrize("name", ["windows", "rollouts", "rollout_frames"])
def test_options_out_of_range(name: str) -> None:
    flag = "--" + name.replace("_", "-")
    for value in (0, -1):
        with pytest.raises(OptionError, match=f"must be at least 1, got {value} ; {flag}"):
            EvaluateOptions(**{name: value})
    with pytest.raises(OptionError, match="--seed"):
        EvaluateOptions(seed=-1)


def test_a_report_that_cannot_be_written_is_told_at_once(
    checkpoint: Checkpoint, recording: Recording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(gamengen.evaluation.evaluate, "measure_windows", None)  # not even begun
    with pytest.raises(DataError, match="cannot write the report"):
        evaluate_checkpoint(checkpoint, recording, tmp_path / "file" / "out", SMALL, "cpu")


def test_of_one_episode_no_actions_are_read(checkpoint: Checkpoint, tmp_path: Path, make_recording: Make) -> None:
    """It is told at once, and what needs no others is measured."""
    alone = make_recording(tmp_path / "alone", (40,), **UNSEEN)
    with pytest.raises(DataError, match="it has one episode.* leave out actions, agent, long"):
        evaluate_checkpoint(checkpoint, alone, None, replace(SMALL, measures=("actions",)), "cpu")
    assert evaluate_checkpoint(checkpoint, alone, None, SMALL, "cpu")["episodes"] == 1


def test_a_trained_checkpoint_on_the_real_game(tiny_work: Path) -> None:
    """What ``gamengen create`` measured of the tiny checkpoint."""
    metrics = json.loads((tiny_work / "tiny" / "metrics.json").read_text())
    assert metrics["spec"] == "doom/basic"
    assert metrics["episodes"] == 1, "of the recording, only the first episode was held out"
    assert metrics["copy_last"]["ci95"] is None, "one episode has no spread"
    assert metrics["autoencoder"]["psnr"] > 8
    assert all(figure["psnr"] > 8 for figure in metrics["teacher_forced"].values())
    assert metrics["copy_last"]["psnr"] > 15


# --- everything, on the real game ---


def test_everything_on_the_real_game(
    tiny: Path, basic_recording: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All measures of a tiny checkpoint, and the paired differences to itself, by the command."""
    words = ["evaluate", str(tiny), "--record", "700", "--out", str(tmp_path / "report"), "--device", "cpu"]
    words += ["--windows", "8", "--rollouts", "6", "--rollout-frames", "36", "--judge-steps", "20"]
    words += ["--agent-seeds", "2", "--agent-frames", "20", "--long-starts", "2", "--long-frames", "70"]
    words += ["--measures", *MEASURES, *ON_DEMAND, "--compare", str(tiny)]
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0, capsys.readouterr().err
    out = tmp_path / "report"
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["regions"]) == {"hud", "weapon", "world"}
    assert metrics["drift"]["frames"][-1] == 36
    assert metrics["no_action"]["starts"] == 4
    assert 1 <= metrics["return"]["there_and_back"]["starts"] <= 8, "some games end on the way"
    assert metrics["agent"]["seeds"] == 2
    assert {name: row["frames"] for name, row in metrics["long"].items()} == {"random": 70, "cloned": 70}
    assert set(metrics["action_f1"]["real"]) == {"MOVE_LEFT", "MOVE_RIGHT", "ATTACK", "mean"}
    assert set(metrics["not_measured"]) >= {"lpips", "fvd"}
    report = (out / "report.md").read_text()
    assert f"{metrics['teacher_forced']['4']['psnr']:.2f}" in report
    assert "gamengen lpips --sdist" in report
    for name in ("rollout_0.mp4", "rollout.png", "drift.png", "steps.png"):
        assert (out / name).stat().st_size > 500
        assert name in report
    comparison = json.loads((out / "comparison.json").read_text())
    assert all(row["difference"] == 0 for row in comparison["rows"]), "a checkpoint is as good as itself"
    before = (out / "metrics.json").read_bytes()
    for part in (out / "parts").glob("free_play_*"):
        part.write_bytes(b"killed in the middle")
    with pytest.raises(SystemExit):
        main(words[:-2])
    assert (out / "metrics.json").read_bytes() == before, "gone on with, it finds the same"
