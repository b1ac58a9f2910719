from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxformer.cost.hlo import parse_program
from jaxformer.cost.hlo_cost import hbm_bytes, matmul_flops, operations


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile()


def test_products_in_loops_by_hand():
    """5 x 3 products [8, 16] @ [16, 16], forward, to the weights and to the input."""

    def loss(weights, x):
        def part(x, _):
            return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0], None

        return jnp.sum(lax.scan(part, x, None, length=3)[0])

    program = compiled(jax.grad(loss, argnums=(0, 1)), (5, 16, 16), (8, 16))
    assert matmul_flops(parse_program(program.as_text())) == 3 * 15 * 2 * 8 * 16 * 16
    # What this module corrects: XLA counts a loop's body once.
    assert program.cost_analysis()["flops"] < 15 * 2 * 8 * 16 * 16


def test_operations_of_a_core_add_up_to_the_whole():
    """Products and bytes, each instruction with its turns; a fusion has the products inside it."""

    def step(weights, x):
        return lax.scan(lambda x, w: (jnp.tanh(x @ w) + 1, None), x, weights)[0]

    program = parse_program(compiled(step, (5, 16, 16), (8, 16)).as_text())
    found = operations(program)
    assert sum(one.times * one.flops for one in found) == matmul_flops(program) == 5 * 2 * 8 * 16 * 16
    assert sum(one.times * one.bytes for one in found) == hbm_bytes(program)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: jnp.tanh(x @ y) + 1,
        lambda x, y: (x * 2 + y).sum(0),
        lambda x, y: lax.dynamic_update_slice(x, y[:2], (jnp.int32(x[0, 0]), 0)),
        lambda x, y: (lax.dynamic_slice(x, (jnp.int32(y[0, 0]), 0), (4, 32)) ** 2, y.T),
        lambda x, y: jax.nn.softmax(x @ y, axis=-1) @ y,
    ],
)
def test_bytes_without_loops_are_those_of_xla(function):
    program = compiled(function, (32, 32), (32, 32))
    assert hbm_bytes(parse_program(program.as_text())) == pytest.approx(
        program.cost_analysis()["bytes accessed"], rel=0.02
    )


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1), "padding": "VALID"},
        {"window_strides": (2, 1), "padding": ((1, 2), (3, 0))},
        {"window_strides": (3, 2), "padding": ((2, 2), (5, 1)), "lhs_dilation": (4, 3)},
        {"window_strides": (1, 2), "padding": "SAME", "rhs_dilation": (2, 1)},
        {"window_strides": (1, 1), "padding": ((-1, 0), (0, 0)), "feature_group_count": 2},
        {"window_strides": (1, 1), "padding": "VALID", "batch_group_count": 2},
    ],
)
def test_convolutions_as_xla_counts_them(options):
    """XLA:TPU writes every product as one, with dilation and padding for the dimensions of a batch."""
    channels = 4 // options.get("feature_group_count", 1)
    shapes = ((2, 4, 9, 8), (6, channels, 3, 4))
    program = compiled(lambda x, y: lax.conv_general_dilated(x, y, **options), *shapes)
    assert "convolution(" in program.as_text()
    assert matmul_flops(parse_program(program.as_text())) == program.cost_analysis()["flops"]


def test_a_tpu_program_by_hand():
    """In each of 11 turns a quarter of 1024 x 128 bfloat16 is gathered to the whole, and the quarter is sent on.

    Once before, the sum of the quarters over 4 devices is scattered.
    """
    program = parse_program((Path(__file__).parent / "tpu_program.txt").read_text())
    quarter = 256 * 128 * 2
    counter = 2 * 4  # copied once
    assert hbm_bytes(program) == 11 * ((quarter + 4 * quarter) + 2 * quarter) + quarter * 5 // 4 + counter
