"""One face for every game: real Doom in several scenarios and seeds, and Gymnasium's kinds of actions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest

from agents.actions import ActionSet
from agents.agent import make_agent
from agents.doom import VARIABLES, list_scenarios
from agents.environments import make_environment
from agents.errors import ActionError, EngineError, GamengenError, OptionError, SpecError

SCENARIOS = ["defend_the_center", "deathmatch", "health_gathering", "my_way_home", "multi_duel", "freedoom1:E1M1"]


@pytest.fixture
def make() -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def environment(spec: str, **options: Any) -> Any:
        made.append(make_environment(spec, **options))
        return made[-1]

    yield environment
    for one in made:
        one.close()


def play(environment: Any, seed: int, steps: int = 25) -> tuple[np.ndarray, np.ndarray]:
    """Frames (N, H, W, 3) and variables (N, V) of random play."""
    agent = make_agent("random", environment.action_set)
    agent.reset(seed)
    frame, info = environment.reset(seed=seed)
    frames, variables = [frame], [list(info["variables"].values())]
    for _ in range(steps):
        frame, _, terminated, truncated, info = environment.step(agent.act(frame, info))
        if terminated or truncated:
            break
        frames.append(frame)
        variables.append(list(info["variables"].values()))
    return np.stack(frames), np.array(variables)


@pytest.mark.parametrize("name", SCENARIOS)
def test_doom_is_real_and_repeats_itself(make: Callable[..., Any], name: str) -> None:
    environment = make(f"doom/{name}")
    frames, variables = play(environment, 3)
    assert frames.shape[1:] == (240, 320, 3)
    assert frames.dtype == np.uint8
    assert frames.any((1, 2, 3)).all(), "an all-zero frame"
    assert (frames != frames[:1]).any(), "nothing moves"
    assert len(environment.variable_names) == variables.shape[1]
    other, _ = play(environment, 4)
    again, same_variables = play(environment, 3)
    assert np.array_equal(frames, again)
    assert np.array_equal(variables, same_variables)
    assert not np.array_equal(frames, other)


def test_sensors_do_not_change_the_game(make: Callable[..., Any]) -> None:
    plain, _ = play(make("doom/defend_the_line"), 3)
    environment = make("doom/defend_the_line", sensors=frozenset({"labels", "depth", "automap"}))
    seen, _ = play(environment, 3)
    assert np.array_equal(plain, seen)
    _, info = environment.reset(seed=3)
    assert info["depth"].shape == (240, 320)
    assert info["automap"].shape == (240, 320, 3)
    assert any(label.object_category == "Monster" for label in info["labels"])


def test_a_combination_of_keys_does_all_at_once(make: Callable[..., Any]) -> None:
    environment = make("doom/deathmatch")
    _, info = environment.reset(seed=1)
    before = info["variables"]
    held = environment.action_set.encode(["MOVE_FORWARD", "TURN_LEFT", "ATTACK"])
    for _ in range(20):
        *_, info = environment.step(held)
    after = info["variables"]
    assert abs(after["POSITION_X"] - before["POSITION_X"]) + abs(after["POSITION_Y"] - before["POSITION_Y"]) > 50
    assert (after["ANGLE"] - before["ANGLE"]) % 360 > 20
    assert after["SELECTED_WEAPON_AMMO"] < before["SELECTED_WEAPON_AMMO"]
    assert set(after) == set(VARIABLES)


def test_an_episode_has_no_black_frame_at_its_end(make: Callable[..., Any]) -> None:
    environment = make("doom/simpler_basic")
    environment.reset(seed=2)
    ended = False
    while not ended:
        frame, _, terminated, truncated, info = environment.step(environment.action_set.rest)
        assert frame.any()
        ended = terminated or truncated
    assert truncated, "the scenario's time limit is no end of its story"
    assert not terminated
    assert info["variables"]["HEALTH"] == 100


def test_an_episode_is_cut_after_max_frames(make: Callable[..., Any]) -> None:
    environment = make("doom/basic", max_frames=4)
    environment.reset(seed=1)
    ends = [environment.step(environment.action_set.rest)[2:4] for _ in range(3)]
    assert ends == [(False, False), (False, False), (False, True)]


def test_other_sizes_and_frame_skips(make: Callable[..., Any]) -> None:
    environment = make("doom/basic", height=120, width=160, frame_skip=4)
    frame, _ = environment.reset(seed=1)
    assert frame.shape == (120, 160, 3)
    assert environment.fps == 35 / 4


def test_every_bundled_scenario_can_be_named(make: Callable[..., Any]) -> None:
    names = list_scenarios()
    assert {"basic", "deadly_corridor", "take_cover", "health_gathering_supreme"} <= set(names)
    for name in names:
        assert make(f"doom/{name}").action_set.size >= 2


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "doom",
        "doom/",
        "doom/nowhere",
        "doom/freedoom2:E1M1",
        "doom/doom:E1M1",
        "gym/",
        "gym/No-v0",
        "chess/x",
        "basic",
    ],
)
def test_an_unknown_game_is_refused_in_one_line(spec: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_environment(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [{"height": 241}, {"width": 0}, {"frame_skip": 0}, {"frame_skip": -1}, {"sensors": frozenset({"radar"})}],
    ids=str,
)
def test_an_impossible_option_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as caught:
        make_environment("doom/basic", **options)
    assert "\n" not in str(caught.value)


def test_an_impossible_action_is_refused_and_harms_nothing(make: Callable[..., Any]) -> None:
    environment = make("doom/basic")
    with pytest.raises(EngineError, match="call reset"):
        environment.step(environment.action_set.rest)
    environment.reset(seed=1)
    for action in ([0, 0], [0, 0, np.nan], "fire"):
        with pytest.raises(ActionError):
            environment.step(action)
    assert environment.step(environment.action_set.rest)[0].any()


class FakeGame(gymnasium.Env[np.ndarray, Any]):
    """Shows the last action as a bar of colour; ends after 30 steps."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, actions: gymnasium.Space[Any], render_mode: str | None = None) -> None:
        self.action_space, self.render_mode = actions, render_mode
        self.observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
        self.native: list[Any] = []

    def reset(self, **options: Any) -> tuple[np.ndarray, dict[str, Any]]:
        self.native = []
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.native.append(action)
        return np.zeros(1, np.float32), 1.0, len(self.native) >= 30, False, {}

    def render(self) -> Any:
        picture = np.zeros((50, 100, 3), np.uint8)
        picture[:, :, 0] = 8 * len(self.native)
        return picture


