"""What the objectives on prompts and responses share: the keys of their data, and what they are bound to."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import Field

from jaxformer.models.config import Architecture
from jaxformer.tasks.bad_rows import BadRow, BadRows, Tally
from jaxformer.tasks.base import Task, TaskSchema
from jaxformer.tasks.records import Record
from jaxformer.tasks.responses import ResponseEncoder
from jaxformer.tokenizers import PreTrainedTokenizer, Role


class ResponseConfig(TaskSchema):
    """Keys of the objectives whose rows hold prompts, responses or dialogues."""

    reads = "records"
    scored = False

    columns: dict[str, str] = Field(
        {}, description="the data's names of a row's columns, where they differ: {prompt: question}"
    )
    chat_template: str | None = Field(
        None, description="messages: a Jinja text, or human_assistant; default: the tokenizer's"
    )
    bad_rows: BadRows = Field("report", description="rows that cannot be used: report: left out and named, error: stop")

    @property
    def dialogue_template(self) -> str | None:
        """The chat template that the configuration names."""
        return self.chat_template

    def parts(self, record: Record) -> Sequence[Any]:
        """What a record says, each part a text or messages.

        Raises:
            BadRow: if it cannot be used.
        """
        raise NotImplementedError

    def texts(self, record: Record) -> list[str]:
        """The texts of a record, none of a row that cannot be used; what a tokenizer is trained on.

        Raises:
            UserError: if such a row is to be an error.
        """
        try:
            parts = self.parts(record)
        except BadRow as reason:
            Tally(self.bad_rows).leave_out(record, str(reason))
            return []
        texts = [[part] if isinstance(part, str) else [_content(message) for message in part] for part in parts]
        return [text for part in texts for text in part if isinstance(text, str)]


def _content(message: Any) -> Any:
    return message.get("content") if isinstance(message, dict) else None


@dataclass(frozen=True, eq=False)
class ResponseTask(Task):
    """An objective on responses that a decoder, or a decoder beside an encoder, writes.

    Args:
        config: Its keys.
        tokenizer: Has an end of text.
        sequence_length: Most tokens of a row: of prompt and response, or of an encoder.
        architecture: A decoder reads prompt and response as one text, an encoder-decoder the prompt in its encoder.
        start: Special token a decoder beside an encoder starts with.
    """

    config: Any
    tokenizer: PreTrainedTokenizer
    sequence_length: int
    architecture: Architecture
    start: Role = "pad"

    @property
    def two_sided(self) -> bool:
        """Whether there is an encoder."""
        return self.architecture == "encoder_decoder"

    @cached_property
    def encoder(self) -> ResponseEncoder:
        """Text to tokens."""
        return ResponseEncoder(self.tokenizer, self.config.chat_template, self.two_sided)
