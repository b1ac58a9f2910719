"""States and vectors of texts: feature extraction, and how alike sentences are."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from pydantic import Field

from jaxformer.pipelines.base_pipeline import Pipeline, apply, require_text
from jaxformer.pipelines.batching import Row
from jaxformer.schema import Schema, UserError

Pooling = Literal["mean", "first", "last"]


class FeatureOptions(Schema):
    """Options of feature extraction."""

    pooling: Pooling | None = Field(None, description="one vector a text: the mean of its states, the first, the last")
    normalize: bool = Field(False, description="scale the vectors to length 1")
    return_tensors: bool = Field(False, description="arrays of NumPy in place of lists")
    truncation: bool = Field(True, description="cut a text that is too long")
    max_length: int | None = Field(None, ge=1, description="tokens of a text; default: what the model reads")


def pooled(states: np.ndarray, pooling: str) -> np.ndarray:
    """One vector ``[D]`` from the states ``[T, D]`` of a text."""
    if pooling == "mean":
        return np.asarray(np.mean(states, axis=0))
    return np.asarray(states[0 if pooling == "first" else -1])


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1."""
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12))


class FeatureExtraction(Pipeline):
    """The last hidden states of each text, ``[1, T, D]`` as nested lists; with ``pooling`` one vector ``[D]``.

    Special tokens are among the states, padding is not.
    """

    Options: ClassVar[type[Any]] = FeatureOptions
    per_token = True

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """One row a text."""
        texts = [require_text(item, "the input") for item in items]
        return [[row] for row in self.rows_of(texts, None, options.truncation, options.max_length)]

    @staticmethod
    def forward(model: Any, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """States ``[B, T, D]``; of an encoder-decoder the decoder's, which reads the text too."""
        return apply(model, params, batch).last_hidden_state.astype(np.float32)

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> Any:
        """The states, or the vector."""
        states = outputs[0] if options.pooling is None else pooled(outputs[0], options.pooling)
        if options.normalize:
            if options.pooling is None:
                raise UserError("normalize is true without pooling, expected pooling='mean', 'first' or 'last' with it")
            states = unit(states)
        states = states[None] if options.pooling is None else states
        return states if options.return_tensors else states.tolist()


class SimilarityOptions(Schema):
    """Options of sentence similarity."""

    pooling: Pooling | None = Field(
        None, description="from states to a vector; default: the model's own, else the mean"
    )
    truncation: bool = Field(True, description="cut a text that is too long")
    max_length: int | None = Field(None, ge=1, description="tokens of a text; default: what the model was trained with")


class SentenceSimilarity(Pipeline):
    """The cosines of a sentence with others: ``{"source_sentence": ..., "sentences": [...]}`` gives a list of numbers.

    Also ``pipe(sentence, sentences)``, and for several ``pipe([...], [...])`` a list of lists, a row for each of the
    first. A sentence's vector is the mean of its tokens' states (Reimers and Gurevych 2019, section 3), or what the
    model's ``1_Pooling/config.json`` says; of an encoder-decoder the encoder's states are used.
    """

    Options: ClassVar[type[Any]] = SimilarityOptions
    per_token = True
    takes = "{'source_sentence': ..., 'sentences': [...]}"

    def __call__(self, inputs: Any, sentences: Any = None, **options: Any) -> Any:
        """The cosines of one input or of many; the sentences may be the second argument."""
        if sentences is None:
            return super().__call__(inputs, **options)
        if isinstance(inputs, str):
            return super().__call__({"source_sentence": inputs, "sentences": sentences}, **options)
        parsed, texts = self._parse(options), [*inputs, *sentences]
        vectors = list(self._vectors(texts, parsed))
        first, second = vectors[: len(inputs)], vectors[len(inputs) :]
        return [[float(a @ b) for b in second] for a in first]

    def _vectors(self, texts: Sequence[str], options: Any) -> list[np.ndarray]:
        found, pooling = [], self.pooling(options)
        for start in range(0, len(texts), self.window_size):
            some = [require_text(text, "a sentence") for text in texts[start : start + self.window_size]]
            found += [unit(pooled(states, pooling)) for states in self.run(self._rows(some, options), options)]
        return found

    def pooling(self, options: Any) -> str:
        """The pooling of states into a vector, if it is one of those supported."""
        name = options.pooling or self.opened.pooling or "mean"
        if name not in ("mean", "first", "last"):
            raise UserError(
                f"{self.name} says {name}, expected mean, first or last: such a model is not supported; "
                "pooling= takes another way than it was trained with"
            )
        return str(name)

    def _rows(self, texts: Sequence[str], options: Any) -> list[Row]:
        return self.rows_of(texts, None, options.truncation, options.max_length, self.opened.longest)

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """A row for the sentence and one for each that it is compared with."""
        self.pooling(options)
        texts = [_sentences(item) for item in items]
        rows = iter(self._rows([text for group in texts for text in group], options))
        return [[next(rows) for _ in group] for group in texts]

    @staticmethod
    def forward(model: Any, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """States ``[B, T, D]``."""
        output = apply(model, params, batch)
        states = output.encoder_last_hidden_state
        return (output.last_hidden_state if states is None else states).astype(np.float32)

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> list[float]:
        """The cosines."""
        vectors = [unit(pooled(states, self.pooling(options))) for states in outputs]
        return [float(vectors[0] @ vector) for vector in vectors[1:]]

    def from_record(self, record: Mapping[str, Any], column: str) -> Any:
        """The sentence and those it is compared with."""
        return {key: Pipeline.from_record(self, record, key) for key in ("source_sentence", "sentences")}


def _sentences(item: Any) -> list[str]:
    """The sentence, followed by those it is compared with."""
    if isinstance(item, Mapping) and isinstance(item.get("inputs"), Mapping):
        item = item["inputs"]
    if not isinstance(item, Mapping) or not {"source_sentence", "sentences"} <= item.keys():
        raise UserError(f"the input is {item!r:.60}, expected {SentenceSimilarity.takes}")
    if not isinstance(item["sentences"], list | tuple):
        raise UserError(f"sentences is {item['sentences']!r:.60}, expected a list of texts")
    return [require_text(text, "a sentence") for text in (item["source_sentence"], *item["sentences"])]