SPACES = {
    "Discrete": gymnasium.spaces.Discrete(3, start=5),
    "Box": gymnasium.spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 1.0], np.float32)),
    "MultiBinary": gymnasium.spaces.MultiBinary(4),
    "Text": gymnasium.spaces.Text(4),
    "Unbounded": gymnasium.spaces.Box(-np.inf, np.inf, (2,)),
}


@pytest.fixture(autouse=True, scope="module")
def fake_games() -> Iterator[None]:
    for name, space in SPACES.items():
        gymnasium.register(f"Fake{name}-v0", entry_point=FakeGame, kwargs={"actions": space})
    yield
    for name in SPACES:
        del gymnasium.registry[f"Fake{name}-v0"]


@pytest.mark.parametrize(
    ("name", "actions", "action", "native"),
    [
        ("Discrete", ActionSet(("ACTION_0", "ACTION_1", "ACTION_2"), exclusive=True), [0, 0, 1], 7),
        ("Box", ActionSet((), ("AXIS_0", "AXIS_1")), [-1, 0], [-2, 0.5]),
        ("MultiBinary", ActionSet(("BUTTON_0", "BUTTON_1", "BUTTON_2", "BUTTON_3")), [1, 0, 0, 1], [1, 0, 0, 1]),
    ],
)
def test_gymnasium_actions_have_the_same_face(
    make: Callable[..., Any], name: str, actions: ActionSet, action: list[float], native: Any
) -> None:
    environment = make(f"gym/Fake{name}-v0", frame_skip=2, height=60, width=80)
    assert environment.action_set == actions
    frame, info = environment.reset(seed=1)
    assert frame.shape == (60, 80, 3)
    assert info == {"variables": {}}
    frame, reward, terminated, truncated, _ = environment.step(action)
    game = environment._env.unwrapped
    assert len(game.native) == 2
    assert np.allclose(game.native, native)
    assert (reward, terminated, truncated) == (2.0, False, False)
    assert frame[30, 40, 0] == 16
    assert not frame[:9].any(), "the aspect is kept, on black"
    for _ in range(14):
        frame, _, terminated, _, _ = environment.step(action)
    assert terminated
    assert environment.fps == 10


@pytest.mark.parametrize("name", ["Text", "Unbounded"])
def test_gymnasium_actions_that_cannot_be_encoded_are_refused(name: str) -> None:
    with pytest.raises(GamengenError, match="cannot encode its actions"):
        make_environment(f"gym/Fake{name}-v0")


@pytest.mark.parametrize("agent", ["random", "scripted"])
@pytest.mark.parametrize("name", ["Discrete", "Box", "MultiBinary"])
def test_agents_play_gymnasium_games(make: Callable[..., Any], name: str, agent: str) -> None:
    environment = make(f"gym/Fake{name}-v0", frame_skip=1)
    player = make_agent(agent, environment.action_set, 1)
    player.reset(3)
    frame, info = environment.reset(seed=3)
    ended = False
    while not ended:
        frame, _, terminated, truncated, info = environment.step(player.act(frame, info))
        ended = terminated or truncated
