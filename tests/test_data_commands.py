"""``gamengen data``: what its commands write, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from recorder.recording import Recording

Run = Callable[..., tuple[int, str, str]]


def test_data_commands_and_their_exit_codes(run: Run, make_recording: Callable[..., Recording], tmp_path: Path) -> None:
    recording = make_recording(tmp_path / "data", (6, 5, 7))
    assert run("data", "verify", "data")[0] == 0
    shown = ("--rows", "1", "--columns", "2", "--seconds", "0.1")
    assert run("data", "preview", "data", "--out", "p", *shown, "--json", "p.json")[0] == 0
    assert json.loads((tmp_path / "p.json").read_text())["episodes"] == 1
    assert run("data", "export", "data", "--out", "x", "--format", "npz")[0] == 0
    assert (tmp_path / "x" / "000002.npz").is_file()
    path = recording.episode_path(1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    code, _, err = run("data", "verify", "data", "--json", "v.json")
    assert code == 1 and err.splitlines()[-1].startswith("error: 1 of 3 episodes are damaged: 000001.h5 (")
    assert len(json.loads((tmp_path / "v.json").read_text())["bad"]) == 1
    assert run("data", "verify", "data", "--repair")[0] == run("data", "verify", "data")[0] == 0
    assert (tmp_path / "data" / "quarantine" / "000001.h5").is_file()
