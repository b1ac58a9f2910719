"""Direct preference optimisation: learn a policy from preference pairs, without a reward model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field, model_validator

from jaxformer import functional as F
from jaxformer.data.example_rows import Example
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, apply, global_chunk, log_probs_of
from jaxformer.tasks.preferences import PreferenceConfig, flat_inputs, pair_report
from jaxformer.tasks.records import Record, Tally, stack_rows
from jaxformer.tasks.responses import FILL, Encoded, ResponseTask, causal_row, two_sided_row
from jaxformer.tasks.row_readers import PairReader

Loss = Literal["sigmoid", "ipo", "hinge", "cdpo", "robust", "orpo", "simpo", "kto"]
REFERENCE = "reference_log_probs"
NO_REFERENCE = ("orpo", "simpo")
# Losses of the mean log-probability per token; the others use the sum over the response.
MEANS = ("ipo", "orpo", "simpo")
NOISY = ("cdpo", "robust")


class DPOConfig(PreferenceConfig):
    """Learn preferences, close to the reference model."""

    architectures = ("decoder", "encoder_decoder")

    type: Literal["dpo"] = Field("dpo", description="objective")
    loss: Loss = Field(
        "sigmoid",
        description="sigmoid: DPO; ipo; hinge: SLiC; cdpo, robust: for noisy pairs; orpo, simpo: without a reference "
        "model; kto: each response by itself",
    )
    beta: float | None = Field(
        None,
        gt=0,
        description="strength of the constraint to the reference model; default 0.1; simpo: scale of the rewards, "
        "default 2; orpo: weight of the odds ratio",
    )
    label_smoothing: float | None = Field(
        None, gt=0, lt=0.5, description="cdpo, robust: share of swapped pairs; default 0.1"
    )
    margin: float = Field(1.0, ge=0, description="simpo: target reward margin")
    desirable_weight: float = Field(1.0, gt=0, description="kto: weight of preferred responses")
    undesirable_weight: float = Field(1.0, gt=0, description="kto: weight of the other responses")
    target_length: int | None = Field(
        None, ge=2, description="encoder_decoder: longest response, end token included; default: sequence_length"
    )
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")

    @model_validator(mode="after")
    def _smoothing_needs_a_noise_model(self) -> "DPOConfig":
        if self.label_smoothing is not None and self.loss not in NOISY:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing} with loss {self.loss}, expected loss cdpo or robust; leave "
                "it out"
            )
        return self

    def longest_target(self, sequence_length: int) -> int:
        """Longest response of an encoder-decoder."""
        return self.target_length or sequence_length

    def check_run(self, run: Any) -> None:
        """Refuses to divide the batch of KTO, whose loss has a mean over it."""
        if self.loss == "kto" and (run.training.accumulate > 1 or run.parallel.strategy == "pmap"):
            raise ValueError(
                "task.loss kto compares with a mean over the whole batch, expected training.accumulate 1 and "
                "parallel.strategy jit"
            )

    @property
    def strength(self) -> float:
        """``beta`` or its default."""
        return self.beta if self.beta is not None else 2.0 if self.loss == "simpo" else 0.1

    @property
    def noise(self) -> float:
        """``label_smoothing`` or its default."""
        return self.label_smoothing if self.label_smoothing is not None else 0.1


@dataclass(frozen=True, eq=False)
class DPO(ResponseTask):
    """A loss of ``functional.preference`` on the log-probabilities of the two responses of a pair, summed over pairs.

    Rafailov et al. 2023. The reference model is the base model. Its log-probabilities are computed once before
    training and become a column of the data, so that only one model is in memory.
    """

    config: DPOConfig

    @property
    def reference_column(self) -> str | None:
        """None where the loss has no reference model."""
        return None if self.config.loss in NO_REFERENCE else REFERENCE

    def rows(self, data: Sequence[Record]) -> Rows:
        """One row per pair, ``input_ids [2, T]``, the preferred response first; a ``UserError`` if there is none.

        For ``kto`` a third text is the prompt with the preferred response to the next prompt.
        """
        tally = Tally(self.config.bad_rows, len(data))
        reader = PairReader(self.config.columns, self.encoder.writer is not None)
        pairs = self.encode_pairs(data, reader.read, tally)
        texts = [list(pair) for _, pair in pairs]
        if self.config.loss == "kto":
            texts = [[*pair, self._mismatched(pair[0], texts[n - len(texts) + 1][0])] for n, pair in enumerate(texts)]
        examples = [self._example(row) for row in texts]
        return self.table(examples, tally, [record for record, _ in pairs], {REFERENCE: 0.0}, stacked=[REFERENCE])

    def _mismatched(self, mine: Encoded, other: Encoded) -> Encoded:
        room = len(other.response) if self.two_sided else self.room - len(mine.prompt)
        return Encoded(mine.prompt, other.response[:room], other.learned[:room])

    def _example(self, texts: list[Encoded]) -> Example:
        rows = [two_sided_row(t.prompt, t.response, self.start_id) if self.two_sided else causal_row(t) for t in texts]
        example = stack_rows(rows, FILL)
        column = self.reference_column
        return example if column is None else {**example, column: np.zeros(len(texts), np.float32)}

    def _log_probs(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
        """``[B, n]`` of the responses: sums, or means per token where the loss uses means."""
        B, n = batch["input_ids"].shape[:2]
        hidden, head = apply(model, params, flat_inputs(batch), dropout_key, "hidden_and_head")
        labels = batch["labels"].reshape(B * n, -1)
        each = F.chunked_token_log_probs(
            hidden, head, labels, chunk_tokens=global_chunk(self.config.chunk_tokens), of_logits=log_probs_of(model)
        )
        return F.sequence_log_probs(each, labels, mean=self.config.loss in MEANS).reshape(B, n)

    def reference(self, model: nn.Module, params: Any, batch: Batch) -> jax.Array:
        """Log-probabilities ``[B, n]`` of the responses; jitted by the caller."""
        return self._log_probs(model, params, batch, None)

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``rewards [B, 2]``: beta times the log-ratios, or the mean log-probabilities, of the responses."""
        return {"rewards": self.config.strength * self._compared(model, params, batch, None)[:, :2]}

    def report(self, data: Sequence[Record], outputs: dict[str, np.ndarray]) -> Report:
        """Accuracy and margin of the rewards, and the rewards of every pair."""
        return pair_report("reward", data, outputs["rewards"])

    def _compared(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
        """``[B, n]`` log-ratios, or log-probabilities without a reference model."""
        log_probs = self._log_probs(model, params, batch, dropout_key)
        return log_probs if self.reference_column is None else log_probs - batch[REFERENCE]

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the pairs."""
        c, compared = self.config, self._compared(model, params, batch, dropout_key)
        weights = jnp.any(batch["labels"] != F.IGNORE, axis=(1, 2)).astype(jnp.float32)
        losses = self._losses(compared, weights)
        rewards = c.strength * jax.lax.stop_gradient(compared[:, :2])
        chosen, rejected = rewards[:, 0], rewards[:, 1]
        values = {"loss": losses, "pair_accuracy": chosen > rejected, "reward_margin": chosen - rejected}
        values |= {"chosen_reward": chosen, "rejected_reward": rejected}
        metrics = {name: jnp.sum(weights * value) for name, value in values.items()}
        return LossSums(metrics["loss"], jnp.sum(weights), metrics)

    def _losses(self, compared: jax.Array, weights: jax.Array) -> jax.Array:
        """The loss of each pair."""
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
        options = c.model_dump(include={"desirable_weight", "undesirable_weight"})
        good, bad = jnp.ones(len(chosen), bool), jnp.zeros(len(chosen), bool)
        losses = [F.kto_loss(x, y, point, beta=beta, **options) for x, y in ((chosen, good), (rejected, bad))]
        return (losses[0] + losses[1]) / 2
