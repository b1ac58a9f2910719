"""Pre-training heads of encoders: BERT's masked language model and ELECTRA's discriminator."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.dense import Dense, MLMHead
from jaxformer.models.heads import Pooler, WithBody
from jaxformer.models.inputs import Inputs
from jaxformer.models.layers import Embedding, activate, output_layer, untied_head
from jaxformer.models.outputs import HeadOutput, MaskedLMOutput
from jaxformer.models.stack import Stack


def at_positions(states: jax.Array, positions: jax.Array | None) -> jax.Array:
    """The states ``[B, M, D]`` at the positions ``[B, M]``; all states if these are None."""
    return states if positions is None else jnp.take_along_axis(states, positions[..., None], axis=1)


class MaskedLM(WithBody):
    """Encoder with a masked-language-model head (Devlin et al. 2019, section 3.1).

    Attributes:
        config: of the model.
        sentence_pairs: whether a second head classifies pairs of texts (next-sentence or sentence-order prediction).
    """

    sentence_pairs: bool = False

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        self.mlm_head = MLMHead(self.config)
        if not self.config.tie_embeddings:
            self.lm_head = untied_head(self.config, self.config.token_size)
        if self.sentence_pairs:
            self.pooler = Pooler(self.config)
            self.pair_classifier = Dense(self.config, 2, None)

    def hidden_and_head(
        self, *args: Any, masked_positions: jax.Array | None = None, **kwargs: Any
    ) -> tuple[jax.Array, F.HeadWeights]:
        """Hidden states and output layer, as ``functional.chunked_cross_entropy`` takes them.

        Args:
            *args: as in ``__call__``.
            masked_positions: ``[B, M]``, the tokens that are predicted; the head is computed for these only. Default:
                all.
            **kwargs: as in ``__call__``.
        """
        return self._transformed(self.states(Inputs(*args, **kwargs))[0], masked_positions)

    def hidden_head_and_pairs(
        self, *args: Any, masked_positions: jax.Array | None = None, **kwargs: Any
    ) -> tuple[jax.Array, F.HeadWeights, jax.Array]:
        """``hidden_and_head`` and ``pair_logits``."""
        inputs = Inputs(*args, **kwargs)
        states, _ = self.states(inputs)
        return *self._transformed(states, masked_positions), self._pairs(states, inputs)

    def _transformed(self, states: jax.Array, positions: jax.Array | None = None) -> tuple[jax.Array, F.HeadWeights]:
        c, (hidden, bias) = self.config, self.mlm_head(at_positions(states, positions))
        kernel = self.body.embeddings.token() if c.tie_embeddings else self.lm_head()["kernel"]
        return hidden, output_layer(c, kernel, bias)

    def _pairs(self, states: jax.Array, inputs: Inputs) -> jax.Array:
        return self.pair_classifier(self.pooler(states, inputs.attention_mask)).astype(jnp.float32)

    def __call__(self, *args: Any, **kwargs: Any) -> MaskedLMOutput:
        """Logits of the token at every place; arguments are ``Inputs``."""
        inputs = Inputs(*args, **kwargs)
        states, layers = self.states(inputs)
        hidden, head = self._transformed(states)
        pairs = self._pairs(states, inputs) if self.sentence_pairs else None
        return MaskedLMOutput(F.head_logits(hidden, head), pairs, states, **layers)


class DiscriminatorHead(nn.Module):
    """Dense layer with the configuration's activation and one score per token (Clark et al. 2020, section 2)."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, hidden: jax.Array) -> jax.Array:
        """``[B, T, D]`` to ``[B, T]``, float32."""
        c = self.config
        hidden = activate(c, c.activation, Dense(c, c.hidden_size, None, name="dense")(hidden))
        return Dense(c, 1, None, name="output")(hidden)[..., 0].astype(jnp.float32)


class Discriminator(WithBody):
    """ELECTRA's discriminator, which finds replaced tokens, and the small generator that replaces them.

    Both share the token embedding (Clark et al. 2020, section 3.2). Disentangled, the table is trained by the generator
    alone, and the discriminator reads it plus a table of its own: the two objectives then do not pull one table in two
    directions (He et al. 2023, "DeBERTaV3", section 3.2, equation 6).

    Attributes:
        config: of the discriminator.
        generator_config: of the generator; its embedding has the width of the discriminator.
        disentangled: whether the discriminator's gradient stops before the shared table.
    """

    generator_config: TransformerConfig | None = None
    disentangled: bool = False

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        c = self.config
        self.rtd_head = DiscriminatorHead(c)
        if self.generator_config is not None:
            self.generator = Stack(self.generator_config, causal=False, own_tokens=False)
            self.generator_head = MLMHead(self.generator_config)
        if self.disentangled:
            # Zeros: at first both tables are one.
            self.token_difference = Embedding(c.vocabulary, c.token_size, ("vocab", "embed"), 0.0)

    def generator_hidden_and_head(
        self, *args: Any, masked_positions: jax.Array | None = None, **kwargs: Any
    ) -> tuple[jax.Array, F.HeadWeights]:
        """The generator's states and output layer, as ``MaskedLM.hidden_and_head``."""
        assert self.generator_config is not None
        table = self.body.embeddings.token()
        hidden = self.generator.hidden_states(Inputs(*args, **kwargs), table=table).hidden
        hidden, bias = self.generator_head(at_positions(hidden, masked_positions))
        return hidden, output_layer(self.generator_config, table, bias)

    def __call__(self, *args: Any, **kwargs: Any) -> HeadOutput:
        """Logits ``[B, T]``: above 0 where a token is probably replaced; arguments are ``Inputs``."""
        inputs, table = Inputs(*args, **kwargs), None
        if self.disentangled:
            table = jax.lax.stop_gradient(self.body.embeddings.token()) + self.token_difference()
        states, _, layers = self.body.hidden_states(inputs, table=table)
        if self.is_initializing() and self.generator_config is not None:
            self.generator_hidden_and_head(jnp.zeros(inputs.shape, int))
        return HeadOutput(self.rtd_head(states), states, **layers)


TOKEN, DIFFERENCE = "embeddings/token/embedding", "token_difference/embedding"


def with_one_table(flat: dict[str, Any]) -> dict[str, Any]:
    """The parameters by name with the discriminator's token table as one: the shared one and the difference, added."""
    if DIFFERENCE not in flat:
        return flat
    kept = {name: array for name, array in flat.items() if name != DIFFERENCE}
    return kept | {TOKEN: flat[TOKEN] + flat[DIFFERENCE]}
