"""The GPU kernel: its calls computed by XLA against the reference, lowered for CUDA, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo as fused  # its questions to a GPU are answered here

from jaxformer.functional import Mask, dot_product_attention
from jaxformer.functional.kernels.choose import AttentionRequest, choose_implementation, kernel_attention
from jaxformer.functional.kernels.fused import cudnn_attention, tokamax_attention
from tests.functional.kernels.test_splash import MASKS, draw, padding

T = 96
ROW = jnp.ones((1, 256), jnp.int32)


def mask_named(name):
    return Mask(causal=True, key_prefix=padding(T)) if name == "prefix" else MASKS[name](T)


def assert_same(attend, reference, arrays, weight):
    """Outputs and gradients of two functions of the same arrays."""

    def output_and_gradients(attend):
        def objective(*arrays):
            output = attend(*arrays)
            return jnp.sum(output * weight), output

        places = tuple(range(len(arrays)))
        (_, output), gradients = jax.jit(jax.value_and_grad(objective, places, has_aux=True))(*arrays)
        return output, *gradients

    for one, other in zip(output_and_gradients(attend), output_and_gradients(reference), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("mask", [*MASKS, "prefix"])
def test_the_call_computes_what_the_reference_does(mask):
    """Values and gradients, in float32, with XLA in the kernel's place."""
    made = mask_named(mask)
    assert_same(
        lambda *a: cudnn_attention(*a, made, scale=0.125, backend="xla"),
        lambda *a: dot_product_attention(*a, mask=made, scale=0.125),
        *draw(T, 64),
    )


@pytest.mark.parity
@pytest.mark.parametrize("backend", ["xla", "xla_chunked"])
@pytest.mark.parametrize("mask", [*MASKS, "prefix"])
def test_tokamax_computes_what_the_reference_does(mask, backend):
    """With a bias, whose gradient counts; and with capped scores."""
    made = mask_named(mask)
    arrays, weight = draw(T, 64)
    bias = jax.random.normal(jax.random.key(7), (1, arrays[0].shape[2], T, T))
    assert_same(
        lambda q, k, v, b: tokamax_attention(q, k, v, made, bias=b, scale=0.125, backend=backend),
        lambda q, k, v, b: dot_product_attention(q, k, v, mask=made, bias=b, scale=0.125),
        (*arrays, bias),
        weight,
    )
    capped = {"scale": 0.125, "softcap": 0.5}
    assert_same(
        lambda *a: tokamax_attention(*a, made, backend=backend, **capped),
        lambda *a: dot_product_attention(*a, mask=made, **capped),
        arrays,
        weight,
    )


def test_tokamax_is_an_option_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tokamax is not installed: pip install 'jaxformer\[tokamax\]'"):
        choose_implementation("tokamax", request(platform="cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert choose_implementation("tokamax", request(platform="cpu", bias=True)) == "tokamax"
    with pytest.raises(ValueError, match="it caps the sum of scores and bias"):
        choose_implementation("tokamax", request(bias=True, softcap=True))
    with pytest.raises(ValueError, match="gives a bias no gradient"):
        choose_implementation("tokamax", request(platform="tpu", bias=True))
    assert choose_implementation("auto", request(platform="gpu", bias=True, head_size=256)) == "reference"


@pytest.mark.parametrize(("mask", "kind"), [("causal", "CAUSAL"), ("causal window", "CAUSAL"), ("segments", "NO_MASK")])
def test_lowers_for_cuda_forward_and_backward(mask, kind, monkeypatch):
    """The program for a GPU calls the kernel; a mask of documents reaches it as a bias and no score is left out."""
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(fused, "is_cuda_compute_capability_equal", lambda capability: False)
    arrays = [array.astype(jnp.bfloat16) for array in draw(T, 64)[0]]

    def total(query, key, value):
        attended = kernel_attention(query, key, value, mask=MASKS[mask](T), platform="gpu")
        return jnp.sum(attended.astype(jnp.float32))

    text = jax.jit(jax.grad(total, (0, 1, 2))).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
    name = "fmhaScaleBiasSoftmax" if kind == "NO_MASK" else "fmhaSoftmax"
    assert f"@__cudnn${name}(" in text and f"@__cudnn${name}Backward(" in text
    assert f"mask_type\\22: \\22{kind}\\22" in text
    assert ("sliding_window_length\\22: 70" in text) == (mask == "causal window")


def request(mask=None, queries=256, keys=256, **rest):
    facts = {"dropout": False, "platform": "gpu", "head_size": 64, "dtype": "bfloat16", **rest}
    return AttentionRequest(mask or Mask(causal=True), queries, keys, **facts)


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (request(platform="tpu"), "it is a kernel for a GPU, not for a tpu"),
        (request(dtype="float32"), "it computes in bfloat16 or float16, not in float32"),
        (request(bias=True), "a bias that is joined with a mask gets no gradient"),
        (request(softcap=True), "it caps no scores"),
        (request(dropout=True), "it drops no attention weights"),
        (request(queries=255), "there are 255 queries and 256 keys, expected even numbers"),
        (request(head_size=80 + 4), "heads have size 84, expected a multiple of 8 up to 128"),
        (request(head_size=256), "heads have size 256, expected a multiple of 8 up to 128"),
    ],
)
def test_refuses_with_its_reason(asked, reason):
    with pytest.raises(ValueError, match=f"'cudnn' cannot serve this call: .*{reason}"):
        choose_implementation("cudnn", asked)
    assert choose_implementation("auto", asked) != "cudnn"


def test_auto_prefers_it_on_a_gpu():
    assert choose_implementation("auto", request()) == "cudnn"
    assert choose_implementation("auto", request(Mask(key_prefix=ROW > 0), keys=512)) == "cudnn"
    assert choose_implementation("auto", request(queries=32, keys=32)) == "reference"
