"""The choice of how attention is computed. A kernel that cannot serve a call says why; none ignores a part of it."""

import functools
import importlib.util
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from jaxformer.functional.attention import dot_product_attention
from jaxformer.functional.kernels.blocked import QUERY_BLOCK, blocked_attention
from jaxformer.functional.kernels.fused import DTYPES, HEAD_MULTIPLE, cudnn_attention, tokamax_attention
from jaxformer.functional.kernels.fused import HEAD_SIZE as CUDNN_HEAD_SIZE
from jaxformer.functional.kernels.splash import BLOCKS, HEAD_SIZE, Split, splash_attention
from jaxformer.functional.local_attention import local_attention
from jaxformer.functional.mask import Mask

logger = logging.getLogger(__name__)


class AttentionRequest(NamedTuple):
    """The facts by which a kernel accepts or refuses a call."""

    mask: Mask
    query_length: int
    key_length: int
    dropout: bool
    platform: str
    bias: bool = False
    head_size: int = 128
    split: Split | None = None
    softcap: bool = False
    dtype: str = "float32"


def _splash_refusal(request: AttentionRequest) -> str | None:
    mask, split = request.mask, request.split
    queries, keys = request.query_length, request.key_length
    here = queries // split.parts(split.length) if split else queries
    cached = mask.query_offset is not None or mask.query_positions is not None
    limited = mask.causal or mask.window is not None
    head_size = request.head_size
    refusals = [
        (request.platform != "tpu", f"it is a kernel for a TPU, not for a {request.platform}"),
        (request.bias, "it adds no bias to the scores"),
        (request.dropout, "it drops no attention weights"),
        (mask.key_prefix is not None, "it has no prefix of keys that every query sees"),
        (cached, "the queries start at an offset or have positions of their own (a cache)"),
        (mask.reach is not None, "the window differs between the layers of one loop and is not known ahead"),
        (queries != keys and limited, f"queries ({queries}) and keys ({keys}) differ in number under a causal mask"),
        (bool(here % BLOCKS[-1]), f"a device has {here} queries, expected a multiple of {BLOCKS[-1]}, its block"),
        (bool(keys % BLOCKS[-1]), f"there are {keys} keys, expected a multiple of {BLOCKS[-1]}, its block"),
        (bool(head_size % HEAD_SIZE), f"heads have size {head_size}, expected a multiple of {HEAD_SIZE}"),
    ]
    return next((reason for applies, reason in refusals if applies), None)


def _cudnn_refusal(request: AttentionRequest) -> str | None:
    split, head_size = request.split, request.head_size
    queries, keys = request.query_length, request.key_length
    refusals = [
        (request.platform != "gpu", f"it is a kernel for a GPU, not for a {request.platform}"),
        (request.dtype not in DTYPES, f"it computes in {' or '.join(DTYPES)}, not in {request.dtype}"),
        (request.bias, "a bias that is joined with a mask gets no gradient from it"),
        (request.softcap, "it caps no scores"),
        (request.dropout, "it drops no attention weights by the keys of examples"),
        (bool(queries % 2 or keys % 2), f"there are {queries} queries and {keys} keys, expected even numbers"),
        (
            bool(head_size % HEAD_MULTIPLE or head_size > CUDNN_HEAD_SIZE),
            f"heads have size {head_size}, expected a multiple of {HEAD_MULTIPLE} up to {CUDNN_HEAD_SIZE}",
        ),
        (split is not None and split.parts(split.length) > 1, "the queries are split over devices"),
    ]
    return next((reason for applies, reason in refusals if applies), None)


def _tokamax_refusal(request: AttentionRequest) -> str | None:
    split = request.split
    refusals = [
        (
            importlib.util.find_spec("tokamax") is None,
            "tokamax is not installed: pip install 'jaxformer[tokamax]'",
        ),
        (request.dropout, "it drops no attention weights"),
        (request.bias and request.softcap, "it caps the sum of scores and bias, not the scores"),
        (request.bias and request.platform == "tpu", "its kernel for a TPU gives a bias no gradient"),
        (
            split is not None and any(split.parts(axes) > 1 for axes in (split.batch, split.length, split.heads)),
            "the arrays are split over devices, and its kernels run on one",
        ),
    ]
    return next((reason for applies, reason in refusals if applies), None)


def _blocked_refusal(request: AttentionRequest) -> str | None:
    mask, split = request.mask, request.split
    queries, keys = request.query_length, request.key_length
    refusals = [
        (not mask.causal, "the mask is not causal, so no block of scores can be left out"),
        (mask.key_prefix is not None, "every query sees a prefix of the keys, so no block of scores can be left out"),
        (mask.query_offset is not None, "the queries start at an offset (a cache), so the diagonal is not known ahead"),
        (queries != keys, f"queries ({queries}) and keys ({keys}) differ in number"),
        (request.dropout, "attention dropout draws for the whole score matrix"),
        (
            split is not None and split.parts(split.length) > 1,
            "the queries are split over devices, and blocks of them would be gathered",
        ),
    ]
    return next((reason for applies, reason in refusals if applies), None)


