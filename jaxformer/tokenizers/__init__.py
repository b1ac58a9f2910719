"""Text to token ids and back: the tokenizers of `transformers`, and what training asks of them as functions.

tokenizer = train_tokenizer(TokenizerConfig(type="bpe", vocab_size=4096), texts)  # a PreTrainedTokenizerFast
ids = encode(tokenizer, "a text")
"""

from jaxformer.tokenizers.config import TokenizerConfig
from jaxformer.tokenizers.encoding import (
    decode,
    encode,
    encode_batch,
    encode_marked,
    encode_with_offsets,
    shorten,
    splits_special_tokens,
    whole_characters,
)
from jaxformer.tokenizers.frame import Frame, Framed, frame_of, give_frame
from jaxformer.tokenizers.opening import (
    FILE_NAME,
    PreTrainedTokenizer,
    load_tokenizer,
    open_tokenizer,
    save_tokenizer,
    wrap_backend,
)
from jaxformer.tokenizers.training import train_tokenizer
from jaxformer.tokenizers.vocabulary import (
    Role,
    add_special_tokens,
    difference,
    find_special,
    fingerprint,
    named_special_tokens,
    sentence_ends,
    sentinel_ids,
    special_id,
    special_ids,
    special_tokens,
    token_id,
    vocabulary_size,
    word_starts,
)

__all__ = [
    "FILE_NAME",
    "Frame",
    "Framed",
    "PreTrainedTokenizer",
    "Role",
    "TokenizerConfig",
    "add_special_tokens",
    "decode",
    "difference",
    "encode",
    "encode_batch",
    "encode_marked",
    "encode_with_offsets",
    "find_special",
    "fingerprint",
    "frame_of",
    "give_frame",
    "load_tokenizer",
    "named_special_tokens",
    "open_tokenizer",
    "save_tokenizer",
    "sentence_ends",
    "sentinel_ids",
    "shorten",
    "special_id",
    "special_ids",
    "special_tokens",
    "splits_special_tokens",
    "token_id",
    "train_tokenizer",
    "vocabulary_size",
    "whole_characters",
    "word_starts",
    "wrap_backend",
]
