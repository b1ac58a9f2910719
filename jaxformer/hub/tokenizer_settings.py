"""What the JSON files beside a tokenizer's vocabulary say: its class, its settings, its special and added tokens."""

from collections.abc import Callable, Mapping
from typing import Any

import tokenizers as hf

from jaxformer.hub.chat import read_templates
from jaxformer.hub.repository import Repository
from jaxformer.hub.tokenizer_backends import read_text
from jaxformer.hub.tokenizer_kinds import SPECIAL_NAMES, Kind, bare_class, kind_of_class, kind_of_model
from jaxformer.schema import UserError, nearest

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
_MOST_EXTRA = 10_000  # tokens that a number in a file may add to a vocabulary
_UNLIMITED = 10**20  # what larger model_max_length mean: that nobody set one

_Check = Callable[[Any], bool]


def _is_bool(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_EXTRA


def _is_text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(item, str) for item in value)


def _is_side(value: Any) -> bool:
    return value in ("left", "right")


# The settings and what each has to be: in the file, and as an override.
SETTINGS: dict[str, tuple[_Check, str]] = {
    "model_max_length": (_is_size, "a whole number"),
    "padding_side": (_is_side, "'left' or 'right'"),
    "truncation_side": (_is_side, "'left' or 'right'"),
    "model_input_names": (_is_texts, "a list of names"),
    **dict.fromkeys(
        (
            *("clean_up_tokenization_spaces", "split_special_tokens", "do_lower_case", "strip_accents", "legacy"),
            *("tokenize_chinese_chars", "keep_accents", "add_prefix_space", "add_bos_token", "add_eos_token"),
            "separate_vocabs",
        ),
        (_is_bool, "true or false"),
    ),
    "extra_ids": (_is_count, f"a whole number up to {_MOST_EXTRA:,}"),
    "offset": (_is_count, f"a whole number up to {_MOST_EXTRA:,}"),
    "mask_token_sent": (_is_text, "a token"),
    "src_lang": (_is_text, "a language code"),
    "tgt_lang": (_is_text, "a language code"),
    "source_lang": (_is_text, "a language"),
    "target_lang": (_is_text, "a language"),
}
_OTHER_OVERRIDES = ("tokenizer_class", "chat_template", "extra_special_tokens", "additional_special_tokens", "use_fast")
OVERRIDES = (*SETTINGS, *SPECIAL_NAMES, *_OTHER_OVERRIDES)


def check_overrides(overrides: Mapping[str, Any]) -> None:
    """Refuses what is no key of a ``tokenizer_config.json`` that is read here.

    Raises:
        UserError: a name or a value is wrong.
    """
    for name, value in overrides.items():
        if name not in OVERRIDES:
            raise UserError(f"from_pretrained got {name}, expected a setting it knows{nearest(name, OVERRIDES)}")
        if name in SETTINGS:
            check, expected = SETTINGS[name]
            if not check(value):
                raise UserError(f"{name} is {value!r}, expected {expected}")


