"""Who plays: the random and the scripted agent, mixes of them, the paper's reward, and how agents are judged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from agents.actions import ActionSet
from agents.agent import AgentShare, make_agent, parse_mix
from agents.errors import OptionError
from agents.evaluate import AgentSummary, estimate, evaluate_agent
from agents.policy import combinations
from agents.rewards import CELL_UNITS, PaperReward

KEYS = ActionSet(("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT", "ATTACK"))
FRAME = np.zeros((240, 320, 3), np.uint8)
INFO: dict[str, Any] = {"variables": {}}


def play(name: str, actions: ActionSet, seed: int, steps: int = 400) -> np.ndarray:
    """Actions (N, A) of an agent that sees nothing."""
    agent = make_agent(name, actions)
    agent.reset(seed)
    return np.stack([agent.act(FRAME, INFO) for _ in range(steps)])


def test_random_holds_keys_as_a_hand_does() -> None:
    played = np.concatenate([play("random", KEYS, seed) for seed in range(10)])
    assert set(np.unique(played)) == {0.0, 1.0}
    changes = np.abs(np.diff(played, axis=0)).mean()
    assert 0.01 < changes < 0.15, "keys are pressed and held, not rattled"
    assert (played.sum(1) >= 2).mean() > 0.2, "often several at once"
    left, right = KEYS.names.index("TURN_LEFT"), KEYS.names.index("TURN_RIGHT")
    assert not (played[:, left] * played[:, right]).any(), "never two opposite ones"
    assert (played.mean(0) > 0.05).all(), "each key is used"


@pytest.mark.parametrize("name", ["random", "scripted"])
def test_an_episode_is_repeated_by_its_seed(name: str) -> None:
    assert np.array_equal(play(name, KEYS, 7), play(name, KEYS, 7))
    assert not np.array_equal(play(name, KEYS, 7), play(name, KEYS, 8))


def test_random_moves_axes_and_chooses_one_of_exclusive_buttons() -> None:
    axes = play("random", ActionSet((), ("X", "Y")), 1)
    assert np.abs(axes).max() <= 1
    assert axes.std(0).min() > 0.2
    one_hot = play("random", ActionSet(("A", "B", "C"), exclusive=True), 1)
    assert (one_hot.sum(1) == 1).all()
    assert (one_hot.mean(0) > 0.1).all()


class Label:
    """A thing on screen, as ViZDoom tells of it."""

    def __init__(self, category: str, name: str, x: int, size: int = 40, number: int = 1, **place: float) -> None:
        self.object_category, self.object_name, self.object_id = category, name, number
        self.x, self.y, self.width, self.height = x, 100, size, size
        self.object_position_x, self.object_position_y = place.get("px", 500.0), place.get("py", 0.0)
        self.object_velocity_x, self.object_velocity_y = place.get("vx", 0.0), place.get("vy", 0.0)


def scripted(labels: list[Label], actions: ActionSet = KEYS, episodes: int = 20, **variables: float) -> np.ndarray:
    """Mean action (A,) of the scripted agent in its first moments with these things on screen."""
    place = {"POSITION_X": 0.0, "POSITION_Y": 0.0, "ANGLE": 0.0, "HEALTH": 50.0, "ARMOR": 0.0}
    played = []
    for seed in range(episodes):
        agent = make_agent("scripted", actions)
        agent.reset(seed)
        for moment in range(6):
            walked = {**place, "POSITION_X": 10.0 * moment, **variables}
            played.append(agent.act(FRAME, {"variables": walked, "labels": labels}))
    return np.mean(played, axis=0)


def test_scripted_turns_to_a_monster_and_fires() -> None:
    left = dict(zip(KEYS.names, scripted([Label("Monster", "Demon", 20)]), strict=True))
    assert left["TURN_LEFT"] > 0.5 > 0.1 > left["TURN_RIGHT"]
    assert left["ATTACK"] < 0.15
    ahead = dict(zip(KEYS.names, scripted([Label("Monster", "Demon", 140)]), strict=True))
    assert ahead["ATTACK"] > 0.4
    itself = dict(zip(KEYS.names, scripted([Label("Self", "DoomPlayer", 140)]), strict=True))
    assert itself["ATTACK"] < 0.15


def test_scripted_fetches_what_it_needs_and_shuns_poison() -> None:
    walker = ActionSet(("TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD"))
    medikit = scripted([Label("Health", "Medikit", 250)], walker)
    assert medikit[1] > 0.5 > 0.1 > medikit[0]
    assert medikit[2] > 0.8
    healthy = scripted([Label("Health", "Medikit", 250)], walker, HEALTH=100)
    assert healthy[1] < 0.3
    poison = scripted([Label("Health", "Poison", 130)], walker)
    assert poison[0] + poison[1] > 0.5


def test_scripted_steps_aside_of_a_fireball() -> None:
    sideways = ActionSet(("MOVE_LEFT", "MOVE_RIGHT"))
    from_left = Label("Explosive", "DoomImpBall", 150, px=300.0, py=10.0, vx=-10.0)
    from_right = Label("Explosive", "DoomImpBall", 150, px=300.0, py=-10.0, vx=-10.0)
    far_off = Label("Explosive", "DoomImpBall", 150, px=300.0, py=200.0, vx=-10.0)
    assert np.subtract(*scripted([from_left], sideways)) < -0.4
    assert np.subtract(*scripted([from_right], sideways)) > 0.4
    assert abs(np.subtract(*scripted([far_off], sideways, episodes=60))) < 0.4


@pytest.fixture(scope="module")
def judged() -> dict[str, AgentSummary]:
    return {name: evaluate_agent(name, "doom/basic", episodes=6, seed=1000) for name in ("random", "scripted")}


def test_scripted_beats_random_in_real_doom(judged: dict[str, AgentSummary]) -> None:
    random, skilled = judged["random"], judged["scripted"]
    assert skilled.kills is not None
    assert skilled.kills.mean == 1
    assert random.paper_reward is not None
    assert skilled.paper_reward is not None
    assert skilled.paper_reward.mean > random.paper_reward.mean
    assert skilled.reward.mean > random.reward.mean + 50
    assert skilled.frames.mean < random.frames.mean


def test_a_summary_tells_what_was_judged(judged: dict[str, AgentSummary]) -> None:
    summary = judged["random"]
    assert (summary.agent, summary.spec, summary.episodes, summary.seed) == ("random", "doom/basic", 6, 1000)
    assert summary.seconds.mean == pytest.approx(summary.frames.mean * 2 / 35)
    assert 0 <= summary.terminated <= 1
    assert summary == evaluate_agent("random", "doom/basic", episodes=6, seed=1000)


def test_intervals() -> None:
    assert estimate([3.0]).ci95 is None
    assert estimate([1.0, 3.0]).ci95 == pytest.approx(12.706)
    interval = estimate([1.0, 2.0, 3.0, 4.0, 5.0])
    assert interval.mean == 3
    assert interval.ci95 == pytest.approx(2.776 * np.sqrt(2.5 / 5), rel=1e-3)
    rng = np.random.default_rng(0)
    many = estimate(list(rng.normal(size=400)))
    assert many.ci95 == pytest.approx(1.96 / 20, rel=0.1)


@pytest.mark.parametrize("options", [{"episodes": 0}, {"max_frames": 0}, {"seed": -1}, {"name": "nobody"}], ids=str)
def test_impossible_judging_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        evaluate_agent(**{"name": "random", "spec": "doom/basic", **options})


@pytest.mark.parametrize(
    ("changes", "reward"),
    [
        ({}, 0),
        ({"HITS_TAKEN": 2, "HEALTH": 90}, -200 - 100),
        ({"DEAD": 1, "HEALTH": 0}, -5000 - 1000),
        ({"HITCOUNT": 1, "KILLCOUNT": 1}, 300 + 1000),
        ({"ITEMCOUNT": 2, "WEAPON3": 1}, 300),
        ({"SECRETCOUNT": 1}, 500),
        ({"ARMOR": 100, "HEALTH": 110}, 1000 + 100),
        ({"AMMO2": 60, "AMMO3": -1}, 100 - 1),
        ({"AMMO4": 60}, 0),  # the ammunition of slot 2, once more
        ({"POSITION_X": CELL_UNITS - 1}, 0),
        ({"POSITION_X": CELL_UNITS, "POSITION_Y": -1}, 20 * (1 + 0.5 * 2)),
        ({"POSITION_X": 3 * CELL_UNITS}, 20 * (1 + 0.5 * 3)),
    ],
    ids=str,
)
def test_the_papers_reward(changes: dict[str, float], reward: float) -> None:
    start = dict.fromkeys(
        ("HITS_TAKEN", "DEAD", "HITCOUNT", "KILLCOUNT", "ITEMCOUNT", "WEAPON3", "SECRETCOUNT", "ARMOR", "AMMO3",
         "POSITION_X", "POSITION_Y"), 0.0,
    ) | {"HEALTH": 100.0, "AMMO2": 50.0, "AMMO4": 50.0}  # fmt: skip
    paper = PaperReward()
    paper.reset(start)
    assert paper({**start, **changes}) == reward
    assert paper({**start, **changes}) == 0, "nothing more happened"
    paper.reset(start)
    assert paper({**start, **changes}) == reward, "an episode begins anew"


def test_a_respawn_earns_nothing_and_a_missing_variable_neither() -> None:
    paper = PaperReward()
    paper.reset({"DEAD": 1.0, "HEALTH": 0.0})
    assert paper({"DEAD": 0.0, "HEALTH": 100.0}) == 0
    assert paper({"DEAD": 0.0, "HEALTH": 90.0}) == -100
    paper.reset({})
    assert paper({"ARMOR": 50.0}) == 0


def test_a_mix_is_read() -> None:
    assert parse_mix("scripted") == (AgentShare("scripted", 1.0),)
    assert parse_mix("scripted:3, random:1") == (AgentShare("scripted", 0.75), AgentShare("random", 0.25))


@pytest.mark.parametrize(
    "text", ["", "nobody", "random:0", "random:-1", "random:nan", "random:inf", "random,,scripted"]
)
def test_an_impossible_mix_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_mix(text)
    assert "\n" not in str(caught.value)


def test_a_policy_chooses_among_human_combinations() -> None:
    table = combinations(KEYS)
    assert not table[0].any()
    assert len(np.unique(table, axis=0)) == len(table) == 54
    assert KEYS.encode(["MOVE_FORWARD", "TURN_LEFT", "ATTACK"]).tolist() in table.tolist()
    assert not (table[:, 4] * table[:, 5]).any()


@pytest.mark.parametrize(
    ("actions", "count"),
    [
        (ActionSet(("A", "B", "C"), exclusive=True), 3),
        (ActionSet(("BUTTON_0", "BUTTON_1", "BUTTON_2")), 8),
        (ActionSet(tuple(f"BUTTON_{i}" for i in range(12))), 13),
        (ActionSet((), ("X",)), 5),
        (ActionSet((), tuple("VWXYZ")), 243),
        (ActionSet((), tuple("ABCDEFGH")), 17),
    ],
    ids=str,
)
def test_a_policy_reaches_every_button_and_axis(actions: ActionSet, count: int) -> None:
    table = combinations(actions)
    assert len(table) == count
    assert (table[0] == actions.rest).all()
    assert (table.max(0) == 1).all()
    assert (table[:, len(actions.buttons) :].min(0, initial=-1) == -1).all()
    actions.check(table)


ARMED = ActionSet((*KEYS.buttons, *(f"SELECT_WEAPON{slot}" for slot in range(1, 8))))


def test_scripted_draws_a_loaded_weapon_once() -> None:
    have = {"WEAPON2": 1.0, "AMMO2": 50.0, "WEAPON3": 1.0, "AMMO3": 8.0, "WEAPON5": 1.0, "AMMO5": 0.0}

    def asked(held: float) -> dict[str, float]:
        return dict(zip(ARMED.names, 6 * scripted([], ARMED, **have, SELECTED_WEAPON=held), strict=True))

    assert asked(2.0)["SELECT_WEAPON3"] == pytest.approx(1, abs=0.15), "asked for once, then waited for"
    assert asked(2.0)["SELECT_WEAPON5"] < 0.15, "it has no ammunition"
    assert asked(3.0)["SELECT_WEAPON3"] < 0.15, "it is in the hand"


def test_scripted_aims_ahead_with_a_rocket_launcher() -> None:
    """500 ahead, 5 a tic to the left, rocket 20 a tic from tic 8 on: 375 t^2 - 700 t - 254900 = 0, t = 27.0."""
    aims = {}
    for weapon in (2, 5):
        agent: Any = make_agent("scripted", KEYS)
        for moment in range(4):
            enemy = Label("Monster", "Demon", 140, px=500.0, py=10.0 * moment)
            place = {"POSITION_X": 0.0, "POSITION_Y": 0.0, "ANGLE": 0.0, "SELECTED_WEAPON": weapon}
            aims[weapon] = agent._aim(enemy, place, 320)
    assert aims[2] == 160
    assert aims[5] == pytest.approx(160 * (1 - 205 / 500), abs=3)
