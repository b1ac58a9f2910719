"""Batches of source and target texts for an encoder-decoder, several pairs in a row."""

import numpy as np

from jaxformer import functional as F
from jaxformer.data.piece_rows import pack
from jaxformer.tasks.base import Batch

Pair = tuple[np.ndarray, np.ndarray]


def packed_pairs(rows: list[list[Pair]], source_length: int, target_length: int, start_id: int) -> Batch:
    """Rows of (source, target) as the features of an encoder-decoder.

    The decoder reads each target one place to the right, behind ``start_id`` (T5: the padding token), and is asked for
    the target itself.

    Returns:
        ``input_ids``, ``segment_ids`` ``[B, source_length]``; ``decoder_input_ids``, ``decoder_segment_ids`` and
        ``labels`` ``[B, target_length]``, -100 at padding. Segments number the pairs of a row from 1; 0 is padding.
    """
    packed = []
    for pairs in rows:
        sources, source_segments = pack([source for source, _ in pairs], source_length)
        targets, target_segments = pack([target for _, target in pairs], target_length)
        shifted = [np.concatenate([[start_id], target[:-1]]) for _, target in pairs]
        decoder_inputs, _ = pack(shifted, target_length)
        labels = np.where(target_segments > 0, targets, F.IGNORE).astype(np.int32)
        packed.append((sources, source_segments, decoder_inputs, target_segments, labels))
    names = ("input_ids", "segment_ids", "decoder_input_ids", "decoder_segment_ids", "labels")
    return {name: np.stack(arrays) for name, arrays in zip(names, zip(*packed, strict=True), strict=True)}
