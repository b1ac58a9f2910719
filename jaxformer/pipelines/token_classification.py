"""Token classification: the entities of a text and their character offsets."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from pydantic import Field

from jaxformer.pipelines.base_pipeline import Pipeline, apply, require_text
from jaxformer.pipelines.batching import Row
from jaxformer.pipelines.entities import Token, entities, without_overlaps
from jaxformer.schema import Schema, UserError
from jaxformer.tokenizers import whole_characters


class Options(Schema):
    """Options of token classification."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = Field(
        "none", description="one dictionary for each token, or tokens grouped into entities"
    )
    ignore_labels: list[str] = Field(["O"], description="labels to leave out")
    stride: int | None = Field(
        None, ge=0, description="tokens that the windows of a long text share; the longest of overlapping entities stay"
    )
    is_split_into_words: bool = Field(
        False, description="texts are lists of words, which are read with spaces between them, as in training"
    )
    delimiter: str = Field(" ", description="text between the words, counted by the offsets")


class TokenClassification(Pipeline):
    """A list of ``{"entity": ..., "score", "index", "word", "start", "end"}`` for each text.

    With ``aggregation_strategy`` the entities have several tokens, and ``entity_group`` in place of ``entity``. A text
    that is too long for the model is read in windows that share a quarter of their tokens, and each token is classified
    in the window in which it is farthest from an edge. With ``stride`` the windows share that many tokens and are
    merged as in ``transformers``, entity by entity.
    """

    Options: ClassVar[type[Any]] = Options
    per_token = True
    needs_offsets = True

    def is_one(self, inputs: Any, options: Any) -> bool:
        """A text, or a list of words."""
        if not options.is_split_into_words or isinstance(inputs, str):
            return isinstance(inputs, str)
        return isinstance(inputs, list) and all(isinstance(word, str) for word in inputs)

    def of_one(self, result: Any, inputs: Any, given: Mapping[str, Any]) -> Any:
        """The list of entities; of words a list of one such list, as in ``transformers``."""
        return result if isinstance(inputs, str) else [result]

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """The windows of each text."""
        for item in items:
            if options.is_split_into_words and not isinstance(item, list | tuple):
                raise UserError("is_split_into_words is true and the input is not a list of words, expected one")
            for text in item if options.is_split_into_words else [item]:
                require_text(text, "a word of the input" if options.is_split_into_words else "the input")
        texts = [" ".join(item) if options.is_split_into_words else item for item in items]
        rows = [[row] for row in self.tokenize(texts, truncation=False)]
        long = [number for number, windows in enumerate(rows) if len(windows[0]) > self.longest]
        if not long:
            return rows
        quarter = (self.longest - self.tokenizer.num_special_tokens_to_add()) // 4
        windows = self.tokenize(
            [texts[number] for number in long],
            truncation=True,
            max_length=self.longest,
            stride=quarter if options.stride is None else options.stride,
            return_overflowing_tokens=True,
        )
        for number in long:
            rows[number] = []
        for window in windows:
            rows[long[window.about[1]]].append(window)
        return rows

    @staticmethod
    def forward(model: Any, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Probabilities ``[B, T, C]``."""
        return jax.nn.softmax(apply(model, params, batch).logits, axis=-1)

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> list[dict[str, Any]]:
        """The entities of a text."""
        text = " ".join(item) if options.is_split_into_words else item
        covered = [place for row in rows for place in row.about[0].offsets]
        windows = [
            self._tokens(
                text, row, scores, whole_characters(text, row.about[0].offsets, covered), options.is_split_into_words
            )
            for row, scores in zip(rows, outputs, strict=True)
        ]
        strategy, merge = options.aggregation_strategy, self.tokenizer.convert_tokens_to_string
        if options.stride is None or strategy == "none":
            windows = [_merge_windows(windows)]
        found: list[dict[str, Any]] = []
        for tokens in windows:
            some = entities(tokens, self.labels, strategy, merge)
            found += [x for x in some if x.get("entity", x.get("entity_group")) not in options.ignore_labels]
        found = without_overlaps(found) if len(windows) > 1 else found
        if options.is_split_into_words and options.delimiter != " ":
            _move(found, item, len(options.delimiter) - 1)
        return found

    def _tokens(
        self, text: str, row: Row, scores: np.ndarray, whole: list[tuple[int, int]], of_words: bool
    ) -> list[Token]:
        """The tokens of a window without the special ones; ``whole`` are their places with whole characters."""
        encoding = row.about[0]
        marked = bool(getattr(self.tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None))
        tokens = []
        for index, (number, special) in enumerate(zip(encoding.ids, encoding.special_tokens_mask, strict=True)):
            if special:
                continue
            start, end = encoding.offsets[index]
            if of_words and not text[start:end].strip():
                continue  # a blank between words has no tag
            word, there, end = encoding.tokens[index], text[start:end], whole[index][1]
            # Marked pieces (##) are longer than their characters in the text; otherwise a word ends at a space.
            continues = len(word) != len(there) if marked else start > 0 and " " not in text[start - 1 : start + 1]
            if number == self.tokenizer.unk_token_id:
                word, continues = text[start:end], False
            tokens.append(Token(word, scores[index], start, end, index, continues))
        return tokens


def _move(found: list[dict[str, Any]], words: Sequence[str], step: int) -> None:
    """Moves the characters of entities by ``step`` for every word before them."""
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    for entity in found:
        for key in ("start", "end"):
            entity[key] += step * (int(np.searchsorted(starts, entity[key], side="right")) - 1)


def _merge_windows(windows: list[list[Token]]) -> list[Token]:
    """The tokens of a text, each from the window in which it is farthest from an edge.

    A token is identified by its characters, which are the same in all windows.
    """
    best: dict[tuple[int, int, int], tuple[int, Token]] = {}
    for window in windows:
        seen: dict[tuple[int, int], int] = {}
        for place, token in enumerate(window):
            span = (token.start, token.end)
            # Byte-level tokens may share a character: their number tells them apart.
            seen[span] = seen.get(span, -1) + 1
            key, room = (*span, seen[span]), min(place, len(window) - 1 - place)
            if key not in best or room > best[key][0]:
                best[key] = (room, token)
    return [token for _, token in best.values()]
