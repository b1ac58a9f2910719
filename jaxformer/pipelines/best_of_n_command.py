"""The command ``jaxformer best-of-n``."""

import argparse
import time
from pathlib import Path

from jaxformer.pipelines.command import begin, parse_options, say_stopped


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--model", metavar="MODEL", required=True, help="what writes: a run's folder, a folder, or a name on the Hub"
    )
    parser.add_argument(
        "--reward",
        metavar="REWARD",
        required=True,
        help="what scores: a run of task.type reward, a classifier with one class, or FILE.py:FUNCTION",
    )
    parser.add_argument(
        "--file", metavar="FILE", required=True, help="prompts: .jsonl, .csv, .tsv or .txt, also with .gz"
    )
    parser.add_argument("--out", metavar="OUT", required=True, help="rows for task.type instruction, one for each line")
    parser.add_argument("--n", type=int, default=8, metavar="N", help="texts for each prompt (default: 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="of the draws (default: 0)")
    parser.add_argument(
        "--prompt-column",
        metavar="NAME",
        help="column with the prompt; default: the first there is of messages, prompt, instruction, chosen, rejected",
    )
    parser.add_argument("--plain", action="store_true", help="prompts are texts even if there is a chat template")
    parser.add_argument("--all", action="store_true", help="write the other texts too, under completions")
    parser.add_argument("--keep-truncated", action="store_true", help="texts that did not end may be the best")
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.0,
        metavar="PART",
        help="leave out the rows that runs on FILE hold out with this data.validation_fraction (default: 0)",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts at once (default: 64)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="of the model's parameters and computation")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.add_argument(
        "options",
        nargs="*",
        metavar="key=value",
        help="max_new_tokens=200, temperature=0.8, top_k=50, weights=int8 ...",
    )


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code: 1 if no line has an answer."""
    from jaxformer.generation.best_of_n import summarise
    from jaxformer.pipelines.best_of_n import BestOfN, Settings, best_of_n
    from jaxformer.pipelines.lines import check_file
    from jaxformer.training.console import duration

    display = begin(options.debug)
    file, out = Path(options.file).expanduser(), Path(options.out).expanduser()
    check_file(file)  # before a model is opened
    settings = Settings(
        n=options.n,
        seed=options.seed,
        prompt_column=options.prompt_column,
        plain=options.plain,
        others=options.all,
        keep_truncated=options.keep_truncated,
        validation_fraction=options.validation_fraction,
        batch_size=options.batch_size,
        options=parse_options(options.options),
    )
    maker = BestOfN(options.model, options.reward, settings, options.dtype)
    start = time.monotonic()
    with display.counting(f"best of {settings.n}", "lines") as progress:
        done = best_of_n(maker, file, out, progress)
    if done.stopped_by is not None:
        return say_stopped(display, done, out)
    said = f"{done.lines - done.earlier:,} lines in {duration(time.monotonic() - start)}"
    display.say(said + (f", {done.earlier:,} were there already" if done.earlier else ""))
    found = summarise(out)
    if done.errors:
        display.say(f'{done.errors:,} of {done.lines:,} lines have no answer and say why under "error"')
    if found.prompts:
        display.say(
            f"mean score: {found.first:.3f} ± {found.interval:.3f} (95 %) is what the model gives to {found.prompts:,} "
            f"prompts, {found.best:.3f} the best of {settings.n} to the {found.kept:,} with an answer"
        )
        limit = maker.config.max_new_tokens
        display.say(f"{found.truncated:,} of {found.texts:,} texts were cut at {limit} tokens (max_new_tokens)")
    if not found.kept:
        return 1
    display.say(
        f"written: {out}; next: python train.py --config configs/assistant/best.yaml model.pretrained={options.model} "
        f"data.path={out}"
    )
    return 0
