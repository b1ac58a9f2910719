"""``/v1/embeddings``, ``/v1/rerank`` and ``/v1/classifications``: requests that come together run as one batch."""

import base64
import json
from typing import Any

import numpy as np

from jaxformer.serving.bodies import Classifications, Embeddings, Pair, Rerank
from jaxformer.serving.errors import ApiError
from jaxformer.serving.served import Served


async def embeddings(served: Served, body: Embeddings) -> dict[str, Any]:
    """The vector of each text."""
    assert served.batcher is not None, "of an encoder"
    width = served.pipe.width
    if body.dimensions not in (None, width):
        raise ApiError(400, f"dimensions is {body.dimensions}, expected {width}, those of the model", "dimensions")
    texts = [body.input] if isinstance(body.input, str) else list(body.input)
    found = await served.batcher(texts, return_tensors=True)
    packed = body.encoding_format == "base64"

    def shown(vector: Any) -> Any:
        vector = np.asarray(vector, "<f4")
        return base64.b64encode(vector.tobytes()).decode() if packed else vector.tolist()

    data = [{"object": "embedding", "index": n, "embedding": shown(vector)} for n, vector in enumerate(found)]
    return {"object": "list", "data": data, "model": served.name, "usage": _usage(served, texts)}


async def rerank(served: Served, body: Rerank) -> dict[str, Any]:
    """The documents in the order of their scores for a query."""
    assert served.batcher is not None, "of a cross-encoder"
    texts = [_text(document) for document in body.documents]
    pairs = [{"text": body.query, "text_pair": text} for text in texts]
    # The score of a pair is that of one class, whose function the pipeline knows.
    function = served.pipe.opened.score or served.pipe.default_function
    found = await served.batcher(pairs, top_k=None, function_to_apply=function)
    scores = [answer[0]["score"] for answer in found]
    order = sorted(range(len(texts)), key=lambda number: -scores[number])[: body.top_n]
    results = [
        {
            "index": n,
            "relevance_score": scores[n],
            **({"document": {"text": texts[n]}} if body.return_documents else {}),
        }
        for n in order
    ]
    return {"model": served.name, "results": results, "usage": _usage(served, [body.query, *texts])}


async def classifications(served: Served, body: Classifications) -> dict[str, Any]:
    """The scores of the labels of each text, the likeliest first."""
    assert served.batcher is not None, "of a classifier"
    given = body.input if isinstance(body.input, list) else [body.input]
    items = [item.model_dump(exclude_none=True) if isinstance(item, Pair) else item for item in given]
    found = await served.batcher(items, top_k=body.top_k)
    data = [{"index": n, "label": scores[0]["label"], "scores": scores} for n, scores in enumerate(found)]
    texts = [text for item in items for text in ([item] if isinstance(item, str) else item.values())]
    return {"object": "list", "data": data, "model": served.name, "usage": _usage(served, texts)}


def _text(document: Any) -> str:
    if isinstance(document, str):
        return document
    if not isinstance(document.get("text"), str):
        raise ApiError(400, f"a document is {json.dumps(document)[:80]}, expected a text or an object with text")
    return str(document["text"])


def _usage(served: Served, texts: list[str]) -> dict[str, int]:
    """Tokens of the texts, as the tokenizer counts them before any is cut."""
    count = sum(len(row.inputs["input_ids"]) for row in served.pipe.tokenize(texts, truncation=False))
    return {"prompt_tokens": count, "total_tokens": count}
