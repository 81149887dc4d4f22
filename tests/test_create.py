"""``gamengen create``: what it leaves, going on after a kill, and what it refuses before it begins."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import gamengen.checkpoints
import gamengen.create
from agents.errors import CheckpointError, DataError, GamengenError, OptionError, SpecError
from engine.game import NeuralGame
from gamengen.autoencoder import Autoencoder
from gamengen.autoencoder_stages import load_autoencoder
from gamengen.checkpoints import DEFAULT_CHECKPOINT, Checkpoint, load_checkpoint
from gamengen.cli import main
from gamengen.create import CreateOptions, Plan, create_game, make_plan
from gamengen.evaluation.results import summarise
from gamengen.latents import weights_hash
from gamengen.presets import find_preset
from gamengen.single_stages import distill, train_autoencoder, train_decoder, train_denoiser, train_outcome
from gamengen.stages import load_denoiser, load_student
from gamengen.training import TrainOptions
from gamengen.work_folder import Stage
from recorder.recording import Recording

ROOT = Path(__file__).parents[1]
PATIENCE = 200.0  # seconds until a test gives up
Make = Callable[..., Recording]
# The command, but that training saves after each step.
CHILD = """
import sys
import gamengen.training
from gamengen.cli import main

if __name__ == "__main__":
    gamengen.training.SAVE_SECONDS = 0
    main(sys.argv[1:])
"""


def options(out: Path, **changes: Any) -> CreateOptions:
    """A game of stripes, from ``data`` beside ``out``, in a second or two."""
    values: dict[str, Any] = {
        "spec": "gym/stripes", "out": out, "minutes": 0.03, "preset": "tiny", "from_scratch": True,
        "data": out.parent / "data", "device": "cpu", "work": out.parent / "work",
    }  # fmt: skip
    return CreateOptions(**{**values, **changes})


def test_what_create_leaves(tiny_work: Path, basic_recording: Path) -> None:
    summary = json.loads((tiny_work / "summary.json").read_text())
    assert summary["play"] == f"gamengen play --checkpoint {summary['checkpoint']}"
    stages = ["record", "autoencoder", "encode", "tally", "denoiser", "student", "decoder", "recount", "outcome"]
    assert list(summary["stages_seconds"]) == [*stages, "evaluate"]
    assert summary["minutes"] > 0
    assert summary["frames"] == sum(info.frames for info in Recording.open(basic_recording).episodes())
    checkpoint = load_checkpoint(tiny_work / "tiny")
    assert summarise(checkpoint.metrics).items() <= summary.items()
    config = checkpoint.config
    assert (config.name, config.spec, config.preset) == ("tiny", "doom/basic", "tiny")
    assert (config.height, config.width, config.frame_skip, config.fps) == (240, 320, 2, 17.5)
    assert config.action_set.buttons == ("MOVE_LEFT", "MOVE_RIGHT", "ATTACK")
    assert config.data["frames"] == summary["frames"]
    assert config.data["seeds"] == [0, config.data["episodes"] - 1]
    assert config.data["agents"] == ["random"]
    assert config.training["init"] is None
    assert "Freedoom" in config.notice
    assert len(checkpoint.spawns.latents) == 24
    card = (tiny_work / "tiny" / "README.md").read_text()
    for text in ("doom/basic", "MOVE_LEFT", "teacher-forced, 4 steps", "Freedoom", "fresh weights"):
        assert text in card
    assert config.sampler.steps == 1, "it is distilled"
    assert config.outcome is not None and config.outcome.levels[-1:] == ("SELECTED_WEAPON_AMMO",)
    assert config.tally is not None and config.tally.levels == ("SELECTED_WEAPON_AMMO",)
    for stage in ("autoencoder", "tally", "denoiser", "student", "decoder", "recount", "outcome"):
        folder = tiny_work / "work" / stage
        assert {"state.pt", "final.safetensors", "metrics.jsonl"} <= {path.name for path in folder.iterdir()}
        assert list(folder.glob("events.out.tfevents.*"))
    assert (tiny_work / "work" / "evaluation" / "rollout.png").is_file()


def test_from_the_shipped_checkpoint_with_short_episodes(
    tiny: Path, make_recording: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It starts from what is shipped where that fits; episodes too short for long free play are no obstacle."""
    shutil.copytree(tiny, tmp_path / "weights" / DEFAULT_CHECKPOINT)
    monkeypatch.setattr(gamengen.checkpoints, "SHIPPED", tmp_path / "weights")
    make_recording(tmp_path / "data", (8, 9, 10))
    summary = create_game(options(tmp_path / "stripes", from_scratch=False))
    checkpoint = load_checkpoint(tmp_path / "stripes")
    assert checkpoint.config.training["init"] == "tiny"
    assert checkpoint.metrics["drift"]["frames"] == [1, 2, 3, 4]
    assert summary["frames"] == 27
    game = NeuralGame(tmp_path / "stripes", "cpu")
    assert game.step([1, 0]).shape == (32, 48, 3)
    # Again, with everything done: nothing is trained once more, and the checkpoint stays as it was.
    before = (tmp_path / "stripes" / "denoiser.safetensors").read_bytes()
    logs = {path: path.read_text() for path in (tmp_path / "work").glob("*/metrics.jsonl")}
    create_game(options(tmp_path / "stripes", from_scratch=False))
    assert (tmp_path / "stripes" / "denoiser.safetensors").read_bytes() == before
    assert {path: path.read_text() for path in logs} == logs


