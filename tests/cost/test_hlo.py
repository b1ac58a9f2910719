from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from jaxformer.cost.hlo import Collective, between_slices, collectives, group_size, parse_program
from jaxformer.parallel.mesh import ParallelConfig, make_mesh

MESH = make_mesh(ParallelConfig(fsdp=2, tensor=2))


def text_of(function, *shapes):
    with jax.set_mesh(MESH):
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        return jax.jit(function).lower(*arguments).compile().as_text()


SPLIT = P("data", "fsdp")


def by_hand(body):
    """A function of one array, written per device."""
    return jax.shard_map(body, mesh=MESH, in_specs=SPLIT, out_specs=SPLIT, check_vma=False)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda x: lax.psum(x, "tensor"), ("all-reduce", 4 * 6 * 4, 2)),
        (lambda x: lax.psum(x, ("data", "tensor")), ("all-reduce", 4 * 6 * 4, 4)),
        (lambda x: lax.all_gather(x, "tensor", tiled=True), ("all-gather", 2 * 4 * 6 * 4, 2)),
        (lambda x: lax.psum_scatter(x, "tensor", tiled=True), ("reduce-scatter", 4 * 6 * 4, 2)),
        (lambda x: lax.all_to_all(x, "tensor", 0, 1, tiled=True), ("all-to-all", 4 * 6 * 4, 2)),
        (lambda x: lax.ppermute(x, "tensor", [(0, 1), (1, 0)]), ("collective-permute", 4 * 6 * 4, 2)),
    ],
)
def test_each_kind_by_hand(body, expected):
    """An array [8, 12] over data and fsdp: 4 x 6 float32 on a device."""
    assert collectives(parse_program(text_of(by_hand(body), (8, 12)))) == [Collective(*expected, 1)]


def test_a_collective_in_loops_counts_as_often_as_they_turn():
    def body(x):
        def layer(x, _):
            return jnp.tanh(lax.psum(x, "tensor")), None

        def part(x, _):
            return lax.scan(layer, x, None, length=5)[0] + lax.all_gather(x, "fsdp").sum(0), None

        return lax.scan(part, x, None, length=3)[0]

    found = collectives(parse_program(text_of(by_hand(body), (8, 12))))
    assert set(found) == {Collective("all-reduce", 96, 2, 15), Collective("all-gather", 192, 2, 3)}


def test_the_partitioner_s_gradient_of_a_loop_of_layers():
    """Data parallelism: every weight's gradient is summed once over the four groups of devices that share the rows."""

    def step(weights, x):
        x = lax.with_sharding_constraint(x, P(("data", "fsdp")))
        return jax.grad(lambda w: jnp.sum(lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0] ** 2))(weights)

    found = collectives(parse_program(text_of(step, (7, 16, 16), (8, 16))))
    assert sum(one.bytes * one.times for one in found) == 7 * 16 * 16 * 4
    assert {(one.kind, one.group) for one in found} == {("all-reduce", 4)}


def test_ring_bytes():
    assert Collective("all-reduce", 100, 4, 1).sent == 2 * 75
    assert Collective("reduce-scatter", 100, 4, 1).sent == 75
    assert Collective("all-to-all", 100, 4, 1).sent == 75
    assert Collective("collective-permute", 100, 4, 1).sent == 100


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("replica_groups={}, use", 8),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", 4),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, use", 4),
        ("replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, to_apply=%add", 8),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", 4),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0},{4,5},{5,4}}", 4),
        ("source_target_pairs={{1,2},{0,1}}", 3),
    ],
)
def test_group_sizes_as_written(written, size):
    assert group_size(written, 8) == size


# As XLA:TPU writes it: the number of turns stands in the condition only, and a collective that it overlaps with
# computation is several fusions with one channel; a reduce-scatter is an all-reduce and a slice of it.
TPU = (Path(__file__).parent / "tpu_program.txt").read_text()


def test_as_a_tpu_program_is_written():
    """The counter begins at 1, as where the first turn was peeled off."""
    size = 256 * 128 * 2
    assert collectives(parse_program(TPU)) == [
        Collective("all-gather", 4 * size, 4, 11),
        Collective("collective-permute", size, 2, 11),
        Collective("reduce-scatter", size, 4, 1),
    ]
    assert parse_program(TPU).devices == 8
    assert collectives(parse_program(TPU), waited_for=True) == [Collective("reduce-scatter", size, 4, 1)]


def test_a_loop_that_ends_by_what_it_computes_counts_once():
    def body(x):
        return lax.while_loop(lambda x: x.sum() < 100, lambda x: lax.psum(x, "tensor") + 1, x)

    assert [one.times for one in collectives(parse_program(text_of(by_hand(body), (8, 12)))) if one.bytes == 96] == [1]


def test_what_slices_exchange_is_sent_to_the_runtime_of_the_host():
    """By hand: 2 x 3/4 of 4,096 bytes that four slices reduce, and 3/4 of 2,048 that they gather."""
    notes = 'is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",'
    text = f"""HloModule step, num_partitions=16

ENTRY %main (a: f32[1024], b: bf16[1024]) -> f32[1024] {{
  %a = f32[1024]{{0}} parameter(0)
  %b = bf16[1024]{{0}} parameter(1)
  %token = token[] after-all()
  %send.1 = (f32[1024]{{0}}, u32[], token[]) send(%a, %token), channel_id=1, {notes}_xla_megascale_target="{{1:4}}x{{0:3}}",_xla_megascale_transfer_type="ALL_REDUCE"}}
  %send.2 = (bf16[1024]{{0}}, u32[], token[]) send(%b, %token), channel_id=2, {notes}_xla_megascale_target="{{1:4}}x{{0:3}}",_xla_megascale_transfer_type="ALL_GATHER"}}
  ROOT %copy = f32[1024]{{0}} copy(%a)
}}
"""  # noqa: E501 - a line of a program
    assert between_slices(parse_program(text)) == 2 * 4096 * 3 / 4 + 2048 * 3 / 4
