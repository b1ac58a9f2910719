"""Learning from rewards for texts that the model itself writes: PPO, GRPO, RLOO."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.families import build_model
from jaxformer.models.config import TransformerConfig
from jaxformer.models.partition import shards
from jaxformer.models.value_head import with_value
from jaxformer.tasks import records as R
from jaxformer.tasks.bad_rows import Tally
from jaxformer.tasks.base import Batch, LossSums, Rows
from jaxformer.tasks.base import apply as apply_model
from jaxformer.tasks.dialogue import choose_template
from jaxformer.tasks.preferences import causal_example, two_sided_example
from jaxformer.tasks.prompts import PromptReader, encode_prompts
from jaxformer.tasks.response_task import ResponseConfig, ResponseTask
from jaxformer.tasks.responses import Encoded
from jaxformer.tokenizers import find_special, special_id

INPUTS = ("input_ids", "attention_mask", "decoder_input_ids")
ROW = "row"  # column with the number of a prompt's record
FILL = {"input_ids": 0, "decoder_input_ids": 0, "labels": F.IGNORE, "attention_mask": 0}
KL_COEFFICIENT = "kl_coefficient"


class PolicyConfig(ResponseConfig):
    """Keys that the objectives share which write responses and learn from their rewards."""

    architectures = ("decoder", "encoder_decoder")
    unit = "responses"
    generates = True
    with_values: ClassVar[bool] = False

    reward: str = Field(
        description="what scores a response: a reward model (a run's folder, a folder or a name on the Hub), or a "
        "Python function, `file.py:name`"
    )
    max_new_tokens: int = Field(64, ge=1, description="most tokens of a response, its end included")
    temperature: float = Field(1.0, gt=0, description="of the draws; the losses are those of this distribution")
    epochs: int = Field(1, ge=1, description="how often the responses of a step are learned from")
    minibatches: int = Field(1, ge=1, description="updates an epoch, each on its share of the responses")
    clip: float = Field(0.2, gt=0, description="by how much the ratio of new and old probabilities may leave 1")
    kl_coefficient: float = Field(0.05, ge=0, description="how dear it is to leave the model that the run starts from")
    missing_eos_penalty: float = Field(0.0, ge=0, description="taken from the reward of a response without an end")
    mask_truncated: bool = Field(False, description="responses without an end are not learned from")
    chunk_tokens: int = Field(2048, ge=1, description="tokens whose logits are in memory at once, on a device")

    @property
    def updates(self) -> int:
        """Updates of the optimizer in a training step."""
        return self.epochs * self.minibatches

    @property
    def minibatch_count(self) -> int:
        """Parts of a batch that get an update each."""
        return self.minibatches

    def parts(self, record: R.Record) -> list[Any]:
        """The prompt; see ``ResponseConfig``."""
        return [PromptReader(self.columns, as_messages=False).read(record)]


class PPOConfig(PolicyConfig):
    """Learn from rewards by proximal policy optimisation, with a value of every token."""

    with_values = True

    type: Literal["ppo"] = Field("ppo", description="objective")
    epochs: int = Field(4, ge=1, description="how often the responses of a step are learned from")
    kl_target: float | None = Field(
        None, gt=0, description="nats a response that the KL is kept at, by changing kl_coefficient; null: it stays"
    )
    kl_horizon: int = Field(10_000, ge=1, description="responses after which kl_coefficient may be a fifth off")
    discount: float = Field(1.0, gt=0, le=1, description="gamma of the advantages")
    decay: float = Field(0.95, ge=0, le=1, description="lambda of the advantages")
    value_coefficient: float = Field(0.1, gt=0, description="weight of the values' loss")
    value_clip: float | None = Field(0.2, gt=0, description="by how much a value may move at once; null: any")


class GroupConfig(PolicyConfig):
    """Keys of the objectives that compare the responses to one prompt with each other."""

    group_size: int = Field(8, ge=2, description="responses a prompt")

    @property
    def responses_per_prompt(self) -> int:
        """Of one step."""
        return self.group_size


class GRPOConfig(GroupConfig):
    """Learn from rewards, each against the group of responses to its prompt; no values."""

    type: Literal["grpo"] = Field("grpo", description="objective")
    clip_above: float | None = Field(None, gt=0, description="clip where the ratio grows; default: clip")
    scale_rewards: bool = Field(True, description="divide by the group's standard deviation; false: Dr. GRPO")
    mean_over: Literal["responses", "tokens"] = Field(
        "responses", description="each response alike, or each token (DAPO)"
    )


class RLOOConfig(GroupConfig):
    """Learn from rewards, each against the others of its prompt (leave one out); no values."""

    type: Literal["rloo"] = Field("rloo", description="objective")
    group_size: int = Field(4, ge=2, description="responses a prompt")


class Response(NamedTuple):
    """What was written to a prompt.

    Attributes:
        prompt: its tokens.
        tokens: of the response, with the one that ended it.
        log_probs: of these tokens, as they were drawn.
        ended: whether it ended by itself.
    """

    prompt: list[int]
    tokens: list[int]
    log_probs: np.ndarray
    ended: bool


@dataclass(frozen=True, eq=False)
class Policy(ResponseTask):
    """``ppo_policy_loss`` and ``ppo_value_loss``, ``grpo_loss`` or ``rloo_loss`` on responses of the model's own.

    Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences"; Ouyang et al. 2022, "InstructGPT"; Shao
    et al. 2024, "DeepSeekMath"; Ahmadian et al. 2024, "Back to Basics". Dropout is off: with it, the ratio of new and
    old probabilities would not begin at 1.
    """

    config: PolicyConfig

    @cached_property
    def end_id(self) -> int:
        """The token that ends a response."""
        end = special_id(self.tokenizer, "sep") if self.two_sided else find_special(self.tokenizer, "eos")
        assert end is not None, "a ResponseEncoder has refused such a tokenizer"
        return end

    @property
    def carried(self) -> dict[str, Any] | None:
        """What goes from step to step beside the model, as it begins: a KL coefficient that adapts."""
        c = self.config
        if isinstance(c, PPOConfig) and c.kl_target is not None:
            return {KL_COEFFICIENT: np.float32(c.kl_coefficient)}
        return None

    def model(self, config: TransformerConfig) -> nn.Module:
        """The model with its language-model head, for PPO with a value beside it."""
        return with_value(config) if self.config.with_values else build_model(config)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row a prompt.

        Raises:
            UserError: if no row can be used.
        """
        c, T = self.config, self.sequence_length
        longest = T if self.two_sided else T - c.max_new_tokens
        tally = Tally(c.bad_rows, len(data))
        reader = PromptReader(c.columns, choose_template(c.chat_template, self.tokenizer) is not None)
        prompts = encode_prompts(self.encoder, data, reader, tally, longest)
        tally.report()
        examples: list[Example] = [
            {"input_ids": np.array(ids, np.int32), ROW: number} for number, (_, ids) in enumerate(prompts)
        ]
        rows = ExampleRows(examples, T, {"input_ids": 0, ROW: -1})
        rows.left_out = tally.left_out
        rows.records = [record for record, _ in prompts]
        return rows

    def shapes(self, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The largest arrays that a step learns from."""
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
        """What the model reads and is asked for, all of one length: a multiple of 64, so that few shapes compile."""
        texts = [Encoded(r.prompt, r.tokens, [self._learned(r)] * len(r.tokens)) for r in responses]
        if self.two_sided:
            start = special_id(self.tokenizer, self.start)
            examples = [two_sided_example([text], start) for text in texts]
        else:
            examples = [causal_example([text]) for text in texts]
        rows: list[dict[str, Any]] = [{name: np.asarray(array)[0] for name, array in e.items()} for e in examples]
        for row, text, response in zip(rows, texts, responses, strict=True):
            row["sampler_log_probs"] = np.zeros(len(row["labels"]), np.float32)
            first = 0 if self.two_sided else len(text.prompt) - 1
            row["sampler_log_probs"][first : first + len(text.response)] = response.log_probs
        lengths = dict.fromkeys(("labels", "decoder_input_ids", "sampler_log_probs"), self.config.max_new_tokens)
        fill = {**FILL, "sampler_log_probs": 0.0}
        table = ExampleRows(rows, self.sequence_length, fill, lengths if self.two_sided else None)
        return table.take(np.arange(len(rows)))

    def _learned(self, response: Response) -> bool:
        return response.ended or not self.config.mask_truncated

    def log_probs_and_values(self, model: nn.Module, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array | None]:
        """``[B, T]`` of the response's tokens at the temperature of the draws, 0 elsewhere, and the values before them.

        A pure function, jitted by the caller; values are None where the model has none.
        """
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        valued = hasattr(model, "hidden_head_and_values")
        method = "hidden_head_and_values" if valued else "hidden_and_head"
        hidden, head, *values = apply_model(model, params, inputs, None, method)
        if (t := self.config.temperature) != 1:
            # The bias is not multiplied by the states, so it is scaled by itself.
            hidden, head = hidden / t, replace(head, bias=None if head.bias is None else head.bias / t)
        tokens = self.config.chunk_tokens * shards("batch") * shards("length")
        log_probs = F.chunked_token_log_probs(hidden, head, batch["labels"], chunk_tokens=tokens)
        return log_probs, values[0] if values else None

    def experience(
        self, model: nn.Module, params: Any, batch: Batch, carried: Mapping[str, jax.Array] | None
    ) -> tuple[Batch, dict[str, jax.Array], Any]:
        """What the responses say of each token, before the model learns from them.

        Args:
            model: the policy.
            params: that wrote the responses.
            batch: ``batch``, with ``scores [B]`` and ``reference_log_probs [B, T]``.
            carried: from the step before.

        Returns:
            Further columns of the batch, means over the responses to be logged, and what goes to the next step.
        """
        c, mask = self.config, batch["labels"] != F.IGNORE
        old, values = self.log_probs_and_values(model, params, batch)
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
        """Sums over the tokens, or the responses, of a part of the experience."""
        c, mask = self.config, batch["labels"] != F.IGNORE
        log_probs, values = self.log_probs_and_values(model, params, batch)
        old, advantages = batch["old_log_probs"], batch["advantages"]
        match c:
            case PPOConfig():
                assert values is not None
                policy = F.ppo_policy_loss(log_probs, old, advantages, mask, clip=c.clip)
                value = F.ppo_value_loss(values, batch["old_values"], batch["returns"], mask, clip=c.value_clip)
                objective = policy.total + c.value_coefficient * value.total
                further = {"value_loss": value.total}
            case GRPOConfig():
                policy = F.grpo_loss(
                    log_probs,
                    old,
                    advantages,
                    mask,
                    clip=c.clip,
                    clip_above=c.clip_above,
                    reference_log_probs=batch["reference_log_probs"],
                    kl_coefficient=c.kl_coefficient,
                    mean_over=c.mean_over,
                )
                objective, further = policy.total, {}
            case _:
                policy = F.rloo_loss(log_probs, old, advantages, mask, clip=c.clip)
                objective, further = policy.total, {}
        metrics = {"loss": objective, "policy_loss": policy.total, **further}
        metrics |= {"clipped": policy.clipped, "moved_kl": policy.kl}
        return LossSums(objective, policy.weight, metrics)
