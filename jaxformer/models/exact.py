"""The machine under exact numerics: a short trial that its products keep their promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ValidationError

from jaxformer import functional as F
from jaxformer.functional.exact.attention import exact_attention
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

_ROWS, _TILE = 448, 64


def with_numerics(config: TransformerConfig, numerics: str) -> TransformerConfig:
    """The configuration with other numerics.

    Raises:
        UserError: if the numerics are unknown or do not suit the configuration.
    """
    try:
        return TransformerConfig.model_validate({**config.model_dump(), "numerics": numerics})
    except ValidationError as error:
        raise UserError(error.errors()[0]["msg"].removeprefix("Value error, ")) from None


def kernel_shapes(config: TransformerConfig) -> set[tuple[int, int]]:
    """``(inputs, outputs)`` of the products of a model."""
    c, D = config, config.hidden_size
    queries, keys = c.num_heads * c.head_width, c.kv_heads * c.head_width
    shapes = {(D, queries), (D, keys), (queries, D), (D, c.inner_size), (c.inner_size, D)}
    return shapes | ({(c.token_size, c.vocab_size)} if c.vocab_size is not None else set())


@functools.cache
def _depends_on_rows(inputs: int, outputs: int) -> bool:
    """True if rows of a product differ with the number of rows, or with their place."""
    draw = np.random.default_rng(0).standard_normal(8191, np.float32)
    kernel = F.ExactKernel(jnp.asarray(np.resize(draw, (inputs, outputs))))
    x = jnp.asarray(np.resize(draw[::-1], (_ROWS, inputs)))
    product = jax.jit(lambda x: kernel.product(x, 1, None))
    whole = np.asarray(product(x))
    parts = [(0, 3), (0, _TILE), (5, 5 + _TILE), (_ROWS - _TILE, _ROWS)]
    return any(whole[a:b].tobytes() != np.asarray(product(x[a:b])).tobytes() for a, b in parts)


@functools.cache
def _depends_on_queries(width: int) -> bool:
    """True if the output of a query differs with the other queries and with the room in a cache."""
    draw, T, room = np.random.default_rng(1).standard_normal(8191, np.float32), 150, 90
    query, key, value = (jnp.asarray(np.resize(np.roll(draw, n), (1, T, 1, width))) for n in range(3))
    attend = jax.jit(exact_attention)
    key, value = (x.swapaxes(1, 2) for x in (key, value))
    whole = np.asarray(attend(query, key, value, mask=F.Mask(causal=True)))
    key, value = (jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0))) for x in (key, value))
    for at in (0, 63, T - 1):
        seen = F.Mask(causal=True, query_offset=jnp.full((1, 1, 1), at), key_valid=jnp.arange(T + room)[None] <= at)
        alone = np.asarray(attend(query[:, at : at + 1], key, value, mask=seen))
        if alone.tobytes() != whole[:, at : at + 1].tobytes():
            return True
    return False


def check_exact(config: TransformerConfig, platform: str | None = None) -> None:
    """Refuses exact numerics where they would not be; does nothing with fast ones.

    Args:
        config: of the model.
        platform: what programs are compiled for; default: JAX's.

    Raises:
        UserError: not a CPU, or one on which a row of a product, or a query of attention, depends on the others.
    """
    if not config.exact:
        return
    platform = platform or jax.default_backend()
    if platform != "cpu":
        raise UserError(
            f"numerics is exact on a {platform}, expected a cpu, for which it is built; set numerics to fast"
        )
    for inputs, outputs in sorted(kernel_shapes(config)):
        if _depends_on_rows(inputs, outputs):
            raise UserError(
                f"numerics is exact, but on this machine the rows of a product of {inputs} x {outputs} depend on their "
                "number; set numerics to fast, or use another kind of CPU"
            )
    if _depends_on_queries(config.head_width):
        raise UserError(
            f"numerics is exact, but on this machine attention with heads of width {config.head_width} depends on the "
            "number of queries; set numerics to fast, or use another kind of CPU"
        )
