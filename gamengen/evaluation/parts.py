"""What an evaluation has measured so far, on disk, so that an interrupted one goes on."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from agents.errors import DataError
from recorder.recording import write_json

VERSION = 4  # of what the parts hold: with another, an evaluation that was begun is begun anew
Values = dict[str, np.ndarray]


class Parts:
    """Measured arrays by name, each in a file of its own; ``key`` says of what they were measured.

    Args:
        folder: where they lie; None keeps nothing.
        key: what the figures depend on; parts of another key are measured anew.

    Raises:
        DataError: the folder cannot be written, or holds something else.
    """

    def __init__(self, folder: Path | None, key: dict[str, object]) -> None:
        self.folder, self.begun_anew = folder, False
        if folder is None:
            return
        path, text = folder / "key.json", json.loads(json.dumps({"version": VERSION, **key}))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if _read_key(path) != text:
                self.begun_anew = True
                there = [old for old in folder.iterdir() if old.suffix in (".npz", ".partial", ".safetensors")]
                if there and not path.exists():
                    raise DataError(
                        "this folder holds other files than an evaluation's", folder, "choose another --out"
                    )
                for old in there:
                    old.unlink()
                write_json(path, text)
        except OSError as error:
            raise DataError(f"cannot write the report ({error.strerror})", folder, "choose another --out") from error

    def take(self, name: str, measure: Callable[[], Values | None]) -> Values:
        """The part ``name``: as it was measured before, or measured now. None is kept as an empty part."""
        path = None if self.folder is None else self.folder / f"{name}.npz"
        if path is not None and path.is_file():
            try:
                with np.load(path, allow_pickle=False) as file:
                    return dict(file)
            except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile):
                path.unlink()
        values = measure() or {}
        if path is not None:
            partial = path.with_suffix(".partial")
            try:
                with partial.open("wb") as out:
                    np.savez(out, **values)  # type: ignore[arg-type]
                partial.replace(path)
            except OSError as error:
                partial.unlink(missing_ok=True)
                raise DataError(f"cannot write the report ({error.strerror})", path, "free some space") from error
        return values


def _read_key(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
