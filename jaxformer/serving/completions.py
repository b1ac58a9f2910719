"""``/v1/completions`` and ``/v1/chat/completions``."""

import inspect
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Any

from jaxformer.schema import UserError
from jaxformer.serving.bodies import Chat, Completion
from jaxformer.serving.errors import ApiError, api_error
from jaxformer.serving.served import Limits, Served
from jaxformer.serving.texts import Note, Piece, Texts, Token, Whole, gather, wanted
from jaxformer.serving.tools import Form, functions_of, grammar_of, parse_calls
from jaxformer.tokenizers import special_tokens

NEW_TOKENS = 16  # of a completion that asks for no number, as in OpenAI's interface
DONE = "data: [DONE]\n\n"


def event(data: Any) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


def usage_of(prompts: Sequence[Sequence[int]], written: int) -> dict[str, Any]:
    """Counts of tokens."""
    read = sum(map(len, prompts))
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


class Answer:
    """The answer to one request for texts.

    Attributes:
        texts: that are written.
        streams: True if it is sent while they are.
    """

    kind: str
    prefix: str  # of the answer's id

    def __init__(
        self, served: Served, body: Completion | Chat, prompts: list[list[int]], want: Any, limits: Limits, note: Note
    ) -> None:
        assert served.scheduler is not None and served.guides is not None, "of a decoder"
        self.served, self.body, self.prompts, self.streams = served, body, prompts, bool(body.stream)
        if want.grammar is not None:
            served.guides.check(want.grammar)
        guide = partial(served.guides.make, want.grammar)
        self.copies = body.n or 1
        self.texts = Texts(
            served.scheduler, served.pipe.tokenizer, prompts, want, self.copies, guide, limits.seconds, note
        )
        self._head = {"id": f"{self.prefix}-{secrets.token_hex(12)}", "created": int(time.time()), "model": served.name}

    def head(self, chunk: bool = False) -> dict[str, Any]:
        """The keys with which every answer and every chunk of one begins."""
        return {**self._head, "object": f"{self.kind}.chunk" if chunk else self.kind}

    async def whole(self) -> dict[str, Any]:
        """The answer at once."""
        texts = await gather(self.texts)
        choices = [self.choice(number, text) for number, text in enumerate(texts)]
        usage = usage_of(self.prompts, sum(len(text.tokens) for text in texts))
        return {**self.head(), "choices": choices, "usage": usage}

    async def stream(self) -> AsyncIterator[str]:
        """The answer as server-sent events; an error becomes the last of them."""
        written = 0
        asks = self.body.stream_options is not None and self.body.stream_options.include_usage
        extra = {"usage": None} if asks else {}
        pieces = self.texts.pieces()
        try:
            for choice in self.opening():
                yield event({**self.head(True), "choices": [choice], **extra})
            async for piece in pieces:
                written += len(piece.tokens)
                for choice in self.chunks(piece):
                    yield event({**self.head(True), "choices": [choice], **extra})
            if asks:
                yield event({**self.head(True), "choices": [], "usage": usage_of(self.prompts, written)})
            yield DONE
        except Exception as error:
            yield event(api_error(error).body)
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]

    def choice(self, index: int, text: Whole) -> dict[str, Any]:
        """One text of an answer at once."""
        raise NotImplementedError

    def opening(self) -> Iterator[dict[str, Any]]:
        """The chunks before the first token."""
        yield from ()

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The chunks that a piece makes."""
        raise NotImplementedError


class CompletionAnswer(Answer):
    """The answer to ``/v1/completions``."""

    body: Completion
    kind, prefix = "text_completion", "cmpl"

    def __init__(self, served: Served, body: Completion, limits: Limits, note: Note) -> None:
        assert served.scheduler is not None and served.guides is not None, "of a decoder"
        prompts = prompts_of(served, body)
        new = NEW_TOKENS if body.max_tokens is None else body.max_tokens
        want = wanted(body, new, dict(served.pipe.opened.generation))
        want.grammar = served.guides.grammar(body.response_format)
        want.score = bool(body.echo) and body.logprobs is not None
        want.settings = want.settings._replace(alternatives=bool(body.logprobs))
        self._given = body.prompt if isinstance(body.prompt, list) else [body.prompt]
        self._offsets: dict[int, int] = {}
        super().__init__(served, body, prompts, want, limits, note)

    def choice(self, index: int, text: Whole) -> dict[str, Any]:
        """The text, after its prompt if that is asked for."""
        echoed = self.echoed(index)
        tokens = [*text.prompt, *text.tokens]
        return {
            "index": index,
            "text": echoed + text.text,
            "logprobs": self.log_probs(index, tokens),
            "finish_reason": text.reason,
        }

    def opening(self) -> Iterator[dict[str, Any]]:
        """The prompts, if they are asked for and not scored, which is sent with the scores."""
        if self.body.echo and self.body.logprobs is None:
            for index in range(len(self.texts.jobs)):
                yield self._chunk(index, self.echoed(index), [], None)

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """One chunk."""
        if piece.prompt is not None:
            yield self._chunk(piece.index, self.echoed(piece.index), piece.prompt, None)
        elif piece.text or piece.tokens or piece.reason:
            yield self._chunk(piece.index, piece.text, piece.tokens, piece.reason)

    def _chunk(self, index: int, text: str, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": self.log_probs(index, tokens), "finish_reason": reason}

    def echoed(self, index: int) -> str:
        """The prompt of a text, if it is asked for."""
        if not self.body.echo:
            return ""
        prompt = self._given[0] if len(self.prompts) == 1 else self._given[index // self.copies]
        if isinstance(prompt, str):
            return prompt
        return str(self.served.pipe.tokenizer.decode(self.prompts[index // self.copies], skip_special_tokens=False))

    def log_probs(self, index: int, tokens: list[Token]) -> dict[str, Any] | None:
        """The log-probabilities of tokens, where they are asked for."""
        asked = self.body.logprobs
        if asked is None:
            return None
        offsets, place = [], self._offsets.get(index, 0)
        for token in tokens:
            offsets.append(place)
            place += len(token.text)
        self._offsets[index] = place
        text_of = self._text_of
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": [
                None if token.log_prob is None else {text_of(id): value for id, value in _best(token, asked)}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _text_of(self, token: int) -> str:
        return str(self.served.pipe.tokenizer.decode([token], skip_special_tokens=False))


def _best(token: Token, count: int) -> list[tuple[int, float]]:
    """The most probable tokens at a place."""
    return list(token.top.items())[:count]


def prompts_of(served: Served, body: Completion) -> list[list[int]]:
    """The tokens of each prompt."""
    given: Any = body.prompt
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not given:
        raise ApiError(400, "prompt is an empty list, expected a text, tokens, or a list of such", "prompt")
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    pipe = served.pipe
    found = iter(pipe.tokenize(texts, truncation=False) if texts else [])
    begin = pipe.tokenizer.bos_token_id
    prompts = []
    for prompt in given:
        ids = list(next(found).inputs["input_ids"]) if isinstance(prompt, str) else prompt
        if not ids and begin is None:
            raise ApiError(400, "the prompt is empty and no token of the model begins a text", "prompt")
        prompts.append(ids or [begin])
    return prompts


class ChatAnswer(Answer):
    """The answer to ``/v1/chat/completions``."""

    body: Chat
    kind, prefix = "chat.completion", "chatcmpl"

    def __init__(self, served: Served, body: Chat, limits: Limits, note: Note) -> None:
        assert served.scheduler is not None and served.guides is not None, "of a decoder"
        tokenizer = served.pipe.tokenizer
        tools = None if body.tool_choice == "none" else body.tools
        self._functions = functions_of(tools or [])
        chosen = body.chosen_tool
        if chosen is not None and chosen not in self._functions:
            raise ApiError(400, f"tool_choice names {chosen!r}, which is not among the tools", "tool_choice")
        ids = chat_ids(served, body, tools)
        new = body.max_completion_tokens or body.max_tokens
        room = served.scheduler.context - len(ids)
        if new is None and room < 1:
            raise ApiError(400, too_long(len(ids), served), "messages", "context_length_exceeded")
        want = wanted(body, room if new is None else new, dict(served.pipe.opened.generation))
        want.grammar = served.guides.grammar(body.response_format)
        self._form = served.tool_form or Form("", "", False, "arguments")
        special = [mark for mark in (self._form.begin, self._form.end) if mark in special_tokens(tokenizer)]
        # Marks of calls that are special tokens must be seen.
        want.plain = not (self._functions and special)
        if body.tool_choice == "required" or chosen is not None:
            if want.grammar is not None:
                raise ApiError(400, "tool_choice and response_format both limit the text", "tool_choice")
            some = {chosen: self._functions[chosen]} if chosen is not None else self._functions
            several = chosen is None and body.parallel_tool_calls is not False
            want.grammar = grammar_of(some, self._form, special, several)
        want.settings = want.settings._replace(alternatives=bool(body.logprobs and body.top_logprobs))
        self._held: dict[int, str] = {}
        super().__init__(served, body, [ids], want, limits, note)

    def choice(self, index: int, text: Whole) -> dict[str, Any]:
        """The message, with the calls it makes."""
        content, calls = (
            parse_calls(text.text, self._form, list(self._functions)) if self._functions else (text.text, [])
        )
        message: dict[str, Any] = {"role": "assistant", "content": content or None if calls else content}
        message["refusal"] = None
        if calls:
            message["tool_calls"] = [call.as_message() for call in calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self.log_probs(text.tokens),
            "finish_reason": "tool_calls" if calls else text.reason,
        }

    def opening(self) -> Iterator[dict[str, Any]]:
        """The role of each message."""
        for index in range(len(self.texts.jobs)):
            yield self._chunk(index, {"role": "assistant", "content": ""}, [], None)

    def chunks(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """The chunks of what may be shown; where functions may be called, a call is sent when it is whole."""
        index, text, reason = piece.index, piece.text, piece.reason
        calls: list[Any] = []
        if self._functions:
            held = self._held.get(index, "") + text
            if reason is None:
                shown = _safe(held, self._form)
                text, self._held[index] = held[:shown], held[shown:]
            else:
                text, calls = parse_calls(held, self._form, list(self._functions))
        if text or piece.tokens:
            yield self._chunk(index, {"content": text}, piece.tokens, None)
        if calls:
            made = [call.as_message(number) for number, call in enumerate(calls)]
            yield self._chunk(index, {"tool_calls": made}, [], None)
        if reason is not None:
            yield self._chunk(index, {}, [], "tool_calls" if calls else reason)

    def _chunk(self, index: int, delta: Any, tokens: list[Token], reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": self.log_probs(tokens), "finish_reason": reason}

    def log_probs(self, tokens: list[Token]) -> dict[str, Any] | None:
        """The log-probabilities of tokens, where they are asked for."""
        if not self.body.logprobs or not tokens:
            return None
        tokenizer = self.served.pipe.tokenizer

        def entry(text: str, value: float | None) -> dict[str, Any]:
            return {"token": text, "logprob": value, "bytes": list(text.encode("utf-8", "replace"))}

        def best(token: Token) -> list[dict[str, Any]]:
            found = _best(token, self.body.top_logprobs or 0)
            return [entry(str(tokenizer.decode([id], skip_special_tokens=False)), value) for id, value in found]

        return {
            "content": [{**entry(token.text, token.log_prob), "top_logprobs": best(token)} for token in tokens],
            "refusal": None,
        }


def _safe(text: str, form: Form) -> int:
    """Number of characters that are before any call, whatever follows."""
    if not form.begin:
        return 0 if not text.strip() or text.lstrip().startswith(("{", "[")) else len(text)
    place = text.find(form.begin)
    if place >= 0:
        return place
    begun = max((size for size in range(1, len(form.begin)) if text.endswith(form.begin[:size])), default=0)
    return len(text) - begun


def chat_ids(served: Served, body: Any, tools: Any = None) -> list[int]:
    """The tokens of a conversation, by the model's chat template.

    Raises:
        UserError: a message is no message, or the template rejects the conversation.
    """
    messages = [_plain(message) for message in body.messages]
    options = {"tools": tools, "documents": getattr(body, "documents", None)}
    options |= {"continue_final_message": getattr(body, "continue_final_message", None) or False}
    options["chat_template_kwargs"] = getattr(body, "chat_template_kwargs", None) or {}
    given = {name: value for name, value in options.items() if value is not None}
    pipe = served.pipe
    # Variables of the template and no more: a template of the client's own would be executed.
    own = inspect.signature(pipe.tokenizer.apply_chat_template).parameters
    wrong = next((name for name in options["chat_template_kwargs"] if name in own or name == "messages"), None)
    if wrong is not None:
        raise ApiError(400, f"chat_template_kwargs has {wrong}, expected variables of the template alone")
    return list(pipe.chat_ids({"messages": messages}, pipe.parse(given)))


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message whose content is a text: parts of type ``text`` are joined; arguments of calls become objects."""
    if not isinstance(message.get("role"), str):
        raise UserError(f"a message is {json.dumps(message)[:80]}, expected one with a role")
    content = message.get("content")
    if isinstance(content, list):
        other = next((part for part in content if not isinstance(part, dict) or part.get("type") != "text"), None)
        if other is not None:
            raise UserError(f"a message has the part {json.dumps(other)[:80]}, expected text alone")
        content = "".join(str(part.get("text", "")) for part in content)
    elif content is not None and not isinstance(content, str):
        raise UserError(f"the content of a message is {json.dumps(content)[:80]}, expected a text")
    if content is None and not message.get("tool_calls"):
        raise UserError(f"a message of role {message['role']} has no content, expected a text")
    message = {**message, "content": content or ""}
    if isinstance(message.get("tool_calls"), list):
        message["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    return message


def _with_object(call: Any) -> Any:
    """A call whose arguments are an object, as templates read them."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        return {**call, "function": {**function, "arguments": json.loads(function["arguments"])}}
    except ValueError:
        return call


def too_long(count: int, served: Served) -> str:
    """The message for a prompt that does not fit."""
    return f"the prompt has {count} tokens, expected fewer than {served.longest}, with room for an answer"


async def by_batch(served: Served, body: Completion) -> dict[str, Any]:
    """The answer of an encoder-decoder, whose texts are written in batches."""
    assert served.batcher is not None, "of an encoder-decoder"
    texts = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ApiError(400, "prompt is no text, expected a text or a list of texts for an encoder-decoder", "prompt")
    asked = ("logprobs", "echo", "response_format", "logit_bias", "stop", "n", "stream")
    wrong = next((name for name in asked if getattr(body, name)), None)
    if wrong is not None and not (wrong == "n" and body.n == 1):
        raise ApiError(400, f"{wrong} is given, expected none: {served.name} is an encoder-decoder", wrong)
    options: dict[str, Any] = {"max_new_tokens": NEW_TOKENS if body.max_tokens is None else body.max_tokens}
    if body.temperature:
        options |= {"do_sample": True, "temperature": body.temperature, "num_beams": 1}
        options |= {name: value for name in ("top_p", "min_p", "seed") if (value := getattr(body, name)) is not None}
    found = await served.batcher(texts, **options)
    answers = [next(iter(result[0].values())) for result in found]
    rows = [served.pipe.tokenize(list(some), truncation=False) for some in (texts, answers)]
    counts = [sum(map(len, some)) for some in rows]
    choices = [
        {"index": index, "text": text, "logprobs": None, "finish_reason": "stop"} for index, text in enumerate(answers)
    ]
    usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
    head = {"id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time())}
    return {**head, "model": served.name, "choices": choices, "usage": usage}
