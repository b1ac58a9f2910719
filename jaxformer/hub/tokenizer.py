"""The tokenizer that users of Hugging Face know: opened by its name, called on texts, a model's inputs returned.

    tokenizer = AutoTokenizer.from_pretrained("klue/roberta-base")
    batch = tokenizer(["첫 번째 문장", "두 번째 문장은 더 길다"], padding=True)
    logits = model.apply({"params": params}, **batch).logits

Names, defaults and results are those of ``transformers``, but for what follows.

- Padded rows are NumPy arrays even with ``return_tensors=None``, since a model is called with arrays; they are int32,
  the whole numbers of JAX.
- ``token_type_ids`` are returned for models that read them: not for a RoBERTa that comes with BERT's tokenizer, which
  has one type alone, and for ALBERT, which has two.
- A ``tokenizer.json`` is taken as it is. (transformers 5 rebuilds known classes from its vocabulary, and loses what its
  normalizer says where no other file says it too.) Settings that are stated beside it do apply.
- Built from older files, the mask token of RoBERTa, XLM-RoBERTa and ALBERT takes the blank before it with it, as in the
  published ``tokenizer.json`` of these models; ALBERT leaves no comma on a number; LLaMA and Gemma begin a text with
  ``bos_token`` unless ``add_bos_token`` is false.
- What cannot be done is an error: padding to an unknown length, a special token that the vocabulary lacks.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tokenizers as hf

from jaxformer.hub.repository import Repository
from jaxformer.hub.tokenizer_backends import backend_from_json, language_processor
from jaxformer.hub.tokenizer_batch import (
    BatchEncoding,
    check_side,
    check_tensors,
    pad_rows,
    round_up,
    to_arrays,
    to_rows,
)
from jaxformer.hub.tokenizer_chat import ChatTokenizer
from jaxformer.hub.tokenizer_encode import Inputs, Plan, encode, make_plan, pad_encodings, read_inputs, type_ids
from jaxformer.hub.tokenizer_files import TokenizerParts, open_tokenizer
from jaxformer.hub.tokenizer_save import save_tokenizer
from jaxformer.schema import UserError
from jaxformer.tokenizers import FILE_NAME, Tokenizer

# Roles of the trainer's own tokenizer and the names that may hold them here, the better first.
_ROLES = {
    "pad": ("pad_token",),
    "cls": ("cls_token", "bos_token"),
    "sep": ("sep_token", "eos_token"),
    "mask": ("mask_token",),
    "eos": ("eos_token", "sep_token"),
}


_Read = Callable[[hf.Encoding], Any]
# How each key is read off a row.
_READ: dict[str, _Read] = {
    "attention_mask": lambda row: row.attention_mask,
    "special_tokens_mask": lambda row: row.special_tokens_mask,
    "offset_mapping": lambda row: row.offsets,
    "length": len,
}


class PretrainedTokenizer(ChatTokenizer):
    """A tokenizer with its special tokens, settings and chat template; made by ``AutoTokenizer.from_pretrained``.

    Calls change nothing in it, so that threads may share it. Special tokens are attributes (``pad_token``,
    ``pad_token_id`` ...); ``tokenizer.pad_token = tokenizer.eos_token`` names one.

    Attributes:
        model_max_length: the model's longest row; 10**30 if no file says.
        padding_side: where padding goes.
        truncation_side: where a row is cut.
        model_input_names: the keys that a call returns by default.
        chat_template: the chat template, or several by name; None without.
        name_or_path: what it was opened from.
    """

    def __init__(self, parts: TokenizerParts, name_or_path: str = "") -> None:
        """Takes over what ``open_tokenizer`` read."""
        super().__init__(parts.backend, parts.special, parts.extra_special)
        self.kind = parts.kind
        self.settings = parts.settings
        self.name_or_path = name_or_path
        limit = parts.settings.get("model_max_length")
        self.model_max_length: int = 10**30 if limit is None else limit
        self.padding_side = parts.settings.get("padding_side", parts.kind.padding_side)
        self.truncation_side = parts.settings.get("truncation_side", "right")
        self.clean_up_tokenization_spaces = bool(parts.settings.get("clean_up_tokenization_spaces", False))
        self.model_input_names = ["input_ids", *(["token_type_ids"] if parts.type_ids else []), "attention_mask"]
        self.chat_template = parts.chat_template
        self._without_processor: hf.Tokenizer | None = None
        self._src_lang: str | None = None
        self.tgt_lang: str | None = parts.settings.get("tgt_lang")
        if parts.kind.languages and parts.settings.get("src_lang"):
            self.src_lang = parts.settings["src_lang"]

    def __repr__(self) -> str:
        return (
            f"PretrainedTokenizer({self.name_or_path!r}, {self.kind.name}, {len(self)} tokens, "
            f"{', '.join(f'{name}={token!r}' for name, token in self.special_tokens_map.items())})"
        )

    @property
    def is_fast(self) -> bool:
        """True: it is one of the ``tokenizers`` library."""
        return True

    @property
    def src_lang(self) -> str | None:
        """The language of the texts, for mBART and NLLB: its code is put beside them."""
        return self._src_lang

    @src_lang.setter
    def src_lang(self, code: str | None) -> None:
        if code is not None:
            self.backend.post_processor = language_processor(self.backend, self.kind, code, self.eos_token)
        self._src_lang = code

    def _changed(self) -> None:
        self._without_processor = None

    def _bare(self) -> hf.Tokenizer:
        """The backend without its post-processor, copied when it is first needed."""
        if self._without_processor is None:
            copy = hf.Tokenizer.from_str(self.backend.to_str())
            copy.post_processor = None
            copy.encode_special_tokens = self.backend.encode_special_tokens
            self._without_processor = copy
        return self._without_processor

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        stride: int = 0,
        is_split_into_words: bool = False,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        truncation_side: str | None = None,
        return_tensors: str | None = None,
        return_token_type_ids: bool | None = None,
        return_attention_mask: bool | None = None,
        return_overflowing_tokens: bool = False,
        return_special_tokens_mask: bool = False,
        return_offsets_mapping: bool = False,
        return_length: bool = False,
    ) -> BatchEncoding:
        """The inputs of a model for a text, many texts, a pair or many pairs.

        Args:
            text: a text, or a list of texts or of pairs of them; lists of words with ``is_split_into_words``.
            text_pair: the second text, or one for each text.
            text_target: what the model is to write. Its ids are returned as ``labels``; given alone, as the texts are.
            add_special_tokens: put the model's special tokens around the texts.
            padding: True or ``"longest"`` to the longest row, ``"max_length"`` to ``max_length``, False not at all.
            truncation: True or ``"longest_first"``, ``"only_first"``, ``"only_second"``: which text of a pair is cut.
            max_length: longest row, special tokens included; default ``model_max_length``.
            stride: tokens that neighbouring rows of one text share, with ``return_overflowing_tokens``.
            is_split_into_words: the texts are lists of words.
            pad_to_multiple_of: round padded lengths up.
            padding_side: ``"left"`` or ``"right"``, default the tokenizer's.
            truncation_side: ``"left"`` or ``"right"``, default the tokenizer's.
            return_tensors: ``"np"`` or ``"jax"``; None for lists, but arrays where many rows were padded.
            return_token_type_ids: default whether the model reads them.
            return_attention_mask: default True.
            return_overflowing_tokens: return what was cut off as further rows, whose texts
                ``overflow_to_sample_mapping`` numbers.
            return_special_tokens_mask: 1 for special tokens and padding.
            return_offsets_mapping: the characters ``[start, end)`` that each token stands for.
            return_length: the length of each row.

        Returns:
            ``input_ids``, ``attention_mask`` and what else was asked for: int32 arrays ``[B, T]``, lists of lists, or
            one list for a single text.

        Raises:
            UserError: the texts are none, or the arguments do not go together.
        """
        check_tensors(return_tensors)
        sides = (truncation_side or self.truncation_side, padding_side or self.padding_side)
        limit = self.model_max_length if self.model_max_length < 10**20 else None
        plan = make_plan(padding, truncation, max_length, stride, pad_to_multiple_of, sides, limit)
        extras = {
            "token_type_ids": _default(return_token_type_ids, "token_type_ids" in self.model_input_names),
            "attention_mask": _default(return_attention_mask, "attention_mask" in self.model_input_names),
            "special_tokens_mask": return_special_tokens_mask,
            "offset_mapping": return_offsets_mapping,
            "length": return_length,
        }
        wanted = [key for key, value in extras.items() if value]
        if text is None and text_target is None:
            raise UserError("the tokenizer was called without a text, expected text or text_target")
        if return_offsets_mapping and not self.is_fast:
            raise UserError(f"return_offsets_mapping is true, but a {self.kind.name} has no offsets; leave it out")

        def run(given: Any, pair: Any, target: bool) -> BatchEncoding:
            inputs = read_inputs(given, pair, is_split_into_words)
            found, second = self._encode(inputs, plan, add_special_tokens, target)
            read: dict[str, _Read] = {**_READ, "token_type_ids": partial(type_ids, second=second)}
            chosen = {key: read[key] for key in wanted}
            return self._collect(found, inputs, plan, chosen, return_overflowing_tokens, return_tensors)

        if text is None:
            return run(text_target, text_pair, target=True)
        batch = run(text, text_pair, target=False)
        if text_target is not None:
            batch["labels"] = run(text_target, None, target=True)["input_ids"]
        return batch

    def _encode(
        self, inputs: Inputs, plan: Plan, add_special_tokens: bool, target: bool
    ) -> tuple[list[list[hf.Encoding]], int | None]:
        """The rows of each text, as ``tokenizer_encode.encode`` returns them; ``target``: of what is to be written."""
        processor = self._target_processor() if target else None
        return encode(self.backend, self._bare, inputs, plan, add_special_tokens, processor)

    def _target_processor(self) -> Any:
        if self.kind.languages is None:
            return None
        code = self.tgt_lang or self._src_lang
        return None if code is None else language_processor(self.backend, self.kind, code, self.eos_token)

    def _collect(
        self,
        found: list[list[hf.Encoding]],
        inputs: Inputs,
        plan: Plan,
        wanted: dict[str, _Read],
        overflowing: bool,
        tensors: str | None,
    ) -> BatchEncoding:
        """The encodings as a batch: padded, and as arrays where they were asked for or padded."""
        rows = [row for group in found for row in (group if overflowing else group[:1])]
        if plan.padding is not None:
            pad_encodings(rows, plan, self._require_pad(), self.pad_token or "")
        values: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
        for key, read in wanted.items():
            values[key] = [read(row) for row in rows]
        if overflowing:
            values["overflow_to_sample_mapping"] = [i for i, group in enumerate(found) for _ in group]
        many = inputs.batched or overflowing
        if not many and tensors is None:
            values = {key: value[0] if key != "length" else value for key, value in values.items()}
        elif tensors is not None or plan.padding is not None:
            values = to_arrays(values, tensors)
        return BatchEncoding(values, rows)

    def _require_pad(self) -> int:
        number = self.pad_token_id
        if number is None:
            raise UserError(
                "the tokenizer has no pad_token, which padding needs; name one of its tokens with "
                "tokenizer.pad_token = tokenizer.eos_token, or add one with add_special_tokens({'pad_token': '<pad>'})"
            )
        return number

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """The ``input_ids`` of a call."""
        return self(text, text_pair, **options)["input_ids"]

    def tokenize(self, text: str, pair: str | None = None, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text."""
        return self(text, pair, add_special_tokens=add_special_tokens).tokens()

    def num_special_tokens_to_add(self, pair: bool = False) -> int:
        """How many special tokens are put around a text, or around a pair."""
        return int(self.backend.num_special_tokens_to_add(pair))

    def pad(
        self,
        encoded_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        padding: bool | str = True,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        padding_side: str | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Pads what calls returned: one batch, or a list of single texts' inputs.

        Args:
            encoded_inputs: inputs by name, or a list of such.
            padding: as in a call.
            max_length: with ``"max_length"``, how long; default ``model_max_length``.
            pad_to_multiple_of: round the length up.
            padding_side: default the tokenizer's.
            return_attention_mask: default True; made where it is missing.
            return_tensors: ``"np"`` or ``"jax"``; None for arrays where many rows were padded, else lists.

        Returns:
            ``input_ids``, ``attention_mask``, ``token_type_ids`` and ``special_tokens_mask`` padded; the rest as is.

        Raises:
            UserError: the inputs have no ``input_ids``, or rows of different number.
        """
        check_tensors(return_tensors)
        sides = (self.truncation_side, check_side(padding_side or self.padding_side, "padding_side"))
        limit = self.model_max_length if self.model_max_length < 10**20 else None
        plan = make_plan(padding, False, max_length, 0, pad_to_multiple_of, sides, limit)
        rows, many = to_rows(encoded_inputs)
        if _default(return_attention_mask, "attention_mask" in self.model_input_names):
            rows.setdefault("attention_mask", [[1] * len(row) for row in rows["input_ids"]])
        if plan.padding is not None:
            length = plan.max_length if plan.padding == "max_length" else max(map(len, rows["input_ids"]), default=0)
            length = round_up(length or 0, plan.multiple)
            rows = pad_rows(rows, length, plan.padding_side, self._require_pad())
        if not many and return_tensors is None:
            return BatchEncoding({key: value[0] for key, value in rows.items()})
        if return_tensors is None and plan.padding is None:
            return BatchEncoding(rows)
        return BatchEncoding(to_arrays(rows, return_tensors))

    def files(self) -> dict[str, str | bytes]:
        """The files that hold its vocabulary, by name."""
        return {FILE_NAME: self.backend.to_str(pretty=True)}

    def save_pretrained(self, save_directory: str | Path) -> tuple[str, ...]:
        """Writes the tokenizer so that this library and ``transformers`` open it again; returns the files' paths.

        ``tokenizer.json``, ``tokenizer_config.json``, ``special_tokens_map.json``, and ``chat_template.jinja`` if there
        is a chat template. For Marian, ``source.spm``, ``target.spm`` and ``vocab.json`` in place of the first.

        Raises:
            UserError: the folder cannot be written.
        """
        return save_tokenizer(self, Path(save_directory))

    def for_training(self) -> Tokenizer:
        """The trainer's own, immutable tokenizer of the same ids, whose roles are this one's special tokens."""
        roles = {}
        for role, names in _ROLES.items():
            token = next((self.special_tokens_map[n] for n in names if n in self.special_tokens_map), None)
            if token is not None:
                roles[role] = token
        template = self.chat_template
        if isinstance(template, dict):
            template = template.get("default")
        return Tokenizer(backend_from_json(self.backend.to_str(), self.name_or_path), roles, template)


class AutoTokenizer:
    """Opens tokenizers; not to be made."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> PretrainedTokenizer:
        """Opens the tokenizer of a folder or of a repository of the Hub.

        Args:
            name_or_path: a folder, or ``owner/name`` on the Hub.
            revision: branch, tag or commit on the Hub.
            token: access token of the Hub.
            cache_dir: where downloads are kept.
            local_files_only: use what the cache has.
            **overrides: settings that go before those of ``tokenizer_config.json``: ``do_lower_case=False``,
                ``padding_side="left"``, ``pad_token="<pad>"``, ``tokenizer_class="GPT2Tokenizer"`` ... ``use_fast`` is
                taken and changes nothing.

        Raises:
            UserError: there is no tokenizer, it is broken or of a class not known here, or an override is unknown.
        """
        repository = Repository(str(name_or_path), revision, token, cache_dir, local_files_only)
        parts = open_tokenizer(repository, overrides)
        if parts.sides is None:
            return PretrainedTokenizer(parts, str(name_or_path))
        from jaxformer.hub.tokenizer_marian import MarianTokenizer  # which is one of these tokenizers

        return MarianTokenizer(parts, str(name_or_path))


def _default(value: bool | None, default: bool) -> bool:
    return default if value is None else value
