"""``jaxformer check``: the correctness contract on the user's own configuration, data, model and devices."""

import argparse
import gc
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from jaxformer.commands.options import add_config
from jaxformer.schema import UserError, nearest

SUMMARY = "Check a training run before it starts, or a model before it is used: data, model, training, use, alignment."
GROUPS = ("data", "model", "training", "use", "alignment")
DEVICES = 2  # simulated on a CPU: enough to see a sum over devices that is missing or taken twice


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_config(parser)
    parser.add_argument("--model", help="instead of --config: folder of a run, Hugging Face folder, or name on the Hub")
    parser.add_argument(
        "--text", action="append", default=[], help="with --model: a text to check with; may be repeated"
    )
    parser.add_argument("--only", metavar="NAME;...", help=f"checks by name, or groups: {', '.join(GROUPS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(options: argparse.Namespace) -> int:
    """Runs the command: 0 if every check passed, 1 if one failed."""
    if (options.config is None and not options.overrides) == (options.model is None):
        raise UserError("expected --config FILE (a training run) or --model NAME (a model to be used), one of them")
    only = None if options.only is None else [name.strip() for name in options.only.split(";")]
    from rich.console import Console

    from jaxformer.check import report
    from jaxformer.check.subjects import check_names
    from jaxformer.training.console import Display, show_warnings
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()
    # Lines about the work go to standard error, so that the JSON is all there is on standard output.
    display = Display(Console(stderr=True) if options.json else None)
    show_warnings(display.console, options.debug)
    for name in only or ():
        if name not in (known := [*GROUPS, *check_names()]):
            raise UserError(f"--only has {name!r}, expected a group or a check{nearest(name, known)}")
    checks = _config(options, only, display) if options.model is None else _model(options, only)
    found, start, collecting = [], time.perf_counter(), gc.isenabled()
    if options.model is None:
        # Tracing makes millions of small objects that are kept; to look through them again and again for circles takes
        # a fifth of the time, and the models are small.
        gc.disable()
    try:
        for outcome in checks:
            found.append(outcome)
            if not options.json:
                report.show(outcome, display.console)
    finally:
        if collecting:  # a program that calls this one goes on
            gc.enable()
    if options.json:
        print(report.as_json(found))
    else:
        display.say(report.summary(found, time.perf_counter() - start))
    return 0 if all(outcome.passed is not False for outcome in found) else 1


def _compile_fast(numerics: Any) -> None:
    """Sets the compiler's options, before JAX has a device; exact numerics are those of a program compiled in full."""
    from jaxformer.parallel.compiler_flags import FAST_COMPILATION

    if numerics != "exact":
        os.environ["XLA_FLAGS"] = f"{FAST_COMPILATION} {os.environ.get('XLA_FLAGS', '')}"


def _config(options: argparse.Namespace, only: list[str] | None, display: Any) -> Any:
    import jax

    from jaxformer.check.subjects import check_config
    from jaxformer.training.sources import load_config

    config = load_config(options.config, options.overrides)
    _compile_fast(config.model.numerics)
    p = config.parallel
    axes = p.fsdp * p.expert * p.sequence * p.tensor * max(p.data, 1)
    with suppress(RuntimeError):  # of a program that calls this one and has its devices already
        jax.config.update("jax_num_cpu_devices", max(DEVICES, axes))
    return check_config(config, display, only)


def _model(options: argparse.Namespace, only: list[str] | None) -> Any:
    from jaxformer.check.subjects import check_model
    from jaxformer.pipelines.opened_model import open_model
    from jaxformer.tokenizers import encode_batch
    from jaxformer.training.sources import model_keys

    _compile_fast(model_keys(options.model).get("numerics"))
    opened = open_model(options.model)
    texts = options.text or [Path(__file__).read_text(encoding="utf-8")]
    rows = encode_batch(opened.tokenizer, texts)
    longest = max(map(len, rows))
    batch = {
        "input_ids": [[*row, *[0] * (longest - len(row))] for row in rows],
        "attention_mask": [[1] * len(row) + [0] * (longest - len(row)) for row in rows],
    }
    return check_model(opened.model, opened.params, batch, opened.tokenizer, only)
