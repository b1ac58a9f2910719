"""Reward modelling: score responses so that the preferred one of a pair has the higher score."""

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
from jaxformer.models import heads
from jaxformer.models.config import TransformerConfig
from jaxformer.tasks.base import Batch, LossSums, Report, Rows
from jaxformer.tasks.preferences import PreferenceConfig, flat_inputs, pair_report
from jaxformer.tasks.records import BadRow, Record, Tally, apply, stack_rows
from jaxformer.tasks.responses import FILL, ResponseEncoder, ResponseTask
from jaxformer.tasks.row_readers import Pair, PairReader


class RewardConfig(PreferenceConfig):
    """Learn to score responses from preferences."""

    architectures = ("decoder", "encoder_decoder")
    special_tokens = ("pad",)

    type: Literal["reward"] = Field("reward", description="objective")
    margin_column: str | None = Field(None, description="column with the minimum difference of the scores")
    centring: float = Field(
        0.0, ge=0, description="weight of (sum of both scores)^2, which keeps them near 0; 0.01 for instance"
    )

    def margin_of(self, record: Record) -> float:
        """The margin of a pair; raises ``BadRow`` if it is not a number."""
        if self.margin_column is None:
            return 0.0
        try:
            margin = float(record.get(self.margin_column))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            margin = float("nan")
        if not np.isfinite(margin):
            raise BadRow(f"column {self.margin_column!r} (task.margin_column) is not a number")
        return margin


@dataclass(frozen=True, eq=False)
class Reward(ResponseTask):
    """``-log s(r(chosen) - r(rejected) - margin)``, summed over pairs: ``functional.bradley_terry_loss``.

    The score is that of a classifier with one class, read at the last real token.
    """

    config: RewardConfig

    @cached_property
    def encoder(self) -> ResponseEncoder:
        """Text to tokens; the model reads prompt and response as one text, whatever its architecture."""
        return ResponseEncoder(self.tokenizer, self.config.chat_template, writes=False)

    @property
    def target_length(self) -> None:
        """Prompt and response share a row."""
        return None

    @property
    def room(self) -> int:
        """Tokens of prompt and response."""
        return self.sequence_length

    @property
    def export_keys(self) -> dict[str, Any]:
        """The only class is a number, not the logit of a probability."""
        return {"problem_type": "regression"}

    def model(self, config: TransformerConfig) -> nn.Module:
        """The backbone with one score."""
        return heads.SequenceClassifier(config, 1)

    def rows(self, data: Sequence[Record]) -> Rows:
        """One row per pair, ``input_ids [2, T]``, the preferred response first; a ``UserError`` if there is none."""
        tally = Tally(self.config.bad_rows, len(data))
        reader = PairReader(self.config.columns, self.encoder.writer is not None)

        def read(record: Record) -> Pair:
            self.config.margin_of(record)  # refuses the record early
            return reader.read(record)

        pairs = self.encode_pairs(data, read, tally)
        examples = []
        for record, pair in pairs:
            texts = [{"input_ids": [*text.prompt, *text.response]} for text in pair]
            examples.append({**stack_rows(texts, FILL), "margin": self.config.margin_of(record)})
        return self.table(examples, tally, [record for record, _ in pairs], {"margin": 0.0})

    def _scores(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> Any:
        """Scores ``[B, 2]``, zeros in padding rows, and weights, 1 for pairs and 0 for padding rows."""
        logits = apply(model, params, flat_inputs(batch), dropout_key).logits[:, 0].reshape(-1, 2)
        real = jnp.any(batch["attention_mask"] == 1, axis=(1, 2))
        return jnp.where(real[:, None], logits, 0.0), real.astype(jnp.float32)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the pairs."""
        scores, weights = self._scores(model, params, batch, dropout_key)
        chosen, rejected = scores[:, 0], scores[:, 1]
        objective, plain = (
            jnp.sum(weights * F.bradley_terry_loss(chosen, rejected, batch["margin"], centring=centring))
            for centring in (self.config.centring, 0.0)
        )
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

    def report(self, data: Sequence[Record], outputs: dict[str, np.ndarray]) -> Report:
        """Accuracy and margin of the scores, and the scores of every pair."""
        return pair_report("score", data, outputs["scores"])
