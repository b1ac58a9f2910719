"""A check, what it found, and the run of a list of checks over one subject."""

import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain, zip_longest
from queue import SimpleQueue
from typing import Any, NamedTuple

from jaxformer.schema import UserError


@dataclass(frozen=True)
class Outcome:
    """The result of one check.

    Attributes:
        group: ``data``, ``model``, ``training``, ``use`` or ``alignment``.
        name: of the check.
        compared: the two things compared, in words.
        passed: None where the check does not apply; ``compared`` then says why.
        difference: the largest one found, in the unit of the tolerance.
        tolerance: the largest difference that passes.
        place: of the first or largest difference: a parameter, a row, a token as text.
        cause: the likely cause of a failure.
        bug: a fault of this kind that a well-known library shipped.
        dtype: in which the model computed.
        notes: lines to be shown with the check: a table, rows of the data.
        seconds: the time it took.
    """

    group: str
    name: str
    compared: str
    passed: bool | None
    difference: float = 0.0
    tolerance: float = 0.0
    place: str = ""
    cause: str = ""
    bug: str = ""
    dtype: str = "float32"
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The attributes as JSON holds them: a difference that is inf or nan becomes a text."""
        found = asdict(self)
        finite = self.difference == self.difference and abs(self.difference) != float("inf")
        return {**found, "notes": list(self.notes), "difference": self.difference if finite else str(self.difference)}


class Measured(NamedTuple):
    """The two things that a check compared, and by how much they differ where most."""

    compared: str
    difference: float
    tolerance: float
    place: str = ""
    notes: tuple[str, ...] = ()


class DoesNotApplyError(Exception):
    """A check has nothing to compare here; the message says why."""


class Check(NamedTuple):
    """A check of one kind of subject.

    Attributes:
        group: as in ``Outcome``.
        name: likewise.
        cause: the likely cause of a failure.
        bug: likewise.
        measure: compares; raises ``DoesNotApplyError`` where there is nothing to compare.
    """

    group: str
    name: str
    cause: str
    bug: str
    measure: Callable[[Any], Measured]


class Checks(list[Check]):
    """The checks of one group, in the order in which they are declared."""

    def __init__(self, group: str) -> None:
        super().__init__()
        self.group = group

    def add(self, name: str, *, cause: str, bug: str = "") -> Callable[[Callable[[Any], Measured]], Any]:
        """Declares the decorated function as a check."""

        def declare(measure: Callable[[Any], Measured]) -> Callable[[Any], Measured]:
            self.append(Check(self.group, name, cause, bug, measure))
            return measure

        return declare


def outcomes(checks: Iterable[Check], subject: Any, dtype: str = "float32") -> Iterator[Outcome]:
    """Runs the checks one after the other; an error that one raises is its failure, and the others run all the same."""
    for check in checks:
        start = time.perf_counter()
        found = _outcome(check, subject, dtype)
        yield replace(found, seconds=round(time.perf_counter() - start, 2))


def side_by_side(*lanes: Sequence[Iterator[Outcome]]) -> Iterator[Outcome]:
    """Runs the lists of each lane one after the other in a thread of its own: most of the time goes into compiling,
    which holds no lock of Python's.

    Programs that sum over the same devices must be in one lane: two such programs that start at once wait for each
    other.

    Yields:
        The outcomes of the first list of each lane, then those of the second of each, as soon as they are there.
    """
    stopped = threading.Event()
    queues: list[list[SimpleQueue[Outcome | None]]] = [[SimpleQueue() for _ in lane] for lane in lanes]

    def work(lane: Sequence[Iterator[Outcome]], into: Sequence[SimpleQueue[Outcome | None]]) -> None:
        try:
            for found, queue in zip(lane, into, strict=True):
                for outcome in found:
                    queue.put(outcome)
                    if stopped.is_set():
                        return
                queue.put(None)
        finally:
            for queue in into:
                queue.put(None)

    with ThreadPoolExecutor(len(lanes)) as pool:
        working = [pool.submit(work, lane, into) for lane, into in zip(lanes, queues, strict=True)]
        try:
            for queue in filter(None, chain(*zip_longest(*queues))):
                yield from iter(queue.get, None)
        finally:  # Ctrl-C waits for no more than the checks that have begun
            stopped.set()
        for each in working:
            each.result()  # raises what ended a lane


def _outcome(check: Check, subject: Any, dtype: str) -> Outcome:
    try:
        compared, difference, tolerance, place, notes = check.measure(subject)
    except DoesNotApplyError as reason:
        return Outcome(check.group, check.name, str(reason), None, dtype=dtype)
    except Exception as error:  # whatever the user's model, data or step raises is what is to be reported
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, UserError) else f" ({frame.name}, {frame.filename}:{frame.lineno})"
        text = " ".join(str(error).split())[:300]
        said = f"{type(error).__name__}: {text}{where}"
        return Outcome(
            check.group, check.name, "an error", False, float("nan"), 0.0, said, check.cause, check.bug, dtype
        )
    passed = bool(difference <= tolerance)  # nan fails
    cause, bug = ("", "") if passed else (check.cause, check.bug)
    shown = place if not passed else ""
    return Outcome(
        check.group, check.name, compared, passed, float(difference), tolerance, shown, cause, bug, dtype, notes
    )
