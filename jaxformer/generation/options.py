"""Options of generation, and their two parts: rules that a program is compiled for, and numbers that it takes."""

import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from jaxformer.models.config import TokenId, TransformerConfig
from jaxformer.schema import Schema, UserError, nearest

Ids = tuple[TokenId, ...]
Words = tuple[Ids, ...]
Biases = tuple[tuple[Ids, float], ...]


class SettingsWarning(UserWarning):
    """Settings of a model that are not known here and change its texts."""


class GenerationConfig(Schema):
    """Options of ``generate``; names, and defaults except for ``top_k``, are those of ``transformers``."""

    max_new_tokens: int = Field(20, ge=0, description="maximum number of new tokens")
    min_new_tokens: int = Field(0, ge=0, description="minimum number of new tokens")
    max_length: int | None = Field(
        None, ge=1, description="in place of max_new_tokens: length with the prompt or start token"
    )
    min_length: int | None = Field(
        None, ge=0, description="in place of min_new_tokens: length with the prompt or start token"
    )
    do_sample: bool = Field(False, description="sample; else take the most probable token")
    temperature: float = Field(1.0, ge=0, description="sampling: divisor of the logits")
    top_k: int | None = Field(None, ge=1, description="sampling: from the k most probable tokens")
    top_p: float | None = Field(None, ge=0, le=1, description="sampling: from the fewest tokens with this probability")
    min_p: float | None = Field(
        None, ge=0, le=1, description="sampling: minimum probability relative to the most probable token"
    )
    typical_p: float | None = Field(
        None, ge=0, le=1, description="sampling: from locally typical tokens with this probability"
    )
    num_return_sequences: int = Field(1, ge=1, description="number of texts for each prompt")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1: makes tokens of prompt and text less probable")
    presence_penalty: float = Field(0.0, description="subtracted from the logits of tokens written before")
    frequency_penalty: float = Field(0.0, description="subtracted for each time a token was written")
    no_repeat_ngram_size: int = Field(0, ge=0, description="no n-gram occurs twice")
    bad_words_ids: Words = Field((), description="forbidden sequences of tokens")
    forced_bos_token_id: int | None = Field(None, ge=0, description="first token of the text")
    forced_eos_token_id: Ids | None = Field(None, description="last token of a text that reaches max_new_tokens")
    suppress_tokens: Ids = Field((), description="tokens that are never written")
    begin_suppress_tokens: Ids = Field((), description="tokens that do not begin a text")
    sequence_bias: Biases = Field(
        (), description="sequences of tokens, each with a number added to the logit of its last token after the others"
    )
    exponential_decay_length_penalty: tuple[int, float] | None = Field(
        None, description="from this number of new tokens on ends become more probable, by this factor for each token"
    )
    eos_token_id: Ids | None = Field(None, description="tokens that end a text; default: the model's")
    stop_token_ids: Ids = Field((), description="further tokens that end a text")
    stop_strings: tuple[str, ...] = Field((), description="strings that end a text; need the tokenizer")
    bos_token_id: int | None = Field(None, ge=0, description="replaces an empty prompt; default: the model's")
    pad_token_id: int | None = Field(None, ge=0, description="after the end of a text; default: the model's, else eos")
    decoder_start_token_id: int | None = Field(None, ge=0, description="encoder-decoder: start token of the target")
    num_beams: int = Field(1, ge=1, description="number of hypotheses of beam search; 1: no beam search")
    num_beam_groups: int = Field(1, ge=1, description="number of groups of diverse beam search")
    diversity_penalty: float = Field(0.0, ge=0, description="groups: penalty of a token that another group just took")
    length_penalty: float = Field(1.0, description="beams: scores are divided by length to this power")
    early_stopping: bool | Literal["never"] = Field(
        False, description="beams: True stops with num_beams finished, False by a heuristic, never when none can win"
    )

    @field_validator("eos_token_id", "stop_token_ids", "stop_strings", "forced_eos_token_id", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | str) else value

    @field_validator("sequence_bias", mode="before")
    @classmethod
    def _pairs(cls, value: Any) -> Any:
        return tuple(value.items()) if isinstance(value, Mapping) else value

    @field_validator("bad_words_ids", "sequence_bias")
    @classmethod
    def _not_empty(cls, value: Any, info: ValidationInfo) -> Any:
        words = value if info.field_name == "bad_words_ids" else [word for word, _ in value]
        if any(len(word) == 0 for word in words):
            raise ValueError("an empty sequence is among them, expected at least one token in each")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> "GenerationConfig":
        if self.num_beams % self.num_beam_groups:
            raise ValueError(
                f"num_beams is {self.num_beams} and num_beam_groups {self.num_beam_groups}, expected a multiple"
            )
        if self.num_beams > 1 and self.do_sample:
            raise ValueError("do_sample is true with num_beams above 1, expected one of them; set num_beams to 1")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences} with num_beams {self.num_beams}, expected no "
                "more than there are beams"
            )
        if self.num_beams == 1 and not self.do_sample and self.num_return_sequences > 1:
            raise ValueError(
                f"num_return_sequences is {self.num_return_sequences} without do_sample or num_beams, expected 1: the "
                "texts would all be the same"
            )
        if self.diversity_penalty and self.num_beam_groups == 1:
            raise ValueError("diversity_penalty is given with num_beam_groups 1, expected at least 2 groups")
        for name in ("temperature", "typical_p"):
            if self.do_sample and getattr(self, name) == 0:
                raise ValueError(f"{name} is 0 with do_sample, expected a number above it; or set do_sample to false")
        if self.max_length is None and self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens is {self.min_new_tokens}, above max_new_tokens, {self.max_new_tokens}")
        if self.num_beams > 1 and self.stop_strings:
            raise ValueError("stop_strings are given with num_beams above 1, which is not built; use stop_token_ids")
        return self

    def after(self, length: int) -> "GenerationConfig":
        """The options with ``max_length`` and ``min_length`` as numbers of new tokens after that many others."""
        found: dict[str, Any] = {"max_length": None, "min_length": None}
        for new, whole in (("max_new_tokens", self.max_length), ("min_new_tokens", self.min_length)):
            if whole is not None and new not in self.model_fields_set:
                found[new] = max(whole - length, 0)
        return self.model_copy(update=found)


