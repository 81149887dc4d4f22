"""Errors that a user can mend: each names what is wrong, where, and the remedy."""

from __future__ import annotations


class GamengenError(Exception):
    """A user's mistake or a fault of the outside world, told in one line.

    Args:
        what: what is wrong.
        where: the file, option or value it is about.
        remedy: what to do now.
    """

    def __init__(self, what: str, where: object, remedy: str) -> None:
        self.what, self.where, self.remedy = what, str(where), remedy
        super().__init__(f"{what} ; {where} ; {remedy}")

    def __reduce__(self) -> tuple[type[GamengenError], tuple[str, str, str]]:
        return type(self), (self.what, self.where, self.remedy)


class OptionError(GamengenError):
    """An option or argument has a value that cannot be used."""


class SpecError(GamengenError):
    """A game's name is unknown or its environment cannot be made."""


class ActionError(GamengenError):
    """An action does not fit its ActionSet."""


class EngineError(GamengenError):
    """The real game's engine died or would not start."""


class DataError(GamengenError):
    """A recording or one of its episodes is missing, damaged or does not fit."""


class UnreadableError(DataError):
    """The system does not let an episode be read; whether it is damaged is not known."""


class CheckpointError(GamengenError):
    """A checkpoint is missing, damaged, foreign or of another version."""


class DeviceError(GamengenError):
    """The device asked for is not there."""


class DisplayError(GamengenError):
    """There is no display to open a window on."""
