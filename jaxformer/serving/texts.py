"""Texts that a decoder writes: from a request's options to jobs of the scheduler, and from tokens to pieces of text."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxformer.generation.scheduler import End, Event, Guide, Job, Scheduler, Scores, Tokens
from jaxformer.generation.slots import NEUTRAL, Settings
from jaxformer.generation.text_stream import TextStream, find_stop, held_back
from jaxformer.serving.bodies import Drawing
from jaxformer.serving.errors import ApiError
from jaxformer.tokenizers import decode

# Takes whether a token is the first of its text, and the seconds before it.
Note = Callable[[bool, float], None]


@dataclass
class Token:
    """One token of a text, as clients read it.

    Attributes:
        id: its number.
        text: what it stands for.
        log_prob: given those before it; nats, None for the first of a prompt.
        top: the most probable tokens at its place.
    """

    id: int
    text: str
    log_prob: float | None
    top: dict[int, float]


@dataclass
class Piece:
    """What one text got by some steps.

    Attributes:
        index: number of the text among those of the request.
        text: new and complete: it ends in no character or stop string.
        tokens: new ones.
        reason: at the end ``stop`` or ``length``; None before.
        prompt: the tokens of the prompt, where they are scored.
    """

    index: int
    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    reason: str | None = None
    prompt: list[Token] | None = None


class Writing:
    """One text while it is written. ``receive`` is called in the scheduler's thread."""

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        tokenizer: Any,
        ends: Sequence[int],
        stops: Sequence[str],
        put: Callable[[Any], None],
        *,
        plain: bool,
    ) -> None:
        """``plain`` leaves special tokens out of the text."""
        self.index, self.tokenizer, self.ends, self.stops = index, tokenizer, set(ends), stops
        self._prompt, self._put = prompt, put
        self._stream = TextStream(tokenizer, prompt, skip_special_tokens=plain)
        self._shown, self._stopped = 0, False

    def receive(self, event: Event) -> bool:
        """Sends what an event adds; True if a stop string ended the text."""
        if isinstance(event, End):
            self._end(event)
            return False
        if isinstance(event, Scores):
            self._put(Piece(self.index, prompt=self._scored(event)))
            return False
        self._stream.put([token for token in event.ids if token not in self.ends])
        end = len(self._stream.text)
        if (stop := find_stop(self._stream.text, self.stops)) is not None:
            end, self._stopped = stop, True
        else:
            end -= held_back(self._stream.text, self.stops)
        self._put(Piece(self.index, self._new(end), self._tokens(event)))
        return self._stopped

    def _new(self, end: int) -> str:
        piece, self._shown = self._stream.text[self._shown : end], max(self._shown, end)
        return piece

    def _end(self, end: End) -> None:
        if end.error is not None:
            return self._put(end.error)
        if end.reason in ("time", "cancelled"):
            why = "took longer than a request may" if end.reason == "time" else "was cancelled: the server stops"
            return self._put(ApiError(504 if end.reason == "time" else 503, f"the text {why}", code=end.reason))
        text = ""
        if not self._stopped:
            self._stream.put([], end=True)
            stop = find_stop(self._stream.text, self.stops)
            text = self._new(len(self._stream.text) if stop is None else stop)
        return self._put(Piece(self.index, text, reason=end.reason))

    def _tokens(self, event: Tokens) -> list[Token]:
        parts = zip(event.ids, event.log_probs, event.top, strict=True)
        return [Token(id, self.text_of(id), log_prob, top) for id, log_prob, top in parts]

    def _scored(self, event: Scores) -> list[Token]:
        first = Token(self._prompt[0], self.text_of(self._prompt[0]), None, {})
        parts = zip(self._prompt[1:], event.log_probs, event.top, strict=True)
        return [first, *(Token(id, self.text_of(id), log_prob, top) for id, log_prob, top in parts)]

    def text_of(self, token: int) -> str:
        """The text of one token; of a part of a character its replacement."""
        return decode(self.tokenizer, [token], skip_special_tokens=False)


@dataclass
class Wanted:
    """What a request asks of each of its texts."""

    settings: Settings
    seed: int
    stops: list[str]
    bias: dict[int, float]
    grammar: str | None = None
    score: bool = False
    plain: bool = True


