"""``jaxformer judge``."""

import argparse
import time

from jaxformer.commands.options import report_lines, start_display
from jaxformer.schema import UserError, local_path

SUMMARY = "Let a served model judge answers, and write what it prefers as training data for dpo and reward."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--server", required=True, metavar="URL", help="of jaxformer serve or another: http://.../v1")
    parser.add_argument("--judge", metavar="NAME", help="model that judges; without it --answers-by gives the stronger")
    parser.add_argument(
        "--answers-by",
        action="append",
        default=[],
        metavar="NAME",
        help="model that answers the prompts; twice for two",
    )
    parser.add_argument("--n", type=int, default=1, metavar="N", help="answers of each model (default: 1)")
    parser.add_argument("--file", required=True, help="prompts: .jsonl, .csv, .tsv or .txt, optionally with .gz")
    parser.add_argument(
        "--out", required=True, help="rows of prompt, chosen, rejected; run the same command again to resume it"
    )
    parser.add_argument("--prompt-column", metavar="NAME", help="default: as of jaxformer best-of-n")
    parser.add_argument(
        "--answers-column", default="completions", metavar="NAME", help="list of answers in FILE (default: completions)"
    )
    parser.add_argument("--rubric", metavar="FILE", help="text that says what makes an answer better")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of an answer (default: 256)")
    parser.add_argument("--temperature", type=float, default=0.7, help="of the answers (default: 0.7)")
    parser.add_argument("--seed", type=int, default=0, help="of the answers (default: 0)")


def run(options: argparse.Namespace) -> int:
    """Judges each line and returns the exit code: 1 if nothing was preferred."""
    from jaxformer.evaluation.judge import RUBRIC, Judge, Settings, count, judge
    from jaxformer.pipelines.resumable import check_file

    display = start_display(options.debug)
    file, out = local_path(options.file), local_path(options.out)
    check_file(file)
    rubric = RUBRIC
    if options.rubric is not None:
        try:
            rubric = local_path(options.rubric).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--rubric: {error}") from None
    maker = Judge(
        Settings(
            url=options.server,
            judge=options.judge,
            models=tuple(options.answers_by),
            n=options.n,
            rubric=rubric,
            prompt_column=options.prompt_column,
            answers_column=options.answers_column,
            new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            seed=options.seed,
        )
    )
    start = time.monotonic()
    with display.counting("judging", "lines") as progress:
        done = judge(maker, file, out, progress)
    if code := report_lines(done, out, display, start):
        return code
    found = count(out)
    judged = found.first + found.second + found.ties
    if options.judge is not None and judged:
        share = (found.first + found.ties / 2) / judged
        half = 1.96 * (share * (1 - share) / judged) ** 0.5
        display.say(
            f"of {judged:,} pairs the first answer won {found.first:,}, the second {found.second:,}, {found.ties:,} "
            f"were ties ({found.disagreed:,} as the orders disagree): {share:.3f} ± {half:.3f} (95 %) for the first"
        )
    if done.errors:
        display.say(f'{done.errors:,} of {done.lines:,} lines have no preference, see their "error"')
    if done.errors == done.lines:
        return 1
    display.say(f"next: python train.py --config configs/assistant/dpo.yaml data.path={out}")
    return 0
