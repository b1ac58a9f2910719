"""Input and output axes of kernels, by their path in the tree of parameters."""

from typing import NamedTuple


class KernelAxes(NamedTuple):
    """Number of input axes, which come first, and of output axes of one layer's kernel."""

    inputs: int
    outputs: int


def kernel_axes(path: str) -> KernelAxes:
    """The axes of a kernel: ``[D, N, H]`` to the heads, ``[N, H, D]`` from the heads, ``[inputs, outputs]`` else.

    >>> kernel_axes("decoder/layers/attention/query/kernel"), kernel_axes("layers/attention/output/kernel")
    (KernelAxes(inputs=1, outputs=2), KernelAxes(inputs=2, outputs=1))
    """
    owner, layer = ["", "", *path.split("/")][-3:-1]
    if layer in ("query", "key", "value"):
        return KernelAxes(1, 2)
    if layer == "output" and owner.endswith("attention"):
        return KernelAxes(2, 1)
    return KernelAxes(1, 1)


def has_experts(path: str) -> bool:
    """True for the kernels of a layer's experts, whose first axis counts the experts, before the input axes."""
    return path.endswith(("experts/gate/kernel", "experts/up/kernel", "experts/down/kernel"))


def layer_ndim(path: str) -> int:
    """Number of axes of one layer's parameter in a block; where layers are stacked it has one more, which is first."""
    axes = kernel_axes(path)
    return {"kernel": axes.inputs + axes.outputs + has_experts(path), "taps": 2, "A_log": 2, "bias": axes.outputs}.get(
        path.rpartition("/")[2], 1
    )
