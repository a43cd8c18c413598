"""The errors headwater raises on purpose.

    HeadwaterError
      RefusedError     a rule said no: licence, funds, policy, permission
      InvalidError     the input is wrong
      MissingError     what was asked for is not here
      ConflictError    it contradicts something already recorded
      UpstreamError    a model, a chain or a disk failed us
      InvariantError   we are wrong: stop the stage, keep the evidence

Every error has a stable `code` (lower_snake_case), a message that holds the offending value and its
unit, and where possible a `fix`. Checking many things at once returns `Problem` values instead.
"""

from __future__ import annotations

from dataclasses import dataclass


class HeadwaterError(Exception):
    """Base of everything we raise on purpose. `code` is stable, `fix` tells the reader what to do."""

    def __init__(self, message: str, *, code: str, fix: str | None = None) -> None:
        super().__init__(message if fix is None else f"{message}\n  fix: {fix}")
        self.message, self.code, self.fix = message, code, fix


class RefusedError(HeadwaterError):
    """A rule said no: licence, funds, policy or permission."""


class InvalidError(HeadwaterError):
    """The input is wrong; repeating it unchanged will fail again."""


class MissingError(HeadwaterError):
    """What was asked for is not here."""


class ConflictError(HeadwaterError):
    """It contradicts something already recorded: a reused key, a second owner, a double claim."""


class UpstreamError(HeadwaterError):
    """A model, a chain or a disk failed us; trying again later may work."""


class InvariantError(HeadwaterError):
    """A bug of ours was caught before it could move money. Stop the stage and keep the evidence."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with one item of a batch; the reader sees all of them at once."""

    where: str  # file, line or field
    code: str  # stable, lower_snake_case
    message: str  # holds the value and its unit
    fix: str  # what to do about it

    def __str__(self) -> str:
        return f"{self.where}: {self.message} [{self.code}]\n  fix: {self.fix}"
