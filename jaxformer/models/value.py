"""Language models with a value beside every token: what a policy's value function is read from."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig
from jaxformer.models.heads import Dense
from jaxformer.models.transformer import Decoder, EncoderDecoder, for_head

VALUE_HEAD = "value_head"


class _WithValue(nn.Module):
    """A language model whose last hidden states a linear layer turns into values; all else is the model's."""

    def setup(self) -> None:
        """Declares the parts."""
        super().setup()
        self.value_head = Dense(self.config, 1, None)

    def _states(self, *args: Any, **kwargs: Any) -> jax.Array:
        raise NotImplementedError

    def hidden_head_and_values(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, F.HeadWeights, jax.Array]:
        """``hidden_and_head``, and the values ``[B, T]`` float32 of what has been read up to each token."""
        states = self._states(*args, **kwargs)
        values = self.value_head(states)[..., 0].astype(jnp.float32)
        return for_head(self.config, states), self.head_weights(), values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The language model's outputs, without values."""
        if self.is_initializing():
            self.value_head(jnp.zeros((1, self.config.hidden_size)))
        return super().__call__(*args, **kwargs)


class DecoderWithValue(_WithValue, Decoder):
    """GPT-style decoder with values."""

    def _states(self, *args: Any, **kwargs: Any) -> jax.Array:
        return self.hidden_states(*args, **kwargs)[0]


class EncoderDecoderWithValue(_WithValue, EncoderDecoder):
    """T5- or BART-style encoder-decoder with values of what its decoder writes."""

    def _states(self, *args: Any, **kwargs: Any) -> jax.Array:
        return self.both(*args, **kwargs)[1]


def with_value(config: TransformerConfig) -> nn.Module:
    """The language model of this configuration, with values."""
    return EncoderDecoderWithValue(config) if config.architecture == "encoder_decoder" else DecoderWithValue(config)


def without_value(model: nn.Module, params: Any) -> tuple[nn.Module, Any]:
    """The language model alone, and its parameters; others are returned as they are."""
    if not isinstance(model, _WithValue):
        return model, params
    plain = EncoderDecoder if isinstance(model, EncoderDecoder) else Decoder
    return plain(model.config), {name: value for name, value in params.items() if name != VALUE_HEAD}
