"""Reinforcement learning from rewards of the model's own responses: PPO, GRPO, RLOO."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.models.config import TransformerConfig
from jaxformer.models.value_head import with_value
from jaxformer.schema import LocalPath
from jaxformer.tasks.base import Batch, LossSums, Rows, global_chunk, log_probs_of
from jaxformer.tasks.records import Record, Tally, apply
from jaxformer.tasks.responses import (
    FILL,
    Encoded,
    ResponseConfig,
    ResponseTask,
    causal_row,
    encode_prompts,
    two_sided_row,
)
from jaxformer.tasks.row_readers import PromptReader

ROW = "row"  # column with the record number of a prompt
KL_COEFFICIENT = "kl_coefficient"


class PolicyConfig(ResponseConfig):
    """Settings of the objectives that generate responses and learn from their rewards."""

    architectures = ("decoder", "encoder_decoder")
    unit = "responses"
    generates = True

    reward: LocalPath = Field(
        description="reward of a response: a reward model (output_dir of a run, a folder or a name on the Hub), or a "
        "Python function, `file.py:name`"
    )
    max_new_tokens: int = Field(64, ge=1, description="longest response, end token included")
    temperature: float = Field(1.0, gt=0, description="sampling temperature; the losses use the same distribution")
    epochs: int = Field(1, ge=1, description="passes over the responses of a step")
    minibatches: int = Field(1, ge=1, description="optimizer updates per pass")
    clip: float = Field(0.2, gt=0, description="clipping range of the probability ratio")
    kl_coefficient: float = Field(0.05, ge=0, description="weight of the KL penalty against the reference model")
    missing_eos_penalty: float = Field(0.0, ge=0, description="penalty on the reward of a response without an end")
    mask_truncated: bool = Field(False, description="ignore responses without an end token in the loss")
    chunk_tokens: int = Field(2048, ge=1, description="tokens per device whose logits are in memory at once")

    @property
    def minibatch_count(self) -> int:
        """Parts of a batch with an optimizer update each."""
        return self.minibatches

    @property
    def updates(self) -> int:
        """Optimizer updates in a training step."""
        return self.epochs * self.minibatches

    def longest_target(self, sequence_length: int) -> int:
        """Longest response of an encoder-decoder."""
        return self.max_new_tokens

    def check_run(self, run: Any) -> None:
        """Refuses batches that do not divide, pmap, and responses that do not fit."""
        size, parts = run.training.batch_size, run.training.accumulate * self.minibatches
        if size % self.responses_per_prompt or size % parts:
            raise ValueError(
                f"training.batch_size is {size} responses, expected a multiple of {self.responses_per_prompt} "
                f"responses a prompt and of {parts} (task.minibatches times training.accumulate)"
            )
        if run.parallel.strategy == "pmap":
            raise ValueError("parallel.strategy is pmap with an objective that generates, expected jit")
        if run.model.architecture == "decoder" and self.max_new_tokens >= run.sequence_length:
            raise ValueError(
                f"task.max_new_tokens is {self.max_new_tokens}, expected less than training.sequence_length "
                f"{run.sequence_length}, which holds the prompt, too"
            )

    def parts(self, record: Record) -> list[Any]:
        """The prompt, and what the chat template reads beside it."""
        reader = PromptReader(self.columns)
        return [reader.read(record), reader.variables(record)]


class PPOConfig(PolicyConfig):
    """Proximal policy optimisation, with a value function."""

    type: Literal["ppo"] = Field("ppo", description="objective")
    epochs: int = Field(4, ge=1, description="passes over the responses of a step")
    kl_target: float | None = Field(
        None, gt=0, description="target KL in nats per response, by adapting kl_coefficient; null: constant coefficient"
    )
    kl_horizon: int = Field(10_000, ge=1, description="time scale of adapting kl_coefficient, responses")
    discount: float = Field(1.0, gt=0, le=1, description="gamma of generalised advantage estimation")
    decay: float = Field(0.95, ge=0, le=1, description="lambda of generalised advantage estimation")
    value_coefficient: float = Field(0.1, gt=0, description="weight of the value loss")
    value_clip: float | None = Field(0.2, gt=0, description="clipping range of the values; null: no clipping")


class GroupConfig(PolicyConfig):
    """Settings of the objectives that compare the responses to the same prompt."""

    group_size: int = Field(8, ge=2, description="responses per prompt")

    @property
    def responses_per_prompt(self) -> int:
        """Group size."""
        return self.group_size


class GRPOConfig(GroupConfig):
    """Group relative policy optimisation: rewards relative to the responses to the same prompt."""

    type: Literal["grpo"] = Field("grpo", description="objective")
    clip_above: float | None = Field(None, gt=0, description="upper clipping range of the ratio; default: clip")
    scale_rewards: bool = Field(True, description="divide by the group's standard deviation; false: Dr. GRPO")
    mean_over: Literal["responses", "tokens"] = Field(
        "responses", description="equal weight of responses, or of tokens (DAPO)"
    )


class RLOOConfig(GroupConfig):
    """REINFORCE leave-one-out: rewards relative to the other responses to the same prompt."""

    type: Literal["rloo"] = Field("rloo", description="objective")
    group_size: int = Field(4, ge=2, description="responses per prompt")


class Response(NamedTuple):
    """A response, end token included if it ``ended``.

    It comes with its prompt and the log-probabilities of its tokens when they were sampled.
    """

    prompt: list[int]
    tokens: list[int]
    log_probs: np.ndarray
    ended: bool


@dataclass(frozen=True, eq=False)
class Policy(ResponseTask):
    """``ppo_policy_loss`` and ``ppo_value_loss``, ``grpo_loss`` or ``rloo_loss`` on the model's own responses.

    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences"; Ouyang et al. 2022, "InstructGPT"; Shao
    et al. 2024, "DeepSeekMath"; Ahmadian et al. 2024, "Back to Basics". Dropout is off, so that the first ratio of new
    and old probabilities is 1.
    """

    config: PolicyConfig

    @property
    def end_id(self) -> int:
        """The token that ends a response."""
        return self.encoder.end_id

    @property
    def target_length(self) -> int | None:
        """Longest response of an encoder-decoder, tokens."""
        return self.config.max_new_tokens if self.two_sided else None

    @property
    def carried(self) -> dict[str, Any] | None:
        """Initial value of an adaptive KL coefficient."""
        c = self.config
        if isinstance(c, PPOConfig) and c.kl_target is not None:
            return {KL_COEFFICIENT: np.float32(c.kl_coefficient)}
        return None

    def model(self, config: TransformerConfig) -> nn.Module:
        """The language model, for PPO with a value head."""
        return with_value(config) if isinstance(self.config, PPOConfig) else super().model(config)

    def rows(self, data: Sequence[Record]) -> Rows:
        """One row per prompt; raises ``UserError`` if no row can be used."""
        c, tally = self.config, Tally(self.config.bad_rows, len(data))
        longest = self.sequence_length - (0 if self.two_sided else c.max_new_tokens)
        reader = PromptReader(c.columns, self.encoder.writer is not None)
        prompts = encode_prompts(self.encoder, data, reader, tally, longest)
        examples: list[Example] = [
            {"input_ids": np.array(ids, np.int32), ROW: number} for number, (_, ids) in enumerate(prompts)
        ]
        return self.table(examples, tally, [record for record, _ in prompts], {ROW: -1})

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The largest arrays of a training batch."""
        T = self.sequence_length
        target = self.config.max_new_tokens if self.two_sided else T
        names = {"input_ids": T, "attention_mask": T, "labels": target}
        if self.two_sided:
            names["decoder_input_ids"] = target
        found = {name: jax.ShapeDtypeStruct((rows, size), np.dtype(np.int32)) for name, size in names.items()}
        for name in ("sampler_log_probs", "reference_log_probs"):
            found[name] = jax.ShapeDtypeStruct((rows, target), np.dtype(np.float32))
        return found | {"scores": jax.ShapeDtypeStruct((rows,), np.dtype(np.float32))}

    def batch(self, responses: Sequence[Response]) -> Batch:
        """Inputs and labels of the responses, padded to a multiple of 64 so that few shapes are compiled."""
        rows: list[dict[str, Any]] = []
        for response in responses:
            if self.two_sided:
                row, first = two_sided_row(response.prompt, response.tokens, self.start_id), 0
            else:
                text = Encoded(response.prompt, response.tokens, [True] * len(response.tokens))
                row, first = causal_row(text), len(response.prompt) - 1
            if self.config.mask_truncated and not response.ended:
                row["labels"] = np.full_like(row["labels"], F.IGNORE)
            sampled = np.zeros(np.size(row["labels"]), np.float32)
            sampled[first : first + len(response.tokens)] = response.log_probs
            rows.append({**row, "sampler_log_probs": sampled})
        names = ("labels", "decoder_input_ids", "sampler_log_probs") if self.two_sided else ()
        lengths = dict.fromkeys(names, self.config.max_new_tokens)
        table = ExampleRows(rows, self.sequence_length, {**FILL, "sampler_log_probs": 0.0}, lengths)
        return table.take(np.arange(len(rows)))

    def log_probs_and_values(self, model: nn.Module, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """Log-probabilities ``[B, T]`` of the response's tokens at the sampling temperature, 0 elsewhere, and values.

        Jitted by the caller; values ``[B, T]``, before each token, are PPO's, else None.
        """
        method = "hidden_head_and_values" if isinstance(self.config, PPOConfig) else "hidden_and_head"
        hidden, head, *values = apply(model, params, batch, None, method)
        if (t := self.config.temperature) != 1:
            # The bias is not multiplied by the hidden states, so it is scaled separately.
            hidden, head = hidden / t, replace(head, bias=None if head.bias is None else head.bias / t)
        chunk = global_chunk(self.config.chunk_tokens)
        log_probs = F.chunked_token_log_probs(
            hidden, head, batch["labels"], chunk_tokens=chunk, of_logits=log_probs_of(model)
        )
        return log_probs, values[0] if values else None

    def experience(
        self,
        model: nn.Module,
        params: Any,
        batch: Batch,
        carried: Mapping[str, jax.Array] | None,
        found: tuple[jax.Array, jax.Array | None] | None = None,
    ) -> tuple[Batch, dict[str, jax.Array], Any]:
        """Old log-probabilities, advantages and returns, before the first update.

        ``params`` generated the responses of ``batch``, the result of ``batch`` with ``scores [B]`` and
        ``reference_log_probs [B, T]``; ``carried`` comes from the previous step; ``found`` is what
        ``log_probs_and_values`` returns, where that is known. Returns further columns of the batch, means over the
        responses to be logged, and ``carried`` for the next step.
        """
        c, mask = self.config, batch["labels"] != F.IGNORE
        old, values = found or self.log_probs_and_values(model, params, batch)
        kl = F.kl_estimates(old, batch["reference_log_probs"])
        coefficient = jnp.float32(c.kl_coefficient) if carried is None else carried[KL_COEFFICIENT]
        scores, kl_sums = batch["scores"], jnp.sum(jnp.where(mask, kl, 0.0), axis=1)
        columns = {"old_log_probs": old}
        stats = {"kl": jnp.mean(kl_sums), KL_COEFFICIENT: coefficient}
        if c.temperature == 1:
            stats["sampler_gap"] = jnp.max(jnp.where(mask, jnp.abs(old - batch["sampler_log_probs"]), 0.0))
        match c:
            case PPOConfig():
                assert values is not None
                rewards = F.token_rewards(scores, kl, mask, coefficient)
                advantages, returns = F.generalized_advantages(
                    rewards, values, mask, discount=c.discount, decay=c.decay
                )
                columns |= {"old_values": values, "returns": returns, "advantages": F.masked_whiten(advantages, mask)}
                stats["value"] = F.masked_mean(values, mask)
                if carried is not None:
                    assert c.kl_target is not None
                    adapted = F.adapted_kl_coefficient(
                        coefficient, stats["kl"], target=c.kl_target, horizon=c.kl_horizon, steps=len(scores)
                    )
                    carried = {KL_COEFFICIENT: adapted.astype(jnp.float32)}
            case GRPOConfig():
                columns["advantages"] = F.grpo_advantages(scores, c.group_size, scale=c.scale_rewards)
            case RLOOConfig():
                columns["advantages"] = F.rloo_advantages(scores - coefficient * kl_sums, c.group_size)
        return columns, stats, carried

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the tokens or the responses of a minibatch."""
        c, mask = self.config, batch["labels"] != F.IGNORE
        log_probs, values = self.log_probs_and_values(model, params, batch)
        old, advantages = batch["old_log_probs"], batch["advantages"]
        match c:
            case PPOConfig():
                policy = F.ppo_policy_loss(log_probs, old, advantages, mask, clip=c.clip)
            case GRPOConfig():
                options = c.model_dump(include={"clip", "clip_above", "kl_coefficient", "mean_over"})
                reference = batch["reference_log_probs"]
                policy = F.grpo_loss(log_probs, old, advantages, mask, reference_log_probs=reference, **options)
            case _:
                policy = F.rloo_loss(log_probs, old, advantages, mask, clip=c.clip)
        metrics = {"policy_loss": policy.total, "clipped": policy.clipped, "moved_kl": policy.kl}
        objective = policy.total
        if isinstance(c, PPOConfig):
            assert values is not None
            value = F.ppo_value_loss(values, batch["old_values"], batch["returns"], mask, clip=c.value_clip)
            objective, metrics["value_loss"] = policy.total + c.value_coefficient * value.total, value.total
        return LossSums(objective, policy.weight, {"loss": objective, **metrics})
