"""From files to batches: source -> documents -> token cache -> rows -> batches."""

from jaxformer.data.cache import TokenCache, build_cache
from jaxformer.data.config import DataConfig
from jaxformer.data.corpus import Corpus, Split, open_corpus
from jaxformer.data.formats import Document
from jaxformer.data.loader import TrainBatches, evaluation_batches, load
from jaxformer.data.rows import PackedRows, Rows, StreamRows, make_rows

__all__ = [
    "Corpus",
    "DataConfig",
    "Document",
    "PackedRows",
    "Rows",
    "Split",
    "StreamRows",
    "TokenCache",
    "TrainBatches",
    "build_cache",
    "evaluation_batches",
    "load",
    "make_rows",
    "open_corpus",
]
