"""Fill-mask: the likeliest tokens in place of ``[MASK]``."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from pydantic import Field

from jaxformer import functional as F
from jaxformer.pipelines.base_pipeline import Pipeline, require_text
from jaxformer.pipelines.batching import Row
from jaxformer.schema import Schema, UserError


class Options(Schema):
    """Options of fill-mask."""

    top_k: int = Field(5, ge=1, description="tokens to return for each mask")
    targets: str | list[str] | None = Field(None, description="choose among these tokens only")
    truncation: bool = Field(True, description="cut a text that is too long")


class FillMask(Pipeline):
    """A list of ``{"score", "token", "token_str", "sequence"}`` for each text, the likeliest first.

    A text with several masks gives a list of such lists, each mask by itself. A list of one text gives what that text
    gives, as in ``transformers``.
    """

    Options: ClassVar[type[Any]] = Options
    per_token = True
    unwraps = True

    def prepare(self) -> None:
        """Refuses a tokenizer without a mask token."""
        if self.tokenizer.mask_token_id is None:
            raise UserError(
                f"the tokenizer of {self.name} has no mask_token, which fill-mask needs; choose another model"
            )

    def encode(self, items: Sequence[Any], options: Any) -> list[list[Row]]:
        """One row a text; its places are the masks."""
        rows = self.rows_of([require_text(item, "the input") for item in items], None, options.truncation, None)
        for row in rows:
            row.places = [i for i, token in enumerate(row.inputs["input_ids"]) if token == self.tokenizer.mask_token_id]
            if not row.places:
                raise UserError(f"the text has no {self.tokenizer.mask_token}, expected one in place of a word")
        return [[row] for row in rows]

    @staticmethod
    def forward(model: Any, params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        """Probabilities ``[B, M, V]`` at the masks: the head is computed for these alone."""
        hidden, head = model.apply({"params": params}, **batch, method="hidden_and_head")
        return jax.nn.softmax(F.head_logits(hidden, head), axis=-1)

    def result(self, item: Any, rows: Sequence[Row], outputs: Sequence[Any], options: Any) -> Any:
        """The likeliest tokens of each mask."""
        row = rows[0]
        targets = None if options.targets is None else self._targets(options.targets)
        found = []
        for place, scores in zip(row.places, outputs[0], strict=True):
            numbers = np.arange(len(scores)) if targets is None else targets
            # Not the padding of the embedding table.
            numbers = numbers[numbers < len(self.tokenizer)]
            best = numbers[np.argsort(-scores[numbers], kind="stable")[: options.top_k]]
            found.append([self._filled(row, place, int(token), float(scores[token])) for token in best])
        return found[0] if len(found) == 1 else found

    def _filled(self, row: Row, place: int, token: int, score: float) -> dict[str, Any]:
        ids = list(row.inputs["input_ids"])
        ids[place] = token
        # The other masks stay visible.
        text = self.tokenizer.decode(ids, skip_special_tokens=len(row.places) == 1)
        return {"score": score, "token": token, "token_str": self.tokenizer.decode([token]), "sequence": text}

    def _targets(self, targets: str | list[str]) -> np.ndarray:
        """The ids of the target tokens; of a target that is not a token, its first token, with a warning."""
        numbers = []
        for target in [targets] if isinstance(targets, str) else targets:
            number = self.tokenizer.get_vocab().get(target)
            if number is None:
                ids = self.tokenizer(target, add_special_tokens=False)["input_ids"]
                if not ids:
                    raise UserError(f"the target {target!r} has no token, expected a word of the vocabulary")
                number = ids[0]
                token = self.tokenizer.convert_ids_to_tokens(number)
                self.say_once(target, f"the target {target!r} is not a token; its first token {token!r} is used")
            numbers.append(number)
        if not numbers:
            raise UserError("targets is empty, expected at least one token")
        return np.unique(numbers)
