"""Facts about a tokenizer's vocabulary: special tokens by role, word starts, sentence ends, a fingerprint."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from tokenizers import models

from jaxformer.schema import UserError
from jaxformer.tokenizers.opening import PreTrainedTokenizer

Role = Literal["pad", "cls", "sep", "mask", "eos"]
# The attributes of a tokenizer that name the token of a role, and the usual names where no attribute does.
_ROLES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "pad": (("pad_token",), ("[PAD]", "<pad>")),
    "cls": (("cls_token", "bos_token"), ("[CLS]", "<s>", "<cls>", "<bos>")),
    "sep": (("sep_token", "eos_token"), ("[SEP]", "</s>", "<sep>", "<eos>", "<|endoftext|>")),
    "mask": (("mask_token",), ("[MASK]", "<mask>")),
    "eos": (("eos_token", "sep_token"), ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")),
}
SENTINEL = "<extra_id_{}>"  # T5's names of the tokens that stand for the spans that were removed


def _backend(tokenizer: PreTrainedTokenizer) -> Any:
    """The tokenizer of the `tokenizers` library inside, None for those written in Python (ByT5, Marian)."""
    return getattr(tokenizer, "backend_tokenizer", None)


def token_id(tokenizer: PreTrainedTokenizer, token: str) -> int | None:
    """Id of a token, None if the vocabulary lacks it."""
    backend = _backend(tokenizer)
    found: int | None = tokenizer.get_vocab().get(token) if backend is None else backend.token_to_id(token)
    return found


def find_special(tokenizer: PreTrainedTokenizer, role: Role) -> int | None:
    """Id of the special token of a role, None if the tokenizer has none."""
    attributes, names = _ROLES[role]
    given = (getattr(tokenizer, attribute) for attribute in attributes)
    found = (token_id(tokenizer, token) for token in (*filter(None, given), *names))
    return next((number for number in found if number is not None), None)


def special_id(tokenizer: PreTrainedTokenizer, role: Role) -> int:
    """Id of the special token of a role.

    Raises:
        UserError: The tokenizer has none.
    """
    found = find_special(tokenizer, role)
    if found is None:
        raise UserError(f"the tokenizer has no {role} token, expected {' or '.join(_ROLES[role][1])}; add one")
    return found


def add_special_tokens(
    tokenizer: PreTrainedTokenizer, roles: Iterable[Role], sentinels: int = 0
) -> PreTrainedTokenizer:
    """Adds the tokens of these roles and the first sentinels where they are missing, and returns the tokenizer.

    They get ids behind all others.

    The names follow the tokenizer's own: `[MASK]` beside `[UNK]`, else `<mask>`.
    """
    style = 0 if token_id(tokenizer, "[UNK]") is not None else 1
    for role in roles:
        if find_special(tokenizer, role) is None:
            tokenizer.add_special_tokens({f"{role}_token": _ROLES[role][1][style]})
    missing = [SENTINEL.format(number) for number in range(len(sentinel_ids(tokenizer)), sentinels)]
    tokenizer.add_tokens(missing, special_tokens=True)
    return tokenizer


def sentinel_ids(tokenizer: PreTrainedTokenizer) -> list[int]:
    """Ids of `<extra_id_0>`, `<extra_id_1>`, ... as far as the tokenizer has them."""
    found: list[int] = []
    while (number := token_id(tokenizer, SENTINEL.format(len(found)))) is not None:
        found.append(number)
    return found


def special_ids(tokenizer: PreTrainedTokenizer) -> frozenset[int]:
    """Ids of all special tokens: those that `encode` never returns."""
    return frozenset(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)


def special_tokens(tokenizer: PreTrainedTokenizer) -> tuple[str, ...]:
    """All special tokens as they are written, by id."""
    return tuple(token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special)


def named_special_tokens(tokenizer: PreTrainedTokenizer) -> dict[str, str]:
    """Special tokens under the names by which a chat template calls them: `eos_token`, `bos_token` and so on."""
    ids = {f"{role}_token": find_special(tokenizer, role) for role in _ROLES}  # type: ignore[arg-type]
    ids["bos_token"] = ids["cls_token"]
    return {name: tokenizer.convert_ids_to_tokens(number) for name, number in ids.items() if number is not None}


def vocabulary_size(tokenizer: PreTrainedTokenizer) -> int:
    """Largest id plus one, the rows that an embedding table needs; ids may have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def word_starts(tokenizer: PreTrainedTokenizer) -> np.ndarray:
    """`[vocabulary_size]` bool: True for tokens that begin a word or are special, False for those that continue one.

    `##` continues a word in WordPiece; a blank (as such, `Ġ`, or `▁` in SentencePiece) or a line end begins one
    elsewhere. A tokenizer of single bytes or characters has no words, and every token begins one.
    """
    starts = np.ones(vocabulary_size(tokenizer), bool)
    vocabulary, model = tokenizer.get_vocab(), getattr(_backend(tokenizer), "model", None)
    if isinstance(model, models.WordPiece):
        mark = model.continuing_subword_prefix
        for token, number in vocabulary.items():
            starts[number] = not (token.startswith(mark) and len(token) > len(mark))
    elif any(len(token) > 1 and token[0] in "Ġ▁ " for token in vocabulary):
        special = special_ids(tokenizer)
        for token, number in vocabulary.items():
            starts[number] = number in special or token[:1] in (*"Ġ▁ ", *"Ċčĉ", *"\n\r\t")
    return starts


