"""Executes a step of a run again and compares it with the receipt of the checkpoint before it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxformer.schema import UserError
from jaxformer.training.checkpoint import load_step
from jaxformer.training.config import parse_config, read_yaml
from jaxformer.training.console import Display
from jaxformer.training.initial_state import start_frozen
from jaxformer.training.receipt import circumstances, hashes, joined, outcome, read_receipt
from jaxformer.training.reference_log_probs import fill_reference
from jaxformer.training.rollout import PolicyStep, Rollouts
from jaxformer.training.run import Run, prepare
from jaxformer.training.sources import CHECKPOINTS, CONFIG_FILE, check_run

# Where these differ the run is another one; code, versions and machine are said, and the step decides.
INPUTS = ("configuration", "data", "tokenizer", "teacher")
RESULTS = ("state", "parameters", "loss", "parameters after")
PROMISE = (
    "The same code and versions give the same numbers on one kind of device and as many of them; "
    "across numbers of devices only numerics: exact promises it"
)
NO_FACTS = ("step", "state", "parameters", "next")  # of a receipt


@dataclass(frozen=True)
class Line:
    """One comparison with the receipt, in words."""

    name: str
    equal: bool
    said: str


@dataclass(frozen=True)
class Verification:
    """What was compared, and whether the step gave the loss and the parameters of the receipt.

    Attributes:
        step: of the checkpoint, before the step that was executed.
        lines: in the order of their comparison.
        notes: further remarks.
    """

    step: int
    lines: list[Line]
    notes: list[str]

    @property
    def equal(self) -> bool:
        """Inputs, parameters and the result of the step are those of the receipt."""
        return all(line.equal for line in self.lines if line.name in (*INPUTS, *RESULTS))


def verify(source: str | Path, step: int | None, display: Display) -> Verification:
    """Executes the step after a checkpoint again; the run's folder is not changed.

    Args:
        source: the run's folder.
        step: of the checkpoint; None: the newest whose receipt has a next step.
        display: shows how the data is read.

    Raises:
        UserError: there is no run, or no checkpoint with a receipt of its next step.
    """
    folder = Path(source)
    check_run(folder, "RUN")
    step, receipt, notes = _choose(folder / CHECKPOINTS, step)
    config = parse_config(read_yaml(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    run = prepare(config.model_copy(update={"output_dir": str(folder)}), display)
    now = circumstances(run, folder)
    lines = [_line(key, receipt.get(key), now.get(key)) for key in {**receipt, **now} if key not in NO_FACTS]
    state = load_step(folder / CHECKPOINTS, step, run.abstract)
    lines.append(_line("state", receipt["state"], joined(hashes(state))))
    lines.append(_arrays("parameters", receipt["parameters"], hashes(state.params)))
    again, expected = _next(run, step, state), receipt["next"]
    same = again["loss"] == expected["loss"]
    said = f"{again['loss']!r}" + ("" if same else f", the receipt has {expected['loss']!r}")
    lines.append(Line("loss", same, f"of step {step + 1}: {said}"))
    lines.append(_arrays("parameters after", expected["parameters"], again["parameters"]))
    other = [line.name for line in lines if not line.equal and line.name not in (*INPUTS, *RESULTS)]
    if other and not lines[-1].equal:
        notes.append(f"other here: {', '.join(other)}. {PROMISE}")
    return Verification(step, lines, notes)


def _choose(folder: Path, step: int | None) -> tuple[int, dict[str, Any], list[str]]:
    """The step, its receipt, and remarks on newer checkpoints that cannot be verified."""
    notes = []
    steps = sorted((int(p.name) for p in folder.iterdir() if p.name.isdigit()), reverse=True)
    if step is not None and step not in steps:
        raise UserError(
            f"there is no checkpoint of step {step}, expected one of {', '.join(map(str, reversed(steps)))}"
        )
    for number in steps if step is None else [step]:
        receipt = read_receipt(folder / str(number))
        if receipt is None:
            notes.append(f"the checkpoint of step {number} has no receipt, or only a part of one")
        elif "next" not in receipt:
            notes.append(f"the checkpoint of step {number} has no next step in its receipt: the run stopped there")
        else:
            return number, receipt, notes
    raise UserError(
        f"{'; '.join(notes) or f'{folder} has no checkpoint'}: expected one whose receipt has its next step; "
        "train further, or name another with --step"
    )


def _line(name: str, recorded: Any, now: Any) -> Line:
    def shown(value: Any) -> str:
        text = str(value)
        return f"{text[:12]}..." if len(text) == 64 else text

    equal = recorded == now
    said = shown(now) if equal else f"{shown(now)}, the receipt has {shown(recorded)}"
    return Line(name, equal, said)


def _arrays(name: str, recorded: dict[str, str], now: dict[str, str]) -> Line:
    differ = sorted(key for key in recorded.keys() | now.keys() if recorded.get(key) != now.get(key))
    said = (
        f"{len(now)} arrays" if not differ else f"{len(differ)} of {len(now)} arrays differ, the first is {differ[0]}"
    )
    return Line(name, not differ, said)


def _next(run: Run, step: int, state: Any) -> dict[str, Any]:
    """The loss of the step after ``state``, and the hashes of the parameters after it."""
    frozen = start_frozen(run)
    fill_reference(run)
    policy = run.config.task.generates
    program: Any = PolicyStep(run, Rollouts(run, frozen)) if policy else run.device_step
    state, metrics, _ = program(state, program.put(run.train_batches[step]), 0, frozen)
    return outcome(state, metrics)
