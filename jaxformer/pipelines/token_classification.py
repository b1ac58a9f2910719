"""Token classification: the entities of a text, with their characters."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import numpy as np
from pydantic import Field

from jaxformer.pipelines.base_pipeline import Pipeline, PipelineOptions, apply, require_text
from jaxformer.pipelines.batching import Row
from jaxformer.pipelines.entities import Token, entities, without_overlaps
from jaxformer.schema import UserError


class Options(PipelineOptions):
    """Options of token classification."""

    aggregation_strategy: Literal["none", "simple", "first", "average", "max"] = Field(
        "none", description="a dictionary each token, or tokens grouped into entities"
    )
    ignore_labels: list[str] = Field(["O"], description="labels to leave out")
    stride: int | None = Field(
        None, ge=0, description="tokens that the windows of a long text share; the longest of overlapping entities stay"
    )
    is_split_into_words: bool = Field(False, description="texts are lists of words")
    delimiter: str = Field(" ", description="what stands between the words in the text that offsets refer to")


class TokenClassification(Pipeline):
    """A list of ``{"entity": ..., "score", "index", "word", "start", "end"}`` for each text.

    With ``aggregation_strategy`` entities of several tokens, ``entity_group`` in place of ``entity``. A text that is
    longer than the model reads is read in windows that share a quarter of their tokens, and every token is judged in
    the window where it has most context on its poorer side, so that nothing is lost. With ``stride`` the windows share
    so many tokens, and are merged as in ``transformers``: entity by entity.
    """

    Options: ClassVar[type[PipelineOptions]] = Options
    per_token = True

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
            _check(item, options.is_split_into_words)
        split = {"is_split_into_words": options.is_split_into_words}
        rows = [[row] for row in self.tokenize(items, truncation=False, **split)]
        long = [number for number, windows in enumerate(rows) if len(windows[0]) > self.longest]
        if not long:
            return rows
        room = self.longest - self.tokenizer.num_special_tokens_to_add()
        stride = room // 4 if options.stride is None else options.stride
        windows = self.tokenize(
            [items[number] for number in long],
            truncation=True,
            max_length=self.longest,
            stride=stride,
            return_overflowing_tokens=True,
            **split,
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
        starts = None
        text = item
        if options.is_split_into_words:
            text = options.delimiter.join(item)
            starts = np.cumsum([0, *(len(word) + len(options.delimiter) for word in item)])
        windows = [self._tokens(text, starts, row, scores) for row, scores in zip(rows, outputs, strict=True)]
        strategy, merge = options.aggregation_strategy, self.tokenizer.convert_tokens_to_string
        if options.stride is None or strategy == "none":
            windows = [_whole(windows)]
        found = []
        for tokens in windows:
            some = entities(tokens, self.labels, strategy, merge)
            found += [x for x in some if x.get("entity", x.get("entity_group")) not in options.ignore_labels]
        return without_overlaps(found) if len(windows) > 1 else found

    def _tokens(self, text: str, starts: Any, row: Row, scores: np.ndarray) -> list[Token]:
        """The tokens of a window without special ones."""
        encoding = row.about[0]
        marked = bool(getattr(self.tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None))
        tokens = []
        for index, (number, special) in enumerate(zip(encoding.ids, encoding.special_tokens_mask, strict=True)):
            if special:
                continue
            start, end = encoding.offsets[index]
            if starts is not None and encoding.word_ids[index] is not None:
                start, end = (int(starts[encoding.word_ids[index]]) + x for x in (start, end))
            word, there = encoding.tokens[index], text[start:end]
            # Where pieces are marked (##), a piece is longer than what it stands for; elsewhere a word ends at a blank.
            goes_on = len(word) != len(there) if marked else start > 0 and " " not in text[start - 1 : start + 1]
            if number == self.tokenizer.unk_token_id:
                word, goes_on = there, False
            tokens.append(Token(word, scores[index], start, end, index, goes_on))
        return tokens


def _check(item: Any, split: bool) -> None:
    if not split:
        require_text(item, "the input")
    elif not isinstance(item, list | tuple):
        raise UserError("is_split_into_words is true but the input is no list of words, expected one")
    else:
        for word in item:
            require_text(word, "a word of the input")


def _whole(windows: list[list[Token]]) -> list[Token]:
    """The tokens of a text from its windows, each from where its distance to the nearer edge is greatest.

    A token is known by its characters, in which windows agree.
    """
    if len(windows) == 1:
        return windows[0]
    best: dict[tuple[int, int, int], tuple[int, Token]] = {}
    order: dict[tuple[int, int, int], None] = {}
    for window in windows:
        seen: dict[tuple[int, int], int] = {}
        for place, token in enumerate(window):
            span = (token.start, token.end)
            # Tokens of bytes may share a character: the how manieth it is tells them apart.
            seen[span] = seen.get(span, -1) + 1
            key, room = (*span, seen[span]), min(place, len(window) - 1 - place)
            order.setdefault(key)
            if key not in best or room > best[key][0]:
                best[key] = (room, token)
    return [best[key][1] for key in order]
