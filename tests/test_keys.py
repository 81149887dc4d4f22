"""Keys, mouse and gamepad become actions."""

import numpy as np
import pygame
import pytest
from fake_game import FakeGame

from agents.actions import ActionSet
from engine.keys import LONGEST_TURN, PIXELS_PER_TURN, Controls, bind_inputs, describe_controls
from engine.window import PlayWindow

WEAPONS = tuple(f"SELECT_WEAPON{i}" for i in range(1, 8))
MOVES = ("MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT")
FULL = ActionSet((*MOVES, "ATTACK", "USE", "SPEED", *WEAPONS))
DEFEND = ActionSet(("TURN_LEFT", "TURN_RIGHT", "ATTACK"))
BASIC = ActionSet(("MOVE_LEFT", "MOVE_RIGHT", "ATTACK"))


def discrete(size: int) -> ActionSet:
    return ActionSet(tuple(f"ACTION_{i}" for i in range(size)), exclusive=True)


def held_after(action_set: ActionSet, *names: str) -> list[str]:
    controls = Controls(action_set)
    for name in names:
        controls.press(name)
    return action_set.held(controls.take())


@pytest.mark.parametrize(
    ("key", "button"),
    [
        ("w", "MOVE_FORWARD"), ("up", "MOVE_FORWARD"), ("s", "MOVE_BACKWARD"), ("down", "MOVE_BACKWARD"),
        ("a", "MOVE_LEFT"), ("d", "MOVE_RIGHT"), ("left", "TURN_LEFT"), ("right", "TURN_RIGHT"),
        ("left ctrl", "ATTACK"), ("right ctrl", "ATTACK"), ("mouse left", "ATTACK"), ("space", "USE"),
        ("left shift", "SPEED"), ("1", "SELECT_WEAPON1"), ("7", "SELECT_WEAPON7"), ("pad a", "USE"),
    ],
)  # fmt: skip
def test_doom_keys(key, button):
    assert held_after(FULL, key) == [button]


def test_keys_combine():
    assert held_after(FULL, "w", "left", "left ctrl", "left shift") == ["MOVE_FORWARD", "TURN_LEFT", "ATTACK", "SPEED"]


def test_arrows_strafe_where_a_game_cannot_turn_and_space_fires_where_nothing_is_used():
    assert held_after(BASIC, "left", "space") == ["MOVE_LEFT", "ATTACK"]
    assert held_after(BASIC, "a") == ["MOVE_LEFT"]
    assert held_after(DEFEND, "d") == ["TURN_RIGHT"]
    assert held_after(DEFEND, "w", "7", "no such key") == []


def test_held_until_released():
    controls = Controls(DEFEND)
    controls.press("left")
    assert [DEFEND.held(controls.take()) for _ in range(3)] == [["TURN_LEFT"]] * 3
    controls.release("left")
    assert DEFEND.held(controls.take()) == []


def test_a_tap_between_two_frames_is_held_for_one():
    controls = Controls(DEFEND)
    controls.take()
    controls.press("left ctrl")
    controls.release("left ctrl")
    assert DEFEND.held(controls.take()) == ["ATTACK"]
    assert DEFEND.held(controls.take()) == []
    controls.press("left ctrl")
    controls.release("left ctrl")
    controls.press("left ctrl")
    assert [DEFEND.held(controls.take()) for _ in range(2)] == [["ATTACK"]] * 2


def test_two_keys_of_one_button():
    controls = Controls(DEFEND)
    controls.press("left")
    controls.press("a")
    controls.take()
    controls.release("left")
    assert DEFEND.held(controls.take()) == ["TURN_LEFT"]


def test_the_newer_of_two_opposite_keys_wins():
    controls = Controls(DEFEND)
    controls.press("left")
    controls.press("right")
    assert DEFEND.held(controls.take()) == ["TURN_RIGHT"]
    controls.release("right")
    assert DEFEND.held(controls.take()) == ["TURN_LEFT"]
    controls.press("right")
    controls.release("right")
    assert [DEFEND.held(controls.take()) for _ in range(2)] == [["TURN_RIGHT"], ["TURN_LEFT"]]


