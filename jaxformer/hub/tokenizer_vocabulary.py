"""The half of a tokenizer that needs no model input: its vocabulary, its special tokens, and ids back to text."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, overload

import numpy as np
import tokenizers as hf
from tokenizers import models

from jaxformer.hub.tokenizer_encode import guarded
from jaxformer.hub.tokenizer_kinds import SPECIAL_NAMES
from jaxformer.schema import UserError, nearest


class SpecialToken:
    """A special token as an attribute: ``tokenizer.pad_token``."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, tokenizer: None, owner: Any = None) -> "SpecialToken": ...
    @overload
    def __get__(self, tokenizer: "Vocabulary", owner: Any = None) -> str | None: ...
    def __get__(self, tokenizer: "Vocabulary | None", owner: Any = None) -> "SpecialToken | str | None":
        return self if tokenizer is None else tokenizer.special_tokens_map.get(self.name)

    def __set__(self, tokenizer: "Vocabulary", token: "str | hf.AddedToken | None") -> None:
        tokenizer.set_special_token(self.name, token)


class SpecialId:
    """A special token's id as an attribute: ``tokenizer.pad_token_id``."""

    def __init__(self, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, tokenizer: None, owner: Any = None) -> "SpecialId": ...
    @overload
    def __get__(self, tokenizer: "Vocabulary", owner: Any = None) -> int | None: ...
    def __get__(self, tokenizer: "Vocabulary | None", owner: Any = None) -> "SpecialId | int | None":
        if tokenizer is None:
            return self
        token = tokenizer.special_tokens_map.get(self.name)
        return None if token is None else tokenizer.backend.token_to_id(token)

    def __set__(self, tokenizer: "Vocabulary", number: int | None) -> None:
        token = None if number is None else tokenizer.backend.id_to_token(int(number))
        if number is not None and token is None:
            raise UserError(f"{self.name}_id is {number}, expected an id of the vocabulary")
        tokenizer.set_special_token(self.name, token)


