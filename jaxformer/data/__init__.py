"""From files to batches: source -> documents -> token cache -> rows -> batches."""

from jaxformer.data.cache import TokenCache, build_cache
from jaxformer.data.config import DataConfig
from jaxformer.data.corpus import Corpus, Split, open_corpus
from jaxformer.data.formats import Document
from jaxformer.data.loader import Batches, EvaluationBatches, TrainBatches, load
from jaxformer.data.rows import PackedRows, Rows, StreamRows

__all__ = [
    "Batches",
    "Corpus",
    "DataConfig",
    "Document",
    "EvaluationBatches",
    "PackedRows",
    "Rows",
    "Split",
    "StreamRows",
    "TokenCache",
    "TrainBatches",
    "build_cache",
    "load",
    "open_corpus",
]
