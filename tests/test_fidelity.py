"""The measures of fidelity, each against a case whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from agents.actions import ActionSet
from agents.errors import DataError
from gamengen.autoencoder import Before
from gamengen.checkpoints import Checkpoint
from gamengen.evaluation import drift, real_references, teacher_forced
from gamengen.evaluation.intervals import ci95, pooled_psnr
from gamengen.evaluation.parts import Parts
from gamengen.evaluation.rare_parts import RareBlocks, RareSights, events_at
from gamengen.evaluation.real_game import RealGame
from gamengen.evaluation.similarity import frame_psnr, frame_ssim, region_psnr, regions, sharpness
from gamengen.evaluation.subject import Subject
from gamengen.evaluation.turning import moves_view, summarise_turns, told_turns, turned, turning
from gamengen.evaluation.windows import Start
from recorder.episodes import read_episode
from recorder.recording import Recording

Make = Callable[..., Recording]


class Oracle(Subject):
    """A model that knows the recording: latents are the frames themselves, and ``answer`` makes the next one."""

    def __init__(self, checkpoint: Checkpoint, frames: np.ndarray, answer: Callable[[np.ndarray, int], np.ndarray]):
        super().__init__(checkpoint, torch.device("cpu"))
        self._frames, self._answer = frames, answer

    def encode(self, frames: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(frames.astype(np.float32)).permute(0, 3, 1, 2)

    def decode(self, latents: torch.Tensor) -> np.ndarray:
        return latents.permute(0, 2, 3, 1).numpy().astype(np.uint8)

    def decode_next(self, latents: torch.Tensor, before: Before) -> np.ndarray:
        return self.decode(latents)

    def predict(
        self, context: torch.Tensor, actions: torch.Tensor, noise: torch.Tensor, steps: int | None = None
    ) -> torch.Tensor:
        found = []
        for newest in self.decode(context[:, -1]):
            at = int(np.argmin(np.abs(self._frames.astype(int) - newest).sum(axis=(1, 2, 3))))
            found.append(self._answer(self._frames, at))
        return self.encode(np.stack(found))


def perfect(frames: np.ndarray, at: int) -> np.ndarray:
    return frames[at + 1]


def copying(frames: np.ndarray, at: int) -> np.ndarray:
    return frames[at]


@pytest.fixture
def counting(tmp_path: Path, make_recording: Make) -> tuple[Recording, np.ndarray]:
    """One episode in which every frame differs from every other."""
    recording = make_recording(tmp_path / "data", [14], seed=1000, height=48, width=80)
    frames = np.random.default_rng(0).integers(0, 256, (14, 48, 80, 3), dtype=np.uint8)
    return recording, frames


@pytest.fixture
def oracle(
    counting: tuple[Recording, np.ndarray], made_up: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> tuple[Callable[..., Oracle], list[Start]]:
    recording, frames = counting

    def read(path: Path, start: int = 0, stop: int | None = None) -> Any:
        episode = read_episode(path, start, stop)
        episode.frames[:] = frames[start:stop]
        return episode

    for module in (teacher_forced, drift):
        monkeypatch.setattr(module, "read_episode", read)
    return lambda answer: Oracle(made_up(), frames, answer), [(recording.episodes()[0], start) for start in (0, 3, 7)]


@pytest.fixture
def rare(counting: tuple[Recording, np.ndarray]) -> RareBlocks:
    return RareBlocks(counting[1])


def grey_frames(count: int, seed: int = 0) -> np.ndarray:
    """Frames (count, 48, 80, 3) of a grey wall, a little noisy."""
    return np.random.default_rng(seed).integers(100, 120, (count, 48, 80, 3), dtype=np.uint8)


def test_a_monster_is_rare_and_a_wall_is_not() -> None:
    blocks, frame = RareBlocks(grey_frames(200)), grey_frames(1, seed=1)[0]
    assert not blocks.mask(frame).any()
    frame[16:32, 32:64] = (200, 30, 30)
    mask = blocks.mask(frame)
    assert mask[16:32, 32:64].all()
    assert mask.sum() == 16 * 32
    assert blocks.shares(np.stack([grey_frames(1, seed=2)[0], frame])).tolist() == pytest.approx([0, 2 / 15])


def test_whether_a_monster_is_in_view(oracle: tuple[Callable[..., Oracle], list[Start]]) -> None:
    frames = np.full((3, 48, 80, 3), 110, np.uint8)
    model = oracle[0](perfect)
    model.config = replace(model.config, spec="doom/basic")
    sights = RareSights(model, frames)
    frames[1, 16:20, 32:36] = frames[2, 44:, 32:36] = (200, 30, 30)
    assert sights.seen(frames).tolist() == [False, True, False], "what the score bar shows is no sight"
    assert len(sights.seen(frames[:0])) == 0


def test_quality_on_what_is_rare() -> None:
    """One model leaves the monster out, another blurs the wall: the mean over frames prefers the first."""
    wall = grey_frames(1, seed=1)
    real, faded, rough = wall.copy(), wall.copy(), wall.copy()
    real[:, 16:32, 32:48] = rough[:, 16:32, 32:48] = (140, 80, 80)
    rough[:, :16] += 60
    mask = RareBlocks(grey_frames(200)).mask(real[0])
    assert frame_psnr(real, faded) > frame_psnr(real, rough)
    assert region_psnr(real, faded, mask) < 25 < region_psnr(real, rough, mask)


def test_events_are_told_by_the_variables() -> None:
    names = ("HEALTH", "KILLCOUNT")
    assert events_at(np.array([[90.0, 0], [100, 1], [90, 1]]), names) == {"hurt": True, "kill": False}
    assert events_at(np.array([[90.0, 0], [90, 1]]), names) == {"hurt": False, "kill": True}
    assert events_at(np.zeros((2, 0)), ()) == {}
    names = ("SELECTED_WEAPON", "SELECTED_WEAPON_AMMO")
    assert events_at(np.array([[2.0, 50], [2, 49]]), names) == {"shot": True}
    assert events_at(np.array([[2.0, 50], [3, 20]]), names) == {"shot": False}, "another weapon has other ammunition"


def test_a_perfect_model(oracle: tuple[Callable[..., Oracle], list[Start]], rare: RareBlocks) -> None:
    make, starts = oracle
    values, columns = teacher_forced.measure_windows(make(perfect), starts, 0, 0, None, rare)
    figures = teacher_forced.summarise_windows(values)
    for figure in (figures["autoencoder"], figures["autoencoder_alone"], *figures["teacher_forced"].values()):
        assert figure["psnr"] == figure["pooled_psnr"] == 60
        assert figure["ssim"] == pytest.approx(1, abs=1e-4)
    assert figures["copy_last"]["psnr"] < 15
    assert figures["motion"]["moving"]["share"] == 1
    assert "still" not in figures["motion"]
    assert len(columns) == 3
    assert figures["rare"]["frames"] == 0 or figures["rare"]["4"] == 60
    assert figures["events"] == {}, "a game without variables"
    plays, _ = drift.measure_rollouts(make(perfect), starts[:1], 6, 0, lambda frames: None)
    curve = drift.summarise_rollouts(plays, 4)
    assert curve["psnr"] == [60] * 6
    assert curve["sharpness"] == curve["real_sharpness"]
    assert curve["segments"][0]["psnr"] == 60
    sights = RareSights(make(perfect), np.zeros((4, 48, 80, 3), np.uint8))
    plays, _ = drift.measure_rollouts(make(perfect), starts[:1], 6, 0, lambda frames: None, rare=rare, sights=sights)
    assert np.array_equal(plays["unusual"], plays["real_unusual"])
    assert plays["sights"][0, 0] == plays["real_sights"][0, 0] == 1
    assert np.isnan(plays["sights"][0, 1:]).all()


def test_a_one_frame_shift(oracle: tuple[Callable[..., Oracle], list[Start]], rare: RareBlocks) -> None:
    """A model that is one frame late is as good as copying, no better."""
    make, starts = oracle
    values, _ = teacher_forced.measure_windows(make(copying), starts, 0, 0, None, rare)
    figures = teacher_forced.summarise_windows(values)
    assert figures["teacher_forced"]["4"] == figures["copy_last"]
    plays, _ = drift.measure_rollouts(make(copying), starts[:1], 6, 0, lambda frames: None)
    assert np.array_equal(plays["psnr"], plays["still_psnr"]), "frozen frames"


def test_where_the_episode_ends_there_is_nothing_to_compare(
    oracle: tuple[Callable[..., Oracle], list[Start]],
) -> None:
    make, starts = oracle
    plays, _ = drift.measure_rollouts(make(copying), starts, 9, 0, lambda frames: None)
    known = (~np.isnan(plays["psnr"])).sum(axis=1)
    assert known.tolist() == [9, 7, 3], "14 frames, of which 4 are the start"
    curve = drift.summarise_rollouts(plays, 4)
    assert curve["compared"] == [3, 3, 3, 2, 2, 2, 2, 1, 1]
    assert curve["ci95"][0] is None, "one episode has no spread"


def test_collapse_at_a_known_frame() -> None:
    """A play that is unlike real ones from its start is blurred; one that becomes so has collapsed."""
    rng = np.random.default_rng(0)

    def play(frames: int = 240) -> np.ndarray:
        return rng.standard_normal((frames, 34)) + rng.standard_normal(34)

    lessons = [play() for _ in range(12)], [np.ones(240, bool)] * 12
    checks = [play() for _ in range(6)], [np.ones(240)] * 6
    fine, blurred, broken = play(), play() + 40, play()
    broken[150:, :10] += 60
    values = {"statistics": np.stack([fine, blurred, broken]), "moving": np.ones((3, 240))}
    values["statistics"][..., -1] = fine[:, -1]
    summary = drift.summarise_collapse(values, lessons, checks)
    assert summary["collapsed"] == 1
    assert summary["first"][:2] == [None, None]
    assert 150 <= summary["first"][2] <= 170, "frames count from 1"
    assert summary["unlike_at_the_start"] == 1
    assert summary["false_alarm_rate"] == 0


# --- similarity ---


def test_similarity_of_known_frames() -> None:
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
    assert frame_psnr(frame, frame)[0] == 60
    off = np.full_like(frame, 100)
    assert frame_psnr(off, off + 10)[0] == pytest.approx(20 * np.log10(25.5), abs=1e-3)
    assert frame_ssim(frame, frame)[0] == pytest.approx(1, abs=1e-5)
    assert frame_ssim(frame, rng.permutation(frame, axis=1))[0] < 0.2
    smooth = (frame.astype(int) + np.roll(frame, 1, 1) + np.roll(frame, 1, 2) + np.roll(frame, 2, 2)) // 4
    assert sharpness(smooth.astype(np.uint8))[0] < 0.6 * sharpness(frame)[0]
    assert sharpness(off)[0] == 0


def test_regions_divide_the_picture() -> None:
    masks = regions("doom/basic", 240, 320)
    assert sum(mask.astype(int) for mask in masks.values()).tolist() == np.ones((240, 320), int).tolist()
    assert masks["hud"][239].all()
    assert not masks["hud"][200].any()
    assert masks["weapon"][190, 160]
    assert not masks["weapon"][190, 20]
    assert regions("gym/CartPole-v1", 240, 320) == {}
    real = np.zeros((1, 240, 320, 3), np.uint8)
    other = real.copy()
    other[:, 239] = 255
    assert region_psnr(real, other, masks["world"])[0] == pytest.approx(60)
    assert region_psnr(real, other, masks["hud"])[0] < 20


def test_intervals() -> None:
    assert ci95([1.0, 1.0, 3.0, 3.0], [0, 0, 1, 1]) == pytest.approx(12.706), "two episodes: means 1 and 3"
    assert ci95([1.0, 2.0], [5, 5]) is None
    assert ci95([1.0, np.nan, 1.0], [0, 1, 2]) == 0
    assert pooled_psnr(np.array([30.0, 30.0])) == pytest.approx(30)
    assert pooled_psnr(np.array([60.0, 20.0])) == pytest.approx(23.01, abs=0.01)


# --- against the real game ---


@pytest.fixture(scope="module")
def basic(basic_recording: Path) -> Recording:
    return Recording.open(basic_recording)


def test_the_real_game_replays(basic: Recording) -> None:
    info = max(basic.episodes(), key=lambda info: info.frames)
    episode = read_episode(info.path)
    at = info.frames // 2
    with RealGame(basic.header) as game:
        assert game.seek(info, at)
        frames = game.follow(episode.actions[at:-1])
        assert np.array_equal(np.stack(frames), episode.frames[at + 1 :])
        assert game.seek(info, 2), "and backwards"
        other = basic.header.action_set.encode(["MOVE_LEFT"])
        assert not np.array_equal(game.follow(np.stack([other] * 4))[-1], episode.frames[6]) or info.frames < 7


def test_a_game_that_does_not_replay(basic: Recording, made_up: Callable[..., Checkpoint]) -> None:
    info = replace(basic.episodes()[0], seed=basic.episodes()[0].seed + 17)  # as if the seed meant nothing
    checkpoint = made_up(240, 320, action_set=basic.header.action_set, spec="doom/basic")
    subject = Subject(checkpoint, torch.device("cpu"))
    with RealGame(basic.header) as game:
        assert not game.seek(info, 1)
        assert real_references.measure_no_action(subject, game, (info, 0), 3, 0) is None
        assert real_references.measure_return(subject, game, (info, 0), 0) == {}
    assert real_references.summarise_return([(0, {})]) is None


def test_there_and_back(basic: Recording, made_up: Callable[..., Checkpoint]) -> None:
    """A model that stays where it is scores what the game's own start scores."""
    header = basic.header
    checkpoint = made_up(240, 320, action_set=header.action_set, spec="doom/basic")

    class Still(Subject):
        def play(self, frames: np.ndarray, actions: Any, choose: Any, count: int, seed: int) -> Any:
            for step in range(count):
                assert choose(step, frames[:, -1]).shape == (1, header.action_set.size)
                yield frames[:, -1]

    subject = Still(checkpoint, torch.device("cpu"))
    info = max(basic.episodes(), key=lambda info: info.frames)
    with RealGame(header) as game:
        found = real_references.measure_return(subject, game, (info, 0), 0)
        quiet = real_references.measure_no_action(subject, game, (info, 0), 5, 0)
    assert set(found) == {"there_and_back"}, "one cannot turn in doom/basic"
    part = found["there_and_back"]
    assert part["neural"] == part["real"]
    assert part["away"] < part["real"], "what was left is nearer again at the end"
    assert float(part["frames"]) == 2 * real_references.AWAY_FRAMES
    summary = real_references.summarise_return([(0, found), (1, found)])
    assert summary is not None
    assert summary["there_and_back"]["starts"] == 2
    assert summary["there_and_back"]["ci95"] == 0
    assert quiet is not None
    row = real_references.summarise_no_action([quiet])
    assert row["frames"] == [1, 2, 3, 4, 5]
    assert row["sharpness"][0] == pytest.approx(row["real_sharpness"][0], rel=0.2)


