"""The `tokenizer` section of a run's configuration."""

from typing import Literal

from pydantic import Field, model_validator

from jaxformer.schema import LocalPath, Schema


class TokenizerConfig(Schema):
    """The tokenizer of a run."""

    type: Literal["byte", "character", "word", "jamo", "bpe", "wordpiece", "unigram", "file", "pretrained"] = Field(
        "bpe",
        description="kind of tokenizer: trained on the run's own training text, `file` to load a tokenizer.json, or "
        "`pretrained` to open one in the Hugging Face format",
    )
    vocab_size: int = Field(
        4096,
        ge=1,
        description="vocabulary of bpe, wordpiece, unigram and jamo, and the words that word knows; byte and character "
        "have as many tokens as they need",
    )
    path: LocalPath | None = Field(
        None, description="file: a tokenizer.json, or a folder that holds one; pretrained: a folder or owner/name"
    )

    split_special_tokens: bool | None = Field(
        None,
        description="cut special tokens that a text itself contains (`[SEP]`, `</s>`) into ordinary pieces, in "
        "training and in prediction, for texts that are not trusted; default: true for tokenizers trained here, else "
        "the tokenizer's own setting, mostly false",
    )

    @model_validator(mode="after")
    def _path_goes_with_type(self) -> "TokenizerConfig":
        if self.type in ("file", "pretrained") and self.path is None:
            expected = (
                "a tokenizer.json or a folder that holds one" if self.type == "file" else "a folder or owner/name"
            )
            raise ValueError(f"type is {self.type!r} but path is not set: give {expected}")
        if self.type not in ("file", "pretrained") and self.path is not None:
            raise ValueError(f"path is {self.path!r} but type is {self.type!r}, which is trained: set type to 'file'")
        return self
