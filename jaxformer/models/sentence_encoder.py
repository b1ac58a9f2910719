"""A sentence encoder: the states of a text pooled into one vector, dense layers, length 1."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxformer import functional as F
from jaxformer.models.dense import Dense
from jaxformer.models.heads import WithBody, pool
from jaxformer.models.inputs import Inputs
from jaxformer.models.layers import activate
from jaxformer.models.outputs import EmbeddingOutput


class DenseLayer(NamedTuple):
    """A dense layer behind the pooling: its outputs, its activation (None: none), and whether it has a bias."""

    size: int
    activation: str | None = "tanh"
    use_bias: bool = True


class SentenceEncoder(WithBody):
    """One vector for a text (Reimers and Gurevych 2019, "Sentence-BERT", section 3); of an encoder-decoder the encoder.

    Attributes:
        config: of the model.
        pooling: ``mean``, ``first`` or ``last``, as in ``functional.pool_states``.
        dense: layers on the pooled state; their parameters are ``dense_layers_0``, ``dense_layers_1`` ...
        normalize: scale the vectors to length 1.
        prompts: names and prefixes of texts that it was trained with; the model itself does not read them.
        default_prompt: the name of the one for texts of which no other is asked.
        longest: most tokens of a text that it was trained with.
    """

    pooling: str = "mean"
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = True
    prompts: tuple[tuple[str, str], ...] = ()
    default_prompt: str | None = None
    longest: int | None = None

    def setup(self) -> None:
        """Declares the dense layers."""
        super().setup()
        self.dense_layers = [Dense(self.config, layer.size, None, layer.use_bias) for layer in self.dense]

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.dense[-1].size if self.dense else self.config.hidden_size

    def __call__(self, *args: Any, **kwargs: Any) -> EmbeddingOutput:
        """The vectors; arguments are ``Inputs``."""
        inputs = Inputs(*args, **kwargs)
        if self.config.architecture == "encoder_decoder":
            context, asked = self.body.encode_inputs(inputs)
            states = context.hidden
        else:
            states, asked = self.states(inputs)
        vectors = pool(self.config, states, inputs.attention_mask, self.pooling)
        for layer, dense in zip(self.dense, self.dense_layers, strict=True):
            vectors = dense(vectors)
            vectors = vectors if layer.activation is None else activate(self.config, layer.activation, vectors)
        vectors = F.unit(vectors) if self.normalize else vectors.astype(jnp.float32)
        return EmbeddingOutput(vectors, states, **asked)