def _local_refusal(request: AttentionRequest) -> str | None:
    mask, split = request.mask, request.split
    queries, keys, window = request.query_length, request.key_length, request.mask.window
    offset = mask.query_offset is not None or mask.query_positions is not None
    refusals = [
        (window is None, "the mask has no window"),
        (mask.reach is not None, "the window differs between the layers of one loop and is not known ahead"),
        (mask.key_prefix is not None, "every query sees a prefix of the keys, which may be far away"),
        (offset, "the queries start at an offset or have positions of their own (a cache)"),
        (queries != keys, f"queries ({queries}) and keys ({keys}) differ in number"),
        (queries <= 2 * (window or 0), f"{queries} queries are no more than two windows of {window}"),
        (request.bias, "its bias is given by the distance, not for every query and key"),
        (request.dropout, "attention dropout draws for the whole score matrix"),
        (
            split is not None and split.parts(split.length) > 1,
            "the queries are split over devices, and blocks of them would be gathered",
        ),
    ]
    return next((reason for applies, reason in refusals if applies), None)


# In order of preference; "auto" takes the first that does not refuse, and never a library that is optional.
REFUSALS: dict[str, Callable[[AttentionRequest], str | None]] = {
    "splash": _splash_refusal,
    "cudnn": _cudnn_refusal,
    "blocked": _blocked_refusal,
    "local": _local_refusal,
    "tokamax": _tokamax_refusal,
    "reference": lambda request: None,
}


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def choose_implementation(implementation: str, request: AttentionRequest) -> str:
    """The implementation that serves ``request``: the one named, or for ``auto`` the first that does not refuse.

    Raises:
        ValueError: if the name is unknown, or the one named cannot serve; the message gives the reason.
    """
    if implementation == "auto":
        # Blocks save work where scores are computed one after the other; on an accelerator they only add launches.
        names = [name for name in REFUSALS if name != "tokamax" and (name != "blocked" or request.platform == "cpu")]
        if request.query_length <= QUERY_BLOCK:
            names = ["reference"]
        chosen = next(name for name in names if REFUSALS[name](request) is None)
        _log_once(f"attention: {chosen} ({request.query_length} queries, {request.key_length} keys)")
        return chosen
    if implementation not in REFUSALS:
        raise ValueError(f"attention: implementation is {implementation!r}, expected auto, {', '.join(REFUSALS)}")
    reason = REFUSALS[implementation](request)
    if reason is not None:
        raise ValueError(f"attention: implementation {implementation!r} cannot serve this call: {reason}; use 'auto'")
    return implementation


def kernel_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B S K H"],
    value: Float[Array, "B S K H"],
    *,
    mask: Mask,
    platform: str,
    implementation: str = "auto",
    split: Split | None = None,
    return_weights: bool = False,
    **options: Any,
) -> Float[Array, "B T N H"] | tuple[Float[Array, "B T N H"], Float[Array, "B N T S"]]:
    """``dot_product_attention`` by the implementation that suits the call and the hardware.

    ``platform`` is what the program is compiled for: ``cpu``, ``gpu`` or ``tpu``. ``implementation`` is ``auto``,
    ``splash`` (a TPU kernel), ``cudnn`` (a kernel for NVIDIA GPUs), ``blocked`` (causal, in blocks of queries),
    ``local`` (``local_attention``), ``tokamax`` (the library's choice) or ``reference`` (``dot_product_attention``).
    ``split`` says how the arrays are split over devices: where the tokens of a row are split, each device has its
    queries and gets all keys and values (Llama Team 2024, "The Llama 3 Herd of Models", section 3.3.2). With
    ``return_weights`` it is the reference in any case, which alone has the weights at hand. The other arguments are
    those of ``dot_product_attention``.

    Raises:
        ValueError: if the implementation named cannot serve the call.
    """
    (_, T, _, H), S = query.shape, key.shape[1]
    dropping = options.get("dropout_rate", 0.0) > 0 and options.get("dropout_keys") is not None
    biased = options.get("bias") is not None
    capped = options.get("softcap") is not None
    request = AttentionRequest(mask, T, S, dropping, platform, biased, H, split, capped, query.dtype.name)
    chosen = "reference" if return_weights else choose_implementation(implementation, request)
    if chosen == "splash":
        scores: dict[str, Any] = {name: options.get(name) for name in ("scale", "softcap")}
        return splash_attention(query, key, value, mask, split=split, **scores)
    if split is not None:
        query = split.place(query, split.batch, split.length, split.heads, None)
        key, value = (split.place(array, split.batch, None, split.heads, None) for array in (key, value))
    if chosen == "cudnn":
        return cudnn_attention(query, key, value, mask, scale=options.get("scale"))
    if chosen == "tokamax":
        scores = {name: options.get(name) for name in ("bias", "scale", "softcap")}
        return tokamax_attention(query, key, value, mask, **scores)
    if chosen == "blocked":
        scores = {name: options.get(name) for name in ("bias", "scale", "softcap")}
        return blocked_attention(query, key, value, mask=mask, **scores)
    if chosen == "local":
        scores = {name: options.get(name) for name in ("scale", "softcap")}
        return local_attention(query, key, value, mask=mask, **scores)
    output: Any = dot_product_attention(query, key, value, mask=mask, return_weights=return_weights, **options)
    return output
