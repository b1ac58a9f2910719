"""Reward modelling: a score for a response, so that the preferred one of two has the higher score."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import ExampleRows
from jaxformer.models import heads
from jaxformer.models.config import TransformerConfig
from jaxformer.tasks import records as R
from jaxformer.tasks.bad_rows import BadRow, Tally
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task
from jaxformer.tasks.dialogue import choose_template
from jaxformer.tasks.preferences import PairReader, encode_pairs, flat_inputs, pair_report, whole_example
from jaxformer.tasks.response_task import ResponseConfig
from jaxformer.tasks.responses import ResponseEncoder
from jaxformer.tokenizers import PreTrainedTokenizer

INPUTS = ("input_ids", "attention_mask")


class PreferenceConfig(ResponseConfig):
    """Keys that the objectives on preference pairs share."""

    unit = "examples"

    def parts(self, record: R.Record) -> list[Any]:
        """Prompt and both responses; see ``ResponseConfig``."""
        pair = PairReader(self.columns, as_messages=False).read(record)
        return [pair.chosen.prompt, pair.chosen.response, pair.rejected.response]


class RewardConfig(PreferenceConfig):
    """Score responses as people preferred them."""

    architectures = ("decoder", "encoder_decoder")
    special_tokens = ("pad",)

    type: Literal["reward"] = Field("reward", description="objective")
    margin_column: str | None = Field(None, description="column with how much better the preferred response is")
    centring: float = Field(0.0, ge=0, description="weight of (sum of both scores)^2, which keeps them around 0: 0.01")

    def margin_of(self, record: R.Record) -> float:
        """How much better the preferred response is known to be.

        Raises:
            BadRow: if the column holds no number.
        """
        if self.margin_column is None:
            return 0.0
        try:
            margin = float(record.get(self.margin_column))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            margin = float("nan")
        if not np.isfinite(margin):
            raise BadRow(f"column {self.margin_column!r} (task.margin_column) holds no number")
        return margin


@dataclass(frozen=True, eq=False)
class Reward(Task):
    """``-log s(r(chosen) - r(rejected) - margin)``, summed over pairs: ``functional.bradley_terry_loss``.

    The score is that of a classifier with one class: read at the last real token, which has seen the whole text.

    Args:
        config: Columns, margin and centring.
        tokenizer: Has an end of text and a padding token, which users of the model pad with.
        sequence_length: Most tokens of prompt and response.
    """

    config: RewardConfig
    tokenizer: PreTrainedTokenizer
    sequence_length: int

    @cached_property
    def encoder(self) -> ResponseEncoder:
        """Text to tokens."""
        return ResponseEncoder(self.tokenizer, self.config.chat_template)

    def model(self, config: TransformerConfig) -> nn.Module:
        """The body with one score."""
        return heads.SequenceClassifier(config, 1)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row a pair.

        Raises:
            UserError: if no row can be used.
        """
        c, T = self.config, self.sequence_length
        tally = Tally(c.bad_rows, len(data))
        reader = PairReader(c.columns, choose_template(c.chat_template, self.tokenizer) is not None)

        def read(record: R.Record) -> Any:
            c.margin_of(record)
            return reader.read(record)

        pairs = encode_pairs(self.encoder, data, read, tally, T, None)
        tally.report(f" to fit {T} tokens")
        examples = [{**whole_example(pair, T), "margin": c.margin_of(record)} for record, pair in pairs]
        rows = ExampleRows(examples, T, {"input_ids": 0, "margin": 0.0})
        rows.left_out = tally.left_out
        rows.records = [record for record, _ in pairs]
        return rows

    def _scores(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Any:
        """Scores ``[B, 2]``, and which rows are pairs; a row of padding has zeros."""
        logits = R.apply(model, params, flat_inputs(batch, INPUTS), dropout_key).logits[:, 0].reshape(-1, 2)
        real = jnp.any(batch["attention_mask"] == 1, axis=(1, 2))
        return jnp.where(real[:, None], logits, 0.0), real.astype(jnp.float32)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the pairs."""
        scores, weights = self._scores(model, params, batch, dropout_key)
        chosen, rejected = scores[:, 0], scores[:, 1]
        plain = jnp.sum(weights * F.bradley_terry_loss(chosen, rejected, batch["margin"]))
        objective = plain
        if self.config.centring:
            losses = F.bradley_terry_loss(chosen, rejected, batch["margin"], centring=self.config.centring)
            objective = jnp.sum(weights * losses)
        metrics = {
            "loss": plain,
            "pair_accuracy": jnp.sum(weights * (chosen > rejected)),
            "score_margin": jnp.sum(weights * (chosen - rejected)),
            "mean_score": jnp.sum(weights * (chosen + rejected)) / 2,
        }
        return LossSums(objective, jnp.sum(weights), metrics)

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``scores [B, 2]``."""
        return {"scores": self._scores(model, params, batch, None)[0]}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """How often the preferred response has the higher score, and the scores of every pair."""
        return pair_report("score", data, outputs["scores"])