def test_a_student_trained_by_what_is_seen(make_recording: Make, vgg_weights: Path, tmp_path: Path) -> None:
    make_recording(tmp_path / "data", (8, 9, 10))
    summary = create_game(options(tmp_path / "seen", lpips_weights=vgg_weights))
    assert list(summary["stages_seconds"])[3:6] == ["denoiser", "student", "perceptual"]
    student, seen = (torch.load(tmp_path / "work" / name / "state.pt")["average"] for name in ("student", "perceptual"))
    assert any(not torch.equal(value, seen[name]) for name, value in student.items())
    checkpoint = load_checkpoint(tmp_path / "seen")
    assert checkpoint.config.sampler.steps == 1
    assert list(checkpoint.config.training["minutes"])[3:6] == ["denoiser", "student", "perceptual"]

    # The stages by hand go on with it, but for one that was made of another student.
    stage = Stage(Recording.open(tmp_path / "data"), tmp_path / "work", "tiny", torch.device("cpu"))
    for expected in (seen, student):
        found = load_student(stage, load_denoiser(stage))
        assert found is not None
        assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
        (tmp_path / "work" / "perceptual" / "denoiser.json").write_text('{"denoiser": "another"}')


def test_stages_by_hand(make_recording: Make, tmp_path: Path) -> None:
    """``train autoencoder``, ``denoiser``, ``decoder`` and ``distill`` make a checkpoint too."""
    make_recording(tmp_path / "data", (8, 9, 10))
    work, data, few = tmp_path / "work", tmp_path / "data", TrainOptions(steps=3)
    with pytest.raises(CheckpointError, match="no finished autoencoder"):
        train_denoiser(data, work, tmp_path / "game", "tiny", None, few, "cpu")
    assert train_autoencoder(data, work, "tiny", None, few, "cpu")["step"] == 3
    figures = train_denoiser(data, work, tmp_path / "game", "tiny", None, few, "cpu")
    assert figures["checkpoint"] == str(tmp_path / "game")
    assert NeuralGame(tmp_path / "game", "cpu").name == "game"
    plain = load_checkpoint(tmp_path / "game")
    assert plain.metrics["model"] == [weights_hash(plain.autoencoder), weights_hash(plain.denoiser)], "what is stored"
    assert plain.config.autoencoder.compensation == 0
    assert plain.spawns.frames is None

    train_decoder(data, work, tmp_path / "sharp", "tiny", None, few, "cpu")
    sharp = load_checkpoint(tmp_path / "sharp")
    assert sharp.config.autoencoder.compensation == 4 * 2
    assert sharp.spawns.frames is not None
    assert list(sharp.config.training["minutes"]) == ["autoencoder", "denoiser", "decoder"]
    assert weights_hash(sharp.autoencoder.encoder) == weights_hash(plain.autoencoder.encoder)
    assert NeuralGame(tmp_path / "sharp", "cpu").step([1, 0]).shape == (32, 48, 3)

    shutil.rmtree(work / "decoder")
    distill(data, work, tmp_path / "quick", "tiny", few, "cpu")
    assert train_outcome(data, work, "tiny", few, "cpu")["step"] == 3
    train_decoder(data, work, tmp_path / "both", "tiny", None, few, "cpu")
    quick, both = load_checkpoint(tmp_path / "quick"), load_checkpoint(tmp_path / "both")
    assert (plain.config.sampler.steps, quick.config.sampler.steps, both.config.sampler.steps) == (4, 1, 1)
    assert list(both.config.training["minutes"]) == ["autoencoder", "denoiser", "student", "decoder", "outcome"]
    assert (sharp.outcome, quick.outcome) == (None, None)
    assert NeuralGame(both, "cpu").tells_outcome
    assert weights_hash(plain.denoiser) != weights_hash(quick.denoiser) == weights_hash(both.denoiser)

    train_denoiser(data, work, tmp_path / "game", "tiny", None, TrainOptions(steps=4), "cpu")
    assert list(load_checkpoint(tmp_path / "game").config.training["minutes"]) == ["autoencoder", "denoiser"]
    with pytest.raises(CheckpointError, match="the student in the work folder was trained for another denoiser"):
        train_decoder(data, work, tmp_path / "sharp", "tiny", None, few, "cpu")
    shutil.rmtree(work / "student")
    with pytest.raises(CheckpointError, match="the decoder in the work folder was trained for another denoiser"):
        train_decoder(data, work, tmp_path / "sharp", "tiny", None, few, "cpu")