def test_release_all_lets_go_of_everything():
    controls = Controls(FULL)
    controls.press("w")
    controls.press("left ctrl")
    controls.release("left ctrl")
    controls.move_mouse(500)
    controls.move_stick("pad right x", 1.0)
    controls.release_all()
    assert FULL.held(controls.take()) == []


def test_the_mouse_turns_by_as_many_frames_as_it_moved():
    controls = Controls(DEFEND)
    controls.move_mouse(2 * PIXELS_PER_TURN)
    assert [DEFEND.held(controls.take()) for _ in range(3)] == [["TURN_RIGHT"], ["TURN_RIGHT"], []]
    controls.move_mouse(1.5 * PIXELS_PER_TURN)
    assert [DEFEND.held(controls.take()) for _ in range(9)] == [["TURN_RIGHT"]] + [[]] * 8, "it does not swing back"
    controls.release_all()
    turns = []
    for _ in range(40):  # slow: a quarter of a turn a frame
        controls.move_mouse(-PIXELS_PER_TURN / 4)
        turns += DEFEND.held(controls.take())
    assert turns == ["TURN_LEFT"] * 10


def test_a_wild_mouse_soon_stops_turning():
    controls = Controls(DEFEND)
    controls.move_mouse(100_000)
    held = [DEFEND.held(controls.take()) for _ in range(10)]
    assert held.count(["TURN_RIGHT"]) == LONGEST_TURN


def test_a_turn_key_outdoes_the_mouse():
    controls = Controls(DEFEND)
    controls.press("left")
    controls.move_mouse(100)
    assert DEFEND.held(controls.take()) == ["TURN_LEFT"]
    controls.release("left")
    assert DEFEND.held(controls.take()) == []


def test_the_mouse_turns_an_axis_straight():
    action_set = ActionSet(("ATTACK",), ("TURN_LEFT_RIGHT_DELTA",))
    controls = Controls(action_set)
    controls.move_mouse(-PIXELS_PER_TURN / 2)
    np.testing.assert_allclose(controls.take(), [0, -0.5])
    np.testing.assert_allclose(controls.take(), [0, 0])
    controls.press("right")
    np.testing.assert_allclose(controls.take(), [0, 1])


def test_sticks_and_triggers():
    controls = Controls(FULL)
    controls.move_stick("pad left y", -0.9)
    controls.move_stick("pad left x", 0.2)  # not far enough for a button
    controls.move_stick("pad right trigger", 1.0)
    assert FULL.held(controls.take()) == ["MOVE_FORWARD", "ATTACK"]
    controls.move_stick("pad left y", 0.0)
    controls.move_stick("pad right trigger", 0.0)
    controls.move_stick("pad right x", 0.5)
    turns = [FULL.held(controls.take()) for _ in range(10)]
    assert turns.count(["TURN_RIGHT"]) == 5
    controls.move_stick("pad right x", 0.0)
    assert FULL.held(controls.take()) == []


def test_a_stick_moves_an_axis_as_far_as_it_is_pushed():
    controls = Controls(ActionSet((), ("AXIS_0", "AXIS_1")))
    controls.move_stick("pad left x", -0.5)
    controls.move_stick("pad left x", -0.25)
    np.testing.assert_allclose(controls.take(), [-0.25, 0])


def test_gymnasium_actions():
    cartpole, lander, atari = discrete(2), discrete(4), discrete(18)
    assert held_after(cartpole) == ["ACTION_0"]
    assert held_after(cartpole, "right") == ["ACTION_1"]
    assert held_after(discrete(3), "left") == ["ACTION_0"]
    assert held_after(discrete(3), "d") == ["ACTION_2"]
    assert held_after(lander, "up") == ["ACTION_2"]
    assert held_after(lander, "0") == ["ACTION_0"]
    assert held_after(atari, "9", "space") == ["ACTION_1"]  # the newest key
    assert {target.channel for target in bind_inputs(atari).values()} == set(atari.buttons)
    boxes = ActionSet((), ("AXIS_0", "AXIS_1", "AXIS_2"))
    controls = Controls(boxes)
    for key in ("left", "up", "d"):
        controls.press(key)
    np.testing.assert_allclose(controls.take(), [-1, 1, 1])


