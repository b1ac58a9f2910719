"""Best-of-n: the best of ``n`` answers to each prompt of a file, as training data for ``task.type: instruction``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.data.formats import Row
from jaxformer.data.lines import Line, Quoting
from jaxformer.data.sources import in_validation
from jaxformer.generation import GenerationConfig, prepare
from jaxformer.generation.best_of_n import Drawn, choose, draw, prompt_seed
from jaxformer.generation.options import parse_options
from jaxformer.hub.repository import model_files
from jaxformer.models import Decoder, EncoderDecoder
from jaxformer.pipelines.opened_model import Opened, open_model
from jaxformer.pipelines.resumable import Done, MissingColumnError, write_lines
from jaxformer.schema import UserError
from jaxformer.tasks.chat_template import Message
from jaxformer.tasks.records import BadRow, rounded
from jaxformer.tasks.responses import ResponseEncoder
from jaxformer.tasks.row_readers import PROMPT_COLUMNS, VARIABLES, PromptReader
from jaxformer.tokenizers import encode, find_special, frame_of
from jaxformer.training.rewards import Reward, Sample, describe_reward, open_reward

# Options that are not taken from the model's generation_config.json: length and search.
LENGTH = {"max_new_tokens", "min_new_tokens", "max_length", "min_length"}
SEARCH = {"do_sample", "num_return_sequences", "num_beams", "num_beam_groups", "diversity_penalty", "early_stopping"}
WINDOW = 4  # batches, whose prompts are sorted by length together


@dataclass(frozen=True)
class Settings:
    """Settings of best-of-n."""

    n: int = 8  # texts for each prompt
    seed: int = 0  # of the draws; a text depends on it, the line and its number among the ``n`` alone
    prompt_column: str | None = None  # None: the first known one
    plain: bool = False  # prompts are plain text even if the tokenizer has a chat template
    others: bool = False  # also write the texts that did not win
    keep_truncated: bool = False  # texts that did not end may win
    validation_fraction: float = 0.0  # leave out the rows that a run with this ``data.validation_fraction`` holds out
    batch_size: int = 64  # texts in a batch
    options: Mapping[str, Any] = field(default_factory=dict)  # of ``generate``


class Prompt(NamedTuple):
    """A prompt: its line, the row it comes from, its text or messages, its text as the model reads it, and its ids."""

    line: int
    row: Row
    said: str | list[Message]
    text: str
    ids: list[int]


class BestOfN:
    """Draws ``n`` texts for each prompt and keeps the one with the highest score.

    A text that did not end within ``max_new_tokens``, or is empty, cannot win: a model trained on it would learn to
    stop in the middle. A prompt none of whose texts can win is an error.

    Args:
        model: a run's folder, a folder in the Hugging Face format, or a name on the Hub.
        reward: as ``training.rewards.open_reward`` takes it.
        settings: the others.
        dtype: of the model's parameters and computation.
        numerics: of the model; default: the run's.

    Raises:
        UserError: if one of them does not fit.
    """

    def __init__(
        self, model: str, reward: str, settings: Settings, dtype: str | None = None, numerics: str | None = None
    ) -> None:
        if settings.n < 1 or settings.batch_size < 1:
            raise UserError(f"n is {settings.n} and the batch size {settings.batch_size}, expected 1 or more")
        given = dict(settings.options)
        weights, self._cache_dtype = given.pop("weights", None), given.pop("cache_dtype", None)
        opened = open_model(model, dtype=dtype, numerics=numerics)
        if not isinstance(opened.model, Decoder | EncoderDecoder):
            raise UserError(f"{model} generates no text, expected a language model")
        self.name, self.reward_name, self.settings, self._dtype = model, reward, settings, dtype
        self.model, self.tokenizer = opened.model, opened.tokenizer
        self.params = prepare(opened.model, opened.params, weights)
        self.config = _generation_config(opened, given, settings.n)
        self.two_sided = isinstance(self.model, EncoderDecoder)
        self.encoder = ResponseEncoder(self.tokenizer, None, self.two_sided)
        self._reader = PromptReader({}, as_messages=self.encoder.writer is not None and not settings.plain)
        self.reward: Reward = open_reward(reward, self.tokenizer, None, settings.batch_size)
        self.batch = max(1, settings.batch_size // settings.n)  # prompts

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt that leaves room for ``max_new_tokens``."""
        own = int(self.model.config.max_length)
        new = self.config.max_new_tokens
        room = own if self.two_sided else own - new
        return room if self.reward.longest is None else min(room, self.reward.longest - new)

    def describe(self) -> dict[str, Any]:
        """The settings that must be the same when an output is resumed."""
        settings = asdict(self.settings)
        del settings["batch_size"]
        return {
            "command": "best-of-n",
            "model": self.name,
            "model_files": model_files(self.name),
            **describe_reward(self.reward_name),
            "dtype": self._dtype,
            **({"numerics": "exact"} if self.model.config.exact else {}),
            **settings,
            "options": dict(sorted(settings["options"].items())),
        }

    def read(self, line: Line, file: Path) -> Prompt:
        """The prompt of a line; a ``UserError`` if it has none, or one that does not fit."""
        name = self.settings.prompt_column
        record = {name or "prompt": line.value} if isinstance(line.value, str) else line.value
        assert isinstance(record, dict)
        if not any(key in record for key in (PROMPT_COLUMNS if name is None else [name])):
            wanted = "prompt" if name is None else f"column {name!r}"
            found = ", ".join(map(str, record)) or "none"
            raise MissingColumnError(f"there is no {wanted}, only the columns {found}; --prompt-column names another")
        # The name of the row in training data, so that the same rows are held out.
        row = Row(record, f"{file.name}:{line.row}", f"{file}, line {line.number}")
        if in_validation(row.name, self.settings.validation_fraction):
            raise UserError("it is held out for validation (--validation-fraction)")
        try:
            said = self._reader.read(record if name is None else {"prompt": record[name]})
            if isinstance(said, str):
                text, ids = said, self.encoder.prompts([said])[0]
            elif self.encoder.writer is None:
                raise UserError("it is a dialogue, and the model's tokenizer has no chat template to write it")
            else:
                variables = self._reader.variables(row)
                ids = self.encoder.chat_prompt(said, variables)
                text = self.encoder.writer.prompt(said, variables)
        except BadRow as reason:
            raise UserError(str(reason)) from None
        if not 0 < len(ids) <= self.longest:
            raise UserError(
                f"the prompt has {len(ids)} tokens, expected 1 to {max(self.longest, 0)}, which leaves room for "
                f"max_new_tokens={self.config.max_new_tokens}"
            )
        return Prompt(line.number, row, said, text, ids)

    def answer(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The record for each prompt."""
        drawn = draw(
            self.model,
            self.params,
            self.tokenizer,
            [prompt.ids for prompt in prompts],
            [prompt_seed(self.settings.seed, prompt.line) for prompt in prompts],
            self.settings.n,
            self.config,
            self.batch,
            self._cache_dtype,
        )
        samples = [self._sample(prompt, text) for prompt, texts in zip(prompts, drawn, strict=True) for text in texts]
        scores = self.reward(samples).reshape(len(prompts), self.settings.n)
        return [self._record(*found) for found in zip(prompts, drawn, scores, strict=True)]

    def _sample(self, prompt: Prompt, drawn: Drawn) -> Sample:
        """The input of the reward: one text, ended like the texts that it was trained on."""
        ids, response, end = prompt.ids, drawn.ids, find_special(self.tokenizer, "eos")
        after = frame_of(self.tokenizer).after if self.two_sided else []
        ids = ids[: len(ids) - len(after)]
        if drawn.ended and self.config.stop_strings and response[-1] != end and end is not None:
            response = [*encode(self.tokenizer, drawn.text), end]
        if drawn.ended and after[:1] == response[-1:]:
            response = [*response, *after[1:]]  # mBART's language code
        return Sample(prompt.row, ids, response, drawn.ended, prompt.text, drawn.text)

    def _record(self, prompt: Prompt, texts: Sequence[Drawn], scores: np.ndarray) -> dict[str, Any]:
        """A row for ``instruction``, or an error where no text can win."""
        truncated = sum(not text.ended for text in texts)
        facts: dict[str, Any] = {"scores": rounded(scores), "truncated": truncated}
        if self.settings.others:
            facts["completions"] = [text.text for text in texts]
        may_win = [bool(text.text.strip()) and (text.ended or self.settings.keep_truncated) for text in texts]
        best = choose(scores.tolist(), may_win)
        if best is None:
            tokens = self.config.max_new_tokens
            why = f"none of {len(texts)} texts ended within {tokens} tokens, or all that did are empty"
            return {"error": f"line {prompt.line}: {why}", **facts}
        completion: Any = texts[best].text
        if not isinstance(prompt.said, str):
            # The dialogue's earlier answers are part of the prompt.
            completion = [{"role": "assistant", "content": completion.strip()}]
            facts |= {name: prompt.row[name] for name in VARIABLES if prompt.row.get(name) is not None}
        score, mean = rounded(np.array([scores[best], np.mean(scores, dtype=np.float64)]))
        return {"prompt": prompt.said, "completion": completion, "score": score, "mean_score": mean, **facts}


def _generation_config(opened: Opened, given: Mapping[str, Any], n: int) -> GenerationConfig:
    """The options of ``generate``: those given, over what the model brings, over draws at a temperature of 1."""
    for name, instead in (("num_return_sequences", "--n"), ("num_beams", "texts that are drawn"), ("seed", "--seed")):
        if name in given:
            raise UserError(f"{name} is given, expected {instead}: leave it out")
    brought = {name: value for name, value in opened.generation.items() if name not in LENGTH | SEARCH}
    config = parse_options({"max_new_tokens": 128, **brought, "do_sample": True, **given})
    if n > 1 and not config.do_sample:
        raise UserError(f"do_sample is false and n is {n}, expected n=1 without draws: all {n} texts would be the same")
    if config.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {config.max_new_tokens}, expected at least 1")
    if config.pad_token_id is None:
        config = config.model_copy(update={"pad_token_id": opened.tokenizer.pad_token_id})
    return config


def best_of_n(
    maker: BestOfN,
    file: Path,
    out: Path,
    progress: Callable[[int, int], None] = lambda lines, size: None,
    quoting: Quoting = "auto",
) -> Done:
    """Writes the best answer to each prompt of a file by ``resumable.write_lines``, resumed to the same bytes."""
    read = partial(maker.read, file=file)
    settings = maker.describe() | ({} if quoting == "auto" else {"quoting": quoting})
    return write_lines(file, out, settings, read, maker.answer, WINDOW * maker.batch, progress, quoting)
