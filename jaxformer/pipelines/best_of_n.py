"""A file of prompts to a file of the best answers, which ``instruction`` learns: a line out for each line in."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.data.formats import Row
from jaxformer.data.sources import in_validation
from jaxformer.generation import GenerationConfig, prepare
from jaxformer.generation.best_of_n import Drawn, choose, draw, prompt_seed
from jaxformer.generation.options import parse_options
from jaxformer.hub.repository import model_files
from jaxformer.models import Decoder, EncoderDecoder
from jaxformer.pipelines.base import NoColumnError
from jaxformer.pipelines.lines import Line, check_file, read_lines
from jaxformer.pipelines.open import Opened, open_model
from jaxformer.pipelines.resumable import Done, describe_file, record_line, write_lines
from jaxformer.schema import UserError
from jaxformer.tasks.chat_template import Message
from jaxformer.tasks.records import BadRow, rounded
from jaxformer.tasks.responses import ResponseEncoder
from jaxformer.tasks.row_readers import PROMPT_COLUMNS, PromptReader
from jaxformer.tokenizers import encode, find_special, prefix_ids
from jaxformer.training.rewards import Reward, Sample, describe_reward, open_reward

# What a model's own settings may not say: how much is written, and by search.
NOT_BROUGHT = frozenset(
    (
        "max_new_tokens",
        "min_new_tokens",
        "do_sample",
        "num_return_sequences",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "early_stopping",
    )
)
WINDOW = 4  # batches, whose prompts are sorted by length together


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    Attributes:
        n: texts for each prompt.
        seed: of the draws; a text depends on it, the line and its number of the ``n`` alone.
        prompt_column: the column with the prompt; None: the first that is one.
        plain: prompts are texts also where there is a chat template.
        others: write the other texts too.
        keep_truncated: texts that did not end may win.
        validation_fraction: part of the rows that a run with this ``data.validation_fraction`` holds out.
        batch_size: texts at once.
        options: of ``generate``.
    """

    n: int = 8
    seed: int = 0
    prompt_column: str | None = None
    plain: bool = False
    others: bool = False
    keep_truncated: bool = False
    validation_fraction: float = 0.0
    batch_size: int = 64
    options: Mapping[str, Any] | None = None


class Prompt(NamedTuple):
    """A prompt: the row it comes from, what it says, as text, and its ids."""

    row: Row
    said: str | list[Message]
    text: str
    ids: list[int]