def test_unknown_buttons_get_spare_keys():
    action_set = ActionSet(("MOVE_FORWARD", "JUMP", "CROUCH"))
    assert held_after(action_set, "w", "1", "2") == ["MOVE_FORWARD", "JUMP", "CROUCH"]


@pytest.mark.parametrize("action_set", [FULL, DEFEND, BASIC, discrete(18), ActionSet((), ("AXIS_0", "AXIS_1"))])
def test_help_tells_of_every_channel(action_set):
    text = "\n".join(f"{keys}: {what}" for keys, what in describe_controls(action_set))
    words = {"ATTACK": "fire", "SPEED": "run"}
    for name in action_set.names:
        expected = "weapons" if name.startswith("SELECT") else words.get(name, name.replace("_", " ").lower())
        assert expected in text
    assert "no key" not in text
    commands = {"r", "n", "p", ".", "backspace", "escape"}
    assert not commands & set(bind_inputs(action_set))


def test_help_names_what_has_no_key():
    many = ActionSet((), tuple(f"AXIS_{i}" for i in range(9)))
    assert ("no key", "axis 8 +") in describe_controls(many)


WALKER = ActionSet((*MOVES, "ATTACK", "USE", "SPEED"))


def test_every_part_of_a_gamepad(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    game = FakeGame(WALKER)
    window = PlayWindow(game)
    pygame.event.clear()

    def post(kind, **values):
        pygame.event.post(pygame.event.Event(kind, {**values, "instance_id": 0}))

    def held_after(kind, **values):
        post(kind, **values)
        window.tick()
        return WALKER.held(game.actions[-1])

    for button, name in {
        "A": "USE", "X": "ATTACK", "DPAD_UP": "MOVE_FORWARD", "DPAD_DOWN": "MOVE_BACKWARD", "DPAD_LEFT": "TURN_LEFT",
    }.items():  # fmt: skip
        number = getattr(pygame, f"CONTROLLER_BUTTON_{button}")
        assert held_after(pygame.CONTROLLERBUTTONDOWN, button=number) == [name]
        assert held_after(pygame.CONTROLLERBUTTONUP, button=number) == []
    for axis, value, name in (
        ("LEFTX", 32767, "MOVE_RIGHT"), ("LEFTX", -32768, "MOVE_LEFT"), ("LEFTY", -32768, "MOVE_FORWARD"),
        ("TRIGGERLEFT", 32767, "SPEED"),
    ):  # fmt: skip
        number = getattr(pygame, f"CONTROLLER_AXIS_{axis}")
        assert held_after(pygame.CONTROLLERAXISMOTION, axis=number, value=value) == [name]
        assert held_after(pygame.CONTROLLERAXISMOTION, axis=number, value=0) == []
    post(pygame.CONTROLLERBUTTONDOWN, button=pygame.CONTROLLER_BUTTON_BACK)
    for _ in range(4):
        window.tick()
    assert game.number == 4, "a new start, and three frames more"
    post(pygame.CONTROLLERBUTTONDOWN, button=pygame.CONTROLLER_BUTTON_LEFTSHOULDER)
    for _ in range(2):
        window.tick()
    assert game.number == 2
    post(pygame.CONTROLLERBUTTONUP, button=pygame.CONTROLLER_BUTTON_LEFTSHOULDER)
    window.tick()
    assert game.number == 3
    window.close()


def test_a_faster_mouse_turns_further():
    controls = Controls(DEFEND, mouse_speed=2)
    controls.move_mouse(PIXELS_PER_TURN)
    assert [DEFEND.held(controls.take()) for _ in range(3)] == [["TURN_RIGHT"], ["TURN_RIGHT"], []]
