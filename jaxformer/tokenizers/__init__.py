"""Text to token ids and back: five kinds trained on the run's own corpus, or one loaded from a `tokenizer.json`.

Every trained kind is lossless. Byte, BPE, WordPiece and Unigram work on the 256 byte-level characters (GPT-2, Radford
et al. 2019, section 2.2), all of which are always in the vocabulary, so any text at all comes back exactly; `character`
brings back every character it saw in training.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers as hf
from pydantic import Field, model_validator
from tokenizers import models

from jaxformer.schema import Schema, UserError
from jaxformer.tokenizers.training import EOS, TRAINERS

FILE_NAME = "tokenizer.json"
ROLES_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
# The names under which a loaded tokenizer.json may keep its end of text, the more telling ones first.
EOS_NAMES = (EOS, "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
# What a special token is for, and the names under which a tokenizer may keep it.
Role = Literal["pad", "cls", "sep", "mask"]
ROLE_NAMES: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>"),
    "cls": ("[CLS]", "<s>", "<cls>", "<bos>"),
    "sep": ("[SEP]", "</s>", "<sep>", "<eos>", EOS),
    "mask": ("[MASK]", "<mask>"),
}
SENTINEL = "<extra_id_{}>"  # T5's names of the tokens that stand for what was cut out


class TokenizerConfig(Schema):
    """Which tokenizer a run uses."""

    type: Literal["byte", "character", "bpe", "wordpiece", "unigram", "file", "pretrained"] = Field(
        "bpe",
        description="kind of tokenizer: trained on the run's own training text, `file` to load a tokenizer.json, or "
        "`pretrained` to take one in the Hugging Face format",
    )
    vocab_size: int = Field(
        4096,
        ge=1,
        description="vocabulary of bpe, wordpiece and unigram; byte and character have as many tokens as they need",
    )
    path: str | None = Field(
        None, description="file: a tokenizer.json, or a folder that holds one; pretrained: a folder or owner/name"
    )

    @model_validator(mode="after")
    def _path_goes_with_file(self) -> "TokenizerConfig":
        if self.type in ("file", "pretrained") and self.path is None:
            expected = (
                "a tokenizer.json or a folder that holds one" if self.type == "file" else "a folder or owner/name"
            )
            raise ValueError(f"type is {self.type!r} but path is not set: give {expected}")
        if self.type not in ("file", "pretrained") and self.path is not None:
            raise ValueError(f"path is {self.path!r} but type is {self.type!r}, which is trained: set type to 'file'")
        return self


class Tokenizer:
    """An immutable tokenizer that adds nothing to the text and treats all of it as text.

    `encode` never adds special tokens, never truncates or pads, and encodes a literal `<|endoftext|>` in the text as
    the ordinary characters it consists of: only the library itself places special ids.

    Attributes:
        vocab_size: Largest id plus one, what an embedding table must hold.
        eos_id: Id of the end of a document, or None if the tokenizer has none.
        sentinel_ids: Ids of `<extra_id_0>`, `<extra_id_1>`, ... as far as the tokenizer has them.
        chat_template: The Jinja text that writes a dialogue, or None.
        fingerprint: sha256 over the canonical JSON, and over roles that the names alone would not give and the chat
            template: the same for the same tokenizer, wherever it was saved.
    """

    def __init__(
        self, backend: hf.Tokenizer, roles: Mapping[str, str] | None = None, chat_template: str | None = None
    ) -> None:
        """Takes over `backend`, a tokenizer of the `tokenizers` library.

        Args:
            backend: The tokenizer.
            roles: The token of a role (`pad`, `cls`, `sep`, `mask`, `eos`) where it is known; others go by their names.
            chat_template: The Jinja text that writes a dialogue, if there is one.
        """
        # A downloaded tokenizer.json may carry both, and would then cut off the text without a word.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        self._roles = dict(roles or {})
        self.chat_template = chat_template
        # Not the number of tokens: the ids of a loaded vocabulary may have gaps.
        self.vocab_size: int = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.eos_id: int | None = self._find(self._names("eos"))
        self.sentinel_ids: list[int] = []
        while (sentinel := backend.token_to_id(SENTINEL.format(len(self.sentinel_ids)))) is not None:
            self.sentinel_ids.append(sentinel)
        canonical = json.dumps(json.loads(backend.to_str()), sort_keys=True, ensure_ascii=False)
        # Roles count where they make a difference: with others, the same text is cut into other examples.
        found = {role: self._find(self._names(role)) for role in sorted(self._roles)}
        usual = {role: self._find(_usual_names(role)) for role in found}
        canonical += json.dumps(found) if found != usual else ""
        canonical += "" if chat_template is None else json.dumps(chat_template)
        self.fingerprint: str = hashlib.sha256(canonical.encode()).hexdigest()

    def _names(self, role: str) -> tuple[str, ...]:
        """The names under which the token of a role is looked for: its own if it is known, then the usual ones."""
        own = (self._roles[role],) if role in self._roles else ()
        return (*own, *_usual_names(role))

    def _find(self, names: Iterable[str]) -> int | None:
        ids = (self._backend.token_to_id(name) for name in names)
        return next((i for i in ids if i is not None), None)

    def find_special(self, role: Role) -> int | None:
        """Id of the special token of this role, or None if the tokenizer has none."""
        return self._find(self._names(role))

    def special_id(self, role: Role) -> int:
        """Id of the special token of this role.

        Raises:
            UserError: The tokenizer has none.
        """
        found = self.find_special(role)
        if found is None:
            names = " or ".join(self._names(role))
            raise UserError(f"the tokenizer has no {role} token, expected {names}; add it with with_special_tokens")
        return found

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """The id of every token, special ones too, as the tokens are written."""
        return dict(self._backend.get_vocab(with_added_tokens=True))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens: those that no text is encoded to."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(i for i, token in added.items() if token.special)

    def with_special_tokens(self, roles: Iterable[Role], sentinels: int = 0) -> "Tokenizer":
        """A tokenizer that has a token of each role and so many sentinels; what it lacks is added behind its ids.

        All other ids stay. The names follow the tokenizer's own: `[MASK]` beside `[UNK]`, else `<mask>`.
        """
        style = 0 if self._backend.token_to_id("[UNK]") is not None else 1
        names = [ROLE_NAMES[role][style] for role in roles if self.find_special(role) is None]
        names += [SENTINEL.format(number) for number in range(len(self.sentinel_ids), sentinels)]
        if not names:
            return self
        backend = hf.Tokenizer.from_str(self._backend.to_str())
        backend.add_special_tokens(names)
        return Tokenizer(backend, self._roles, self.chat_template)

    def with_chat_template(self, template: str) -> "Tokenizer":
        """The same tokenizer with another chat template."""
        return Tokenizer(hf.Tokenizer.from_str(self._backend.to_str()), self._roles, template)

    @cached_property
    def special_tokens(self) -> tuple[str, ...]:
        """All special tokens as they are written."""
        added = self._backend.get_added_tokens_decoder()
        return tuple(token.content for _, token in sorted(added.items()) if token.special)

    @cached_property
    def named_special_tokens(self) -> dict[str, str]:
        """Special tokens under the names that a chat template calls them by: `eos_token`, `bos_token` and so on."""
        ids = {f"{role}_token": self.find_special(role) for role in ROLE_NAMES}  # type: ignore[arg-type]
        ids |= {"bos_token": ids["cls_token"], "eos_token": self.eos_id}
        return {name: str(self._backend.id_to_token(i)) for name, i in ids.items() if i is not None}

    def difference(self, other: "Tokenizer") -> str | None:
        """Why ids of another tokenizer ("here") are not this one's ("there"), in words; None if they are.

        The vocabularies, the merges, the end of text and what stands before a text are compared. Padding, which no text
        has, special tokens that only this one has, and chat templates make no difference.
        """
        mine, theirs = self.vocabulary, other.vocabulary
        padding = other.find_special("pad")
        unread = padding if padding != other.eos_id else None
        for token, number in sorted(theirs.items(), key=lambda item: item[1]):
            if mine.get(token) != number and number != unread:
                return f"{token!r} is token {number} here and {mine.get(token, 'none')} there"
        more = [t for t in self._backend.get_vocab(with_added_tokens=False) if t not in theirs]
        if more:
            return f"{min(more)!r} is a token there and none here"
        if _merges(self._backend) != _merges(other._backend):
            return "other pieces are merged there"
        if (self.eos_id, self.prefix_ids) != (other.eos_id, other.prefix_ids):
            return (
                f"a text has {other.prefix_ids} before it and {other.eos_id} behind it here, and {self.prefix_ids} and "
                f"{self.eos_id} there"
            )
        return None

    @cached_property
    def prefix_ids(self) -> list[int]:
        """What this tokenizer, called as a model's users call it, puts before a text: LLaMA's `<s>`, often nothing."""
        encoding = self._backend.encode("a", add_special_tokens=True)
        mask = encoding.special_tokens_mask
        return list(encoding.ids[: mask.index(0)]) if 0 in mask else []

    @cached_property
    def _marked_backend(self) -> hf.Tokenizer:
        backend = hf.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = False
        return backend

    def encode_marked(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The ids of a text in which special tokens are read as such, and the characters `[start, end)` of each.

        For what the library or a template wrote; `encode` is for what others wrote.
        """
        encoding = self._marked_backend.encode(text, add_special_tokens=False)
        return list(encoding.ids), list(encoding.offsets)

    @cached_property
    def word_starts(self) -> np.ndarray:
        """`[vocab_size]` bool: True for tokens that begin a word or are special, False for those that continue one.

        By the marks of the kind: `##` continues in WordPiece; a blank (`Ġ`, or `▁` in SentencePiece) or line end begins
        elsewhere, where `##` is a token like any other. A tokenizer of single bytes or characters has no words, and
        every token begins one.
        """
        starts = np.ones(self.vocab_size, bool)
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        if isinstance(self._backend.model, models.WordPiece):
            mark = self._backend.model.continuing_subword_prefix
            for token, i in vocabulary.items():
                starts[i] = not (token.startswith(mark) and len(token) > len(mark))
        elif any(len(token) > 1 and token[0] in "Ġ▁" for token in vocabulary):
            special = self.special_ids
            for token, i in vocabulary.items():
                starts[i] = i in special or token[:1] in ("Ġ", "▁", "Ċ", "č", "ĉ")
        return starts

    @cached_property
    def sentence_ends(self) -> np.ndarray:
        """`[vocab_size]` bool: True for tokens that end a sentence: `.`, `!`, `?`, their wide forms, or a line end.

        A rule of thumb, good enough to shuffle sentences: it takes the point of an abbreviation for an end.
        """
        ends = np.zeros(self.vocab_size, bool)
        for i in self._backend.get_vocab(with_added_tokens=True).values():
            ends[i] = self.decode([i]).rstrip(" ").endswith((".", "!", "?", "。", "！", "？", "\n"))
        return ends

    def encode(self, text: str) -> list[int]:
        """The ids of `text`."""
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each of `texts`, encoded on all cores."""
        # The "fast" variant is the same but for the offsets into the text, which nobody reads here.
        return [e.ids for e in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """The ids of each of `texts`, and for each id the characters `[start, end)` of the text it stands for.

        Blanks at the ends of a token are left out of its characters, unless it holds nothing else. Tokens that are
        parts of one character all have that character. A normaliser that adds or removes characters is followed back
        to the text as it was given.
        """
        encoded = self._backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            (encoding.ids, [_without_blanks(text, *offsets) for offsets in encoding.offsets])
            for text, encoding in zip(texts, encoded, strict=True)
        ]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; special tokens are left out unless asked for."""
        return str(self._backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens))

    def save(self, folder: str | Path) -> Path:
        """Writes `folder/tokenizer.json`, whole or not at all, and returns its path.

        Beside it go `special_tokens_map.json`, the roles, and `chat_template.jinja`, if the tokenizer was given any.
        """
        path = Path(folder) / FILE_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._roles:
            _write(path.with_name(ROLES_FILE), json.dumps({f"{r}_token": t for r, t in self._roles.items()}, indent=2))
        if self.chat_template is not None:
            _write(path.with_name(TEMPLATE_FILE), self.chat_template)
        _write(path, self._backend.to_str(pretty=True))
        return path


