"""Records: the rows of tables that supervised tasks read, all in memory, split into training and validation."""

from dataclasses import dataclass, field
from typing import Any

from jaxformer.data.config import DataConfig
from jaxformer.data.corpus import no_data
from jaxformer.data.formats import Row
from jaxformer.data.sources import fingerprint, in_validation, open_sources, sampled
from jaxformer.schema import UserError


@dataclass(frozen=True)
class Records:
    """Rows of a table, each a dict of its columns that knows its file and line.

    Attributes:
        name: For people.
        fingerprint: sha256 over everything that determines the rows and their split, as that of a `Corpus`.
        train: Rows to train on, in the order of the source.
        validation: Rows set apart; None if there are none.
    """

    name: str
    fingerprint: str
    train: list[Row] = field(repr=False)
    validation: list[Row] | None = field(repr=False)


def open_records(config: DataConfig) -> Records:
    """Reads the records that `config` describes.

    Validation is `validation_path`, or what the dataset brings, or the rows whose name hashes to below
    `validation_fraction`. `max_examples` of the remaining rows are drawn for training.

    Raises:
        UserError: A path does not exist or has no rows, a row cannot be read (file and line are named), or a split
            that should have rows is empty.
    """
    if config.split == "tail":
        raise UserError("data.split is 'tail', which cuts a text in two, but this task reads records: use 'hash'")
    source, brought = open_sources(config, "rows")
    train: list[Row] = list(source.read())
    validation: list[Row] | None
    split: Any
    if brought is not None:
        validation, split = list(brought.read()), brought.identity
    elif config.validation_fraction:
        apart = [in_validation(row.name, config.validation_fraction) for row in train]
        validation = [row for row, is_apart in zip(train, apart, strict=True) if is_apart]
        train = [row for row, is_apart in zip(train, apart, strict=True) if not is_apart]
        split = ["hash", config.validation_fraction]
    else:
        validation, split = None, "none"
    if config.max_examples is not None:
        train = list(sampled(train, len(train), config))
        split = [split, config.max_examples, config.sample_seed]
    if not train:
        raise no_data("record", "train", source.name)
    if validation is not None and not validation:
        raise no_data("record", "validation", source.name)
    return Records(source.name, fingerprint(source, split), train, validation)
