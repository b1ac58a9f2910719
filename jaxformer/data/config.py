"""Configuration of the data: the corpus and its layout in rows."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from jaxformer.data.lines import Quoting
from jaxformer.schema import LocalPath, LocalPaths, Schema, local_path


class DataConfig(Schema):
    """The corpus, its split, its layout in rows, and the loader."""

    source: Literal["auto", "python_stdlib", "text", "json", "csv", "parquet", "huggingface"] = Field(
        "auto",
        description="kind of corpus; auto: Python's standard library without a path, else by suffix or folder content",
    )
    path: LocalPaths | None = Field(
        None,
        description="a file, a folder or a glob, or a list of them; for huggingface a `save_to_disk` folder or a "
        "dataset `name[:config]`",
    )
    validation_path: LocalPaths | None = Field(
        None, description="validation corpus of the same kind; else it is split off"
    )
    text_column: str | list[str] = Field(
        "text", description="column (JSON key) with the text; with a list every one of them is a document"
    )
    quoting: Quoting = Field(
        "auto",
        description="of csv: double: double quotes may enclose a field; none: quotes are text and a line is a row; "
        "auto: double in .csv, none in .tsv",
    )
    max_examples: int | None = Field(
        None, ge=1, description="most training examples (documents or rows), drawn with sample_seed"
    )
    sample_seed: int = Field(42, ge=0, description="seed of the choice of max_examples")
    validation_fraction: float = Field(
        0.05, ge=0, lt=1, description="part split off for validation, unless the source brings its own"
    )
    split: Literal["auto", "hash", "tail"] = Field(
        "auto",
        description="hash: whole documents by a hash of their name; tail: the last characters of the only document; "
        "auto: tail if there is one document, else hash",
    )
    layout: Literal["packed", "stream"] = Field(
        "packed", description="packed: no attention across documents; stream: one contiguous text, as nanoGPT does"
    )
    cache_dir: LocalPath | None = Field(
        None,
        description="folder of the token cache; else $JAXFORMER_CACHE, $XDG_CACHE_HOME/jaxformer, ~/.cache/jaxformer",
    )
    num_threads: int = Field(2, ge=0, description="threads that make batches; 0: made when the step asks for them")
    prefetch: int = Field(8, ge=1, description="batches kept ready ahead of the step")

    @field_validator("path", "validation_path", "text_column")
    @classmethod
    def _list_holds_something(cls, value: str | list[str] | None) -> str | list[str] | None:
        if value == []:
            raise ValueError("is an empty list: expected at least one entry")
        return value

    @property
    def cache_folder(self) -> Path:
        """The folder of the token cache: `cache_dir`, else what the environment says."""
        if self.cache_dir is not None:
            return local_path(self.cache_dir)
        if own := os.environ.get("JAXFORMER_CACHE"):
            return local_path(own)
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        return local_path(base) / "jaxformer"