# --- interrupted ---


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    calls = []

    def measure() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.arange(3.0)}

    for _ in range(2):
        assert Parts(tmp_path / "parts", {"seed": 0}).take("one", measure)["a"].tolist() == [0, 1, 2]
    assert len(calls) == 1
    (tmp_path / "parts" / "one.npz").write_bytes(b"half")
    assert Parts(tmp_path / "parts", {"seed": 0}).take("one", measure)["a"].tolist() == [0, 1, 2]
    assert len(calls) == 2, "a damaged part is measured again"
    (tmp_path / "parts" / "notes.txt").touch()
    (tmp_path / "parts" / "one.npz").write_bytes(b"")
    assert Parts(tmp_path / "parts", {"seed": 0}).take("one", measure)["a"].tolist() == [0, 1, 2]
    assert len(calls) == 3, "and an empty one"
    assert Parts(tmp_path / "parts", {"seed": 1}).take("one", measure)["a"].tolist() == [0, 1, 2]
    assert len(calls) == 4, "of other options"
    assert (tmp_path / "parts" / "notes.txt").is_file(), "what is not ours stays"
    assert Parts(None, {}).take("one", lambda: None) == {}


def test_parts_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine.npz").touch()
    with pytest.raises(DataError, match="holds other files"):
        Parts(tmp_path / "parts", {})
    assert (tmp_path / "parts" / "mine.npz").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot write the report"):
        Parts(tmp_path / "file" / "parts", {})


