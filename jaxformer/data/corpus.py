"""A corpus: named documents, split into training and validation, and a fingerprint that tells when the text changed."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxformer.data import formats
from jaxformer.data.config import DataConfig
from jaxformer.data.files import NamedFile, content_hash, find_files, kind_of
from jaxformer.data.formats import Document
from jaxformer.schema import UserError

Split = Literal["train", "validation"]
Reader = Callable[[], Iterator[Document]]


@dataclass(frozen=True)
class Corpus:
    """Documents that are read when they are asked for, never all at once.

    Attributes:
        name: For people.
        fingerprint: sha256 over everything that determines the documents and their split: the kind of source, the
            settings that matter for it, and name and content of every file. Not over paths or dates: a corpus that was
            moved, copied or touched is the same corpus.
        readers: How to read each split.
    """

    name: str
    fingerprint: str
    readers: Mapping[str, Reader]

    @property
    def has_validation(self) -> bool:
        """Whether anything was set apart for validation."""
        return "validation" in self.readers

    def documents(self, split: Split) -> Iterator[Document]:
        """The documents of a split, in the same order every time. Empty documents are left out.

        Raises:
            UserError: The split has no text, or a file cannot be read.
        """
        reader = self.readers.get(split)
        found = False
        for document in reader() if reader is not None else ():
            if document.text:
                found = True
                yield document
        if not found and split == "validation":
            raise UserError(
                f"no text for validation in {self.name}: raise data.validation_fraction or set data.validation_path"
            )
        if not found:
            raise UserError(f"no text to train on in {self.name}: check data.path, or lower data.validation_fraction")


class _Source(NamedTuple):
    """What the kinds of source have in common: documents to read, and what identifies them."""

    kind: str
    name: str
    read: Reader
    identity: list[Any]


def open_corpus(config: DataConfig) -> Corpus:
    """Finds the corpus that `config` describes; reads its files only to fingerprint them.

    Raises:
        UserError: A path does not exist, holds nothing, or its kind cannot be told.
    """
    kind = _kind(config)
    path, validation_path = config.path or "", config.validation_path
    validation: _Source | None = None
    if kind == "python_stdlib":
        source = _stdlib(config)
    elif kind == "huggingface":
        source, validation = _huggingface(path, config)
        if validation_path is not None:
            validation, _ = _huggingface(validation_path, config)
    else:
        source = _files(kind, path, config)
        if validation_path is not None:
            validation = _files(kind, validation_path, config)
    if validation is None:
        return _with_split(source, config)
    readers = {"train": source.read, "validation": validation.read}
    return Corpus(source.name, _fingerprint(source, validation.identity), readers)


def _kind(config: DataConfig) -> str:
    """The kind of source, found out if it is "auto"."""
    if config.path is None:
        if config.source in ("auto", "python_stdlib"):
            if config.validation_path is not None:
                raise UserError("data.validation_path is set but data.path is not: set both")
            return "python_stdlib"
        raise UserError(f"data.source is {config.source!r} but data.path is not set: say where the corpus lies")
    if config.source == "python_stdlib":
        raise UserError(f"data.source is 'python_stdlib', which takes no data.path, but got {config.path!r}")
    if config.source != "auto":
        return config.source
    if formats.is_saved_dataset(Path(config.path).expanduser()):
        return "huggingface"
    files = find_files(config.path, None)
    kinds = {kind_of(file.path) for file in files}
    if kinds == {None}:
        raise UserError(f"cannot tell the kind of {config.path} by its suffix: set data.source, for example to 'text'")
    if len(kinds) > 1:
        names = ", ".join(sorted(kind or "unknown" for kind in kinds))
        raise UserError(f"{config.path} holds files of several kinds ({names}): set data.source to one of them")
    return str(kinds.pop())


def _files(kind: str, path: str, config: DataConfig) -> _Source:
    files = find_files(path, kind)
    read = partial(_read_all, formats.READERS[kind], files, config.text_column)
    identity = [_file_identity(files, config), config.text_column if kind != "text" else None]
    return _Source(kind, path, read, identity)


def _stdlib(config: DataConfig) -> _Source:
    files = formats.stdlib_files()
    if not files:
        raise UserError("Python's standard library is not there as source files: set data.path to a corpus")
    read = partial(_read_all, formats.read_stdlib, files, "")
    name = f"the standard library of Python {platform.python_version()}"
    return _Source("python_stdlib", name, read, [_file_identity(files, config)])


def _huggingface(path: str, config: DataConfig) -> tuple[_Source, _Source | None]:
    opened = formats.open_huggingface(path)

    def source(dataset: Any, name: str) -> _Source:
        read = partial(formats.read_huggingface, dataset, config.text_column, name)
        return _Source("huggingface", name, read, [_dataset_identity(dataset, read, config), config.text_column])

    validation = None if opened.validation is None else source(opened.validation, f"{path} (validation)")
    return source(opened.train, path), validation


def _dataset_identity(dataset: Any, read: Reader, config: DataConfig) -> list[str]:
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    if files:
        return [content_hash(file, config.cache_folder / "hashes") for file in files]
    # Held in memory: nothing but the text itself tells it apart.
    digest = hashlib.sha256()
    for document in read():
        digest.update(f"{len(document.text)}:{document.text}".encode())
    return [digest.hexdigest()]


def _read_all(
    reader: Callable[[NamedFile, str], Iterator[Document]], files: Iterable[NamedFile], text_column: str
) -> Iterator[Document]:
    for file in files:
        yield from reader(file, text_column)


def _file_identity(files: Iterable[NamedFile], config: DataConfig) -> list[list[str]]:
    memory = config.cache_folder / "hashes"
    return [[file.name, content_hash(file.path, memory)] for file in files]


def _fingerprint(source: _Source, split: object) -> str:
    return hashlib.sha256(json.dumps([source.kind, source.identity, split]).encode()).hexdigest()


def _with_split(source: _Source, config: DataConfig) -> Corpus:
    """Sets `validation_fraction` of the source apart."""
    fraction = config.validation_fraction
    if fraction == 0:
        return Corpus(source.name, _fingerprint(source, "none"), {"train": source.read})
    split = config.split
    if split != "hash":
        several = len(list(islice((d for d in source.read() if d.text), 2))) > 1
        if split == "tail" and several:
            raise UserError(
                f"data.split is 'tail', which cuts one document in two, but {source.name} has several: use 'hash'"
            )
        split = "hash" if several else "tail"
    part = _tail_part if split == "tail" else _hash_part
    readers = {name: partial(part, source.read, fraction, name == "validation") for name in ("train", "validation")}
    return Corpus(source.name, _fingerprint(source, [split, fraction]), readers)


def _hash_part(read: Reader, fraction: float, validation: bool) -> Iterator[Document]:
    """The documents whose name hashes to below `fraction`, or the others."""
    for document in read():
        # sha256, because Python's own hash differs from process to process.
        draw = int.from_bytes(hashlib.sha256(document.name.encode()).digest()[:8], "big") / 2**64
        if (draw < fraction) == validation:
            yield document


def _tail_part(read: Reader, fraction: float, validation: bool) -> Iterator[Document]:
    """The first characters of the one document, or the last `fraction` of them."""
    for document in read():
        cut = int(len(document.text) * (1 - fraction))
        text = document.text[cut:] if validation else document.text[:cut]
        yield Document(document.name, text, complete=False)
