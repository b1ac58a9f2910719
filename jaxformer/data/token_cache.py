"""Tokenizes a split once, into memory-mapped files that later runs with the same corpus and tokenizer reuse."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock, Timeout

from jaxformer.data.corpus import Corpus, Split
from jaxformer.data.formats import Document
from jaxformer.schema import UserError, local_path
from jaxformer.tokenizers import PreTrainedTokenizer, encode_batch, find_special, fingerprint, vocabulary_size

FORMAT = 1  # part of every key: raise it when the files below change their meaning
# Characters in memory, and in one piece of a long document. A tokenizer takes some 200 bytes for each.
CHUNK_CHARACTERS = 1 << 20
PIECE_CHARACTERS = 1 << 18
# Where a long document may be cut: before a single blank (or line end) between two words. The byte-level word splitter
# puts a word boundary there too, so the tokens are those of the uncut text.
_CUT = re.compile(r"(?<=\S)(?=\s\S)")
_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class TokenCache:
    """The tokens of one split, read from disk where they are touched.

    Attributes:
        path: Folder of the cache.
        tokens: All documents, concatenated; uint16 or uint32.
        offsets: Where each document begins, and at the end the number of tokens: `num_documents + 1` int64 values.
    """

    path: Path
    tokens: np.ndarray
    offsets: np.ndarray

    @property
    def num_tokens(self) -> int:
        """Number of tokens, ends of documents included."""
        return len(self.tokens)

    @property
    def num_documents(self) -> int:
        """Number of documents; a cut document counts in each split."""
        return len(self.offsets) - 1


def build_cache(
    corpus: Corpus,
    split: Split,
    tokenizer: PreTrainedTokenizer,
    cache_dir: str | Path,
    progress: Progress | None = None,
) -> TokenCache:
    """Opens the cache of a split, and builds it first if there is none.

    Every complete document is followed by the tokenizer's end-of-text id, if it has one; the two parts of a document
    cut in two (`split: tail`) are not, since a model that never saw the id in training must not be asked for it in
    validation. Only one process builds; others wait for it. A cache appears under its name only when it is whole.

    Args:
        corpus: Where the documents come from.
        split: "train" or "validation".
        tokenizer: Turns them into ids.
        cache_dir: Folder that holds the caches, one folder each.
        progress: Called after every chunk with the documents and the UTF-8 bytes done so far.

    Raises:
        UserError: The split is empty, a document cannot be read, or the cache cannot be written (disk full).
    """
    folder = local_path(cache_dir)
    key = hashlib.sha256(f"{corpus.fingerprint} {split} {fingerprint(tokenizer)} {FORMAT}".encode()).hexdigest()[:40]
    target = folder / key
    try:
        if (cache := _open(target)) is not None:
            return cache
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{key}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _log.warning("another process is building the token cache %s: waiting for it", target)
            lock.acquire()
        try:
            return _open(target) or _build(corpus, split, tokenizer, target, progress)
        finally:
            lock.release()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why, todo = ("disk full", "make room, or ") if full else (error.strerror or str(error), "")
        raise UserError(
            f"cannot write the token cache in {folder}: {why}; {todo}set data.cache_dir to another folder"
        ) from error
    except NotImplementedError as error:
        raise UserError(f"{folder} cannot lock files: set data.cache_dir to a local folder") from error


def _open(target: Path) -> TokenCache | None:
    """The cache at `target`, or None if there is none or its files do not have the size they were written with."""
    try:
        meta = json.loads((target / "meta.json").read_text())
        dtype = np.dtype(meta["dtype"])
        sizes = {"tokens.bin": meta["num_tokens"] * dtype.itemsize, "offsets.bin": (meta["num_documents"] + 1) * 8}
        if any((target / name).stat().st_size != size for name, size in sizes.items()):
            return None
        tokens = np.memmap(target / "tokens.bin", dtype=dtype, mode="r")
        offsets = np.memmap(target / "offsets.bin", dtype=np.int64, mode="r")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None
    return TokenCache(target, tokens, offsets)


def _build(
    corpus: Corpus, split: Split, tokenizer: PreTrainedTokenizer, target: Path, progress: Progress | None
) -> TokenCache:
    """Builds under the lock of `target`: in a folder beside it that is renamed when it is whole."""
    if target.exists():
        _log.warning("the token cache %s is damaged: building it again", target)
        shutil.rmtree(target)
    _remove_abandoned(target)
    temporary = target.with_suffix(".tmp")
    temporary.mkdir()
    try:
        meta = _write(corpus.documents(split), tokenizer, temporary, progress)
        if meta["num_tokens"] == 0:
            raise UserError(f"the tokenizer makes no token of the {split} text of {corpus.name}: use another tokenizer")
        origin = {"corpus": corpus.name, "split": split, "format": FORMAT}
        (temporary / "meta.json").write_text(json.dumps(origin | meta, indent=2))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    cache = _open(target)
    assert cache is not None
    return cache


def _remove_abandoned(target: Path) -> None:
    """Removes the folders of builders that were killed, whose lock is free."""
    for temporary in target.parent.glob("*.tmp"):
        # A lock of this builder's own key is held, and free for it alone.
        lock = (
            contextlib.nullcontext() if temporary.stem == target.name else FileLock(temporary.with_suffix(".lock"), 0)
        )
        with contextlib.suppress(Timeout), lock:
            shutil.rmtree(temporary, ignore_errors=True)


class _Piece(NamedTuple):
    """A document or a part of a long one."""

    text: str
    last: bool
    complete: bool


def _write(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizer, folder: Path, progress: Progress | None
) -> dict[str, int | str]:
    """Writes `tokens.bin` and `offsets.bin` in constant memory; returns what `_open` needs to know of them."""
    dtype = np.dtype(np.uint16 if vocabulary_size(tokenizer) <= 2**16 else np.uint32)
    end = find_special(tokenizer, "eos")
    num_tokens = num_documents = num_bytes = length = 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "offsets.bin").open("wb") as offsets:
        offsets.write(np.zeros(1, np.int64).tobytes())
        for chunk in _chunks(documents):
            parts: list[list[int]] = []
            ends: list[int] = []
            for piece, ids in zip(chunk, encode_batch(tokenizer, [piece.text for piece in chunk]), strict=True):
                num_bytes += len(piece.text.encode())
                parts.append(ids)
                length += len(ids)
                if not piece.last or length == 0:  # a document may come to nothing, such as blanks to BERT
                    continue
                if piece.complete and end is not None:
                    parts.append([end])
                    length += 1
                num_tokens, length = num_tokens + length, 0
                ends.append(num_tokens)
            tokens.write(np.concatenate([np.asarray(part, dtype) for part in parts]).tobytes())
            offsets.write(np.asarray(ends, np.int64).tobytes())
            num_documents += len(ends)
            if progress is not None:
                progress(num_documents, num_bytes)
        for file in (tokens, offsets):
            # Else a power cut could leave the name of the cache on disk without what is in it.
            file.flush()
            os.fsync(file.fileno())
    return {"dtype": dtype.name, "num_tokens": num_tokens, "num_documents": num_documents}


def _chunks(documents: Iterable[Document]) -> Iterator[list[_Piece]]:
    """Pieces in lists of about `CHUNK_CHARACTERS`."""
    chunk: list[_Piece] = []
    size = 0
    for document in documents:
        for piece in _pieces(document):
            chunk.append(piece)
            size += len(piece.text)
            if size >= CHUNK_CHARACTERS:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def _pieces(document: Document) -> Iterator[_Piece]:
    """The document, cut into pieces of about `PIECE_CHARACTERS` where that does not change its tokens."""
    text, start = document.text, 0
    while len(text) - start > 2 * PIECE_CHARACTERS:
        wanted = start + PIECE_CHARACTERS
        place = _CUT.search(text, wanted, wanted + PIECE_CHARACTERS)
        # Text without blanks, such as one huge number, is cut anyway, at the cost of one other token.
        cut = place.start() if place else wanted
        yield _Piece(text[start:cut], False, document.complete)
        start = cut
    yield _Piece(text[start:], True, document.complete)
