"""Where every parameter of full-size models lies, and that none is ever whole on one device."""

import json
from functools import partial

import jax
import numpy as np
import optax
import pytest

from jaxformer.families import build_model
from jaxformer.hub.kinds import abstract_params
from jaxformer.parallel.mesh import ParallelConfig, make_mesh
from jaxformer.training.state import abstract_state, init_state, new_state
from tests.golden import shardings
from tests.tasks.tiny import config_of

GOLDEN = json.loads(shardings.GOLDEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", shardings.CONFIGS)
def test_every_parameter_of_a_full_size_model(name):
    assert shardings.shardings(name) == GOLDEN[name]


def test_the_large_ones_are_split_over_both_axes():
    for name, parameters in GOLDEN.items():
        for path, (shape, axes) in parameters.items():
            # A table of positions, of types or of choices has nothing that tensor parallelism splits.
            kernel = len(shape) > 1 and path.endswith(("kernel", "token/embedding", "shared/embedding"))
            if kernel and np.prod(shape) > 1e6:
                assert "fsdp" in axes, (name, path)
                assert "tensor" in axes or "position" in path or "mlm_head" in path, (name, path)


def initialisation(devices):
    """The state on some devices, and the program that made it."""
    mesh = make_mesh(ParallelConfig(fsdp=devices), jax.devices()[:devices])
    model, adam = build_model(config_of("llama", hidden_size=64, num_layers=4, num_heads=4)), optax.adam(1e-3)
    abstract = abstract_state(abstract_params(model), adam, False, mesh)
    layout = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    make = jax.jit(partial(new_state, model, adam, False), out_shardings=layout)
    return init_state(model, adam, 0, abstract), make.lower(np.uint32(0)).compile()


@pytest.mark.slow
def test_no_array_is_ever_whole_on_one_device():
    state, program = initialisation(8)
    arrays = jax.tree.leaves((state.params, state.opt_state))
    for array in arrays:
        if array.nbytes > 10_000:
            assert array.addressable_shards[0].data.nbytes * 8 == array.nbytes
    parts = sum(array.addressable_shards[0].data.nbytes for array in arrays)
    assert parts * 8 == pytest.approx(sum(array.nbytes for array in arrays), rel=0.01)
    # Nor is one while its values are drawn: nothing is gathered, and the room for what passes shrinks as well.
    assert "all-gather" not in program.as_text()
    alone = initialisation(1)[1].memory_analysis().temp_size_in_bytes
    assert program.memory_analysis().temp_size_in_bytes < alone / 7
