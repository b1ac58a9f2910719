"""Shared by every layer: the base of the typed configuration, the error a user can cause, and paths they give."""

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


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


# A drive of Windows is one letter; ``pathlib`` makes one slash of two.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_INSTEAD = {
    "file": "leave out file://",
    "hf": "of the Hub give owner/name alone",
    "http": "download it, or of the Hub give owner/name alone",
    "https": "download it, or of the Hub give owner/name alone",
}


def check_local(place: str | Path) -> None:
    """Refuses the address of a storage that is not a file system, where a path or a name on the Hub is expected.

    Raises:
        UserError: if it begins with ``scheme://``, which would silently become a folder ``scheme:`` here.
    """
    if found := _SCHEME.match(str(place)):
        scheme = found[1].lower()
        hint = _INSTEAD.get(scheme, "mount the storage as a folder, or copy the files here")
        raise UserError(f"{place} is on {scheme}://, which is not supported; expected a path on this machine: {hint}")


def local_path(path: str | Path) -> Path:
    """The path that a user gave, with ``~`` expanded; a ``UserError`` if it is not on this machine."""
    check_local(path)
    return Path(path).expanduser()


def _checked(places: str | list[str]) -> str | list[str]:
    for place in [places] if isinstance(places, str) else places:
        check_local(place)
    return places


# Keys that are a path or a name on the Hub, or a list of them.
LocalPath = Annotated[str, AfterValidator(_checked)]
LocalPaths = Annotated[str | list[str], AfterValidator(_checked)]
