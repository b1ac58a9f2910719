import types

import flax.linen as nn
import jax
import pytest
from jax.sharding import PartitionSpec
from pydantic import ValidationError

from jaxformer.families import build_model, model_config
from jaxformer.hub.kinds import abstract_params
from jaxformer.models import TransformerConfig
from jaxformer.parallel.mesh import (
    ParallelConfig,
    check_batch,
    check_length,
    make_mesh,
    number_of_slices,
    parameter_shardings,
)
from jaxformer.schema import UserError


@pytest.mark.parametrize(
    ("keys", "sizes"),
    [
        ({}, (8, 1, 1, 1, 1)),
        ({"fsdp": 4}, (2, 4, 1, 1, 1)),
        ({"fsdp": 2, "tensor": 2}, (2, 2, 1, 1, 2)),
        ({"sequence": 4}, (2, 1, 1, 4, 1)),
        ({"expert": 4}, (2, 1, 4, 1, 1)),
        ({"data": 8}, (8, 1, 1, 1, 1)),
        ({"strategy": "pmap"}, (8, 1, 1, 1, 1)),
    ],
)
def test_data_takes_the_rest(keys, sizes):
    assert tuple(make_mesh(ParallelConfig(**keys)).shape.values()) == sizes


@pytest.mark.parametrize("keys", [{"data": 3}, {"fsdp": 3}, {"fsdp": 16}, {"data": 4, "tensor": 4}])
def test_a_product_other_than_the_devices_is_refused(keys):
    with pytest.raises(UserError, match=r"on 8 device\(s\), expected a product of 8"):
        make_mesh(ParallelConfig(**keys))


def test_batch_that_does_not_divide_names_the_nearest_that_do():
    mesh = make_mesh(ParallelConfig())
    check_batch(16, 2, mesh)
    with pytest.raises(UserError, match=r"training.batch_size is 12, expected a multiple of 8 .* set it to 8 or 16"):
        check_batch(12, 1, mesh)
    with pytest.raises(UserError, match="set it to 16"):
        check_batch(8, 2, mesh)


def model(**keys):
    shape = {"vocab_size": 32, "hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_length": 8}
    return build_model(TransformerConfig(**model_config({**shape, **keys})))


def test_parameters_are_split_by_their_logical_axes():
    mesh = make_mesh(ParallelConfig(fsdp=2, tensor=2))
    shardings = parameter_shardings(abstract_params(model()), mesh)
    attention, feed_forward = shardings["layers"]["attention"], shardings["layers"]["feed_forward"]
    assert attention["query"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert attention["output"]["kernel"].spec == PartitionSpec(None, "tensor", None, "fsdp")
    assert feed_forward["up"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert shardings["embeddings"]["token"]["embedding"].spec == PartitionSpec("tensor", "fsdp")
    axes = nn.get_partition_spec(abstract_params(model()))
    assert all(spec for spec in jax.tree.leaves(axes, is_leaf=lambda x: isinstance(x, PartitionSpec)))


@pytest.mark.parametrize(
    ("axes", "keys", "message"),
    [
        (
            {"tensor": 4},
            {"num_heads": 6, "head_size": 2, "num_kv_heads": 3},
            r"parallel.tensor is 4 and does not divide 3, the dimension 'kv_heads' of layers/attention/key/bias "
            r"\(2, 3, 2\); choose a divisor of 3 or set model.num_kv_heads to 4",
        ),
        ({"tensor": 8}, {"vocab_size": 33, "num_heads": 8}, "does not divide 33, the dimension 'vocab' of .* to 40"),
        (
            {"tensor": 8},
            {"intermediate_size": 20, "num_heads": 8},
            "'mlp' of .* set model.intermediate_size to 16 or 24",
        ),
        ({"fsdp": 8}, {"hidden_size": 12, "num_heads": 3}, "'embed' of .* set model.hidden_size to 8 or 16"),
    ],
)
def test_an_axis_that_does_not_divide_names_the_dimension_and_sizes_that_work(axes, keys, message):
    with pytest.raises(UserError, match=message):
        parameter_shardings(abstract_params(model(**keys)), make_mesh(ParallelConfig(**axes)))


def test_a_length_that_does_not_divide_names_the_nearest_that_do():
    mesh = make_mesh(ParallelConfig(sequence=8))
    check_length(64, mesh)
    with pytest.raises(
        UserError, match=r"parallel.sequence is 8 and does not divide the sequence length 100; .* 96 or 104"
    ):
        check_length(100, mesh)


def test_pmap_is_refused_with_other_axes():
    message = "strategy is pmap and fsdp is 2, tensor is 4, expected 1: under pmap every device holds all parameters"
    with pytest.raises(ValidationError, match=message):
        ParallelConfig(strategy="pmap", fsdp=2, tensor=4)


def test_other_axes_than_data_stay_within_a_slice():
    slices = [types.SimpleNamespace(slice_index=number // 8) for number in range(16)]
    assert number_of_slices(slices) == 2 and number_of_slices(jax.devices()) == 1
    message = "parallel.data is 1 on 2 slices, expected a multiple of 2: .*the others may take the 8 chips of a slice"
    with pytest.raises(UserError, match=message):
        make_mesh(ParallelConfig(fsdp=16), slices)
