"""Outcomes of checks for people and for programs."""

import json
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

from jaxformer.check.outcome import Outcome

MARKS = {True: ("ok", "green"), False: ("FAILED", "bold red"), None: ("-", "dim")}


def show(outcome: Outcome, console: Console) -> None:
    """Prints one line for a check, and for a failure its place, the likely cause and the known bug beneath."""
    mark, style = MARKS[outcome.passed]
    line = Text.assemble((f"{mark:<7}", style), f"{outcome.group:<10}", (outcome.name, "bold"))
    if outcome.dtype != "float32":
        line.append(f" ({outcome.dtype})")
    if outcome.passed is None:
        line.append(f": {outcome.compared}", "dim")
    else:
        line.append(f": {outcome.compared}: {outcome.difference:.2g} of {outcome.tolerance:g}")
    console.print(line, soft_wrap=True)
    for note in outcome.notes:
        console.print(Text(f"{'':17}{note}", "dim"), soft_wrap=True)
    if outcome.passed is False:
        named = (("first", outcome.place), ("likely", outcome.cause), ("known", outcome.bug))
        for name, said in named:
            if said:
                console.print(Text.assemble(f"{'':17}", (f"{name}: ", style), said), soft_wrap=True)


def summary(found: Sequence[Outcome], seconds: float) -> str:
    """The number of checks that passed, failed and did not apply, and the time."""
    counts = {value: sum(outcome.passed is value for outcome in found) for value in MARKS}
    return f"{counts[True]} passed, {counts[False]} failed, {counts[None]} do not apply; {seconds:.0f} s"


def as_json(found: Iterable[Outcome]) -> str:
    """The outcomes as one JSON object with a list ``checks`` and ``passed``."""
    found = list(found)
    whole = {"passed": all(o.passed is not False for o in found), "checks": [o.as_json() for o in found]}
    return json.dumps(whole, indent=1, ensure_ascii=False)
