"""Options of generation, and their two parts: rules that a program is compiled for, and numbers that it takes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from pydantic import Field, ValidationError, field_validator, model_validator

from jaxformer.models.config import TransformerConfig
from jaxformer.schema import Schema, UserError, nearest

Words = tuple[tuple[int, ...], ...]


class GenerationConfig(Schema):
    """Options of ``generate``; names, and defaults except for ``top_k``, are those of ``transformers``."""

    max_new_tokens: int = Field(20, ge=0, description="maximum number of new tokens")
    min_new_tokens: int = Field(0, ge=0, description="minimum number of new tokens")
    do_sample: bool = Field(False, description="sample; else take the most probable token")
    temperature: float = Field(1.0, gt=0, description="sampling: divisor of the logits")
    top_k: int | None = Field(None, ge=1, description="sampling: from the k most probable tokens")
    top_p: float | None = Field(None, gt=0, le=1, description="sampling: from the fewest tokens with this probability")
    min_p: float | None = Field(
        None, ge=0, le=1, description="sampling: minimum probability relative to the most probable token"
    )
    typical_p: float | None = Field(
        None, gt=0, le=1, description="sampling: from locally typical tokens with this probability"
    )
    num_return_sequences: int = Field(1, ge=1, description="number of texts for each prompt")
    repetition_penalty: float = Field(1.0, gt=0, description="above 1: makes tokens of prompt and text less probable")
    presence_penalty: float = Field(0.0, description="subtracted from the logits of tokens written before")
    frequency_penalty: float = Field(0.0, description="subtracted for each time a token was written")
    no_repeat_ngram_size: int = Field(0, ge=0, description="no n-gram occurs twice")
    bad_words_ids: Words = Field((), description="forbidden sequences of tokens")
    forced_bos_token_id: int | None = Field(None, ge=0, description="first token of the text")
    forced_eos_token_id: int | None = Field(None, ge=0, description="last token of a text that reaches max_new_tokens")
    eos_token_id: tuple[int, ...] | None = Field(None, description="tokens that end a text; default: the model's")
    stop_token_ids: tuple[int, ...] = Field((), description="further tokens that end a text")
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

    @field_validator("eos_token_id", "stop_token_ids", "stop_strings", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | str) else value

    @field_validator("bad_words_ids")
    @classmethod
    def _not_empty(cls, value: Words) -> Words:
        if any(len(word) == 0 for word in value):
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
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(f"min_new_tokens is {self.min_new_tokens}, above max_new_tokens, {self.max_new_tokens}")
        if self.num_beams > 1 and self.stop_strings:
            raise ValueError("stop_strings are given with num_beams above 1, which is not built; use stop_token_ids")
        return self


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


def read_generation_config(folder: str | Path, *, prompt_length: int = 1) -> dict[str, Any]:
    """The options of a folder's ``generation_config.json`` that are known here.

    ``prompt_length`` is the number of tokens that ``max_length`` and ``min_length`` count beside the new ones.
    """
    path = Path(folder) / "generation_config.json"
    if not path.is_file():
        return {}
    found = json.loads(path.read_text(encoding="utf-8"))
    options = {key: value for key, value in found.items() if key in GenerationConfig.model_fields}
    for ours, theirs in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if ours not in options and found.get(theirs):
            options[ours] = max(int(found[theirs]) - prompt_length, 0)
    if options.get("top_k") == 0:
        options["top_k"] = None
    return {key: value for key, value in options.items() if value is not None}


class Rules(NamedTuple):
    """Rules of each step that a decoding program is compiled for, as in ``GenerationConfig``; hashable."""

    end_ids: tuple[int, ...] = ()  # all tokens that end a text
    pad_id: int = 0
    sample: bool = False
    top_k: int | None = None
    no_repeat_ngram_size: int = 0
    bad_words: Words = ()
    forced_bos: int | None = None
    forced_eos: int | None = None

    @property
    def needs_history(self) -> bool:
        """True if a rule reads the tokens so far."""
        return bool(self.no_repeat_ngram_size or any(len(word) > 1 for word in self.bad_words))


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
    ends = options.eos_token_id
    if ends is None:
        ends = () if model.eos_token_id is None else (model.eos_token_id,)
    ends = (*ends, *options.stop_token_ids)
    pad = next((i for i in (options.pad_token_id, model.pad_token_id, *ends) if i is not None), 0)
    if (largest := max((*ends, pad))) >= model.vocabulary:
        raise UserError(f"token {largest} is given to end or pad a text, expected an id below {model.vocabulary}")
    ended = {(end,) for end in ends}
    words = tuple(word for word in options.bad_words_ids if word not in ended)
    rules = Rules(
        tuple(dict.fromkeys(ends)),
        pad,
        options.do_sample,
        options.top_k if options.do_sample else None,
        options.no_repeat_ngram_size,
        words,
        options.forced_bos_token_id,
        options.forced_eos_token_id,
    )
    numbers: dict[str, Any] = {}
    for name, neutral in _NEUTRAL.items():
        value = getattr(options, name)
        if value not in (None, neutral) and (options.do_sample or name not in _OF_SAMPLING):
            numbers[name] = jnp.int32(value) if isinstance(neutral, int) else jnp.float32(value)
    return rules, numbers