def sentence_ends(tokenizer: PreTrainedTokenizer) -> np.ndarray:
    """`[vocabulary_size]` bool: True for tokens that end a sentence: `.`, `!`, `?`, their wide forms, or a line end.

    A rule of thumb, good enough to shuffle sentences: it takes the point of an abbreviation for an end.
    """
    ends = np.zeros(vocabulary_size(tokenizer), bool)
    ids = sorted(tokenizer.get_vocab().values())
    for number, text in zip(ids, tokenizer.batch_decode([[i] for i in ids], skip_special_tokens=True), strict=True):
        ends[number] = text.rstrip(" ").endswith((".", "!", "?", "。", "！", "？", "\n"))
    return ends


def _state(tokenizer: PreTrainedTokenizer) -> dict[str, Any]:
    """All that determines the ids of a text, as JSON values."""
    backend = _backend(tokenizer)
    if backend is None:
        return {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    state: dict[str, Any] = json.loads(backend.to_str())
    return {key: value for key, value in state.items() if key not in ("truncation", "padding")}


def fingerprint(tokenizer: PreTrainedTokenizer) -> str:
    """sha256 over all that decides what a text becomes; the same for the same tokenizer, wherever it was saved."""
    roles = {role: find_special(tokenizer, role) for role in _ROLES}  # type: ignore[arg-type]
    state = [_state(tokenizer), roles, tokenizer.chat_template, bool(tokenizer.split_special_tokens)]
    return hashlib.sha256(json.dumps(state, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def difference(mine: PreTrainedTokenizer, theirs: PreTrainedTokenizer) -> str | None:
    """Describes how the ids of one tokenizer ("here") differ from those of another ("there"); None if they do not.

    The vocabularies, the merges, the end of text and the prefix of a text are compared. Padding, special tokens that
    only this one has, and chat templates make no difference.
    """
    from jaxformer.tokenizers.frame import frame_of

    ours, others = mine.get_vocab(), theirs.get_vocab()
    padding, end = find_special(theirs, "pad"), find_special(theirs, "eos")
    for token, number in sorted(others.items(), key=lambda item: item[1]):
        if ours.get(token) != number and (number != padding or padding == end):
            return f"{token!r} is token {number} here and {ours.get(token, 'none')} there"
    special = special_ids(mine)
    more = [token for token, number in ours.items() if token not in others and number not in special]
    if more:
        return f"{min(more)!r} is a token there and none here"
    if _merges(mine) != _merges(theirs):
        return "other pieces are merged there"
    ends = [(frame_of(t).before, find_special(t, "eos")) for t in (mine, theirs)]
    if ends[0] != ends[1]:
        return f"a text has {ends[0]} around it here, and {ends[1]} there"
    return None


def _merges(tokenizer: PreTrainedTokenizer) -> object:
    """The merges of BPE or the scores of Unigram, None for others."""
    model = _state(tokenizer).get("model", {})
    return model.get("merges") or (model.get("vocab") if model.get("type") == "Unigram" else None)
