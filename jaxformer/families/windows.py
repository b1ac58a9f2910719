"""The order of blocks with and without a window in ``config.json``, which lists the kind of every block."""

from collections.abc import Sequence
from typing import Any

from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError

FULL, SLIDING = "full_attention", "sliding_attention"


def read_layer_types(kinds: Sequence[str]) -> dict[str, Any]:
    """Returns the keys that say which blocks attend without the window.

    Raises:
        UserError: if they are neither the first ones nor every n-th one.
    """
    full = [i for i, kind in enumerate(kinds) if kind == FULL]
    first = full[0] if full else 0
    every = next((i for i in full[1:]), first + max(len(kinds), 2)) - first
    orders: list[dict[str, Any]] = [
        {"window_from": len(full), "global_every": None, "global_first": 0},
        {"window_from": 0, "global_every": every if full else None, "global_first": first},
    ]
    for keys in orders:
        if list(kinds) == layer_types(TransformerConfig(window=1, num_layers=max(len(kinds), 1), **keys))[: len(kinds)]:
            return keys
    raise UserError(f"config.json has layer_types: {list(kinds)}, expected {FULL} first, or at every n-th place")


def layer_types(config: TransformerConfig) -> list[str]:
    """Undoes ``read_layer_types``."""
    return [SLIDING if config.has_window(layer) else FULL for layer in range(config.num_layers)]