def test_a_denoiser_belongs_to_its_encoder(make_recording: Make, tmp_path: Path) -> None:
    make_recording(tmp_path / "data", (8, 9, 10))
    work, data, out = tmp_path / "work", tmp_path / "data", tmp_path / "game"
    for steps in (2, 3):
        train_autoencoder(data, work, "tiny", None, TrainOptions(steps=steps), "cpu")
        if steps == 2:
            train_denoiser(data, work, out, "tiny", None, TrainOptions(steps=2), "cpu")
    shutil.rmtree(work / "latents")  # as the message about them says
    for use in (
        lambda: train_denoiser(data, work, out, "tiny", None, TrainOptions(steps=2), "cpu"),
        lambda: distill(data, work, out, "tiny", TrainOptions(steps=2), "cpu"),
        lambda: train_decoder(data, work, out, "tiny", None, TrainOptions(steps=2), "cpu"),
    ):
        with pytest.raises(CheckpointError, match="the denoiser in the work folder was trained for another encoder"):
            use()


def test_an_autoencoder_of_a_game_with_other_keys(
    made_up: Callable[..., Checkpoint], make_recording: Make, tmp_path: Path
) -> None:
    """Its compensation finds the camera in the keys that it was trained with; the decoder alone serves any game."""
    recording = make_recording(tmp_path / "data", (8, 9, 10))
    context = find_preset("tiny").denoiser.context
    for compensation, guided, kept in ((2 * context, False, True), (6 * context, False, False), (2, True, False)):
        init = made_up(32, 48, geometry=guided)
        config = replace(init.autoencoder.config, compensation=compensation)
        init = replace(init, autoencoder=Autoencoder(config), config=replace(init.config, autoencoder=config))
        init = replace(init, config=replace(init.config, spec="gym/other"))
        found = load_autoencoder(Stage(recording, tmp_path / "work", "tiny", torch.device("cpu"), init))
        assert found.config.compensation == (compensation if kept else 0)
        assert (found.compensation is not None) == kept
        assert weights_hash(found.encoder) == weights_hash(init.autoencoder.encoder)
        assert weights_hash(found.decoder) == weights_hash(init.autoencoder.decoder)


def test_a_decoder_needs_a_denoiser(make_recording: Make, tmp_path: Path) -> None:
    make_recording(tmp_path / "data", (8, 9, 10))
    work, data, few = tmp_path / "work", tmp_path / "data", TrainOptions(steps=1)
    train_autoencoder(data, work, "tiny", None, few, "cpu")
    with pytest.raises(CheckpointError, match="no finished denoiser"):
        train_decoder(data, work, tmp_path / "game", "tiny", None, few, "cpu")


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + PATIENCE
    while not any(path.parent.glob(path.name)):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < limit, f"{path} never comes"
        time.sleep(0.02)


