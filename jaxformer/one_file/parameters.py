"""The table of a model's parameters: names, shapes in letters, and the deviation of their initial values."""

from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from jaxformer.hub.kinds import abstract_params
from jaxformer.models.config import TransformerConfig
from jaxformer.models.kernel_layout import kernel_axes


class Parameter(NamedTuple):
    """A row of the table: ``shape`` is a tuple and ``deviation`` a number, both as text of Python."""

    name: str
    shape: str
    deviation: str


# Words of names in the order of reading; others come last, in the order of the alphabet.
ORDER = (
    *("shared", "encoder", "decoder", "embeddings", "token", "position", "token_type", "dense", "norm", "projection"),
    *("relative_bias", "layers", "attention_norm", "attention", "query", "key", "value", "query_norm", "key_norm"),
    *("output", "cross_attention_norm", "cross_attention", "feed_forward_norm", "feed_forward", "gate", "up", "down"),
    *("final_norm", "pooler", "mlm_head", "rtd_head", "kernel", "scale"),
)
LETTERS = {"vocab": "V", "heads": "N", "head": "H", "mlp": "F", "layers": "L", "classes": "C"}


def has_two_depths(c: TransformerConfig) -> bool:
    """True if encoder and decoder have different numbers of layers."""
    return c.architecture == "encoder_decoder" and c.decoder_layers != c.num_layers


def parameter_table(model: Any) -> list[Parameter]:
    """The parameters of a model in the order of reading; their sizes are letters where they have one."""
    c, table = model.config, []
    for name, boxed in sorted(flatten_dict(dict(abstract_params(model)), sep="/").items(), key=_place):
        axes = zip(boxed.names, boxed.value.shape, strict=True)
        letters = [_letter(c, name, axis, size) for axis, size in axes]
        shape = f"({', '.join(letters)}{',' if len(letters) == 1 else ''})"
        table.append(Parameter(name, shape, _deviation(c, name, letters)))
    return table


def _place(item: tuple[str, Any]) -> list[tuple[int, str]]:
    words = item[0].split("/")
    return [(ORDER.index(word), "") if word in ORDER else (len(ORDER), word) for word in words]


def _letter(c: TransformerConfig, name: str, axis: str | None, size: int) -> str:
    if axis == "layers":
        return "M" if name.startswith("decoder/") and has_two_depths(c) else "L"
    if axis == "kv_heads":
        return "N" if c.kv_heads == c.num_heads else "K"
    if axis == "position":
        return "P + OFFSET" if c.first_position else "P"
    if axis == "table":
        return "BUCKETS" if "relative_bias" in name else "TYPES"
    if axis in LETTERS:
        return LETTERS[axis]
    return "D" if size == c.hidden_size else "E" if size == c.embedding_size else str(size)


def _deviation(c: TransformerConfig, name: str, letters: list[str]) -> str:
    """As ``models.layers`` initialises them."""
    leaf = name.rpartition("/")[2]
    if leaf in ("scale", "bias"):
        return "0.0"
    if c.initializer == "normal":
        writes = name.endswith(("attention/output/kernel", "feed_forward/down/kernel"))
        return "RESIDUAL" if writes and c.norm_place == "pre" else "STD"
    if leaf == "embedding":
        return "D**-0.5" if "relative_bias" in name or c.scale_embedding else "1.0"
    inputs = letters[-sum(kernel_axes(name)) :][: kernel_axes(name).inputs]
    if name.endswith("attention/query/kernel") and not c.scale_scores:
        inputs.append("H")
    return f"{inputs[0]}**-0.5" if len(inputs) == 1 else f"({' * '.join(inputs)}) ** -0.5"
