"""Texts that follow a JSON schema, a regular expression or a grammar, by llguidance."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxformer.external import need
from jaxformer.schema import UserError


class Guides:
    """Makes the guides of one tokenizer.

    Args:
        tokenizer: a fast one.
        vocabulary: rows of the model's embedding.
        ends: tokens that end a text.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, ends: tuple[int, ...]) -> None:
        self._tokenizer, self._vocabulary, self._ends = tokenizer, vocabulary, ends
        self._known: Any = None

    def grammar(self, form: Any) -> str | None:
        """The grammar of a ``ResponseFormat``, None if it asks for nothing.

        Raises:
            UserError: llguidance is not installed.
        """
        if form is None or form.type == "text":
            return None
        if form.type == "regex":
            return str(_matcher().grammar_from_regex(form.regex))
        schema = {"type": "object"} if form.type == "json_object" else form.json_schema["schema"]
        return str(_matcher().grammar_from_json_schema(json.dumps(compact(schema))))

    def check(self, grammar: str) -> None:
        """Refuses a grammar that cannot be followed."""
        Guide(self._tokens(), grammar, self._vocabulary)

    def make(self, grammar: str | None) -> "Guide | None":
        """A guide at the beginning of a text; None without a grammar."""
        return None if grammar is None else Guide(self._tokens(), grammar, self._vocabulary)

    def _tokens(self) -> Any:
        if self._known is None:
            if not getattr(self._tokenizer, "is_fast", False):
                raise UserError(
                    f"response_format needs a tokenizer with a tokenizer.json, and {type(self._tokenizer).__name__} "
                    "is none"
                )
            if not self._ends:
                raise UserError("response_format needs a model with a token that ends a text, and this one has none")
            make = need("llguidance.hf", "serve").from_tokenizer
            size = max(self._vocabulary, len(self._tokenizer))
            self._known = make(self._tokenizer, n_vocab=size, eos_token=list(self._ends))
        return self._known


def compact(schema: Any) -> Any:
    """A schema whose texts have the spaces of ``json.dumps``: a model cannot go on with spaces for ever."""
    if not isinstance(schema, Mapping):
        return schema
    layout = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    return {**schema, "x-guidance": layout}


class Guide:
    """The tokens that may come next, at one place of one text."""

    def __init__(self, tokens: Any, grammar: str, vocabulary: int) -> None:
        self._matcher = _matcher()(tokens, grammar)
        if said := self._matcher.get_error():
            raise UserError(f"response_format cannot be followed: {' '.join(str(said).split())[:200]}")
        self._mask = np.full(-(-tokens.vocab_size // 32), -1, np.int32)
        self._words = -(-vocabulary // 32)

    def allowed(self) -> np.ndarray:
        """``[ceil(V / 32)]`` int32, a bit for each token."""
        self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        return self._mask[: self._words]

    def take(self, token: int) -> None:
        """Goes on after a token."""
        self._matcher.consume_token(token)


def _matcher() -> Any:
    return need("llguidance", "serve").LLMatcher
