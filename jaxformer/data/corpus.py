"""A corpus: named documents, split into training and validation, and a fingerprint that tells when the text changed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

from jaxformer.data.config import DataConfig
from jaxformer.data.formats import Document
from jaxformer.data.sources import Source, fingerprint, in_validation, open_sources, sampled
from jaxformer.schema import UserError

Reader = Callable[[], Iterator[Document]]
Split = Literal["train", "validation"]


@dataclass(frozen=True)
class Corpus:
    """Documents that are read one at a time.

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
        if not found:
            raise no_data("text", split, self.name)


def no_data(what: str, split: Split, name: str) -> UserError:
    """The error for a split without text or records."""
    if split == "validation":
        return UserError(
            f"no {what} for validation in {name}: raise data.validation_fraction or set data.validation_path"
        )
    return UserError(f"no {what} to train on in {name}: check data.path, or lower data.validation_fraction")


def open_corpus(config: DataConfig) -> Corpus:
    """Finds the corpus that `config` describes; reads its files only to fingerprint them.

    Raises:
        UserError: A path does not exist, holds nothing, or its kind cannot be told.
    """
    source, validation = open_sources(config, "documents")
    if validation is None:
        corpus = _with_split(source, config)
    else:
        readers = {"train": source.read, "validation": validation.read}
        corpus = Corpus(source.name, fingerprint(source, validation.identity), readers)
    if config.max_examples is None:
        return corpus
    read = corpus.readers["train"]

    def train() -> Iterator[Document]:
        count = sum(1 for document in read() if document.text)
        return sampled((document for document in read() if document.text), count, config)

    print_ = fingerprint(source, [corpus.fingerprint, config.max_examples, config.sample_seed])
    return Corpus(corpus.name, print_, {**corpus.readers, "train": train})


def _with_split(source: Source, config: DataConfig) -> Corpus:
    """Sets `validation_fraction` of the source apart."""
    fraction = config.validation_fraction
    if fraction == 0:
        return Corpus(source.name, fingerprint(source, "none"), {"train": source.read})
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
    return Corpus(source.name, fingerprint(source, [split, fraction]), readers)


def _hash_part(read: Reader, fraction: float, validation: bool) -> Iterator[Document]:
    """The documents whose name hashes to below `fraction`, or the others."""
    for document in read():
        if in_validation(document.row or document.name, fraction) == validation:
            yield document


def _tail_part(read: Reader, fraction: float, validation: bool) -> Iterator[Document]:
    """The first characters of the one document, or the last `fraction` of them."""
    for document in read():
        cut = int(len(document.text) * (1 - fraction))
        text = document.text[cut:] if validation else document.text[:cut]
        yield Document(document.name, text, complete=False)
