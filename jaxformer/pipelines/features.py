"""States and vectors of texts: feature extraction, and how alike sentences are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from pydantic import Field

from jaxformer.hub.sentence_files import SentenceFormat
from jaxformer.pipelines.base_pipeline import Pipeline, apply, require_text
from jaxformer.pipelines.batching import Row
from jaxformer.schema import Schema, UserError


class VectorOptions(Schema):
    """Options of what makes a vector of a text."""

    pooling: Literal["mean", "first", "last"] | None = Field(
        None, description="from states to a vector, without the model's dense layers; default: as the model says"
    )
    prompt: str | None = Field(None, description="prefix of the texts")
    prompt_name: str | None = Field(
        None, description="name of one of the model's prompts; default: its default, if any"
    )
    truncation: bool = Field(True, description="cut a text that is too long")
    max_length: int | None = Field(None, ge=1, description="tokens of a text; default: what the model was trained with")


class FeatureOptions(VectorOptions):
    """Options of feature extraction."""

    pooling: Literal["mean", "first", "last", "none"] | None = Field(  # type: ignore[assignment]
        None,
        description="one vector a text: the mean of its states, the first, the last; none: the states; default: the "
        "vector of a sentence encoder, the states of another model",
    )
    normalize: bool | None = Field(None, description="scale the vectors to length 1; default: as the model says")
    return_tensors: bool = Field(False, description="arrays of NumPy in place of lists")


class SimilarityOptions(VectorOptions):
    """Options of sentence similarity."""


def unit(vector: np.ndarray) -> np.ndarray:
    """The vector at length 1."""
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-12))


class VectorPipeline(Pipeline):
    """The base of the pipelines that make a vector of a text, as sentence-transformers do where the model is theirs."""

    per_token = True

    def format(self, options: Any) -> SentenceFormat | None:
        """The way from states to the vector; None: no vector but the states."""
        own = self.opened.sentences
        if options.pooling == "none":
            return None
        return own if options.pooling is None else SentenceFormat(options.pooling)

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        found = self.format(self.options)
        assert found is not None, "asked of vectors only"
        return found.encoder(self.model.config).width

    def vector_rows(self, texts: Sequence[str], options: Any) -> list[Row]:
        """One row a text, behind its prompt."""
        own = self.opened.sentences or SentenceFormat()
        name = own.default_prompt if options.prompt_name is None else options.prompt_name
        if name is not None and name not in own.prompts:
            known = ", ".join(own.prompts) or "none"
            raise UserError(f"prompt_name is {name!r}, expected one that {self.name} has: {known}; or give prompt=")
        prompt = options.prompt if options.prompt is not None else own.prompts[name] if name is not None else ""
        whole = [prompt + text for text in texts] if prompt else texts
        return self.rows_of(whole, None, options.truncation, options.max_length, own.longest)

    @staticmethod
    def vectors(model: Any, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Vectors ``[B, E]``."""
        return apply(model, params, batch).embedding

    @staticmethod
    def forward(model: Any, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """States ``[B, T, D]``; of an encoder-decoder the decoder's, which reads the text too."""
        return apply(model, params, batch).last_hidden_state.astype(np.float32)

    def run(self, rows: Sequence[Row], options: Any) -> list[Any]:
        """The states of each row, or its vector before it is scaled: lengths must not depend on the batch."""
        found = self.format(options)
        if found is None:
            return super().run(rows, options)
        return self.run_with(
            VectorPipeline.vectors, replace(found, normalize=False).encoder(self.model.config), rows, False
        )


class FeatureExtraction(VectorPipeline):
    """The vector of each text, where the model is a sentence encoder or with ``pooling``; else its last hidden states.

    States are ``[1, T, D]``, as nested lists; special tokens are among them, padding is not. Vectors are ``[E]``.
    """

    Options: ClassVar[type[Any]] = FeatureOptions

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """One row a text."""
        return [[row] for row in self.vector_rows([require_text(item, "the input") for item in items], options)]

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> Any:
        """The states, or the vector."""
        found, values = self.format(options), outputs[0]
        if found is None and options.normalize:
            raise UserError("normalize is true without pooling, expected pooling='mean', 'first' or 'last' with it")
        if found is None:
            values = values[None]
        elif found.normalize if options.normalize is None else options.normalize:
            values = unit(values)
        return values if options.return_tensors else values.tolist()


class SentenceSimilarity(VectorPipeline):
    """The cosines of a sentence with others: ``{"source_sentence": ..., "sentences": [...]}`` gives a list of numbers.

    Also ``pipe(sentence, sentences)``, and for several ``pipe([...], [...])`` a list of lists, a row for each of the
    first. A sentence's vector is the mean of its tokens' states (Reimers and Gurevych 2019, section 3), or what the
    files of a sentence encoder say; of an encoder-decoder the encoder's states are used.
    """

    Options: ClassVar[type[Any]] = SimilarityOptions
    takes = "{'source_sentence': ..., 'sentences': [...]}"

    def __call__(self, inputs: Any, sentences: Any = None, **options: Any) -> Any:
        """The cosines of one input or of many; the sentences may be the second argument."""
        if sentences is None:
            return super().__call__(inputs, **options)
        if isinstance(inputs, str):
            return super().__call__({"source_sentence": inputs, "sentences": sentences}, **options)
        parsed, texts = self.parse(options), [*inputs, *sentences]
        found: list[np.ndarray] = []
        for start in range(0, len(texts), self.window_size):
            some = [require_text(text, "a sentence") for text in texts[start : start + self.window_size]]
            found += [unit(vector) for vector in self.run(self.vector_rows(some, parsed), parsed)]
        first, second = found[: len(inputs)], found[len(inputs) :]
        return [[float(a @ b) for b in second] for a in first]

    def format(self, options: Any) -> SentenceFormat:
        """The way from states to the vector."""
        return super().format(options) or SentenceFormat()

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """A row for the sentence and one for each that it is compared with."""
        texts = [_sentences(item) for item in items]
        rows = iter(self.vector_rows([text for group in texts for text in group], options))
        return [[next(rows) for _ in group] for group in texts]

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> list[float]:
        """The cosines."""
        vectors = [unit(vector) for vector in outputs]
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