def _merges(backend: hf.Tokenizer) -> object:
    """How pieces become tokens: the merges of BPE, the scores of Unigram, nothing for others."""
    model = json.loads(backend.to_str())["model"]
    return model.get("merges") or (model.get("vocab") if model.get("type") == "Unigram" else None)


def _usual_names(role: str) -> tuple[str, ...]:
    return EOS_NAMES if role == "eos" else ROLE_NAMES[role]


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _read_roles(path: Path) -> dict[str, str]:
    """The tokens of the roles that a `special_tokens_map.json` names; none if there is no such file."""
    if not path.is_file():
        return {}
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(named, dict):
        raise UserError(f"{path} holds a {type(named).__name__}, expected a JSON object of special tokens")
    roles = {}
    for role in (*ROLE_NAMES, "eos"):
        token = named.get(f"{role}_token")
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            roles[role] = token
    return roles


def _without_blanks(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    if not part or part.isspace():
        return start, end
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())


def build_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that `config` asks for: loaded if its type is `file` (`texts` is then not read), else trained."""
    return load_tokenizer(config.path) if config.path is not None else train_tokenizer(config, texts)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads a `tokenizer.json`, or the one in a folder.

    A `special_tokens_map.json` beside it says which token is the padding, the end of text and so on, where the names
    alone do not; a `chat_template.jinja` how a dialogue is written.

    Raises:
        UserError: There is no such file, or it is not a tokenizer of the `tokenizers` library.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = file / FILE_NAME
    if not file.is_file():
        raise UserError(f"no tokenizer at {file}: give a {FILE_NAME} file or a folder that holds one")
    roles = _read_roles(file.with_name(ROLES_FILE))
    template = file.with_name(TEMPLATE_FILE)
    chat = template.read_text(encoding="utf-8") if template.is_file() else None
    try:
        return Tokenizer(hf.Tokenizer.from_str(file.read_text(encoding="utf-8")), roles, chat)
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{file} is not a valid {FILE_NAME} of the `tokenizers` library: {error}") from error


def train_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> Tokenizer:
    """Trains a tokenizer of `config.type`; the same texts in the same order give the same tokenizer.

    The texts are read once and not kept. The vocabulary is smaller than `config.vocab_size` if the texts hold no more
    pieces to learn.

    Raises:
        UserError: The texts are empty, or `config.vocab_size` cannot hold the bytes and the special tokens.
    """
    if config.type == "file":
        raise UserError("tokenizer.type is 'file', which is loaded, not trained")
    return Tokenizer(TRAINERS[config.type](config.vocab_size, _require_text(texts)))


def _require_text(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are not empty; an error if there is none."""
    present = (text for text in texts if text)
    first = next(present, None)
    if first is None:
        raise UserError("cannot train a tokenizer: got no text, expected at least one character; check data.path")
    return chain([first], present)
