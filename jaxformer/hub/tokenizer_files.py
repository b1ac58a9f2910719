"""Opens a tokenizer's files: from a folder or a repository of the Hub to a backend and its settings.

File names come from here alone. ``vocab_file``, ``tokenizer_file``, ``special_tokens_map_file``, ``auto_map`` and
whatever else a ``tokenizer_config.json`` says about files and code is left unread: nothing outside the folder is opened
and no code of a repository is run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers as hf

from jaxformer.hub.repository import Repository
from jaxformer.hub.tokenizer_backends import (
    backend_from_json,
    bos_eos_processor,
    build_byte_bpe,
    build_bytes,
    build_word_bpe,
    build_wordpiece,
    read_merges,
    read_text,
    read_vocabulary,
    read_word_list,
)
from jaxformer.hub.tokenizer_kinds import ANY, KINDS, Kind, require_buildable
from jaxformer.hub.tokenizer_pieces import SOURCE, Pieces, build_vocabulary, read_sides
from jaxformer.hub.tokenizer_sentencepiece import build_sentencepiece, further_special, read_sentencepiece
from jaxformer.hub.tokenizer_settings import TokenizerConfigFiles
from jaxformer.schema import UserError

_SENTENCEPIECE_FILES = ("spiece.model", "tokenizer.model", "sentencepiece.bpe.model", "spm.model")


@dataclass
class TokenizerParts:
    """What the files say.

    Attributes:
        backend: the tokenizer of the ``tokenizers`` library, without truncation and padding.
        kind: its class.
        special: its named special tokens, ``pad_token`` and the like.
        extra_special: its other special tokens.
        settings: the validated settings.
        chat_template: its chat template, or several by name.
        type_ids: whether its model reads ``token_type_ids``.
        sides: for Marian, what cuts the source and what cuts the target into the backend's tokens.
    """

    backend: hf.Tokenizer
    kind: Kind
    special: dict[str, str]
    extra_special: list[str]
    settings: dict[str, Any]
    chat_template: str | dict[str, str] | None
    type_ids: bool
    sides: tuple[Pieces, Pieces] | None = None


def _find_pair(repository: Repository) -> tuple[Path, Path] | None:
    """``vocab.json`` and ``merges.txt``, under these names or OpenAI's own."""
    for names in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        vocabulary, merges = (repository.find(name) for name in names)
        if vocabulary and merges:
            return vocabulary, merges
        if merges or (vocabulary and names[0] == "vocab.json"):
            have, lack = names if vocabulary else names[::-1]
            raise UserError(f"{repository.name} has {have} but no {lack}, expected both; copy the other one too")
    return None


def _guess(repository: Repository) -> tuple[Kind | None, str]:
    """The kind that the files themselves imply where nothing names it."""
    if repository.find(SOURCE):
        return KINDS["MarianTokenizer"], "MarianTokenizer"
    if repository.find("vocab.txt"):
        return KINDS["BertTokenizer"], "BertTokenizer"
    pair = _find_pair(repository)
    if pair is None:
        return None, ""
    vocabulary = read_vocabulary(pair[0])
    if any(token.endswith("</w>") for token in vocabulary):
        name = "CLIPTokenizer" if "<|startoftext|>" in vocabulary else "OpenAIGPTTokenizer"
    else:
        name = "RobertaTokenizer" if {"<s>", "</s>", "<mask>"} <= vocabulary.keys() else "GPT2Tokenizer"
    return KINDS[name], name


def _missing(repository: Repository, kind: Kind, files: str) -> UserError:
    return UserError(f"{repository.name} has no {files}, which a {kind.name} needs, and no tokenizer.json either")


