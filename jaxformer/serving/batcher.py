"""Requests to a pipeline that come at the same time, run as one batch."""

import asyncio
import queue
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxformer.generation.scheduler import QueueFullError
from jaxformer.pipelines.base_pipeline import Pipeline
from jaxformer.schema import UserError


class _Call(NamedTuple):
    """Inputs of one request."""

    items: Sequence[Any]
    options: Mapping[str, Any]
    answer: "asyncio.Future[list[Any]]"
    loop: asyncio.AbstractEventLoop


class Batcher:
    """Runs a pipeline in a thread of its own.

    Args:
        pipe: whose options are the same for all that is run at once.
        waiting: requests that may wait.
    """

    def __init__(self, pipe: Pipeline, waiting: int = 256) -> None:
        self.pipe, self._limit = pipe, waiting
        self._calls: queue.Queue[_Call | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Number of requests that wait."""
        return self._calls.qsize()

    async def __call__(self, items: Sequence[Any], **options: Any) -> list[Any]:
        """The results of some inputs.

        Raises:
            UserError: one of them is no input of the pipeline, or an option makes no sense.
            QueueFullError: too many requests wait.
        """
        if self.waiting >= self._limit:
            raise QueueFullError(f"{self.waiting} requests wait already, expected at most {self._limit}; ask later")
        loop = asyncio.get_running_loop()
        call = _Call(items, options, loop.create_future(), loop)
        self._calls.put(call)
        return await call.answer

    def close(self) -> None:
        """Finishes what waits and stops."""
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._calls.get()) is not None:
            calls, last = [first], False
            while sum(len(call.items) for call in calls) < self.pipe.window_size:
                try:
                    call = self._calls.get_nowait()
                except queue.Empty:
                    break
                if call is None:
                    last = True
                    break
                calls.append(call)
            for options in {repr(sorted(call.options.items())): call.options for call in calls}.values():
                self._answer([call for call in calls if call.options == options and not call.answer.cancelled()])
            if last:
                return

    def _answer(self, calls: Sequence[_Call]) -> None:
        """Runs the inputs of several requests together."""
        if not calls:
            return
        try:
            options = self.pipe.parse(calls[0].options)
            results = iter(self.pipe.window([item for call in calls for item in call.items], options))
        except Exception as error:
            for call in calls:
                _set(call, error)
            return
        for call in calls:
            found = [next(results) for _ in call.items]
            bad = next((result for result in found if isinstance(result, UserError)), None)
            _set(call, found if bad is None else bad)


def _set(call: _Call, value: Any) -> None:
    """Gives an answer or an error to the loop that waits for it."""

    def settle() -> None:
        if call.answer.done():
            return
        if isinstance(value, Exception):
            call.answer.set_exception(value)
        else:
            call.answer.set_result(value)

    call.loop.call_soon_threadsafe(settle)
