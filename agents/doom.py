"""Doom through ViZDoom: bundled scenarios and full maps, and the care of engine processes."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import vizdoom as vzd

from agents.actions import ActionSet
from agents.engine_process import EngineProcess
from agents.engine_process import remove_orphans as remove_orphans
from agents.environments import LARGEST_FRAME_SKIP
from agents.errors import EngineError, OptionError, SpecError

TICS_PER_SECOND = 35
SEED_MASK = 0x7FFFFFFF
SENSORS = frozenset({"labels", "depth", "automap"})
VARIABLES = (
    "HEALTH", "ARMOR", "SELECTED_WEAPON", "SELECTED_WEAPON_AMMO", "AMMO2", "AMMO3", "AMMO4", "AMMO5", "AMMO6",
    "KILLCOUNT", "ITEMCOUNT", "SECRETCOUNT", "HITCOUNT", "HITS_TAKEN", "DAMAGECOUNT", "DAMAGE_TAKEN", "DEAD",
    "POSITION_X", "POSITION_Y", "POSITION_Z", "ANGLE",
    "WEAPON1", "WEAPON2", "WEAPON3", "WEAPON4", "WEAPON5", "WEAPON6", "WEAPON7",
)  # fmt: skip
DEPTH_UNIT, DEPTH_FIRST = 7.4, 6.9  # units of the map a step of the depth buffer, and before the first: as frames move
CAMERA = ("CAMERA_POSITION_X", "CAMERA_POSITION_Y", "CAMERA_POSITION_Z", "CAMERA_ANGLE")
MAP_BUTTONS = (
    "MOVE_FORWARD", "MOVE_BACKWARD", "MOVE_LEFT", "MOVE_RIGHT", "TURN_LEFT", "TURN_RIGHT", "ATTACK", "USE", "SPEED",
)  # fmt: skip
# STRAFE only redirects the turn keys; next and previous weapon depend on state that the picture does not show.
REDUNDANT_BUTTONS = frozenset({"STRAFE", "SELECT_NEXT_WEAPON", "SELECT_PREV_WEAPON"})
# Scenario files whose game data is commercial or generated, so that it is not in the wheel.
UNAVAILABLE = frozenset({"doom", "doom2", "oblige"})
# Scenario files that only name a full game: played from its first map.
FIRST_MAPS = {"freedoom1": "freedoom1:E1M1", "freedoom2": "freedoom2:MAP01"}
MULTIPLAYER = frozenset({"cig", "multi", "multi_duel"})
MULTIPLAYER_ARGUMENTS = "-host 1 -deathmatch +sv_forcerespawn 1 +sv_noautoaim 1 +sv_respawnprotect 1"

_live: weakref.WeakSet[DoomEnvironment] = weakref.WeakSet()


def list_scenarios() -> list[str]:
    """Names of the bundled scenarios that can be played, for ``doom/<name>``."""
    names = (path.stem for path in Path(vzd.scenarios_path).glob("*.cfg"))
    return sorted(set(names) - UNAVAILABLE)


class DoomEnvironment(gymnasium.Env[np.ndarray, np.ndarray]):
    """A Doom game with HUD; see :func:`agents.environments.make_environment`.

    The engine is started by the first ``reset`` and started anew where it died. The same seed gives
    identical frames.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": TICS_PER_SECOND}  # noqa: RUF012

    def __init__(
        self,
        name: str,
        frame_skip: int = 2,
        height: int = 240,
        width: int = 320,
        sensors: frozenset[str] = frozenset(),
        max_frames: int | None = None,
    ) -> None:
        self._game: vzd.DoomGame | None = None
        self._engine: EngineProcess | None = None
        if not 1 <= frame_skip <= LARGEST_FRAME_SKIP:
            raise OptionError(f"must be 1 to {LARGEST_FRAME_SKIP}, got {frame_skip}", "frame_skip", "use 1 to 8")
        if not sensors <= SENSORS:
            raise OptionError("unknown sensor", ", ".join(sensors - SENSORS), f"use {', '.join(sorted(SENSORS))}")
        self.spec_name = f"doom/{name}"
        self.frame_skip, self.fps = frame_skip, TICS_PER_SECOND / frame_skip
        self.variable_names = VARIABLES
        self.sensors, self.max_frames = sensors, max_frames
        self.render_mode = "rgb_array"
        self._height, self._width = height, width
        self._resolution = _resolution(height, width)
        self._multiplayer = name in MULTIPLAYER
        self._frame = np.zeros((height, width, 3), np.uint8)
        self._frames_played = 0
        self._configure = _configuration(name)
        self.action_set = ActionSet(_button_names(self._configure, name))
        self.observation_space = gymnasium.spaces.Box(0, 255, (height, width, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1, 1, (self.action_set.size,), np.float32)
        _live.add(self)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode.

        Raises:
            EngineError: the engine died or would not start; calling again starts a fresh one.
        """
        super().reset(seed=seed)
        with self._engine_errors():
            if self._multiplayer:  # its next episode is the same match gone on, so a seed needs a new match
                self.close()
            if self._game is None:
                self._start(seed)
            assert self._game is not None and self._engine is not None
            if not self._multiplayer:
                with self._engine.answering():
                    if seed is not None:
                        self._game.set_seed(seed & SEED_MASK)
                    self._game.new_episode()
            self._frames_played = 1
            return self._observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold ``action`` (A,) for ``frame_skip`` tics; the reward is the scenario's own.

        Raises:
            ActionError: the action has the wrong length or a value that is not finite.
            EngineError: the engine died; ``reset`` starts a fresh one.
        """
        held = self.action_set.check(action)
        if self._game is None or self._engine is None:
            raise EngineError("the game is not running", self.spec_name, "call reset first")
        with self._engine_errors(), self._engine.answering():
            reward = self._game.make_action([bool(value > 0.5) for value in held], self.frame_skip)
            terminated = self._game.is_episode_finished()
            # A time limit is no end of the game's story; death and reaching the exit are.
            timed_out = terminated and not self._game.is_player_dead() and self._game.is_episode_timeout_reached()
            frame, info = self._observe()
        self._frames_played += 1
        truncated = timed_out or (self.max_frames is not None and self._frames_played >= self.max_frames)
        return frame, float(reward), terminated and not timed_out, truncated, info

    def render(self) -> np.ndarray:
        """The newest frame (H, W, 3) uint8."""
        return self._frame

    def close(self) -> None:
        """End the engine process and remove what it left in shared memory and on disk.

        A forked child of the process that started it does nothing.
        """
        if self._engine is not None and not self._engine.is_ours:
            # Never freed: its destructor tells the engine to end, and waits for threads that a child does not have.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._game))
            self._game = self._engine = None
            return
        game, self._game = self._game, None
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.kill()
        if game is not None:
            with contextlib.suppress(Exception):
                game.close()
        if engine is not None:
            engine.end()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # a half-made environment, or an interpreter that is going down
            self.close()

    def _start(self, seed: int | None) -> None:
        game = vzd.DoomGame()
        game.set_vizdoom_path(vzd.exe_path)  # by itself it would prefer a file of that name in the user's folder
        self._configure(game)
        self._engine = EngineProcess()
        # The engine writes its settings file on exit: not into the user's folder.
        game.set_doom_config_path(str(self._engine.folder / "engine.ini"))
        game.set_screen_resolution(self._resolution)
        game.set_screen_format(vzd.ScreenFormat.RGB24)
        game.set_render_hud(True)
        game.set_window_visible(False)
        game.set_sound_enabled(False)
        game.set_audio_buffer_enabled(False)
        game.set_notifications_buffer_enabled(False)
        game.set_mode(vzd.Mode.PLAYER)
        game.set_labels_buffer_enabled("labels" in self.sensors)
        game.set_depth_buffer_enabled("depth" in self.sensors)
        game.set_automap_buffer_enabled("automap" in self.sensors)
        game.set_available_buttons([vzd.Button.__members__[name] for name in self.action_set.buttons])
        game.set_available_game_variables([vzd.GameVariable.__members__[name] for name in VARIABLES])
        if self._multiplayer:
            game.add_game_args(MULTIPLAYER_ARGUMENTS)
        if seed is not None:
            game.set_seed(seed & SEED_MASK)
        self._engine.start(game.init)
        self._game = game

    def _observe(self) -> tuple[np.ndarray, dict[str, Any]]:
        assert self._game is not None
        state = self._game.get_state()
        if state is None:  # the terminal step has no picture
            values = [self._game.get_game_variable(vzd.GameVariable.__members__[name]) for name in VARIABLES]
            return self._frame, {"variables": dict(zip(VARIABLES, map(float, values), strict=True))}
        self._frame = np.array(state.screen_buffer)
        assert self._frame.shape == (self._height, self._width, 3)
        info: dict[str, Any] = {
            "variables": dict(zip(VARIABLES, np.asarray(state.game_variables, float).tolist(), strict=True))
        }
        if "labels" in self.sensors:
            info["labels"] = state.labels
        if "depth" in self.sensors:
            info["depth"] = state.depth_buffer
            info["camera"] = np.array(
                [self._game.get_game_variable(vzd.GameVariable.__members__[name]) for name in CAMERA], np.float32
            )
        if "automap" in self.sensors:
            info["automap"] = state.automap_buffer
        return self._frame, info

    @contextlib.contextmanager
    def _engine_errors(self) -> Iterator[None]:
        try:
            yield
        except (
            vzd.ViZDoomErrorException,
            vzd.ViZDoomUnexpectedExitException,
            vzd.ViZDoomIsNotRunningException,
            vzd.MessageQueueException,
            vzd.SharedMemoryException,
            TimeoutError,
        ) as error:
            hung = self._engine is not None and self._engine.timed_out
            self.close()
            what = "it did not answer" if hung else str(error)
            remedy = "run it again, or reset the environment in a program of your own"
            raise EngineError(f"the Doom engine stopped ({what})", self.spec_name, remedy) from error
        except vzd.FileDoesNotExistException as error:
            self.close()
            raise SpecError(f"a game file is missing ({error})", self.spec_name, "reinstall vizdoom") from error
        except BaseException:
            # Also Ctrl-C inside the engine's own loop: nothing may be left behind.
            self.close()
            raise


def _configuration(name: str) -> Any:
    """A function that loads scenario or map ``name`` into a ``DoomGame``."""
    wad, _, level = FIRST_MAPS.get(name, name).partition(":")
    if level:
        path = Path(vzd.__file__).parent / f"{wad}.wad"
        if not path.is_file():
            raise SpecError("unknown game data", name, "use doom/freedoom1:E1M1 or doom/freedoom2:MAP01")
        if level.upper() not in _map_names(path):
            known = ", ".join(_map_names(path)[:4])
            raise SpecError(f"{wad} has no map {level}", name, f"its maps are {known}, …")

        def configure_map(game: vzd.DoomGame) -> None:
            game.set_doom_game_path(str(path))
            game.set_doom_map(level.upper())
            game.set_doom_skill(3)
            game.set_episode_start_time(10)
            game.set_available_buttons([vzd.Button.__members__[button] for button in MAP_BUTTONS])

        return configure_map
    if name not in list_scenarios():
        raise SpecError("unknown Doom scenario", name, f"use one of {', '.join(list_scenarios())}")

    def configure_scenario(game: vzd.DoomGame) -> None:
        game.load_config(str(Path(vzd.scenarios_path) / f"{name}.cfg"))

    return configure_scenario


def _resolution(height: int, width: int) -> Any:
    known = {name[4:]: value for name, value in vzd.ScreenResolution.__members__.items()}
    if f"{width}X{height}" not in known:
        sizes = ", ".join(size for size in known if size.endswith(("X120", "X240", "X480")))
        raise OptionError("Doom has no such frame size", f"{width}X{height}", f"use one of {sizes}")
    return known[f"{width}X{height}"]


def _button_names(configure: Any, name: str) -> tuple[str, ...]:
    game = vzd.DoomGame()
    configure(game)
    buttons = tuple(b.name for b in game.get_available_buttons())
    kept = tuple(b for b in buttons if not b.endswith("_DELTA") and b not in REDUNDANT_BUTTONS)
    if not kept:
        raise SpecError("the scenario has no buttons", name, "use another scenario")
    return kept


def _map_names(wad: Path) -> list[str]:
    """Map lumps of a WAD: the lump before each THINGS lump."""
    with wad.open("rb") as file:
        header = np.frombuffer(file.read(12), np.dtype([("magic", "S4"), ("count", "<i4"), ("at", "<i4")]))[0]
        file.seek(int(header["at"]))
        entry = np.dtype([("at", "<i4"), ("size", "<i4"), ("name", "S8")])
        names = np.frombuffer(file.read(entry.itemsize * int(header["count"])), entry)["name"]
    return [names[i - 1].decode() for i in range(1, len(names)) if names[i] == b"THINGS"]


@atexit.register
def _close_all() -> None:
    for environment in list(_live):
        environment.close()