def wanted(body: Drawing, new: int, defaults: dict[str, Any]) -> Wanted:
    """The options of a request; what it leaves open is as the model's own settings say, else as OpenAI's interface.

    Args:
        body: of the request.
        new: most new tokens.
        defaults: the model's settings of generation.
    """

    def choose(name: str, otherwise: Any) -> Any:
        value = getattr(body, name, None)
        if value is None:
            value = defaults.get(name)
        return otherwise if value is None else value

    # A model whose settings say greedy search is asked for samples all the same: the interface's default is 1.
    top_k = choose("top_k", 0)
    settings = NEUTRAL._replace(
        temperature=choose("temperature", 1.0),
        top_k=max(top_k, 0),
        top_p=choose("top_p", 1.0),
        min_p=choose("min_p", 0.0),
        repetition_penalty=choose("repetition_penalty", 1.0),
        presence_penalty=choose("presence_penalty", 0.0),
        frequency_penalty=choose("frequency_penalty", 0.0),
        min_new_tokens=min(body.min_tokens or 0, new),
        max_new_tokens=new,
        ends=not body.ignore_eos,
    )
    stops = [body.stop] if isinstance(body.stop, str) else list(body.stop or [])
    return Wanted(
        settings,
        secrets.randbits(31) if body.seed is None else body.seed % 2**31,
        [stop for stop in stops if stop],
        _bias(body),
    )


def _bias(body: Drawing) -> dict[int, float]:
    bias = {}
    for token, value in (body.logit_bias or {}).items():
        if not token.isdecimal():
            raise ApiError(400, f"logit_bias has the key {token!r:.40}, expected the number of a token", "logit_bias")
        bias[int(token)] = value
    return bias


class Texts:
    """The texts of one request.

    Args:
        scheduler: of the model.
        tokenizer: of the model.
        prompts: tokens of each.
        want: of each text.
        copies: texts for each prompt.
        guide: makes the guide of a text; None: no text has one.
        seconds: that a text may take.
        note: called for each piece with tokens.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        want: Wanted,
        copies: int,
        guide: Callable[[], Guide | None],
        seconds: float,
        note: Note,
    ) -> None:
        self._note, self._start = note, time.monotonic()
        self._scheduler, loop = scheduler, asyncio.get_running_loop()
        self._arrived: asyncio.Queue[Any] = asyncio.Queue()

        def put(item: Any) -> None:
            loop.call_soon_threadsafe(self._arrived.put_nowait, item)

        ends = scheduler.rules.end_ids
        self.jobs = []
        for number, prompt in enumerate(prompts):
            for copy in range(copies):
                index = number * copies + copy
                writing = Writing(index, prompt, tokenizer, ends, want.stops, put, plain=want.plain)
                # Prompts of one request draw apart, as a batch of ``generate`` does with a seed for each.
                self.jobs.append(
                    Job(
                        prompt,
                        want.settings,
                        writing.receive,
                        seed=(want.seed, copy),
                        bias=want.bias,
                        guide=guide(),
                        score=want.score,
                        deadline=time.monotonic() + seconds,
                    )
                )
        scheduler.submit(*self.jobs)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The pieces of all texts as they come; leaving early ends the texts.

        Raises:
            ApiError: a text took too long or the server stops.
            Exception: the model failed.
        """
        open_texts, before = len(self.jobs), dict[int, float]()
        try:
            while open_texts:
                item = await self._arrived.get()
                if isinstance(item, Exception):
                    raise item
                open_texts -= item.reason is not None
                if item.tokens:
                    now, last = time.monotonic(), before.get(item.index)
                    passed = now - self._start if last is None else (now - last) / len(item.tokens)
                    self._note(last is None, passed)
                    before[item.index] = now
                yield item
        finally:
            if open_texts:
                self._scheduler.cancel(*self.jobs)


@dataclass
class Whole:
    """A text when it is whole."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)
    reason: str = "length"

    def add(self, piece: Piece) -> None:
        """Appends a piece."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.prompt = piece.prompt or self.prompt
        self.reason = piece.reason or self.reason


async def gather(texts: Texts) -> list[Whole]:
    """All texts of a request, whole."""
    whole = [Whole() for _ in texts.jobs]
    async for piece in texts.pieces():
        whole[piece.index].add(piece)
    return whole
