"""``jaxformer best-of-n``."""

import argparse
import time

from jaxformer.commands.options import add_model, add_options, add_quoting, parse_options, report_lines, start_display
from jaxformer.schema import check_local, local_path

SUMMARY = "Generate n texts for each prompt of a file and keep the one with the highest score."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_model(parser)
    parser.add_argument(
        "--reward",
        required=True,
        help="what scores the texts: a run of task.type reward, a classifier with one class, or FILE.py:FUNCTION",
    )
    parser.add_argument("--file", required=True, help="prompts: .jsonl, .csv, .tsv or .txt, optionally with .gz")
    parser.add_argument(
        "--out", required=True, help="training data for task.type instruction; run the same command again to resume it"
    )
    parser.add_argument("--n", type=int, default=8, metavar="N", help="texts for each prompt (default: 8)")
    parser.add_argument("--seed", type=int, default=0, metavar="SEED", help="random seed (default: 0)")
    parser.add_argument(
        "--prompt-column",
        metavar="NAME",
        help="column with the prompt; default: the first of messages, prompt, instruction, chosen, rejected",
    )
    add_quoting(parser)
    parser.add_argument("--plain", action="store_true", help="do not put prompts into the chat template")
    parser.add_argument("--all", action="store_true", help="also write the other texts, under completions")
    parser.add_argument("--keep-truncated", action="store_true", help="a text that did not end may win")
    parser.add_argument(
        "--validation-fraction",
        type=float,
        default=0.0,
        metavar="PART",
        help="leave out the rows that a run with this data.validation_fraction holds out (default: 0)",
    )
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="texts in a batch (default: 64)")
    add_options(parser, "generation", "max_new_tokens=200 temperature=0.8 top_k=50 weights=int8")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code: 1 if no line has an answer."""
    from jaxformer.generation.best_of_n import summarise
    from jaxformer.pipelines.best_of_n import BestOfN, Settings, best_of_n
    from jaxformer.pipelines.resumable import check_file

    display = start_display(options.debug)
    file, out = local_path(options.file), local_path(options.out)
    check_file(file)  # before a model is opened
    check_local(options.reward)
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
    maker = BestOfN(options.model, options.reward, settings, options.dtype, options.numerics)
    start = time.monotonic()
    with display.counting(f"best of {settings.n}", "lines") as progress:
        done = best_of_n(maker, file, out, progress, options.quoting)
    if code := report_lines(done, out, display, start):
        return code
    found = summarise(out)
    if done.errors:
        display.say(f'{done.errors:,} of {done.lines:,} lines have no answer, see their "error"')
    if found.prompts:
        display.say(
            f"mean score: {found.first:.3f} ± {found.interval:.3f} (95 %) of the model's first texts for "
            f"{found.prompts:,} prompts, {found.best:.3f} of the best of {settings.n} for the {found.kept:,} answered"
        )
        limit = maker.config.max_new_tokens
        display.say(f"{found.truncated:,} of {found.texts:,} texts were truncated at {limit} tokens (max_new_tokens)")
    if not found.kept:
        return 1
    display.say(
        f"next: python train.py --config configs/assistant/best.yaml model.pretrained={options.model} data.path={out}"
    )
    return 0