@pytest.mark.parametrize(
    ("names", "held", "moves"),
    [
        (("TURN_LEFT", "TURN_RIGHT", "ATTACK"), (1, 0, 0), True),
        (("TURN_LEFT", "TURN_RIGHT", "ATTACK"), (1, 1, 0), False),
        (("TURN_LEFT", "TURN_RIGHT", "ATTACK"), (0, 0, 1), False),
        (("MOVE_FORWARD", "TURN_LEFT", "TURN_RIGHT"), (1, 0, 0), False),
        (("MOVE_FORWARD", "MOVE_BACKWARD", "ATTACK"), (1, 0, 0), True),
        (("MOVE_FORWARD", "MOVE_BACKWARD", "ATTACK"), (1, 1, 1), False),
        (("PUSH", "PULL"), (1, 0), True),
    ],
)
def test_what_moves_the_view(names: tuple[str, ...], held: tuple[int, ...], moves: bool) -> None:
    assert moves_view(ActionSet(names), np.array([held], np.float32)).tolist() == [moves]


def panorama(degrees: list[float]) -> np.ndarray:
    """Frames (N + 1, 120, 160, 3) of a wall all round, seen over 90 degrees and turned past by so many a frame."""
    wall = np.random.default_rng(0).integers(0, 256, (360, 30), dtype=np.uint8)
    y, x = np.meshgrid((np.arange(120) - 59.5) / 80, (np.arange(160) - 79.5) / 80, indexing="ij")
    frames = []
    for angle in np.cumsum([180.0, *degrees]):
        around, up = angle + np.degrees(np.arctan(x)), y / np.hypot(1, x)
        frames.append(wall[around.astype(int) % 360, (15 + 12 * up).astype(int)])
    return np.stack(frames)[..., None].repeat(3, axis=-1)