class Vocabulary:
    """A tokenizer of the ``tokenizers`` library with named special tokens.

    Attributes:
        backend: the tokenizer of the ``tokenizers`` library.
        special_tokens_map: the named special tokens, ``{"pad_token": "[PAD]", ...}``.
        extra_special_tokens: the special tokens without a name.
        clean_up_tokenization_spaces: whether ``decode`` takes the blanks before punctuation away; never done for BPE,
            whose blanks are those of the text.
    """

    bos_token, bos_token_id = SpecialToken("bos_token"), SpecialId("bos_token")
    eos_token, eos_token_id = SpecialToken("eos_token"), SpecialId("eos_token")
    unk_token, unk_token_id = SpecialToken("unk_token"), SpecialId("unk_token")
    sep_token, sep_token_id = SpecialToken("sep_token"), SpecialId("sep_token")
    pad_token, pad_token_id = SpecialToken("pad_token"), SpecialId("pad_token")
    cls_token, cls_token_id = SpecialToken("cls_token"), SpecialId("cls_token")
    mask_token, mask_token_id = SpecialToken("mask_token"), SpecialId("mask_token")

    def __init__(self, backend: hf.Tokenizer, special: Mapping[str, str], extra: Iterable[str]) -> None:
        self.backend = backend
        self.special_tokens_map: dict[str, str] = dict(special)
        self.extra_special_tokens: list[str] = list(extra)
        self.clean_up_tokenization_spaces = False

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size(with_added_tokens=True))

    def __bool__(self) -> bool:
        return True

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, without those added to it: an embedding table needs ``len(tokenizer)``."""
        return int(self.backend.get_vocab_size(with_added_tokens=False))

    def get_vocab(self) -> dict[str, int]:
        """The id of every token, those added to the vocabulary included."""
        return dict(self.backend.get_vocab(with_added_tokens=True))

    @property
    def vocab(self) -> dict[str, int]:
        """``get_vocab()``."""
        return self.get_vocab()

    def get_added_vocab(self) -> dict[str, int]:
        """The id of every special or added token."""
        return {token.content: i for i, token in sorted(self.added_tokens_decoder.items())}

    @property
    def added_tokens_decoder(self) -> dict[int, hf.AddedToken]:
        """The special and added tokens by their ids, with how each is found in a text."""
        return dict(self.backend.get_added_tokens_decoder())

    @property
    def all_special_tokens(self) -> list[str]:
        """Every special token once: the named ones in the order bos, eos, unk, sep, pad, cls, mask, then the others."""
        names = dict.fromkeys([*SPECIAL_NAMES, *self.special_tokens_map])
        named = [self.special_tokens_map[name] for name in names if name in self.special_tokens_map]
        return list(dict.fromkeys([*named, *self.extra_special_tokens]))

    @property
    def all_special_ids(self) -> list[int]:
        """The ids of ``all_special_tokens``."""
        ids = (self.backend.token_to_id(token) for token in self.all_special_tokens)
        return [number for number in ids if number is not None]

    def set_special_token(self, name: str, token: str | hf.AddedToken | None) -> None:
        """Names a token of the vocabulary as the special token of that name; None takes the name away.

        Raises:
            UserError: the vocabulary has no such token.
        """
        if token is None:
            self.special_tokens_map.pop(name, None)
            return
        content = token.content if isinstance(token, hf.AddedToken) else token
        if not isinstance(content, str) or self.backend.token_to_id(content) is None:
            raise UserError(
                f"{name} is {content!r}, which the vocabulary has not; expected a token of it, or add it with "
                f"add_special_tokens({{{name!r}: {content!r}}}) and give the model's embedding a row for it"
            )
        # Not made special to the backend: it would cut every text at the token from then on.
        self.special_tokens_map[name] = content

    def _changed(self) -> None:
        """What to do when the backend has got another token."""

    def add_tokens(
        self, new_tokens: str | hf.AddedToken | Iterable[str | hf.AddedToken], special_tokens: bool = False
    ) -> int:
        """Adds what the vocabulary lacks behind its last id, and returns how many that were.

        The model's embedding needs as many more rows.
        """
        tokens = [new_tokens] if isinstance(new_tokens, str | hf.AddedToken) else list(new_tokens)
        if not all(isinstance(token, str | hf.AddedToken) for token in tokens):
            raise UserError("add_tokens got something else than tokens, expected texts")
        before = len(self)
        (self.backend.add_special_tokens if special_tokens else self.backend.add_tokens)(tokens)
        self._changed()
        return len(self) - before

    def add_special_tokens(self, special_tokens: Mapping[str, Any]) -> int:
        """Adds and names special tokens, ``{"pad_token": "[PAD]"}``, and returns how many the vocabulary lacked.

        ``extra_special_tokens`` (or ``additional_special_tokens``) takes a list of those without a name; they join the
        ones there are.

        Raises:
            UserError: a name is unknown, or a token is no text.
        """
        known = [*SPECIAL_NAMES, *self.special_tokens_map, "extra_special_tokens", "additional_special_tokens"]
        count = 0
        for name, value in special_tokens.items():
            if name not in known:
                raise UserError(f"add_special_tokens got {name!r}, expected a special token{nearest(name, known)}")
            many = name in known[-2:]
            tokens = list(value) if many and not isinstance(value, str) else [value]
            if not tokens or not all(isinstance(token, str | hf.AddedToken) for token in tokens):
                raise UserError(f"{name} is {value!r}, expected {'a list of texts' if many else 'a text'}")
            count += self.add_tokens(tokens, special_tokens=True)
            names = [token.content if isinstance(token, hf.AddedToken) else token for token in tokens]
            if many:
                self.extra_special_tokens += [n for n in names if n not in self.extra_special_tokens]
            else:
                self.special_tokens_map[name] = names[0]
        return count

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a token, or of each of a list; unknown ones get the id of ``unk_token``, None if there is none."""
        if isinstance(tokens, str):
            number = self.backend.token_to_id(tokens)
            return self.unk_token_id if number is None else number
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Any, skip_special_tokens: bool = False) -> Any:
        """The token of an id, or of each of a list; None for an id that is none."""
        if isinstance(ids, int | np.integer):
            return self.backend.id_to_token(int(ids))
        skipped = set(self.all_special_ids) if skip_special_tokens else set()
        return [self.backend.id_to_token(int(i)) for i in ids if int(i) not in skipped]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return str(self.backend.decoder.decode(tokens)) if self.backend.decoder is not None else " ".join(tokens)

    def decode(
        self,
        token_ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> Any:
        """The text of ids; of rows of ids, the list of their texts.

        Args:
            token_ids: an id, a list or array of them, or rows of them.
            skip_special_tokens: leave special tokens out.
            clean_up_tokenization_spaces: default the attribute of that name.
            **options: for Marian, ``use_source_tokenizer``: which language's model puts the text together, default
                True, as in ``transformers``. They differ where a text begins, and in what stands for ``<unk>``.

        Raises:
            UserError: they are no ids.
        """
        ids = np.asarray(token_ids).tolist() if hasattr(token_ids, "__array__") else token_ids
        if isinstance(ids, int):
            ids = [ids]
        ids = [int(i) if isinstance(i, np.integer) else i for i in ids]
        if ids and isinstance(ids[0], list | tuple | np.ndarray):
            return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **options) for row in ids]
        if not all(isinstance(i, int | np.integer) and 0 <= i < 1 << 32 for i in ids):
            raise UserError(f"decode got {str(ids)[:80]}, expected ids from 0 on (-100 marks what is no token)")
        text = self._text(ids, skip_special_tokens, **options)
        clean = self.clean_up_tokenization_spaces
        if clean if clean_up_tokenization_spaces is None else clean_up_tokenization_spaces:
            return text if isinstance(self.backend.model, models.BPE) else _without_blanks(text)
        return text

    def _text(self, ids: list[int], skip_special_tokens: bool) -> str:
        """The text of ids, before blanks are cleaned up."""
        return str(guarded(partial(self.backend.decode, ids, skip_special_tokens=skip_special_tokens), "decoding"))

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
        **options: Any,
    ) -> list[str]:
        """The text of each row of ids."""
        return [self.decode(row, skip_special_tokens, clean_up_tokenization_spaces, **options) for row in sequences]


def _without_blanks(text: str) -> str:
    """The text without the blanks that splitting at punctuation put into English."""
    for mark in (" .", " ?", " !", " ,"):
        text = text.replace(mark, mark[1:])
    text = text.replace(" ' ", "'")
    for ending in (" n't", " 'm", " 's", " 've", " 're"):
        text = text.replace(ending, ending[1:])
    return text