def options_of(config: GenerationConfig | None, options: Mapping[str, Any]) -> GenerationConfig:
    """The options of a call, which are given as a configuration or one by one, else a ``UserError``."""
    if config is not None and options:
        raise UserError(f"config and {', '.join(options)} are given, expected one of them")
    return parse_options(options) if config is None else config


def parse_options(options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> GenerationConfig:
    """The options, checked; ``defaults`` are of those that are not given.

    Raises:
        UserError: if one is unknown or makes no sense.
    """
    for name in options:
        if name not in GenerationConfig.model_fields:
            raise UserError(f"{name!r} is no option of generate{nearest(name, GenerationConfig.model_fields)}")
    given = {name: value for name, value in {**(defaults or {}), **options}.items() if value is not None}
    try:
        return GenerationConfig(**given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        if where:
            said = f"{where}: {said}, got {first['input']!r}"
        raise UserError(f"generate: {said}") from None


# Settings that change no text, and values with which others change none.
_WITHOUT_EFFECT = {
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "prefill_chunk_size", "low_memory"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
    *("assistant_early_exit", "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type", "compile_config", "disable_compile"),
    *("remove_invalid_values", "transformers_version"),
}
_NEUTRAL_VALUES = {"encoder_repetition_penalty": 1, "guidance_scale": 1}


def read_settings(settings: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The options of ``generate`` among the settings of a ``generation_config.json``.

    Settings that are not known here and change the text are said in a warning. ``origin`` is the file, for messages.

    Raises:
        UserError: if a value makes no sense.
    """
    options: dict[str, Any] = {}
    unknown = []
    for key, value in settings.items():
        if key.endswith("_token_id"):
            # -1 stands for none.
            several = value if isinstance(value, list) else [value]
            several = [id for id in several if not isinstance(id, int) or id >= 0]
            value = (several if isinstance(value, list) else several[0]) if several else None
        if value is None or (key == "top_k" and value == 0):
            continue
        if key in GenerationConfig.model_fields:
            options[key] = value
        elif key not in _WITHOUT_EFFECT and value and value != _NEUTRAL_VALUES.get(key):
            unknown.append(f"{key}: {value!r:.40}")
    if unknown:
        warnings.warn(
            f"{origin} has {', '.join(unknown)}, which is not known here: texts may differ from those of transformers",
            SettingsWarning,
            stacklevel=3,
        )
    # Contradictions are refused where texts are written: the caller's options may resolve them.
    try:
        GenerationConfig(**options)
    except ValidationError as error:
        for wrong in error.errors():
            if wrong["loc"]:
                said = wrong["msg"].removeprefix("Value error, ")
                raise UserError(
                    f"{origin}: {'.'.join(map(str, wrong['loc']))}: {said}, got {wrong['input']!r}"
                ) from None
    # Of two limits the number of new tokens counts.
    for new, whole in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if new in options:
            options.pop(whole, None)
    return options


class Rules(NamedTuple):
    """Rules of each step that a decoding program is compiled for, as in ``GenerationConfig``; hashable."""

    end_ids: tuple[int, ...] = ()  # all tokens that end a text
    pad_id: int = 0
    sample: bool = False
    top_k: int | None = None
    no_repeat_ngram_size: int = 0
    bad_words: Words = ()
    forced_bos: Ids | None = None
    forced_eos: Ids | None = None
    suppress: Ids = ()
    begin_suppress: Ids = ()
    sequence_bias: Biases = ()
    exact: bool = False  # numerics of the model

    @property
    def needs_history(self) -> bool:
        """True if a rule reads the tokens so far."""
        words = (*self.bad_words, *(word for word, _ in self.sequence_bias))
        return bool(self.no_repeat_ngram_size or any(len(word) > 1 for word in words))


# Numbers with these values change nothing and are left out of the program.
_NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_new_tokens": 0,
}
_OF_SAMPLING = ("temperature", "top_p", "min_p", "typical_p")


def compile_options(options: GenerationConfig, model: TransformerConfig) -> tuple[Rules, dict[str, Any]]:
    """Splits the options into rules, for which programs are compiled, and numbers, which compile nothing."""
    ends = model.end_ids if options.eos_token_id is None else options.eos_token_id
    ends = (*ends, *options.stop_token_ids)
    pad = next((i for i in (options.pad_token_id, model.special_id("pad_token_id"), *ends) if i is not None), 0)
    if (largest := max((*ends, pad))) >= model.vocabulary:
        raise UserError(f"token {largest} is given to end or pad a text, expected an id below {model.vocabulary}")
    beyond = [i for word in (*(word for word, _ in options.sequence_bias), *options.bad_words_ids) for i in word]
    if max(beyond, default=0) >= model.vocabulary:
        raise UserError(
            f"token {max(beyond)} is in sequence_bias or bad_words_ids, expected ids below {model.vocabulary}"
        )
    ended = {(end,) for end in ends}
    words = tuple(word for word in options.bad_words_ids if word not in ended)
    rules = Rules(
        tuple(dict.fromkeys(ends)),
        pad,
        options.do_sample,
        options.top_k if options.do_sample else None,
        options.no_repeat_ngram_size,
        words,
        None if options.forced_bos_token_id is None else (options.forced_bos_token_id,),
        options.forced_eos_token_id,
        options.suppress_tokens,
        options.begin_suppress_tokens,
        options.sequence_bias,
        model.exact,
    )
    numbers: dict[str, Any] = {}
    for name, neutral in _NEUTRAL.items():
        value = getattr(options, name)
        if value not in (None, neutral) and (options.do_sample or name not in _OF_SAMPLING):
            numbers[name] = jnp.int32(value) if isinstance(neutral, int) else jnp.float32(value)
    if "top_p" in numbers:
        # Of no probability the most probable token is left.
        numbers["top_p"] = jnp.maximum(numbers["top_p"], np.finfo(np.float32).tiny)
    if options.exponential_decay_length_penalty is not None:
        start, factor = options.exponential_decay_length_penalty
        numbers |= {"decay_start": jnp.int32(start), "decay_factor": jnp.float32(factor)}
    return rules, numbers
