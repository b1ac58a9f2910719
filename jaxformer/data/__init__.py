"""From files to batches: source -> documents -> token cache, or records -> examples; then rows -> batches."""

from jaxformer.data.config import DataConfig
from jaxformer.data.corpus import Corpus, Split, open_corpus
from jaxformer.data.example_rows import ExampleRows
from jaxformer.data.formats import Document, Row
from jaxformer.data.loader import TrainBatches, evaluation_batches, load
from jaxformer.data.records import Records, open_records
from jaxformer.data.token_cache import TokenCache, build_cache
from jaxformer.data.token_rows import PackedRows, Rows, StreamRows, make_rows

__all__ = [
    "Corpus",
    "DataConfig",
    "Document",
    "ExampleRows",
    "PackedRows",
    "Records",
    "Row",
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
    "open_records",
]
