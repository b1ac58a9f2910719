"""Continuous batching: a thread that gives the rows of one cache to the texts that wait for them.

Texts enter and leave at any step, prompts are read in chunks between the steps, and a prompt that begins like one that
was read before is read from where they part. A text's tokens depend on its prompt, options and seed alone, up to the
rounding of sums of another length.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxformer.generation import slots as device
from jaxformer.generation.options import GenerationConfig, compile_options
from jaxformer.generation.prepare import prepare
from jaxformer.generation.slots import Settings
from jaxformer.models import Decoder
from jaxformer.models.exact import check_exact
from jaxformer.schema import UserError

SHORTEST = 256  # places of a row, the least
CHUNKS = (16, 32, 64, 128, 256)  # tokens of a prompt that are read at once
READ = 256  # tokens of prompts that are read between two steps of the texts that are written
SCORED = 64  # the same where the prompt's own log-probabilities are asked for
SOME = (1, 4, 16, 64)  # rows that are computed apart from the others, if no more are written
STEPS = 4  # tokens of a row between two looks at what waits


class Guide(Protocol):
    """Says which tokens may come next."""

    def allowed(self) -> np.ndarray:
        """``[ceil(V / 32)]`` int32, a bit for each token."""

    def take(self, token: int) -> None:
        """Goes on after a token."""


class Tokens(NamedTuple):
    """New tokens of a text, with the most probable ones at each place where they are asked for."""

    ids: list[int]
    log_probs: list[float]
    top: list[dict[int, float]]


class Scores(NamedTuple):
    """The tokens of a prompt, but the first, given those before each."""

    log_probs: list[float]
    top: list[dict[int, float]]


class End(NamedTuple):
    """The end of a text: ``stop``, ``length``, ``time`` or ``cancelled``, or the error that ended it."""

    reason: str
    error: Exception | None = None


Event = Tokens | Scores | End


class QueueFullError(UserError):
    """As many texts wait as may."""


@dataclass(eq=False)
class Job:
    """One text to write.

    Attributes:
        prompt: its tokens.
        settings: how the tokens are drawn.
        receive: called in the scheduler's thread with each ``Event``; True ends the text.
        seed: of the draws, and the text's number among those of its prompt.
        bias: of single tokens, added to their logits.
        guide: limits the tokens; None: all.
        score: also send ``Scores``; the prompt is then read whole.
        deadline: in ``time.monotonic``; None: none.
    """

    prompt: Sequence[int]
    settings: Settings
    receive: Callable[[Event], bool]
    seed: tuple[int, int] = (0, 0)
    bias: dict[int, float] = field(default_factory=dict)
    guide: Guide | None = None
    score: bool = False
    deadline: float | None = None
    cancelled: bool = False


@dataclass
class _Row:
    """What a row holds.

    Attributes:
        job: the text; None: the row is free.
        held: the tokens whose keys and values are in the cache.
        read: number of the prompt's tokens that are read.
        written: the new tokens.
        used: when it was last used.
    """

    job: Job | None = None
    held: list[int] = field(default_factory=list)
    read: int = 0
    written: list[int] = field(default_factory=list)
    used: float = 0.0
    scores: list[Any] = field(default_factory=list)

    @property
    def reads(self) -> bool:
        """True if the prompt is not read to its end."""
        return self.job is not None and self.read < len(self.job.prompt)

    @property
    def needs(self) -> int:
        """Places for prompt and text."""
        return 0 if self.job is None else len(self.job.prompt) + max(1, self.job.settings.max_new_tokens)


@dataclass
class Counts:
    """What a scheduler did so far."""

    prompt_tokens: int = 0
    kept_tokens: int = 0  # of these, taken over from an earlier prompt
    written_tokens: int = 0
    calls: int = 0  # of the program that writes


class Scheduler:
    """Writes the texts of many callers at once.

    Args:
        model: a decoder with a language-model head.
        params: its parameters, preferably from ``prepare``.
        slots: texts that are written at once.
        context: most tokens of a prompt and its text; default: the model's ``max_length``.
        waiting: texts that may wait for a slot.
        cache_dtype: of keys and values, as for ``generate``.
        config: the model's own settings of generation, of which the ends and the tokens that are never written count.

    Raises:
        UserError: the model writes no text by itself.
    """

    def __init__(
        self,
        model: Decoder,
        params: Any,
        *,
        slots: int = 8,
        context: int | None = None,
        waiting: int = 256,
        cache_dtype: str | None = None,
        config: GenerationConfig | None = None,
    ) -> None:
        if not isinstance(model, Decoder):
            raise UserError(f"{type(model).__name__} is no decoder, expected one: its texts are written in slots")
        c = model.config
        check_exact(c)
        if context is not None and not 1 < context <= c.max_length:
            raise UserError(f"context is {context}, expected 2 to {c.max_length} (max_length of the model)")
        self.model, self.params = model, prepare(model, params)
        self.context = context or c.max_length
        self.rules, _ = compile_options(config or GenerationConfig(), c)
        self.waiting_limit = waiting
        self.counts = Counts()
        self._attends = c.mixer == "attention"
        self._dtype, self._size = cache_dtype, slots
        self._sizes = [*(size for size in SOME if size < slots), slots]
        self._never = dict.fromkeys(self.rules.suppress, -np.inf)
        self._all = np.full((slots, -(-c.vocabulary // 32)), -1, np.int32)
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._reset(self._bucket(1))
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def __enter__(self) -> "Scheduler":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def running(self) -> int:
        """Number of texts that have a slot."""
        return sum(row.job is not None for row in self._rows)

    @property
    def waiting(self) -> int:
        """Number of texts that wait for one."""
        return len(self._waiting)

    def submit(self, *jobs: Job) -> None:
        """Queues texts; their events are sent to their ``receive``.

        Raises:
            UserError: a prompt is empty or does not fit with its text, or a token is not the model's.
            QueueFullError: too many texts wait.
        """
        for job in jobs:
            self._check(job)
        if len(jobs) > self.waiting_limit + self._size:
            raise UserError(
                f"{len(jobs)} texts are asked for at once, expected at most {self.waiting_limit + self._size}; ask for "
                "some after the others"
            )
        with self._changed:
            if self._closing:
                raise QueueFullError("the model is shutting down; ask again later")
            # One that finds a free slot does not wait.
            if len(self._waiting) + len(jobs) > self.waiting_limit + max(0, self._size - self.running):
                raise QueueFullError(
                    f"{len(self._waiting)} texts wait already, expected at most {self.waiting_limit}; ask again later"
                )
            self._waiting.extend(jobs)
            self._changed.notify()

    def cancel(self, *jobs: Job) -> None:
        """Ends texts early; those that wait leave the queue."""
        with self._changed:
            for job in jobs:
                job.cancelled = True
            self._changed.notify()

    def close(self, *, finish: bool = False) -> None:
        """Stops; with ``finish`` after the texts that were submitted, else they end as ``cancelled``."""
        with self._changed:
            self._closing = True
            if not finish:
                for job in [*self._waiting, *(row.job for row in self._rows if row.job is not None)]:
                    job.cancelled = True
            self._changed.notify()
        self._thread.join()

    def warm(self, say: Callable[[str], None] = lambda line: None) -> None:
        """Compiles every program that a text can need; call it before the first text.

        Args:
            say: called with a line before each size.
        """
        sizes = [self._bucket(1)]
        while sizes[-1] < self.context:
            sizes.append(self._bucket(sizes[-1] + 1))
        for places in sizes:
            say(f"texts of up to {places:,} tokens")
            self._resize(places)
            row, false = np.int32(0), np.bool_(False)
            self._begin(0, 0, 0, (0, 0), device.NEUTRAL, {}, ())
            for size in self._chunks():
                self._state, _ = self._read(row, np.zeros(size, np.int32), size, false, score=False)
            size = min(SCORED, places)
            self._state, _ = self._read(row, np.zeros(size + 1, np.int32), size, false, score=True)
            for count in self._sizes:
                self._state, _ = self._advance(range(count), self._all[:count], 1)
            self._state = device.release(self._state, row)
        for larger in reversed(sizes[:-1]):
            self._resize(larger)
        for places in sizes:
            # Every way between two sizes.
            for other in sizes:
                self._resize(places)
                self._resize(other)
        self._reset(sizes[0])

    def _check(self, job: Job) -> None:
        longest, vocabulary = self.context, self.model.config.vocabulary
        count, new = len(job.prompt), job.settings.max_new_tokens
        if not count:
            raise UserError("the prompt is empty, expected at least one token")
        if count + max(new, not job.score) > longest:
            raise UserError(
                f"the prompt has {count} tokens and {new} more are asked for, expected at most {longest} together; "
                "shorten the prompt or ask for fewer"
            )
        for name, ids in (("the prompt", job.prompt), ("logit_bias", job.bias)):
            wrong = next((i for i in ids if not 0 <= i < vocabulary), None)
            if wrong is not None:
                raise UserError(f"{name} has token {wrong}, expected 0 to {vocabulary - 1}")

    # The rest runs in the scheduler's thread.

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self.running or self._closing):
                    self._changed.wait()
                if self._closing and not self._waiting and not self.running:
                    return
            try:
                self._turn()
            except Exception as error:  # the callers are told, and others are served
                self._fail(error)

    def _turn(self) -> None:
        """Ends what is to end, gives free rows away, reads some of the prompts and writes some tokens."""
        self._end_early()
        left = READ
        while left > 0:
            self._admit()
            reading = next((number for number, row in enumerate(self._rows) if row.reads), None)
            if reading is None:
                break
            left -= self._read_chunk(reading)
        writing = [number for number, row in enumerate(self._rows) if row.job is not None and not row.reads]
        if writing:
            self._write(writing)

    def _end_early(self) -> None:
        """Ends texts whose caller left or whose time is over."""
        now = time.monotonic()

        def why(job: Job) -> str | None:
            if job.cancelled:
                return "cancelled"
            return "time" if job.deadline is not None and now > job.deadline else None

        with self._changed:
            ended = [(job, reason) for job in self._waiting if (reason := why(job)) is not None]
            for job, _ in ended:
                self._waiting.remove(job)
        for job, reason in ended:
            _send(job, End(reason))
        for number, row in enumerate(self._rows):
            if row.job is not None and (reason := why(row.job)) is not None:
                self._free(number, reason)

    def _admit(self) -> None:
        """Gives a free row to the text that waits longest; one at a time, so that equal prompts are read once."""
        free = [number for number, row in enumerate(self._rows) if row.job is None]
        if not free or any(row.reads for row in self._rows):
            return
        with self._changed:
            if not self._waiting:
                return
            job = self._waiting.popleft()
        try:
            self._place(job, free)
        except Exception as error:
            # In no row yet, so that nobody else would tell its caller.
            _send(job, End("error", error))
            raise

    def _place(self, job: Job, free: list[int]) -> None:
        """Gives one of the free rows to a text."""
        needed = max(row.needs for row in [*self._rows, _Row(job)])
        if needed > self._places or needed * 4 <= self._places:
            self._resize(self._bucket(needed))
        kept, source = self._longest_prefix(job, free)
        least = min(free, key=lambda number: (len(self._rows[number].held) > 0, self._rows[number].used))
        number = source if source in free else least
        seen = job.prompt if job.settings.repetition_penalty != 1 else ()
        self._begin(number, source if kept else number, kept, job.seed, job.settings, {**self._never, **job.bias}, seen)
        self._rows[number] = _Row(job, list(job.prompt[:kept]), kept)
        self.counts.prompt_tokens += len(job.prompt)
        self.counts.kept_tokens += kept

    def _longest_prefix(self, job: Job, free: list[int]) -> tuple[int, int]:
        """The number of first tokens that a row has read already, and that row; free ones are preferred."""
        if job.score or not self._attends:
            return 0, free[0]
        prompt = np.array(job.prompt[:-1])  # the last one is read, for its logits

        def common(number: int) -> int:
            held = np.array(self._rows[number].held[: len(prompt)])
            differs = np.flatnonzero(held != prompt[: len(held)])
            return int(differs[0]) if differs.size else len(held)

        best = max(range(self._size), key=lambda number: (common(number), number in free))
        return common(best), best

    def _read_chunk(self, number: int) -> int:
        """Reads the next tokens of a row's prompt; returns the places that they took."""
        row = self._rows[number]
        job = row.job
        assert job is not None
        rest = job.prompt[row.read :]
        if job.score:
            size = min(SCORED, self._places)
            part = rest[: size + 1]  # with the token after the chunk
            ids = np.zeros(size + 1, np.int32)
        else:
            size = chunk_of(len(rest), self._chunks())
            part = rest[:size]
            ids = np.zeros(size, np.int32)
        ids[: len(part)] = part
        count = min(size, len(rest))
        last = count == len(rest)
        writes = last and job.settings.max_new_tokens > 0
        self._state, scores = self._read(np.int32(number), ids, count, np.bool_(writes), score=job.score)
        row.read += count
        row.held += rest[:count]
        row.used = time.monotonic()
        if scores is not None:
            row.scores.append([np.asarray(part)[: count - last] for part in scores])
        enough = False
        if last and job.score:
            log_probs, ids, top = (np.concatenate(parts) for parts in zip(*row.scores, strict=True))
            enough = _send(job, Scores(log_probs.tolist(), list(map(_pairs, ids, top))))
        if last and (enough or not writes):
            self._free(number, "stop" if enough else "length")
        return size

    def _write(self, writing: list[int]) -> None:
        size = next(size for size in self._sizes if size >= len(writing))
        numbers = [*writing, *(number for number in range(self._size) if number not in writing)][:size]
        numbers = sorted(numbers) if size == self._size else numbers
        allowed, steps = self._all[:size], STEPS
        for place, number in enumerate(numbers):
            row = self._rows[number]
            if row.job is None or row.reads:
                continue
            if row.job.guide is not None:
                allowed = allowed if allowed.base is None else allowed.copy()
                allowed[place] = row.job.guide.allowed()
                steps = 1
            if not row.written:
                steps = 1
        if any(row.reads for row in self._rows) or (self._waiting and len(writing) < self._size):
            steps = 1
        self._state, written = self._advance(numbers, allowed, steps)
        self.counts.calls += 1
        tokens, log_probs, active = (np.asarray(part) for part in (written.tokens, written.log_probs, written.active))
        asked = any(row.job is not None and row.job.settings.alternatives for row in self._rows)
        tops = (np.asarray(written.top_ids), np.asarray(written.top_log_probs)) if asked else None
        for place, number in enumerate(numbers):
            row = self._rows[number]
            job = row.job
            if number not in writing or job is None:
                continue
            new = tokens[place][tokens[place] >= 0].tolist()
            # The last token is read with the next one.
            row.held += [*row.written[-1:], *new[:-1]]
            row.written += new
            row.used = time.monotonic()
            self.counts.written_tokens += len(new)
            top: list[dict[int, float]] = [{} for _ in new]
            if tops is not None and job.settings.alternatives:
                top = [_pairs(tops[0][place, i], tops[1][place, i]) for i in range(len(new))]
            enough = _send(job, Tokens(new, log_probs[place, : len(new)].tolist(), top))
            if active[place]:
                if job.guide is not None:
                    job.guide.take(new[-1])
                if enough:
                    self._free(number, "stop")
            else:
                stopped = job.settings.ends and new[-1] in self.rules.end_ids
                self._free(number, "stop" if stopped or enough else "length", release=False)

    def _free(self, number: int, reason: str, *, release: bool = True, error: Exception | None = None) -> None:
        """Ends the text of a row; what it read stays for a prompt that begins like it."""
        row = self._rows[number]
        job, row.job = row.job, None
        if release:
            self._state = device.release(self._state, np.int32(number))
        if job is not None:
            _send(job, End(reason, error))

    def _fail(self, error: Exception) -> None:
        """Ends every text that has a slot with an error and begins with an empty cache."""
        jobs = [row.job for row in self._rows if row.job is not None]
        self._reset(self._bucket(1))
        for job in jobs:
            _send(job, End("error", error))

    def _reset(self, places: int) -> None:
        self._places = places
        self._rows = [_Row() for _ in range(self._size)]
        self._state = device.empty_slots(self.model.config, self._size, places, self._dtype)

    def _bucket(self, needed: int) -> int:
        """Places of a row: a power of two, at most the context."""
        return min(self.context, max(SHORTEST, 1 << (needed - 1).bit_length()))

    def _chunks(self) -> list[int]:
        return [size for size in CHUNKS if size <= self._places] or [self._places]

    def _resize(self, places: int) -> None:
        if places == self._places:
            return
        self._state = device.resize(self._state, places=places, attends=self._attends)
        self._places = places
        for row in self._rows:
            del row.held[places:]

    def _begin(
        self,
        number: int,
        source: int,
        kept: int,
        seed: tuple[int, int],
        settings: Settings,
        bias: dict[int, float],
        seen: Sequence[int],
    ) -> None:
        V = self.model.config.vocabulary
        biases, tokens = np.zeros(V, np.float32), np.zeros(V, bool)
        for token, value in bias.items():
            biases[token] = max(value, device.F.MASKED)
        tokens[list(seen)] = True
        scalars = device.scalars(settings)
        at = (np.int32(number), np.int32(source), np.int32(kept))
        self._state = device.begin(self._state, *at, np.array(seed, np.int32), scalars, biases, tokens)

    def _read(self, row: Any, ids: Any, count: int, last: Any, *, score: bool) -> Any:
        return device.read(self.model, self.params, self._state, row, ids, np.int32(count), last, score=score)

    def _advance(self, numbers: Sequence[int], allowed: np.ndarray, steps: int) -> Any:
        rows = np.array(numbers, np.int32)
        arguments = (self.model, self.params, self._state, rows, allowed, np.int32(steps))
        return device.advance(*arguments, rules=self.rules, most=STEPS)


def chunk_of(count: int, sizes: Sequence[int]) -> int:
    """The size of the chunk in which so many tokens, or the first of them, are read: little of it is empty.

    >>> [chunk_of(count, (16, 32, 64)) for count in (3, 16, 20, 28, 60, 70)]
    [16, 16, 16, 32, 64, 64]
    """
    larger = next((size for size in sizes if size >= count), None)
    smaller = [size for size in sizes if size <= count]
    if larger is None or (smaller and count < 0.75 * larger):
        return smaller[-1]
    return larger


def _pairs(ids: Any, values: Any) -> dict[int, float]:
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def _send(job: Job, event: Event) -> bool:
    """Sends an event; a caller whose ``receive`` fails gets no more."""
    with suppress(Exception):
        return bool(job.receive(event))
    return True
