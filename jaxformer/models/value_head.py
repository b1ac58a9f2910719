"""Language models with a value head, the value function of a policy."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.dense import Dense
from jaxformer.models.inputs import Inputs
from jaxformer.models.transformer import Decoder, EncoderDecoder

VALUE_HEAD = "value_head"


class _WithValue(nn.Module):
    """A language model with a linear layer from its last hidden states to values."""

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        self.value_head = Dense(self.config, 1, None)

    def _states(self, inputs: Inputs) -> jax.Array:
        raise NotImplementedError

    def hidden_head_and_values(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, F.HeadWeights, jax.Array]:
        """``hidden_and_head``, and the values ``[B, T]`` float32 of the text up to each token."""
        states = self._states(Inputs(*args, **kwargs))
        values = self.value_head(states)[..., 0].astype(jnp.float32)
        return self.for_head(states), self.head_weights(), values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The language model's outputs, without values."""
        if self.is_initializing():
            self.value_head(jnp.zeros((1, self.config.hidden_size)))
        return super().__call__(*args, **kwargs)


class DecoderWithValue(_WithValue, Decoder):
    """GPT-style decoder with values."""

    def _states(self, inputs: Inputs) -> jax.Array:
        return self.hidden_states(inputs).hidden


class EncoderDecoderWithValue(_WithValue, EncoderDecoder):
    """T5- or BART-style encoder-decoder with values of the decoder's tokens."""

    def _states(self, inputs: Inputs) -> jax.Array:
        return self.both(inputs).hidden


def with_value(config: TransformerConfig) -> nn.Module:
    """The language model of this configuration with a value head."""
    return EncoderDecoderWithValue(config) if config.architecture == "encoder_decoder" else DecoderWithValue(config)


def without_value(model: nn.Module, params: Any) -> tuple[nn.Module, Any]:
    """The model without its value head, and its parameters; other models are returned unchanged."""
    if not isinstance(model, _WithValue):
        return model, params
    plain = EncoderDecoder if isinstance(model, EncoderDecoder) else Decoder
    return plain(model.config), {name: value for name, value in params.items() if name != VALUE_HEAD}
