"""ActionSet: names, combinations, what it accepts and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from agents.actions import ActionSet
from agents.errors import ActionError

KEYS = ActionSet(("MOVE_FORWARD", "TURN_LEFT", "TURN_RIGHT", "ATTACK"))
MIXED = ActionSet(("FIRE",), ("STEER", "SPEED"))
ONE_OF = ActionSet(("NONE", "LEFT", "RIGHT"), exclusive=True)


def test_a_human_combination_is_one_vector() -> None:
    action = KEYS.encode(["ATTACK", "MOVE_FORWARD", "TURN_LEFT"])
    assert action.dtype == np.float32
    assert action.tolist() == [1, 1, 0, 1]
    assert KEYS.held(action) == ["MOVE_FORWARD", "TURN_LEFT", "ATTACK"]


def test_rest_touches_nothing() -> None:
    assert KEYS.encode().tolist() == KEYS.rest.tolist() == [0, 0, 0, 0]
    assert KEYS.held(KEYS.rest) == []


def test_axes_come_after_buttons_and_show_their_value() -> None:
    action = MIXED.encode(["FIRE"], STEER=-0.5)
    assert action.tolist() == [1, -0.5, 0]
    assert MIXED.held(action) == ["FIRE", "STEER -0.50"]
    assert MIXED.size == len(MIXED.names) == 3


def test_exclusive_is_one_hot_also_at_rest() -> None:
    assert ONE_OF.rest.tolist() == ONE_OF.encode().tolist() == [1, 0, 0]
    assert ONE_OF.encode(["LEFT", "RIGHT"]).tolist() == [0, 0, 1]


def test_rest_is_not_shared() -> None:
    KEYS.rest[0] = 1
    assert KEYS.rest[0] == 0


@pytest.mark.parametrize("actions", [KEYS, MIXED, ONE_OF])
def test_json_round_trip(actions: ActionSet) -> None:
    assert ActionSet.from_json(json.loads(json.dumps(actions.to_json()))) == actions


@pytest.mark.parametrize("data", [None, [], {}, {"buttons": ["A"]}, {"buttons": 3, "axes": [], "exclusive": False}])
def test_foreign_json_is_refused(data: Any) -> None:
    with pytest.raises(ActionError):
        ActionSet.from_json(data)


@pytest.mark.parametrize("names", [(), ("A", "A"), ("A", 3)])
def test_names_must_be_distinct_strings(names: Any) -> None:
    with pytest.raises(ActionError, match="distinct names"):
        ActionSet(names)


def test_a_name_of_both_kinds_is_refused() -> None:
    with pytest.raises(ActionError, match="distinct names"):
        ActionSet(("A",), ("A",))


@pytest.mark.parametrize(
    "action",
    [
        [1, 0, 0],
        [1, 0, 0, 0, 0],
        1.0,
        [],
        [np.nan, 0, 0, 0],
        [np.inf, 0, 0, 0],
        [2, 0, 0, 0],
        "fire",
        None,
        [[1], [0, 1]],
    ],
    ids=str,
)
def test_check_refuses(action: Any) -> None:
    with pytest.raises(ActionError) as caught:
        KEYS.check(action)
    assert "TURN_LEFT" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_check_takes_one_action_or_many() -> None:
    assert KEYS.check([1, 0, 0, 1]).dtype == np.float32
    assert KEYS.check(np.ones((5, 2, 4), int)).shape == (5, 2, 4)
    assert KEYS.check([True, False, False, True]).tolist() == [1, 0, 0, 1]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ActionError, match="JUMP ; use MOVE_FORWARD, TURN_LEFT"):
        KEYS.encode(["JUMP"])
    with pytest.raises(ActionError, match="no such button or axis"):
        MIXED.encode(PITCH=1.0)
