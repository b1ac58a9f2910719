"""Pictures of what a model does, for people: each function returns a ``matplotlib.figure.Figure``.

>>> import numpy as np
>>> from jaxformer import plot
>>> figure = plot.attention(np.tri(3)[None] / [[1], [2], [3]], ["a", "b", "c"])
>>> [axes.get_title() for axes in figure.axes][0]
'head 0'

A figure needs no screen, changes nothing global, and shows itself as the last value of a notebook's cell; write it with
``figure.savefig("attention.png")``.
"""

from jaxformer.plot.charts import embeddings, learning_curves, next_token_probabilities
from jaxformer.plot.heat_maps import attention, attention_lines, confusion_matrix, mask, positions

__all__ = [
    "attention",
    "attention_lines",
    "confusion_matrix",
    "embeddings",
    "learning_curves",
    "mask",
    "next_token_probabilities",
    "positions",
]
