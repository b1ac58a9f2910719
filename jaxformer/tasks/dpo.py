"""Direct preference optimisation: a policy learned from preference pairs, without a reward model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field, model_validator

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.families import build_model
from jaxformer.models.config import TransformerConfig
from jaxformer.models.partition import shards
from jaxformer.tasks import records as R
from jaxformer.tasks.bad_rows import Tally
from jaxformer.tasks.base import Batch, LossSums, Report, Rows
from jaxformer.tasks.base import apply as apply_model
from jaxformer.tasks.dialogue import choose_template
from jaxformer.tasks.preferences import (
    PairReader,
    causal_example,
    encode_pairs,
    flat_inputs,
    pair_report,
    two_sided_example,
)
from jaxformer.tasks.response_task import ResponseTask
from jaxformer.tasks.responses import Encoded
from jaxformer.tasks.reward import PreferenceConfig
from jaxformer.tokenizers import special_id

Loss = Literal["sigmoid", "ipo", "hinge", "cdpo", "robust", "orpo", "simpo", "kto"]
INPUTS = ("input_ids", "attention_mask", "decoder_input_ids")
REFERENCE = "reference_log_probs"
NO_REFERENCE = ("orpo", "simpo")
# Losses of mean log-probabilities a token; the others are of sums over the response.
OF_MEANS = ("ipo", "orpo", "simpo")
NOISY = ("cdpo", "robust")


class DPOConfig(PreferenceConfig):
    """Prefer what people preferred, near to where the model began."""

    architectures = ("decoder", "encoder_decoder")

    type: Literal["dpo"] = Field("dpo", description="objective")
    loss: Loss = Field(
        "sigmoid",
        description="sigmoid: DPO; ipo; hinge: SLiC; cdpo, robust: some pairs are the wrong way round; orpo, simpo: "
        "without a reference; kto: each response judged alone",
    )
    beta: float | None = Field(
        None, gt=0, description="how dear it is to leave the reference; default 0.1, simpo 2; orpo: weight of its term"
    )
    label_smoothing: float | None = Field(
        None, gt=0, lt=0.5, description="cdpo, robust: share of pairs that are the wrong way round; default 0.1"
    )
    margin: float = Field(1.0, ge=0, description="simpo: by how much the preferred response must be better")
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of preferred responses")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of the others")
    target_length: int | None = Field(
        None, ge=2, description="encoder_decoder: most tokens of a response, its end included; default: sequence_length"
    )
    chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits are in memory at once, on a device")

    @property
    def needs_whole_batch(self) -> bool:
        """KTO compares with a mean over the batch."""
        return self.loss == "kto"

    @property
    def longest_target(self) -> int:
        """Most tokens of a response."""
        return self.target_length or 0

    @model_validator(mode="after")
    def _smoothing_goes_with_noise(self) -> "DPOConfig":
        if self.label_smoothing is not None and self.loss not in NOISY:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} with loss {self.loss}, expected loss cdpo or robust; leave "
                "it out"
            )
        return self

    @property
    def strength(self) -> float:
        """``beta``, resolved."""
        return self.beta if self.beta is not None else 2.0 if self.loss == "simpo" else 0.1

    @property
    def noise(self) -> float:
        """``label_smoothing``, resolved."""
        return self.label_smoothing if self.label_smoothing is not None else 0.1


@dataclass(frozen=True, eq=False)
class DPO(ResponseTask):
    """A loss of ``functional.preference`` on the log-probabilities of the two responses of a pair, summed over pairs.

    Rafailov et al. 2023. Those of the reference, the model that the run starts from, are computed once, ahead of
    training, and are a column of the data from then on: one model is in memory.
    """

    config: DPOConfig

    @property
    def reference_column(self) -> str | None:
        """The column that ``reference`` fills; None where the loss has no reference."""
        return None if self.config.loss in NO_REFERENCE else REFERENCE

    def model(self, config: TransformerConfig) -> nn.Module:
        """The model with its language-model head."""
        return build_model(config)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row a pair; for ``kto`` with a third text, the prompt with the preferred response to the next prompt.

        Raises:
            UserError: if no row can be used.
        """
        c, T = self.config, self.sequence_length
        target = (c.target_length or T) if self.two_sided else None
        tally = Tally(c.bad_rows, len(data))
        reader = PairReader(c.columns, choose_template(c.chat_template, self.tokenizer) is not None)
        pairs = encode_pairs(self.encoder, data, reader.read, tally, T if self.two_sided else T + 1, target)
        tally.report(f" to fit {target or T} tokens")
        texts = [list(pair) for _, pair in pairs]
        if c.loss == "kto":
            texts = [[*pair, self._mismatched(pair[0], texts[n - len(texts) + 1][0])] for n, pair in enumerate(texts)]
        examples = [self._example(row) for row in texts]
        fill = {"input_ids": 0, "decoder_input_ids": 0, "labels": F.IGNORE, REFERENCE: 0.0}
        lengths = dict.fromkeys(("decoder_input_ids", "labels"), target) if target else None
        rows = ExampleRows(examples, T, fill, lengths, stacked=[REFERENCE])
        rows.left_out = tally.left_out
        rows.records = [record for record, _ in pairs]
        return rows

    def _mismatched(self, mine: Encoded, other: Encoded) -> Encoded:
        room = len(other.response) if self.two_sided else self.sequence_length + 1 - len(mine.prompt)
        return Encoded(mine.prompt, other.response[:room], other.learned[:room])

    def _example(self, texts: list[Encoded]) -> Example:
        if self.two_sided:
            example = two_sided_example(texts, special_id(self.tokenizer, self.start))
        else:
            example = causal_example(texts)
        column = self.reference_column
        return example if column is None else {**example, column: np.zeros(len(texts), np.float32)}

    def features(self, batch: Batch, generators: list[np.random.Generator], rows: Rows) -> Batch:
        """The rows as they are: ``input_ids [B, 2, T]``, the preferred response first."""
        return batch

    def _log_probs(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
        """``[B, n]``, of the responses: sums, or means a token where the loss is of means."""
        B, n = batch["input_ids"].shape[:2]
        hidden, head = apply_model(model, params, flat_inputs(batch, INPUTS), dropout_key, "hidden_and_head")
        labels = batch["labels"].reshape(B * n, -1)
        tokens = self.config.chunk_tokens * shards("batch") * shards("length")
        each = F.chunked_token_log_probs(hidden, head, labels, chunk_tokens=tokens)
        return F.sequence_log_probs(each, labels, mean=self.config.loss in OF_MEANS).reshape(B, n)

    def reference(self, model: nn.Module, params: Any, batch: Batch) -> jax.Array:
        """``[B, n]``, what the reference says of the responses, for ``reference_column``; jitted by the caller."""
        return self._log_probs(model, params, batch, None)

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``rewards [B, 2]``: beta times the log-ratios, or the mean log-probabilities, of the two responses."""
        return {"rewards": self.config.strength * self._compared(model, params, batch, None)[:, :2]}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """How often the preferred response has the higher reward, and the rewards of every pair."""
        return pair_report("reward", data, outputs["rewards"])

    def _compared(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
        """``[B, n]``, less what the reference says where there is one."""
        log_probs = self._log_probs(model, params, batch, dropout_key)
        return log_probs if self.reference_column is None else log_probs - batch[REFERENCE]

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the pairs."""
        c, compared = self.config, self._compared(model, params, batch, dropout_key)
        weights = jnp.any(batch["labels"] != F.IGNORE, axis=(1, 2)).astype(jnp.float32)
        losses = self._losses(compared, weights)
        rewards = c.strength * jax.lax.stop_gradient(compared[:, :2])
        metrics = {
            "loss": jnp.sum(weights * losses),
            "pair_accuracy": jnp.sum(weights * (rewards[:, 0] > rewards[:, 1])),
            "reward_margin": jnp.sum(weights * (rewards[:, 0] - rewards[:, 1])),
            "chosen_reward": jnp.sum(weights * rewards[:, 0]),
            "rejected_reward": jnp.sum(weights * rewards[:, 1]),
        }
        return LossSums(metrics["loss"], jnp.sum(weights), metrics)

    def _losses(self, compared: jax.Array, weights: jax.Array) -> jax.Array:
        """Of each pair."""
        c, beta = self.config, self.config.strength
        chosen, rejected = compared[:, 0], compared[:, 1]
        match c.loss:
            case "sigmoid":
                return F.dpo_loss(chosen, rejected, beta=beta)
            case "cdpo":
                return F.dpo_loss(chosen, rejected, beta=beta, label_smoothing=c.noise)
            case "robust":
                return F.robust_dpo_loss(chosen, rejected, beta=beta, label_smoothing=c.noise)
            case "hinge":
                return F.hinge_dpo_loss(chosen, rejected, beta=beta)
            case "ipo":
                return F.ipo_loss(chosen, rejected, beta=beta)
            case "orpo":
                return beta * F.odds_ratio_loss(chosen, rejected) - chosen
            case "simpo":
                return F.simpo_loss(chosen, rejected, beta=beta, margin=c.margin)
        point = F.kto_reference_point(compared[:, 2], weights)
        options = {"desirable_weight": c.desirable_weight, "undesirable_weight": c.undesirable_weight}
        sides = [
            F.kto_loss(side, jnp.full(side.shape, good), point, beta=beta, **options)
            for side, good in ((chosen, True), (rejected, False))
        ]
        return (sides[0] + sides[1]) / 2
