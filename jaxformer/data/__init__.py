"""From files to batches: source -> documents -> token cache, or records -> examples; then rows -> batches."""

from typing import TYPE_CHECKING

from jaxformer.lazy import importer

if TYPE_CHECKING:
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

# A program that only reads text needs no loader, whose library takes a third of a second to import.
__getattr__ = importer(
    __name__,
    {
        "DataConfig": "config",
        "Corpus": "corpus",
        "Split": "corpus",
        "open_corpus": "corpus",
        "ExampleRows": "example_rows",
        "Document": "formats",
        "Row": "formats",
        "TrainBatches": "loader",
        "evaluation_batches": "loader",
        "load": "loader",
        "Records": "records",
        "open_records": "records",
        "TokenCache": "token_cache",
        "build_cache": "token_cache",
        "PackedRows": "token_rows",
        "Rows": "token_rows",
        "StreamRows": "token_rows",
        "make_rows": "token_rows",
    },
)