def test_how_far_the_view_turns() -> None:
    degrees = [0, 6, -4.5, 12, -12, 3]
    frames = panorama(degrees)
    frames[:, 30:60, 60:100] = 255  # what stands still on the screen is no evidence
    told = turned(frames, np.array([True] * 5 + [False]))
    assert told[:5].tolist() == degrees[:5]
    assert np.isnan(told[5])
    assert turned(np.zeros((3, 48, 80, 3), np.uint8), np.ones(2, bool)).tolist() == [0, 0]


def test_a_turn_counts_from_its_second_frame() -> None:
    keys = ActionSet(("TURN_LEFT", "TURN_RIGHT", "ATTACK"))
    held = np.array([[1, 0, 0], [1, 0, 1], [0, 1, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], np.float32)
    assert turning(keys, held).tolist() == [0, -1, 0, 1, 0, 0]
    assert turning(ActionSet(("LEFT", "RIGHT")), held[:, :2]).tolist() == [0] * 6


def test_of_a_long_play_every_fourth_turn_is_told() -> None:
    told = told_turns(np.array([1.0, 0.0] * 60))
    assert told[:64].sum() == 32
    assert np.flatnonzero(told[64:]).tolist() == list(range(0, 56, 4))


def test_a_play_that_stands_still_does_not_turn() -> None:
    ways = np.tile([0.0, 1.0, 1.0, -1.0], (2, 20))
    real, still = 6 * ways, np.zeros_like(ways)
    real[1, 70:] = np.nan
    found = summarise_turns({"turning": ways, "real_turned": real, "turned": still})
    assert found is not None
    assert [(span["from"], span["to"], span["turns"]) for span in found["spans"]] == [
        (1, 16, 24), (17, 64, 72), (65, 80, 16),
    ]  # fmt: skip
    for span in found["spans"]:
        assert span["real"] == {"right_way": 1, "degrees": 6}
        assert span["neural"] == {"right_way": 0, "degrees": 0}
    assert summarise_turns({"turning": still, "real_turned": real, "turned": real}) is None


def test_once_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real game turns by 9 degrees a frame, the neural one by half of that: after a circle it looks back."""
    keys = ActionSet(("TURN_LEFT", "TURN_RIGHT", "ATTACK"))

    def view(angle: float) -> np.ndarray:
        return np.random.default_rng(round(2 * angle)).integers(0, 256, (48, 80, 3), np.uint8)

    class Carousel:
        def seek(self, info: Any, at: int) -> bool:
            self.info = {"ANGLE": 355.0}
            return True

        def step(self, held: np.ndarray) -> np.ndarray:
            self.info = {"ANGLE": (self.info["ANGLE"] + 9 * float(held[0] - held[1])) % 360}
            return view(self.info["ANGLE"])

        def follow(self, script: np.ndarray) -> list[np.ndarray]:
            return [self.step(held) for held in script]

    def play(frames: Any, actions: Any, choose: Any, count: int, seed: int) -> Any:
        angle, shown = 355.0, frames[:, -1]
        for step in range(count):
            held = choose(step, shown)[0]
            angle = (angle + 4.5 * float(held[0] - held[1])) % 360
            shown = view(angle)[None]
            yield shown

    start = SimpleNamespace(frames=np.stack([view(355.0)] * 4), actions=np.zeros((4, 3), np.float32))
    monkeypatch.setattr(real_references, "read_episode", lambda *_: start)
    subject = SimpleNamespace(context=4, config=SimpleNamespace(action_set=keys), play=play)
    info = SimpleNamespace(path=None, variable_names=("ANGLE",))
    found: Any = real_references.measure_return(subject, Carousel(), (info, 0), 0)  # type: ignore[arg-type]
    circle, back = found["full_circle"], found["there_and_back"]
    assert (float(circle["frames"]), circle["real"], back["real"], back["neural"]) == (40, 60, 60, 60)
    assert max(circle["neural"], circle["away"], back["away"]) < 15


def test_still_moving_and_turning_frames_are_told_apart() -> None:
    names = ("autoencoder", "copy_last", "1", "2", "4", "8")
    values = {"owner": np.arange(4.0), "degrees": np.array([0, 2.9, -3.0, 7.0]), "rare_share": np.zeros(4)}
    for name in names:
        values[f"psnr/{name}"] = np.array([40.0, 20, 22, 24] if name == "copy_last" else [30.0, 26, 28, 30])
        values[f"ssim/{name}"] = np.ones(4)
    motion = teacher_forced.summarise_windows(values)["motion"]
    told = {kind: (row["share"], row["copy_last"], row["1"]) for kind, row in motion.items()}
    assert told == {"still": (0.25, 40, 30), "moving": (0.75, 22, 28), "turning": (0.5, 23, 29)}
    angles = np.array([[358.0], [2.0]])
    assert [teacher_forced._turned(part, ("ANGLE",)) for part in (angles, angles[::-1])] == [4, -4]
