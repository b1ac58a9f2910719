"""``jaxformer evaluate``."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxformer.commands.options import add_options, parse_options, start_display
from jaxformer.schema import UserError, local_path

SUMMARY = "Evaluate models: tasks of the lm-evaluation-harness, or the perplexity of a text."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        help="folder of a run, Hugging Face folder, or name on the Hub; may be given several times",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tasks", metavar="A,B", help="tasks of the lm-evaluation-harness")
    what.add_argument("--text", metavar="FILE", help="text whose perplexity is computed: .txt or .jsonl, also .gz")
    parser.add_argument("--include-path", metavar="FOLDER", help="folder with further tasks, as YAML files")
    parser.add_argument("--num-fewshot", type=int, metavar="N", help="examples in the prompt; default: the task's")
    parser.add_argument("--limit", type=int, metavar="N", help="first examples of each task; default: all")
    parser.add_argument("--chat", action="store_true", help="put prompts into the model's chat template")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="texts generated at once (default: 8)")
    parser.add_argument("--out", metavar="FOLDER", default="evaluation", help="of the results (default: evaluation)")
    parser.add_argument("--card", action="store_true", help="also write the scores into the model's README.md")
    parser.add_argument("--stride", type=int, metavar="N", help="tokens between windows of --text; default: half")
    parser.add_argument("--text-column", default="text", metavar="NAME", help="of .jsonl (default: text)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="type of the parameters and computation")
    parser.add_argument("--numerics", choices=("fast", "exact", "bfloat16"), help="as of jaxformer generate")
    add_options(parser, "the pipeline", "weights=int8")


def run(options: argparse.Namespace) -> int:
    """Evaluates each model and returns the exit code."""
    from jaxformer.pipelines import pipeline

    display = start_display(options.debug)
    texts = None if options.text is None else _texts(local_path(options.text), options.text_column)
    tasks = None if options.tasks is None else _tasks(options)
    rows = []
    for name in options.model:
        pipe = pipeline(None, name, dtype=options.dtype, numerics=options.numerics, **parse_options(options.options))
        if pipe.task != "text-generation":
            raise UserError(f"{name} is a model for {pipe.task}, expected a decoder")
        rows += _perplexity(pipe, texts, options, display) if texts is not None else _harness(pipe, tasks, options)
    display.table(rows)
    if tasks is not None:
        from jaxformer.evaluation.results import write_leaderboard

        page = local_path(options.out) / "leaderboard.html"
        write_leaderboard(local_path(options.out), page)
        display.say(f"written: {page}")
    return 0


def _tasks(options: argparse.Namespace) -> Any:
    """The tasks, of those that the harness knows here."""
    from jaxformer.external import need

    make = need("lm_eval.tasks", "eval").TaskManager
    names = [name for name in options.tasks.split(",") if name]
    # The harness's own tasks take seconds to list, and often none of them is asked for.
    manager = make(include_path=options.include_path, include_defaults=options.include_path is None)
    if options.include_path is not None and not set(names) <= set(manager.all_tasks):
        manager = make(include_path=options.include_path)
    unknown = [name for name in names if name not in manager.all_tasks]
    if unknown or not names:
        raise UserError(
            f"there is no task {(unknown or [''])[0]!r}, expected those of the harness (lm_eval ls tasks), or of a "
            "folder with YAML files: --include-path"
        )
    return names, manager


def _harness(pipe: Any, tasks: Any, options: argparse.Namespace) -> list[dict[str, str]]:
    import lm_eval

    from jaxformer.evaluation.harness import JaxformerLM
    from jaxformer.evaluation.results import main_scores, scores_of, write_card, write_results

    names, manager = tasks
    found = lm_eval.simple_evaluate(
        JaxformerLM(pipe, options.batch_size),
        tasks=names,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        apply_chat_template=options.chat,
        task_manager=manager,
        log_samples=False,
    )
    folder = local_path(pipe.name)
    name = folder.resolve().name if folder.is_dir() else pipe.name
    write_results(local_path(options.out), name, found)
    scores = scores_of(name, found)
    if options.card:
        write_card(folder, main_scores(scores))
    return [
        {
            "model": score.model,
            "task": score.task,
            "metric": score.metric,
            "value": score.shown,
            "shots": "" if score.shots is None else str(score.shots),
            "examples": "" if score.examples is None else f"{score.examples:,}",
        }
        for score in scores
    ]


def _perplexity(pipe: Any, texts: list[str], options: argparse.Namespace, display: Any) -> list[dict[str, str]]:
    from jaxformer.evaluation.perplexity import perplexity

    start = time.monotonic()
    found = perplexity(pipe, texts, options.stride)
    return [
        {
            "model": pipe.name,
            "perplexity": f"{found.perplexity:,.3f}",
            "bits per byte": f"{found.bits_per_byte:.4f}",
            "tokens": f"{found.tokens:,}",
            "bytes": f"{found.bytes:,}",
            "seconds": f"{time.monotonic() - start:.1f}",
        }
    ]


def _texts(path: Path, column: str) -> list[str]:
    """The texts of a file: a .txt is one text, each line of another is one."""
    from jaxformer.data.lines import read_lines
    from jaxformer.pipelines.resumable import check_file

    kind = check_file(path)
    return list(_lines(path, column, read_lines(path, kind, "auto"))) if kind != "text" else [_whole(path)]


def _whole(path: Path) -> str:
    import gzip

    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}") from None


def _lines(path: Path, column: str, lines: Any) -> Iterator[str]:
    for line in lines:
        value = line.value.get(column) if isinstance(line.value, dict) else line.value
        if not isinstance(value, str):
            raise UserError(f"{path} line {line.number}: there is no text {column!r}; see --text-column")
        yield value
