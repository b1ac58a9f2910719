"""Sources of data: their kind, their files, a reader of documents or rows, and their identity."""

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from jaxformer.data import formats
from jaxformer.data.config import DataConfig
from jaxformer.data.files import NamedFile, content_hash, find_all_files, kind_of
from jaxformer.data.lines import is_quoted
from jaxformer.schema import UserError, local_path

Form = Literal["documents", "rows"]
Reader = Callable[[], Iterator[Any]]  # of documents or of rows
Item = TypeVar("Item")


class Source(NamedTuple):
    """A source of any kind: a reader of documents or rows, and its identity."""

    kind: str
    name: str
    read: Reader
    identity: list[Any]


def open_sources(config: DataConfig, form: Form) -> tuple[Source, Source | None]:
    """The training source that `config` describes and, if it names one or the dataset brings one, that of validation.

    Raises:
        UserError: A path does not exist, holds nothing, or its kind cannot be told or has no rows.
    """
    kind = _kind(config)
    if form == "rows" and kind not in (*formats.ROW_READERS, "huggingface"):
        wanted = ", ".join((*formats.ROW_READERS, "huggingface"))
        raise UserError(f"this task reads records, rows with columns, but data is of the kind {kind!r}: give {wanted}")
    if kind == "python_stdlib":
        return _stdlib(config), None
    assert config.path is not None
    if kind == "huggingface":
        source, validation = _huggingface(config.path, config, form)
        if config.validation_path is not None:
            validation, _ = _huggingface(config.validation_path, config, form)
        return source, validation
    validation = None if config.validation_path is None else _files(kind, config.validation_path, config, form)
    return _files(kind, config.path, config, form), validation


def fingerprint(source: Source, split: object) -> str:
    """sha256 over the kind, the identity and how the source is split."""
    return hashlib.sha256(json.dumps([source.kind, source.identity, split]).encode()).hexdigest()


def in_validation(name: str, fraction: float) -> bool:
    """Returns whether the name of a document or row hashes to below `fraction`."""
    # sha256, because Python's own hash differs from process to process.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64 < fraction


def sampled(items: Iterable[Item], count: int, config: DataConfig) -> Iterator[Item]:
    """The `max_examples` of `count` items drawn with `sample_seed`, in their order; all if there are fewer."""
    if config.max_examples is None or config.max_examples >= count:
        yield from items
        return
    chosen = np.zeros(count, bool)
    chosen[np.random.default_rng(config.sample_seed).permutation(count)[: config.max_examples]] = True
    for item, keep in zip(items, chosen.tolist(), strict=True):
        if keep:
            yield item


def _listed(path: str | Sequence[str]) -> list[str]:
    return [path] if isinstance(path, str) else list(path)


def _kind(config: DataConfig) -> str:
    """The kind of source, found out if it is "auto"."""
    if config.path is None:
        if config.source in ("auto", "python_stdlib"):
            if config.validation_path is not None:
                raise UserError("data.validation_path is set but data.path is not: set both")
            return "python_stdlib"
        raise UserError(f"data.source is {config.source!r} but data.path is not set: set it to the files of the corpus")
    if config.source == "python_stdlib":
        raise UserError(f"data.source is 'python_stdlib', which takes no data.path, but got {config.path!r}")
    if config.source != "auto":
        return config.source
    title = ", ".join(_listed(config.path))
    saved = [formats.is_saved_dataset(local_path(path)) for path in _listed(config.path)]
    if all(saved):
        return "huggingface"
    if any(saved):
        raise UserError(f"data.path mixes saved datasets with other files: {title}; give one kind")
    kinds = {kind_of(file.path) for file in find_all_files(config.path, None)}
    if kinds == {None}:
        raise UserError(f"cannot tell the kind of {title} by its suffix: set data.source, for example to 'text'")
    if len(kinds) > 1:
        names = ", ".join(sorted(kind or "unknown" for kind in kinds))
        raise UserError(f"{title} holds files of several kinds ({names}): set data.source to one of them")
    return str(kinds.pop())


def _files(kind: str, path: str | Sequence[str], config: DataConfig, form: Form) -> Source:
    files = find_all_files(path, kind)
    name, identity = ", ".join(_listed(path)), _file_identity(files, config)
    options = {}
    if kind == "csv":
        options["quoting"] = config.quoting
        for file, known in zip(files, identity, strict=True):
            known += [] if is_quoted(file.path, config.quoting) else ["quotes are text"]
    elif config.quoting != "auto":
        raise UserError(f"data.quoting is {config.quoting!r}, which is for CSV, but data is of the kind {kind!r}")
    if form == "rows":
        read = partial(_read_all, partial(formats.ROW_READERS[kind], **options), files, None)
        return Source(kind, name, read, [identity, "rows"])
    read = partial(_read_all, partial(formats.READERS[kind], **options), files, config.text_column)
    return Source(kind, name, read, [identity, config.text_column if kind != "text" else None])


def _stdlib(config: DataConfig) -> Source:
    files = formats.stdlib_files()
    if not files:
        raise UserError("Python's standard library is not there as source files: set data.path to a corpus")
    read = partial(_read_all, formats.read_stdlib, files, "")
    name = f"the standard library of Python {platform.python_version()}"
    return Source("python_stdlib", name, read, [_file_identity(files, config)])


def _huggingface(path: str | Sequence[str], config: DataConfig, form: Form) -> tuple[Source, Source | None]:
    """One dataset or several, concatenated; validation is that of those that have one."""
    opened = [(name, formats.open_huggingface(name)) for name in _listed(path)]
    train = [_dataset(data, name, config, form) for name, (data, _) in opened]
    brought = [(name, data) for name, (_, data) in opened if data is not None]
    validation = [_dataset(data, f"{name} (validation)", config, form) for name, data in brought]
    return _joined(train), _joined(validation) if validation else None


def _dataset(dataset: Any, name: str, config: DataConfig, form: Form) -> Source:
    column = config.text_column

    def read() -> Iterator[Any]:
        if form == "rows":
            return formats.read_huggingface_rows(dataset, name)
        return formats.documents_of(formats.read_huggingface_rows(dataset, name, column), column)

    identity = [_dataset_identity(dataset, read, config), "rows" if form == "rows" else column]
    return Source("huggingface", name, read, identity)


def _joined(sources: Sequence[Source]) -> Source:
    if len(sources) == 1:
        return sources[0]
    name = ", ".join(source.name for source in sources)
    return Source(
        sources[0].kind,
        name,
        lambda: chain.from_iterable(source.read() for source in sources),
        [source.identity for source in sources],
    )


def _dataset_identity(dataset: Any, read: Reader, config: DataConfig) -> list[str]:
    files = [Path(entry["filename"]) for entry in dataset.cache_files]
    if files:
        return [content_hash(file, config.cache_folder / "hashes") for file in files]
    # Held in memory: nothing but the content itself tells it apart.
    digest = hashlib.sha256()
    for item in read():
        text = item.text if isinstance(item, formats.Document) else json.dumps(item, default=str)
        digest.update(f"{len(text)}:{text}".encode())
    return [digest.hexdigest()]


def _read_all(reader: Callable[..., Iterator[Any]], files: Iterable[NamedFile], columns: Any) -> Iterator[Any]:
    for file in files:
        yield from reader(file, columns)


def _file_identity(files: Iterable[NamedFile], config: DataConfig) -> list[list[str]]:
    memory = config.cache_folder / "hashes"
    return [[file.name, content_hash(file.path, memory)] for file in files]
