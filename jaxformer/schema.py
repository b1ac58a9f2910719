"""The two things every layer shares: the base of the typed configuration and the error a user can cause."""

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict


class UserError(ValueError):
    """Something the user can mend: the message says what was got, what was expected and what to do.

    The command line prints it as one line and exits with code 2.
    """


class Schema(BaseModel):
    """Base of every configuration section: unknown keys are refused and values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for the known name nearest to ``name``, or nothing if none is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]}?" if matches else ""
