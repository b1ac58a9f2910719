"""The TPU kernel, run in Python by Pallas, against the reference implementation: values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from jaxformer.functional import Mask, Split, dot_product_attention
from jaxformer.functional.kernels.choose import AttentionRequest, choose_implementation
from jaxformer.functional.kernels.splash import kernel_flops, splash_attention, visible_share

B, N, K = 2, 4, 2
T = 384  # three blocks of 128


def documents(length):
    """Two rows of packed documents, the first with padding at its end."""
    eighth = np.array([[1, 1, 2, 3, 3, 3, 0, 0], [1, 2, 2, 2, 2, 2, 4, 4]], np.int32)
    return jnp.asarray(np.repeat(eighth, length // 8, axis=1))


def padding(length):
    """Padding on the left of one row, where a causal query sees nothing, and on the right of the other."""
    valid = np.ones((B, length), bool)
    valid[0, : length // 6], valid[1, -length // 4 :] = False, False
    return jnp.asarray(valid)


MASKS = {
    "none": lambda length: Mask(),
    "causal": lambda length: Mask(causal=True),
    "causal window": lambda length: Mask(causal=True, window=70),
    "window on both sides": lambda length: Mask(window=70),
    "causal padding": lambda length: Mask(causal=True, key_valid=padding(length)),
    "segments": lambda length: Mask(query_segments=documents(length), key_segments=documents(length)),
    "everything": lambda length: Mask(True, 100, padding(length), documents(length), documents(length)),
}


def draw(length, size):
    random = np.random.default_rng(0)
    shapes = ((B, length, N, size), (B, length, K, size), (B, length, K, size))
    arrays = [jnp.asarray(random.standard_normal(shape), jnp.float32) for shape in shapes]
    return arrays, jnp.asarray(random.standard_normal(shapes[0]), jnp.float32)


def compare(mask, length=T, size=64, split=None, softcap=None):
    arrays, weight = draw(length, size)

    def by_kernel(*arrays):
        return splash_attention(*arrays, mask, scale=0.125, softcap=softcap, split=split, interpret=True)

    def by_reference(*arrays):
        return dot_product_attention(*arrays, mask=mask, scale=0.125, softcap=softcap)

    def output_and_gradients(attend):
        def objective(*arrays):
            output = attend(*arrays)
            return jnp.sum(output * weight), output

        (_, output), gradients = jax.jit(jax.value_and_grad(objective, (0, 1, 2), has_aux=True))(*arrays)
        return output, *gradients

    found, expected = output_and_gradients(by_kernel), output_and_gradients(by_reference)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
    return found[0]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.default_cases("causal*", "segments")
def test_equals_the_reference(mask):
    compare(MASKS[mask](T))


def test_heads_of_128_and_a_soft_cap():
    compare(Mask(causal=True), length=256, size=128, softcap=5.0)


def test_a_query_that_sees_nothing_gets_zeros():
    output = compare(MASKS["causal padding"](T))
    assert np.all(output[0, : T // 6] == 0) and np.all(np.abs(output[0, T // 6 :]).max(axis=-1) > 0)


@pytest.mark.parametrize("mask", ["none", "causal", "everything"])
@pytest.mark.parametrize(
    "axes", [{"batch": "data", "heads": "tensor"}, {"batch": "data", "length": "sequence", "heads": "tensor"}]
)
@pytest.mark.default_cases("axes0-causal", "axes1-none")
def test_split_over_devices(mask, axes):
    """Each of 8 devices runs the kernel on its rows, its queries and its heads."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "sequence", "tensor"), axis_types=(AxisType.Auto,) * 3)
    compare(MASKS[mask](256), length=256, split=Split(mesh, **axes))


def request(mask=None, queries=256, keys=256, **rest):
    facts = {"dropout": False, "platform": "tpu", "head_size": 64, **rest}
    return AttentionRequest(mask or Mask(causal=True), queries, keys, **facts)


ROW = jnp.ones((1, 256), jnp.int32)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(platform="cpu"), "it is a kernel for a TPU, not for a cpu"),
        (request(bias=True), "it adds no bias"),
        (request(dropout=True), "it drops no attention weights"),
        (request(Mask(causal=True, key_prefix=ROW > 0)), "it has no prefix of keys"),
        (request(Mask(causal=True, query_offset=3)), "the queries start at an offset"),
        (request(Mask(query_positions=ROW, key_positions=ROW)), "positions of their own"),
        (request(Mask(causal=True, reach=jnp.int32(4))), "the window differs between the layers"),
        (request(keys=512), r"queries \(256\) and keys \(512\) differ in number"),
        (request(queries=200, keys=200), "a device has 200 queries, expected a multiple of 128"),
        (request(Mask(), keys=200), "there are 200 keys, expected a multiple of 128"),
        (request(head_size=80), "heads have size 80, expected a multiple of 64"),
    ],
)
def test_refuses_with_its_reason(asked, reason):
    with pytest.raises(ValueError, match=f"'splash' cannot serve this call: .*{reason}"):
        choose_implementation("splash", asked)
    assert choose_implementation("auto", asked) != "splash"


def test_auto_prefers_it_on_a_tpu():
    assert choose_implementation("auto", request()) == "splash"
    assert choose_implementation("auto", request(Mask(), keys=512)) == "splash"
    assert choose_implementation("auto", request(platform="gpu")) == "reference"


def test_flops_by_hand():
    """Two products of 2 * T * S * H a head forward; a third of the scores is enough work for a third of the flops."""
    shapes = [(2, 4, 256, 64), (2, 2, 512, 64), (2, 2, 512, 64)]
    assert kernel_flops("splash_mha_fwd_segmented_residuals.1", shapes, 1.0) == 2 * 2 * 2 * 4 * 256 * 512 * 64
    assert kernel_flops("splash_mha_dkv_no_residuals.3", [shape[1:] for shape in shapes], 0.5) == 4 * 4 * 256 * 512 * 64
    assert kernel_flops("other.1", shapes, 1.0) == 0
    assert visible_share(100, causal=False, window=None) == 1
    assert visible_share(100, causal=False, window=1) == 0.01