def _added_token(value: Any, where: str, **defaults: bool) -> hf.AddedToken:
    """The token of ``"<pad>"`` or ``{"content": "<pad>", "lstrip": false, ...}``."""
    if isinstance(value, hf.AddedToken):
        return value
    if isinstance(value, str) and value:
        return hf.AddedToken(value, **defaults)
    if isinstance(value, Mapping) and isinstance(value.get("content"), str) and value["content"]:
        flags = {k: v for k, v in value.items() if k in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        if all(isinstance(flag, bool) for flag in flags.values()):
            return hf.AddedToken(value["content"], **{**defaults, **flags})
    raise UserError(f"{where} is {str(value)[:80]!r}, expected a token or an object with its content and flags")


class TokenizerConfigFiles:
    """The merged settings of a repository's JSON files and the overrides."""

    def __init__(self, repository: Repository, overrides: Mapping[str, Any]) -> None:
        check_overrides(overrides)
        self.repository = repository
        self.overrides = dict(overrides)
        self.file = dict(repository.find_json(CONFIG_FILE) or {})
        self._read_model: dict[str, Any] | None = None
        if "added_tokens_decoder" not in self.file:
            self.file |= repository.find_json(SPECIAL_FILE) or {}
        self.where = f"{CONFIG_FILE} of {repository.name}"

    def get(self, name: str, default: Any = None) -> Any:
        """The override, else what the file says."""
        return self.overrides[name] if name in self.overrides else self.file.get(name, default)

    @property
    def model(self) -> dict[str, Any]:
        """The model's ``config.json``, read when it is first needed."""
        if self._read_model is None:
            self._read_model = self.repository.find_json("config.json") or {}
        return self._read_model

    def kind(self) -> tuple[Kind | None, str]:
        """The class that the files name, None if it is not one of ours, and its name."""
        name = self.get("tokenizer_class") or self.model.get("tokenizer_class")
        if isinstance(name, str) and bare_class(name) not in ("PreTrainedTokenizer", "TokenizersBackend"):
            return kind_of_class(name), bare_class(name)
        if name is not None and not isinstance(name, str):
            raise UserError(f"{self.where}: tokenizer_class is {name!r}, expected the name of a class")
        model_type = self.model.get("model_type")
        if name is None and isinstance(model_type, str):
            return kind_of_model(model_type), model_type
        return None, name or ""

    def settings(self, kind: Kind) -> dict[str, Any]:
        """The validated settings: overrides, then the file's, then the kind's own."""
        found = dict(kind.settings)
        for name, (check, expected) in SETTINGS.items():
            if name not in self.file and name not in self.overrides:
                continue
            value = self.get(name)
            if value is None and check not in (_is_bool, _is_text):
                continue
            if not check(value):
                raise UserError(f"{self.where}: {name} is {str(value)[:80]!r}, expected {expected}")
            found[name] = value
        limit = found.get("model_max_length", self.file.get("max_len"))
        known = isinstance(limit, int | float) and _is_size(limit) and limit < _UNLIMITED
        found["model_max_length"] = int(limit) if known and limit is not None else None
        return found

    def special(self, kind: Kind) -> tuple[dict[str, hf.AddedToken], list[hf.AddedToken]]:
        """The special tokens that the files and overrides name, by name, and those without a name."""
        named: dict[str, hf.AddedToken] = {}
        # Names of a model's own, like image_token; what else ends like that is a setting.
        further = [n for n, value in self.file.items() if n.endswith("_token") and isinstance(value, str | dict)]
        for name in dict.fromkeys([*SPECIAL_NAMES, *further]):
            value = self.get(name)
            if value is not None:
                flags = {"lstrip": True} if name == "mask_token" and kind.mask_lstrip else {}
                token = _added_token(value, f"{self.where}: {name}", **flags)
                named[name] = hf.AddedToken(
                    token.content, lstrip=token.lstrip, rstrip=token.rstrip, single_word=token.single_word,
                    normalized=token.normalized and not isinstance(value, str), special=True,
                )  # fmt: skip
        extra = self.get("extra_special_tokens") or self.get("additional_special_tokens") or []
        if isinstance(extra, Mapping):
            named |= {str(n): _added_token(v, f"{self.where}: {n}", special=True) for n, v in extra.items()}
            extra = []
        if not isinstance(extra, list | tuple):
            raise UserError(f"{self.where}: extra_special_tokens is {extra!r}, expected a list of tokens")
        others = [_added_token(v, f"{self.where}: extra_special_tokens", special=True, normalized=False) for v in extra]
        return named, others

    def added(self) -> dict[int, hf.AddedToken]:
        """The tokens behind the vocabulary, by id: ``added_tokens_decoder``, else the older ``added_tokens.json``."""
        tokens: dict[int, hf.AddedToken] = {}
        decoder = self.file.get("added_tokens_decoder")
        if decoder is not None:
            if not isinstance(decoder, dict) or not all(str(i).isdecimal() for i in decoder):
                raise UserError(f"{self.where}: added_tokens_decoder is no object of ids and tokens")
            where = f"{self.where}: added_tokens_decoder"
            return {int(i): _added_token(token, where) for i, token in sorted(decoder.items(), key=_by_number)}
        for token, number in (self.repository.find_json("added_tokens.json") or {}).items():
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise UserError(f"added_tokens.json of {self.repository.name} gives {token!r} the id {number!r}")
            tokens[number] = hf.AddedToken(token, normalized=True)
        return dict(sorted(tokens.items()))

    def refuse_variants(self) -> None:
        """Refuses what Marian's class can be told and is not done here.

        Raises:
            UserError: there is a vocabulary for each language, or pieces are to be drawn at random.
        """
        if self.get("separate_vocabs"):
            raise UserError(
                f"{self.where}: separate_vocabs is true, expected one vocab.json for both languages; "
                "models with a vocabulary for each are not read"
            )
        options = self.file.get("sp_model_kwargs")
        if isinstance(options, Mapping) and options.get("enable_sampling"):
            raise UserError(f"{self.where}: sp_model_kwargs asks for enable_sampling, expected pieces without chance")

    def chat_template(self) -> str | dict[str, str] | None:
        """The chat template, whose own file goes before the key of the configuration."""
        if "chat_template" in self.overrides:
            return read_templates(self.overrides["chat_template"], "from_pretrained")
        path = self.repository.find(TEMPLATE_FILE)
        return read_text(path) if path else read_templates(self.file.get("chat_template"), self.where)

    def reads_type_ids(self, kind: Kind) -> bool:
        """Whether the model reads ``token_type_ids``: what the files say of it goes before what its class implies.

        RoBERTa's checkpoints often come with BERT's tokenizer, whose second text has the type 1, which RoBERTa's table
        of one type does not have.
        """
        names = self.get("model_input_names")
        if names is not None:
            return "token_type_ids" in names
        types = self.model.get("type_vocab_size")
        if isinstance(types, int):
            return types > 1
        implied = kind_of_model(str(self.model.get("model_type")))
        return (implied or kind).type_ids


def _by_number(item: tuple[str, Any]) -> int:
    return int(item[0])