def _build(repository: Repository, kind: Kind, special: dict[str, str], settings: dict[str, Any]) -> hf.Tokenizer:
    """The backend from the kind's own files."""
    try:
        if kind.files == "wordpiece":
            path = repository.find("vocab.txt")
            if path is None:
                raise _missing(repository, kind, "vocab.txt")
            return build_wordpiece(read_word_list(path), special, settings)
        if kind.files in ("byte_bpe", "word_bpe"):
            pair = _find_pair(repository)
            if pair is None:
                raise _missing(repository, kind, "vocab.json with merges.txt")
            vocabulary = read_vocabulary(pair[0])
            merges = read_merges(pair[1], vocabulary)
            if kind.files == "byte_bpe":
                return build_byte_bpe(kind, vocabulary, merges, special, settings)
            return build_word_bpe(kind, vocabulary, merges, special)
        if kind.files == "marian":
            return build_vocabulary(repository, special["unk_token"], special["eos_token"])
        if kind.files == "bytes":
            return build_bytes(special, settings)
        found = (repository.find(name) for name in _SENTENCEPIECE_FILES)
        path = next((path for path in found if path is not None), None)
        if path is None:
            raise _missing(repository, kind, " or ".join(_SENTENCEPIECE_FILES))
        return build_sentencepiece(kind, read_sentencepiece(path), special, settings)
    except (UserError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and on a panic of its own a BaseException
        raise UserError(f"the tokenizer of {repository.name} cannot be built: {str(error)[:200]}") from error


def _adjust(backend: hf.Tokenizer, config: TokenizerConfigFiles, kind: Kind) -> hf.Tokenizer:
    """Brings a ``tokenizer.json`` to the settings that are stated beside it or asked for.

    Raises:
        UserError: an override has nothing in the tokenizer that it could change.
    """
    state = json.loads(backend.to_str())
    before = json.dumps(state)
    for name, key in (
        ("do_lower_case", "lowercase"),
        ("strip_accents", "strip_accents"),
        ("tokenize_chinese_chars", "handle_chinese_chars"),
    ):
        parts = _parts(state.get("normalizer"), "BertNormalizer", "normalizers")
        _set(config, name, parts, {key: config.get(name)}, name in config.file)
    prefix = config.get("add_prefix_space")
    parts = _parts(state.get("pre_tokenizer"), "ByteLevel", "pretokenizers")
    processor = state.get("post_processor") or {}
    if processor.get("type") == "RobertaProcessing":
        parts = [*parts, processor] if parts else parts
    spaces = _parts(state.get("pre_tokenizer"), "Metaspace", "pretokenizers")
    if parts or not spaces:
        stated = kind.files == "byte_bpe" and isinstance(prefix, bool)
        _set(config, "add_prefix_space", parts, {"add_prefix_space": bool(prefix)}, stated)
    elif prefix is not None:
        _set(config, "add_prefix_space", spaces, {"prepend_scheme": "always" if prefix else "never"}, False)
    after = json.dumps(state)
    return backend if after == before else backend_from_json(after, config.repository.name)


def _parts(component: Any, kind: str, inner: str) -> list[dict[str, Any]]:
    """The components of that type within a component, which may be a sequence of them."""
    if not isinstance(component, dict):
        return []
    if component.get("type") == "Sequence":
        return [found for part in component.get(inner, []) for found in _parts(part, kind, inner)]
    return [component] if component.get("type") == kind else []


def _set(
    config: TokenizerConfigFiles, name: str, parts: list[dict[str, Any]], values: dict[str, Any], stated: bool
) -> None:
    wanted = name in config.overrides
    if wanted and not parts:
        raise UserError(
            f"{name} cannot be changed: the tokenizer.json of {config.repository.name} has no step that it sets; "
            f"leave {name} out"
        )
    if wanted or stated:
        for part in parts:
            part.update(values)


def _add_tokens(
    backend: hf.Tokenizer,
    config: TokenizerConfigFiles,
    named: dict[str, hf.AddedToken],
    others: list[hf.AddedToken],
    kind: Kind,
) -> None:
    """Makes the added and special tokens known to the backend, at the ids that the files give them."""
    special = {token.content for token in (*named.values(), *others)}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for number, token in config.added().items():
        if token.content in special and not token.special:
            token = hf.AddedToken(
                token.content, lstrip=token.lstrip, rstrip=token.rstrip, normalized=False, special=True
            )
        if token.content not in known:
            (backend.add_special_tokens if token.special else backend.add_tokens)([token])
            known.add(token.content)
        if backend.token_to_id(token.content) != number:
            raise UserError(
                f"{config.where} and added_tokens.json: {token.content!r} should have the id {number}, but with these "
                f"files it has {backend.token_to_id(token.content)}; expected files that belong together"
            )
    present = backend.get_vocab(with_added_tokens=True)
    defaults = {name: token for name, token in kind.special.items() if name not in named and token in present}
    for name, content in defaults.items():
        strips = name == "mask_token" and kind.mask_lstrip
        named[name] = hf.AddedToken(content, lstrip=strips, normalized=False, special=True)
    for token in (*named.values(), *others):
        if token.content not in known:
            backend.add_special_tokens([token])
            known.add(token.content)


def open_tokenizer(repository: Repository, overrides: Mapping[str, Any]) -> TokenizerParts:
    """Reads the tokenizer of a folder or a repository: its ``tokenizer.json``, else the files of its class.

    Raises:
        UserError: it has no tokenizer, or one that is broken or not known here.
    """
    config = TokenizerConfigFiles(repository, overrides)
    path = repository.find("tokenizer.json")
    kind, name = config.kind()
    if path is not None and kind is not None and kind.files == "marian" and repository.find(SOURCE):
        path = None  # a tokenizer.json cannot say what Marian's own files do
    if path is None and not name:
        kind, name = _guess(repository)
    if path is None:
        kind = require_buildable(kind, name, repository.name)
    kind = kind or ANY
    settings = config.settings(kind)
    if kind.files == "marian":
        config.refuse_variants()
    named, others = config.special(kind)
    if path is not None:
        backend = backend_from_json(read_text(path), path)
        padding = backend.padding
        if padding and "pad_token" not in named:
            named["pad_token"] = hf.AddedToken(padding["pad_token"], normalized=False, special=True)
        backend = _adjust(backend, config, kind)
    else:
        backend = _build(repository, kind, {**kind.special, **{n: t.content for n, t in named.items()}}, settings)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = bool(settings.get("split_special_tokens", False))
    if not others:
        others = [
            hf.AddedToken(token, normalized=False, special=True)
            for token in further_special(kind, settings)
            if backend.token_to_id(token) is not None and token not in {t.content for t in named.values()}
        ]
    _add_tokens(backend, config, named, others, kind)
    _add_bos_eos(backend, config, {n: t.content for n, t in named.items()}, settings)
    return TokenizerParts(
        backend=backend,
        kind=kind,
        special={n: t.content for n, t in named.items()},
        extra_special=[t.content for t in others],
        settings=settings,
        chat_template=config.chat_template(),
        type_ids=config.reads_type_ids(kind),
        sides=read_sides(repository) if path is None and kind.files == "marian" else None,
    )


def _add_bos_eos(
    backend: hf.Tokenizer, config: TokenizerConfigFiles, special: dict[str, str], settings: Mapping[str, Any]
) -> None:
    """Where nothing stands around a text yet, or an override asks for it: ``add_bos_token`` and ``add_eos_token``."""
    asked = {"add_bos_token", "add_eos_token"} & config.overrides.keys()
    if backend.post_processor is not None and not asked:
        return
    ends: list[tuple[str, int] | None] = []
    for role in ("bos", "eos"):
        token = special.get(f"{role}_token")
        number = None if token is None else backend.token_to_id(token)
        if not settings.get(f"add_{role}_token", False):
            ends.append(None)
        elif token is None or number is None:
            raise UserError(f"add_{role}_token is true but the tokenizer has no {role} token, expected {role}_token")
        else:
            ends.append((token, number))
    backend.post_processor = bos_eos_processor(*ends)