def test_killed_and_run_again_it_goes_on(tmp_path: Path) -> None:
    """Killed while it records, again while it trains; the third run comes to the end."""
    script, work, out = tmp_path / "child.py", tmp_path / "work", tmp_path / "out"
    script.write_text(CHILD)
    words = [
        "create", "doom/basic", "--out", str(out), "--work", str(work), "--preset", "tiny", "--from-scratch",
        "--frames", "320", "--agent", "random", "--workers", "1", "--height", "144", "--width", "256",
        "--minutes", "1", "--autoencoder-minutes", "0.02", "--denoiser-minutes", "0.1", "--distill-minutes", "0.01",
        "--decoder-minutes", "0.01", "--device", "cpu",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for sign in (work / "recording" / "episodes" / "0000" / "*.h5", work / "denoiser" / "state.pt"):
        with subprocess.Popen([sys.executable, str(script), *words], env=environment, cwd=tmp_path) as process:
            try:
                wait_for(sign, process)
            finally:
                process.kill()
        assert not out.exists(), "there is no half checkpoint"
    killed_at = torch.load(work / "denoiser" / "state.pt", weights_only=True)["step"]
    kept = [*sorted((work / "recording" / "episodes").rglob("*.h5")), work / "autoencoder" / "final.safetensors",
            *sorted((work / "latents").glob("*.safetensors"))]  # fmt: skip
    times = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) >= 5

    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 0
    assert [path.stat().st_mtime_ns for path in kept] == times, "what was done is not done again"
    with safe_open(work / "denoiser" / "final.safetensors", "pt") as file:
        spent = file.metadata()
    assert int(spent["step"]) > killed_at >= 1
    assert float(spent["seconds"]) >= 6
    assert load_checkpoint(out).config.data["frames"] >= 320
    assert NeuralGame(out, "cpu").frame.shape == (144, 256, 3)


# --- what it refuses ---


@pytest.mark.parametrize(("changes", "name"), [({"minutes": 5.0}, "minutes"), ({"seed": 1}, "seed"),
                                               ({"preset": "nano"}, "preset"), ({"frames": 77}, "frames")])  # fmt: skip
