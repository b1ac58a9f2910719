"""How a function of arrays is compiled: with what is around it, or apart."""

from collections.abc import Callable
from typing import Any


def together(function: Callable[..., Any], *inputs: Any) -> Any:
    """``function(*inputs)``, for the compiler to join with what is around; ``exact_elementwise`` keeps it apart."""
    return function(*inputs)
