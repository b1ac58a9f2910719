"""``jaxformer verify``."""

import argparse
import json

SUMMARY = "Execute a step of a run again and compare it with the receipt of the checkpoint before it."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("run", metavar="RUN", help="output_dir of the run")
    parser.add_argument(
        "--step", type=int, metavar="N", help="of the checkpoint (default: the newest with a next step)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code: 1 if the run, or the step, is another than that of the receipt."""
    from jaxformer.check.verify import verify
    from jaxformer.training.console import Display, show_warnings

    display = Display(silent=options.json)
    show_warnings(display.console, options.debug)
    found = verify(options.run, options.step, display)
    if options.json:
        lines = [vars(line) for line in found.lines]
        print(json.dumps({"equal": found.equal, "step": found.step, "lines": lines, "notes": found.notes}))
        return 0 if found.equal else 1
    for note in found.notes:
        display.say(note)
    for line in found.lines:
        display.say(f"{'equal  ' if line.equal else 'DIFFERS'}  {line.name:<17} {line.said}")
    said = "equal: the step gives the same loss and parameters, bit for bit" if found.equal else "not equal"
    display.say(f"step {found.step} to {found.step + 1}: {said}")
    return 0 if found.equal else 1