def test_other_options_for_the_same_work_folder(
    changes: dict[str, Any], name: str, make_recording: Make, tmp_path: Path
) -> None:
    make_recording(tmp_path / "data", (8, 9))
    work = tmp_path / "work"
    work.mkdir()
    begun = {"minutes": "0.03", "seed": "0", "preset": "tiny", "frames": "None", "spec": "gym/stripes"}
    (work / "plan.json").write_text(json.dumps(begun))
    with pytest.raises(OptionError, match=f"begun with another {name} ; ") as caught:
        create_game(options(tmp_path / "out", **changes))
    assert caught.value.where == str(work)
    assert json.loads((work / "plan.json").read_text()) == begun
    assert [path.name for path in work.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_damaged_plan(content: str, make_recording: Make, tmp_path: Path) -> None:
    make_recording(tmp_path / "data", (8, 9))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "plan.json").write_text(content)
    with pytest.raises(CheckpointError, match="cannot use the work folder") as caught:
        create_game(options(tmp_path / "out"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"data": None, "spec": "doom/nonsense"}, SpecError),
        ({"data": None, "spec": "gym/Nonsense-v0"}, SpecError),
        ({"data": None, "spec": "tetris"}, SpecError),
        ({"data": None, "spec": "doom/basic", "agent": "expert"}, OptionError),
        ({"data": None, "spec": "doom/basic", "workers": 0}, OptionError),
        ({"data": None, "spec": "doom/basic", "frame_skip": 0}, OptionError),
        ({"data": Path("nowhere")}, DataError),
        ({"spec": "gym/other"}, OptionError),
        ({"preset": "huge"}, OptionError),
        ({"init": "nonsense", "from_scratch": False}, CheckpointError),
        ({"device": "tpu"}, GamengenError),
    ],
)
def test_a_mistake_begins_nothing(
    changes: dict[str, Any], error: type[Exception], make_recording: Make, tmp_path: Path
) -> None:
    """So that the same command with the mistake mended is not refused for the work folder's sake."""
    make_recording(tmp_path / "data", (8, 9))
    with pytest.raises(error):
        create_game(options(tmp_path / "out", **changes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_the_work_folder_lies_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint takes the place of whatever is in its folder."""
    monkeypatch.chdir(tmp_path)
    for out, work in ((Path("game"), Path("game")), (Path("game"), Path("game/work")), (Path("runs/game"), None)):
        with pytest.raises(OptionError, match="would lie in the checkpoint's own folder"):
            options(out, work=work)
    assert options(Path("game/out"), work=Path("game")).work_folder == Path("game")
    assert options(Path("game"), work=None).work_folder == Path("runs/game")


def test_a_plan_stays(make_recording: Make, tmp_path: Path) -> None:
    """With other workers, or on another device, a finished stage would otherwise be trained on."""
    make_recording(tmp_path / "data", (8, 9, 10))
    create_game(options(tmp_path / "out"))
    logs = {path: path.read_text() for path in (tmp_path / "work").glob("*/metrics.jsonl")}
    planned = json.loads((tmp_path / "work" / "stages.json").read_text())["remembered"]["plan"]
    create_game(options(tmp_path / "out", workers=7))
    assert json.loads((tmp_path / "work" / "stages.json").read_text())["remembered"]["plan"] == planned
    assert {path: path.read_text() for path in logs} == logs
    (tmp_path / "work" / "stages.json").write_text('{"remembered": {"plan": {"frames": 3}}}')
    with pytest.raises(CheckpointError, match="the plan is damaged"):
        create_game(options(tmp_path / "out"))


def test_stopped_in_the_denoiser_it_keeps_its_minutes(
    make_recording: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was spent before is counted by the training itself."""
    make_recording(tmp_path / "data", (8, 9, 10))
    given: list[float] = []

    def stopped(stage: Stage, autoencoder: Any, latents: Any, training: TrainOptions) -> None:
        assert training.minutes is not None
        given.append(training.minutes)
        time.sleep(0.2)
        raise KeyboardInterrupt

    monkeypatch.setattr(gamengen.create, "fit_denoiser", stopped)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            create_game(options(tmp_path / "out", minutes=0.2, autoencoder_minutes=0.005, denoiser_minutes=None))
    assert given[0] == given[1] > 0.01


def test_short_recordings_have_enough_episodes() -> None:
    assert options(Path("out")).record_options(Path("data"), 2_000).max_episode_frames == 166
    assert options(Path("out")).record_options(Path("data"), 64_000).max_episode_frames == 2_100


def test_an_out_folder_with_something_else(make_recording: Make, tmp_path: Path) -> None:
    make_recording(tmp_path / "data", (8, 9))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint"):
        create_game(options(tmp_path / "out"))
    assert not (tmp_path / "work").exists()


def test_frames_that_do_not_fit_the_model(make_recording: Make, tmp_path: Path) -> None:
    make_recording(tmp_path / "data", (8, 9), height=40, width=50)
    with pytest.raises(DataError, match="multiples of 16, got 40 and 50"):
        create_game(options(tmp_path / "out"))
    with pytest.raises(DataError, match="multiples of 16"):
        train_autoencoder(tmp_path / "data", tmp_path / "w", "tiny", None, TrainOptions(steps=1), "cpu")


def test_one_episode_is_too_few(make_recording: Make, tmp_path: Path) -> None:
    make_recording(tmp_path / "data", (20,))
    with pytest.raises(DataError, match="too few episodes"):
        create_game(options(tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"minutes": 0.0}, "--minutes"),
        ({"minutes": -1.0}, "--minutes"),
        ({"minutes": float("nan")}, "--minutes"),
        ({"minutes": float("inf")}, "--minutes"),
        ({"frames": 0}, "--frames"),
        ({"denoiser_minutes": 0.0}, "--denoiser-minutes"),
        ({"height": 100}, "--height"),
        ({"width": 8}, "--width"),
        ({"seed": -1}, "--seed"),
        ({"init": "x"}, "--init, --from-scratch"),
        ({"perceptual_minutes": 3.0}, "--perceptual-minutes"),
        ({"lpips_weights": Path("vgg.safetensors"), "distill_minutes": 0.0}, "--lpips-weights"),
        ({"lpips_weights": Path("v"), "perceptual_minutes": 1.0, "geometry_minutes": 2.0}, "--perceptual-minutes"),
    ],
)
def test_options_out_of_range(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(OptionError) as caught:
        options(Path("out"), **changes)
    assert caught.value.where == flag


def test_a_decoder_stays_alone_where_that_of_the_same_game_is(made_up: Callable[..., Checkpoint]) -> None:
    """Its minutes go to the denoiser, unless the last frame is moved or the user wants it otherwise."""
    game = made_up(spec="doom/deathmatch")
    alone = Autoencoder(replace(game.autoencoder.config, compensation=0))
    alone_too = replace(game, autoencoder=alone)

    def plan(init: Checkpoint, **changes: Any) -> Plan:
        return make_plan(options(Path("out"), minutes=60.0, spec=init.config.spec, **changes), "cpu", init)

    usual, same = plan(game), plan(alone_too)
    assert usual.decoder_minutes > 0 == same.decoder_minutes
    assert same.denoiser_minutes == pytest.approx(usual.denoiser_minutes + usual.decoder_minutes)
    assert plan(alone_too, decoder_minutes=3.0).decoder_minutes == 3
    moved = plan(game, geometry_minutes=5.0)
    assert moved.decoder_minutes == 0 < moved.cycle_minutes
    assert plan(game, geometry_minutes=5.0, decoder_minutes=3.0).decoder_minutes == 3
    assert usual.cycle_minutes == usual.geometry_minutes == 0
    assert plan(game, geometry_minutes=5.0, cycle_minutes=1.0).cycle_minutes == 1
    other = replace(alone_too, config=replace(alone_too.config, spec="doom/basic"))
    assert make_plan(options(Path("out"), minutes=60.0, spec=game.config.spec), "cpu", other) == usual


def test_a_game_that_was_moved_is_moved_again(made_up: Callable[..., Checkpoint]) -> None:
    """Its denoiser leans on that; unless the user wants it otherwise, or what excludes it."""
    game = made_up(spec="doom/deathmatch", geometry=True)

    def plan(**changes: Any) -> Plan:
        return make_plan(options(Path("out"), minutes=60.0, **changes), "cpu", game)

    moved, still = plan(spec="doom/deathmatch"), plan(spec="doom/deathmatch", geometry_minutes=0.0)
    assert moved.geometry_minutes > 1
    assert moved.cycle_minutes > 1
    assert still.geometry_minutes == still.cycle_minutes == 0
    assert moved.decoder_minutes == 0 < still.decoder_minutes
    assert plan(spec="doom/basic").geometry_minutes == 0
    seen = {"spec": "doom/deathmatch", "lpips_weights": Path("vgg.safetensors")}
    assert plan(**seen).geometry_minutes > 0 == plan(**seen).perceptual_minutes
    assert plan(**seen, perceptual_minutes=2.0).geometry_minutes == 0
    with pytest.raises(OptionError, match="it is for games whose last frame is moved"):
        plan(spec="doom/basic", cycle_minutes=1.0)


@pytest.mark.parametrize("minutes", [1.0, 6.0, 60.0, 600.0])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("warm", "moved"), [(True, False), (True, True), (False, False)])
def test_a_plan_spends_the_budget(
    minutes: float, device: str, warm: bool, moved: bool, made_up: Callable[..., Checkpoint]
) -> None:
    game = made_up(geometry=moved) if warm else None
    plan = make_plan(options(Path("out"), data=None, minutes=minutes), device, game)
    training = plan.autoencoder_minutes + plan.denoiser_minutes + plan.distill_minutes + plan.decoder_minutes
    training += plan.outcome_minutes + 2 * plan.tally_minutes + plan.cycle_minutes + plan.geometry_minutes
    total = training + (plan.record_seconds + plan.encode_seconds + plan.evaluate_seconds) / 60
    assert training >= 0.3 * minutes - 1e-9
    if minutes > 1:
        assert total == pytest.approx(minutes, rel=0.01)
    assert plan.frames >= 2000
    assert plan.denoiser_minutes > plan.autoencoder_minutes


def test_what_is_given_is_kept() -> None:
    plan = make_plan(options(Path("out"), frames=500, autoencoder_minutes=1.5, denoiser_minutes=2.5), "cpu", None)
    assert (plan.frames, plan.autoencoder_minutes, plan.denoiser_minutes) == (500, 1.5, 2.5)
    assert plan.record_seconds == 0, "there is a recording"


def test_weights_that_do_not_fit_are_refused_before_anything_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing of the checkpoint fits the preset tiny: it is nano"):
        create_game(options(tmp_path / "game", from_scratch=False, init="deathmatch", data=None))
    assert not (tmp_path / "work").exists()
