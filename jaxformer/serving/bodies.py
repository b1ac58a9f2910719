"""Bodies of requests; names, types and defaults are those of OpenAI's interface, those of re-ranking Jina's.

Keys that change nothing here (``user``, ``store``, ...) are read and ignored; one that is not known is refused.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Ids = list[Annotated[int, Field(ge=0)]]
Text = Annotated[str, Field(min_length=1)]
Stop = str | Annotated[list[Text], Field(max_length=16)] | None


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    user: Any = None


class StreamOptions(BaseModel):
    """Options of a stream."""

    model_config = ConfigDict(extra="forbid", strict=True)

    include_usage: bool = False
    include_obfuscation: Any = None


class ResponseFormat(BaseModel):
    """The form that a text must have."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["text", "json_object", "json_schema", "regex"]
    json_schema: dict[str, Any] | None = None
    regex: str | None = None

    @model_validator(mode="after")
    def _whole(self) -> "ResponseFormat":
        if self.type == "json_schema" and (self.json_schema is None or "schema" not in self.json_schema):
            raise ValueError("json_schema needs the key json_schema with the key schema")
        if (self.type == "regex") != (self.regex is not None):
            raise ValueError("the key regex and the type regex need each other")
        return self


class Drawing(Body):
    """How texts are written."""

    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    seed: int | None = None
    n: int | None = Field(None, ge=1, le=128)
    stop: Stop = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="after")
    def _consistent(self) -> "Drawing":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are given without stream, expected both or neither")
        return self


class Completion(Drawing):
    """``/v1/completions``."""

    prompt: str | list[str] | Ids | list[Ids]
    max_tokens: int | None = Field(None, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _known(self) -> "Completion":
        if self.best_of not in (None, self.n or 1):
            raise ValueError(f"best_of is {self.best_of}, expected n: texts are not ranked here")
        if self.suffix:
            raise ValueError("suffix is given, expected none: texts are only continued here")
        return self


class Chat(Drawing):
    """``/v1/chat/completions``."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None

    @model_validator(mode="after")
    def _asks_for_logprobs(self) -> "Chat":
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs is given without logprobs, expected logprobs: true")
        if isinstance(self.tool_choice, dict) and self.chosen_tool is None:
            raise ValueError('tool_choice is an object, expected {"type": "function", "function": {"name": ...}}')
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice is given without tools")
        return self

    @property
    def chosen_tool(self) -> str | None:
        """The name of the function that must be called."""
        choice = self.tool_choice
        function = choice.get("function") if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        return name if isinstance(name, str) else None


class Embeddings(Body):
    """``/v1/embeddings``."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=2048)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class Rerank(Body):
    """``/v1/rerank``."""

    query: Text
    documents: Annotated[list[Text | dict[str, Any]], Field(min_length=1, max_length=2048)]
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True


class Pair(BaseModel):
    """Two texts that are read together."""

    model_config = ConfigDict(extra="forbid", strict=True)

    text: Text
    text_pair: Text | None = None


class Classifications(Body):
    """``/v1/classifications``."""

    input: Text | Pair | Annotated[list[Text | Pair], Field(min_length=1, max_length=2048)]
    top_k: int | None = Field(None, ge=1)


class Tokenize(Body):
    """``/tokenize``."""

    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    return_token_strs: bool = False

    @model_validator(mode="after")
    def _one(self) -> "Tokenize":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("expected prompt or messages, and not both")
        return self


class Detokenize(Body):
    """``/detokenize``."""

    tokens: Ids
