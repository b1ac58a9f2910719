"""``jaxformer plan``."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING

from jaxformer.commands.options import add_config
from jaxformer.schema import UserError

if TYPE_CHECKING:
    import jax

    from jaxformer.cost import plan
    from jaxformer.cost.topology import Chip
    from jaxformer.training.config import RunConfig
    from jaxformer.training.console import Display

SUMMARY = "Find the mesh and settings with which a configuration trains fastest on TPUs that need not be here."
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_config(parser, required=True)
    parser.add_argument(
        "--chips", required=True, metavar="CHIP:NUMBER", help="v5e:256, or a topology: v5e:16x16; 2xv5e:256: slices"
    )
    parser.add_argument("--tokens", type=token_count, metavar="N", help="tokens to train on, 20B: adds hours")
    parser.add_argument("--price", type=float, metavar="P", help="of a chip for an hour: adds what the tokens cost")
    parser.add_argument(
        "--batch-sizes",
        type=row_counts,
        metavar="N,N",
        help="rows of a step to try (default: training.batch_size)",
    )
    parser.add_argument("--most", type=int, default=16, metavar="N", help="programs that fit to compile (default: 16)")


def token_count(text: str) -> int:
    """A number of tokens as people write it.

    >>> token_count("20B"), token_count("1.5T"), token_count("300_000")
    (20000000000, 1500000000000, 300000)
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMBT]?)", text.replace("_", "").replace(",", "").upper())
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"is {text!r}, expected a number of tokens like 20B, 300M or 5_000_000")
    return round(float(found[1]) * UNITS[found[2]])


def row_counts(text: str) -> list[int]:
    """Numbers of rows, separated by commas.

    >>> row_counts("512,1024")
    [512, 1024]
    """
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"is {text!r}, expected numbers of rows like 512 or 512,1024")
    return [int(part) for part in parts]


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    import time

    from jaxformer.cost import plan
    from jaxformer.cost.topology import described_devices
    from jaxformer.training.console import Display, show_warnings
    from jaxformer.training.sources import load_config

    if options.most < 1:
        raise UserError(f"--most is {options.most}, expected 1 or more")
    start = time.monotonic()
    display = Display()
    show_warnings(display.console, options.debug)
    config = load_config(options.config, options.overrides)
    if config.model.vocab_size is None or config.task.reads != "text":
        raise UserError(
            "plan needs shapes that the configuration says alone, expected model.vocab_size and an objective on text; "
            "for another, train.py --compile-for costs one configuration"
        )
    chip, devices = described_devices(options.chips, "--chips")
    plans = _search(options, config, chip, devices, display)
    minutes = (time.monotonic() - start) / 60
    if not plans:
        raise UserError(
            f"--chips {options.chips}: none of the programs compiled in {minutes:.0f} min fits; give more chips, or "
            f"--most above {options.most}"
        )
    best = plans[: plan.BEST]
    price = plan.Price(options.tokens, options.price)
    display.table([plan.row(one, chip, config.sequence_length, len(devices), price) for one in best])
    display.say(f"searched {minutes:.1f} min. The bounds are those of the data sheets; a real step is slower.")
    for number, one in enumerate(best, 1):
        display.say(f"{number}: {' '.join(one.candidate.overrides)}")
    return 0


def _search(
    options: argparse.Namespace, config: RunConfig, chip: Chip, devices: list[jax.Device], display: Display
) -> list[plan.Plan]:
    """The plans that fit, best first, each said as soon as it is compiled."""
    import time

    import jax

    from jaxformer.cost import plan
    from jaxformer.cost.compile_for import StepCost, fitting_cost, shape_run
    from jaxformer.parallel.mesh import number_of_slices
    from jaxformer.training.console import duration
    from jaxformer.training.sources import load_config

    chips, slices, length = len(devices), number_of_slices(devices), config.sequence_length
    of_one_row = load_config(options.config, [*options.overrides, *plan.ONE_ROW])
    model = plan.model_of(shape_run(of_one_row, jax.devices("cpu")[:1]))
    sizes = options.batch_sizes or [config.training.batch_size]
    found = list(plan.candidates(config, chips, sizes, slices))
    if not found:
        raise UserError(
            f"--chips {options.chips}: no mesh of {chips} chips divides batches of {', '.join(map(str, sizes))} "
            f"rows; give --batch-sizes with multiples of {chips}"
        )
    ordered = plan.in_order(found, model, chip, chips, slices)
    if not ordered:
        raise UserError(
            f"--chips {options.chips}: parameters and optimizer state do not fit on {chips} chips however they "
            "are split; give more chips"
        )
    display.say(
        f"{len(found):,} ways divide evenly, the state of {len(ordered):,} fits; compiling at most {options.most}"
    )

    def compile_one(candidate: plan.Candidate) -> StepCost | None:
        began = time.monotonic()
        spread = load_config(options.config, [*options.overrides, *candidate.overrides])
        try:
            cost = fitting_cost(shape_run(spread, devices), chip)
        except UserError as error:  # another key of the configuration does not divide; the next mesh may serve
            display.say(f"{plan.in_words(candidate, chips)}: {error}")
            return None
        fits = cost if isinstance(cost, StepCost) else None
        what = (
            f"it needs {cost}" if fits is None else f"{1000 * max(fits.times(chip).values()):,.0f} ms a step at least"
        )
        display.say(f"{plan.in_words(candidate, chips)}: {what} ({duration(time.monotonic() - began)})")
        return fits

    plans = plan.search(ordered, compile_one, chip, length, options.most)
    if not plans:
        return []
    chunks = plan.other_chunks(plans[0].candidate, model, chip, chips)
    return plan.ranked([*plans, *plan.search(chunks, compile_one, chip, length, len(chunks))], chip, length)
