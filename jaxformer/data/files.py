"""Finds, opens and fingerprints the files of a corpus."""

import contextlib
import difflib
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxformer.atomic import write_atomically
from jaxformer.schema import UserError, local_path

# The suffixes that a folder is searched for, each also with ".gz" behind it (but Parquet, which compresses itself). A
# single file or a glob may have any other suffix if `data.source` says what it is.
SUFFIXES = {
    "text": (".txt", ".text", ".md", ".rst", ".py"),
    "json": (".jsonl", ".json"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
# Hashing a larger file at every start would be felt: its hash is remembered.
REMEMBERED_SIZE = 64 * 2**20


class NamedFile(NamedTuple):
    """A file and its name, which does not depend on the location of the corpus."""

    name: str
    path: Path


def kind_of(path: Path | str) -> str | None:
    """The kind of corpus that the suffix tells, or None."""
    suffix = Path(str(path).removesuffix(".gz")).suffix.lower()
    return next((kind for kind, suffixes in SUFFIXES.items() if suffix in suffixes), None)


def _has_wildcard(part: str) -> bool:
    return any(character in part for character in "*?[")


def find_files(path: str, kind: str | None) -> list[NamedFile]:
    """The files of `path`, a file, a folder (searched recursively, hidden entries left out) or a glob, sorted by name.

    Args:
        path: What the user gave.
        kind: In a folder, keep only files of this kind; None keeps every kind in `SUFFIXES`.

    Raises:
        UserError: Nothing is there.
    """
    given = local_path(path)
    if given.is_file():
        return [NamedFile(given.name, given)]
    if given.is_dir():
        kinds = SUFFIXES.keys() if kind is None else {kind}
        found = [file for file in walk(given) if kind_of(file.path) in kinds]
        wanted = ", ".join(suffix for k in kinds for suffix in SUFFIXES[k])
        what = f"holds no file that ends in {wanted}; a glob such as {path}/**/* takes files of any name"
    elif _has_wildcard(str(given)):
        found, what = _expand(str(given)), "no file matches this pattern"
    else:
        raise UserError(f"no such file or folder: {path}{_suggestion(given)}")
    if not found:
        raise UserError(f"{path}: {what}")
    return sorted(found)


def find_all_files(paths: str | Sequence[str], kind: str | None) -> list[NamedFile]:
    """The files of one path or of several, in the order given.

    With several, names begin with the number of their path (`0/train.jsonl`), since two folders may hold files of one
    name.

    Raises:
        UserError: Nothing is at one of the paths, or a file is found twice.
    """
    if isinstance(paths, str):
        return find_files(paths, kind)
    found = [find_files(path, kind) for path in paths]
    if len(found) == 1:
        return found[0]
    files = [NamedFile(f"{number}/{name}", file) for number, part in enumerate(found) for name, file in part]
    seen: set[Path] = set()
    for _, file in files:
        if (real := file.resolve()) in seen:
            raise UserError(f"{file} is found under several of the paths {', '.join(paths)}: expected each file once")
        seen.add(real)
    return files


def walk(folder: Path, left_out: frozenset[str] = frozenset()) -> Iterator[NamedFile]:
    """All files below a folder, but not hidden ones nor those below a folder whose name is in `left_out`."""
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        for name in names:
            file = Path(root, name)
            if not name.startswith(".") and file.is_file():
                yield NamedFile(file.relative_to(folder).as_posix(), file)


def _expand(pattern: str) -> list[NamedFile]:
    # Names are relative to the part before the first wildcard, so that a new file does not rename the others.
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if _has_wildcard(part))
    base = Path(*parts[:fixed])
    rest = str(Path(*parts[fixed:]))
    files = [NamedFile(path.relative_to(base).as_posix(), path) for path in base.glob(rest) if path.is_file()]
    return [file for file in files if not any(part.startswith(".") for part in Path(file.name).parts)]


def _suggestion(missing: Path) -> str:
    """A hint for a missing path: similar names in the deepest folder that exists."""
    parent, name = missing.absolute(), ""
    while not parent.is_dir() and parent != parent.parent:
        parent, name = parent.parent, parent.name
    try:
        near = difflib.get_close_matches(name, [entry.name for entry in parent.iterdir()])
    except OSError:
        near = []
    hint = f"; near names in {parent}: {', '.join(near)}" if near else f"; {parent} has no {name}"
    return hint + "; for a dataset of the Hugging Face hub set data.source to 'huggingface'"


@contextlib.contextmanager
def reading(path: Path) -> Iterator[io.BufferedIOBase]:
    """Opens a file for reading bytes, unpacked if its name ends in ".gz"; what goes wrong becomes a `UserError`."""
    try:
        with path.open("rb") as raw:
            if path.suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield unpacked
            else:
                yield raw
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}): fetch it again") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def decode(data: bytes, path: Path, offset: int = 0) -> str:
    """UTF-8 bytes as text; `offset` is where they begin in the file. A byte order mark at offset 0 is dropped."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {offset + error.start}; "
            f"convert it, for example with `iconv -f ENCODING -t UTF-8`"
        ) from error
    return text.removeprefix("\ufeff") if offset == 0 else text


def content_hash(path: Path, memory: Path) -> str:
    """sha256 of a file's bytes.

    The hash of a large file is remembered in the folder `memory` together with its size and times, so that a run over
    many gigabytes does not read them twice; once a time has changed the content is read again, and counts.
    """
    try:
        stat = path.stat()
        if stat.st_size < REMEMBERED_SIZE:
            return _hash_file(path)
        # The change time cannot be set by hand: it tells even of a file replaced by one of the same size and date.
        state = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        note = memory / f"{hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]}.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            remembered = json.loads(note.read_text())
            if remembered["state"] == state:
                return str(remembered["sha256"])
        digest = _hash_file(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    with contextlib.suppress(OSError):  # only an optimisation: a read-only cache folder is noticed elsewhere
        memory.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps({"state": state, "sha256": digest}))
    return digest


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