class BestOfN:
    """Draws ``n`` texts for each prompt and keeps the one with the highest score.

    One that did not end within ``max_new_tokens`` or says nothing does not win: learning it would teach to stop in the
    middle. Where all are such the line is an error.

    Args:
        model: a run's folder, a folder in the Hugging Face format, or a name on the Hub.
        reward: as ``training.rewards.open_reward`` takes it.
        settings: the others.
        dtype: of the model's parameters and computation.

    Raises:
        UserError: if one of them does not fit.
    """

    def __init__(self, model: str, reward: str, settings: Settings, dtype: str | None = None) -> None:
        if settings.n < 1 or settings.batch_size < 1:
            raise UserError(f"n is {settings.n} and the batch size {settings.batch_size}, expected 1 or more")
        given = dict(settings.options or {})
        weights, self._cache_dtype = given.pop("weights", None), given.pop("cache_dtype", None)
        opened = open_model(model, dtype=dtype)
        if not isinstance(opened.model, Decoder | EncoderDecoder):
            raise UserError(f"{model} writes no text, expected a language model")
        self.name, self.reward_name, self.settings, self._dtype = model, reward, settings, dtype
        self.model, self.tokenizer = opened.model, opened.tokenizer
        self.params = prepare(opened.model, opened.params, weights)
        self.config = _generation_config(opened, given, settings.n)
        self.own_tokenizer = opened.tokenizer
        self.encoder = ResponseEncoder(self.own_tokenizer, None, self.two_sided)
        self._reader = PromptReader({}, as_messages=self.encoder.writer is not None and not settings.plain)
        self.reward: Reward = open_reward(reward, self.own_tokenizer, None, settings.batch_size)

    @property
    def two_sided(self) -> bool:
        """Whether the prompt is read by an encoder."""
        return isinstance(self.model, EncoderDecoder)

    @property
    def longest(self) -> int:
        """Tokens of a prompt that leave room for ``max_new_tokens``."""
        own = int(self.model.config.max_length)
        new = self.config.max_new_tokens
        room = own if self.two_sided else own - new
        return room if self.reward.longest is None else min(room, self.reward.longest - new)

    @property
    def batch(self) -> int:
        """Prompts at once."""
        return max(1, self.settings.batch_size // self.settings.n)

    def describe(self, file: Path) -> dict[str, Any]:
        """What an output belongs to."""
        s = self.settings
        return {
            "command": "best-of-n",
            "model": self.name,
            "model_files": model_files(self.name),
            **describe_reward(self.reward_name),
            "n": s.n,
            "seed": s.seed,
            "dtype": self._dtype,
            "options": dict(sorted((s.options or {}).items())),
            "prompt_column": s.prompt_column,
            "plain": s.plain,
            "others": s.others,
            "keep_truncated": s.keep_truncated,
            "validation_fraction": s.validation_fraction,
            **describe_file(file),
        }

    def read(self, file: Path) -> Iterator[Line]:
        """The prompts of a file, each with its row; a line that is none has its error in place."""
        column = self.settings.prompt_column or "prompt"
        for count, line in enumerate(read_lines(file, column, self._take), 1):
            if isinstance(line.item, UserError):
                yield line
                continue
            # Rows are called as the readers of training data call them: those of a table by their number.
            number = line.number if "json" in check_file(file) else count
            record, said = line.item
            row = Row(record, f"{file.name}:{number}", f"{file}, line {line.number}")
            try:
                yield line._replace(item=self._prompt(row, said))
            except BadRow as reason:
                yield line._replace(item=UserError(f"line {line.number}: {reason}"))

    def _take(self, record: dict[str, Any]) -> tuple[dict[str, Any], str | list[Message]]:
        name = self.settings.prompt_column
        if not any(key in record for key in (PROMPT_COLUMNS if name is None else [name])):
            wanted = "prompt" if name is None else f"column {name!r}"
            found = ", ".join(map(str, record)) or "none"
            raise NoColumnError(f"there is no {wanted}, only the columns {found}; --prompt-column names another")
        try:
            return record, self._reader.read(record if name is None else {"prompt": record[name]})
        except BadRow as reason:
            raise UserError(str(reason)) from None

    def _prompt(self, row: Row, said: str | list[Message]) -> Prompt:
        """The prompt as generation meets it.

        Raises:
            BadRow: if it is held out, is no dialogue, or does not fit.
        """
        if in_validation(row.name, self.settings.validation_fraction):
            raise BadRow("it is held out for validation (--validation-fraction)")
        if isinstance(said, str):
            text, ids = said, self.encoder.prompts([said])[0]
        else:
            if self.encoder.writer is None:
                raise BadRow("it is a dialogue, and the model's tokenizer has no chat template to write it")
            ids = self.encoder.chat_prompt(said)
            text = self.encoder.writer.prompt(said)
        if not 0 < len(ids) <= self.longest:
            raise BadRow(
                f"the prompt has {len(ids)} tokens, expected at most the {max(self.longest, 0)} that "
                f"max_new_tokens={self.config.max_new_tokens} leaves of what is read"
            )
        return Prompt(row, said, text, ids)

    def answers(self, window: Sequence[Line]) -> list[bytes]:
        """The lines to write for some lines of the input."""
        prompts = [line for line in window if isinstance(line.item, Prompt)]
        drawn = draw(
            self.model,
            self.params,
            self.tokenizer,
            [line.item.ids for line in prompts],
            [prompt_seed(self.settings.seed, line.number) for line in prompts],
            self.settings.n,
            self.config,
            self.batch,
            self._cache_dtype,
        )
        samples = [self._sample(line.item, text) for line, texts in zip(prompts, drawn, strict=True) for text in texts]
        scores = self.reward(samples).reshape(len(prompts), self.settings.n)
        good = iter([self._record(*found) for found in zip(prompts, drawn, scores, strict=True)])
        return [
            record_line({"error": str(line.item)} if isinstance(line.item, UserError) else next(good))
            for line in window
        ]

    def _sample(self, prompt: Prompt, drawn: Drawn) -> Sample:
        """What the reward reads: one text, ended as texts are that it was trained on."""
        ids, response, end = prompt.ids, drawn.ids, find_special(self.own_tokenizer, "eos")
        if self.two_sided:
            ids = [*prefix_ids(self.own_tokenizer), *ids[:-1]]
        if drawn.ended and self.config.stop_strings and response[-1] != end and end is not None:
            response = [*encode(self.own_tokenizer, drawn.text), end]
        return Sample(prompt.row, ids, response, drawn.ended, prompt.text, drawn.text)

    def _record(self, line: Line, texts: Sequence[Drawn], scores: np.ndarray) -> dict[str, Any]:
        """A row for ``instruction``, or an error where no text is worth learning."""
        truncated = sum(not text.ended for text in texts)
        facts: dict[str, Any] = {"scores": rounded(scores), "truncated": truncated}
        if self.settings.others:
            facts["completions"] = [text.text for text in texts]
        may_win = [bool(text.text.strip()) and (text.ended or self.settings.keep_truncated) for text in texts]
        best = choose(scores.tolist(), may_win)
        if best is None:
            tokens = self.config.max_new_tokens
            why = f"none of {len(texts)} texts ended within {tokens} tokens, or all that did are empty"
            return {"error": f"line {line.number}: {why}", **facts}
        prompt: Prompt = line.item
        completion: Any = texts[best].text
        if not isinstance(prompt.said, str):
            # The answers that the dialogue had before are no part of what is to be learned.
            completion = [{"role": "assistant", "content": completion.strip()}]
        score, mean = rounded(np.array([scores[best], np.mean(scores, dtype=np.float64)]))
        return {"prompt": prompt.said, "completion": completion, "score": score, "mean_score": mean, **facts}


def _generation_config(opened: Opened, given: Mapping[str, Any], n: int) -> GenerationConfig:
    """The options of ``generate``: those given, over what the model brings, over draws at a temperature of 1.

    Raises:
        UserError: if one is unknown, or all texts would be the same.
    """
    for name, instead in (("num_return_sequences", "--n"), ("num_beams", "texts that are drawn"), ("seed", "--seed")):
        if name in given:
            raise UserError(f"{name} is given, expected {instead}: leave it out")
    brought = {name: value for name, value in opened.generation.items() if name not in NOT_BROUGHT}
    config = parse_options({"max_new_tokens": 128, **brought, "do_sample": True, **given})
    if n > 1 and not config.do_sample:
        raise UserError(f"do_sample is false and n is {n}, expected n=1 without draws: all {n} texts would be the same")
    if config.max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {config.max_new_tokens}, expected at least 1")
    if config.pad_token_id is None:
        config = config.model_copy(update={"pad_token_id": opened.tokenizer.pad_token_id})
    return config


def best_of_n(
    maker: BestOfN, file: Path, out: Path, progress: Callable[[int, int], None] = lambda lines, size: None
) -> Done:
    """Writes the best answers of a file of prompts, or goes on with an output that a crash left, to the same bytes.

    Args:
        maker: model, reward and settings.
        file: prompts: lines of JSON, ``.csv``, ``.tsv`` or ``.txt``, also with ``.gz``.
        out: the file to write; beside it stands ``OUT.about.json``, which says what it belongs to.
        progress: is told the lines and the bytes of the input that are done.

    Raises:
        UserError: as ``resumable.write_lines``.
    """
    check_file(file)  # before it is described
    window = WINDOW * maker.batch
    about = maker.describe(file)
    return write_lines(file, out, about, lambda: maker.read(file), maker.answers, window, progress, whole_windows=True)
