"""``jaxformer inspect``."""

import argparse
import json
from typing import Any

SUMMARY = "Show what a checkpoint or a model's files hold, or how two of them differ."
# Settings that are shown, by the end of their names.
SHOWN = (
    *("type", "model_type", "architectures", "pretrained", "path", "seed", "steps", "batch_size", "sequence_length"),
    *("hidden_size", "n_embd", "d_model", "num_layers", "num_hidden_layers", "n_layer", "num_heads", "n_head"),
    *("num_attention_heads", "num_kv_heads", "num_key_value_heads", "intermediate_size", "vocab_size", "max_length"),
    *("max_position_embeddings", "n_positions", "dtype", "torch_dtype", "tie_word_embeddings", "learning_rate"),
    *("rank", "r", "lora_alpha", "target_modules", "base_model_name_or_path", "peft_type", "task_type"),
)
MOST_KEYS = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    what = "a run, a checkpoint, a model or adapter in the Hugging Face format, a safetensors file or a name on the Hub"
    parser.add_argument("path", metavar="PATH", help=what)
    parser.add_argument(
        "other", metavar="OTHER", nargs="?", help="show how PATH differs from it; exit code 1 if it does"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--picture", metavar="FILE.png", help="draw histograms, or the differences by layer and kind")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code: 1 if two places differ."""
    from rich.console import Console

    from jaxformer.check.contents import aligned, compare, open_contents

    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console = Console(highlight=False, soft_wrap=True, width=160)
    first = open_contents(options.path)
    if options.other is None:
        _show(first, options, console)
        return 0
    first, second = aligned(first, open_contents(options.other))
    found = compare(first, second)
    if options.picture:
        from jaxformer.check.pictures import draw_differences

        draw_differences(first, second, found, options.picture)
    if options.json:
        print(json.dumps(_finite({"equal": found.equal, **_fields(found)})))
    else:
        _show_differences(first, second, found, console)
    return 0 if found.equal else 1


def _fields(found: Any) -> dict[str, Any]:
    changes = [change._asdict() for change in found.changes]
    return {**vars(found), "changes": changes, "config": {key: list(pair) for key, pair in found.config.items()}}


def _finite(value: Any) -> Any:
    """A value as JSON has it: inf and nan as text."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and (value != value or abs(value) == float("inf")):
        return str(value)
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _show(contents: Any, options: argparse.Namespace, console: Any) -> None:
    """Prints one place."""
    from jaxformer.check.contents import statistics

    rows = [statistics(name, contents.arrays.read(name)) for name in contents.parameters]
    state = [statistics(name, contents.arrays.read(name)) for name in contents.state]
    size, memory, bad = (
        sum(row.size for row in rows),
        sum(row.bytes for row in rows),
        sum(r.bad for r in (*rows, *state)),
    )
    if options.picture:
        from jaxformer.check.pictures import draw_histograms

        draw_histograms(contents, options.picture)
    if options.json:
        facts = {"source": contents.source, "kind": contents.kind, "step": contents.step, "parameters": size}
        facts |= {"bytes": memory, "not_finite": bad, "config": contents.config}
        print(
            json.dumps(
                _finite({**facts, **{n: [r._asdict() for r in rs] for n, rs in (("arrays", rows), ("state", state))}})
            )
        )
        return
    console.print(f"{contents.source}: {contents.kind}", style="bold", markup=False)
    for key, value in contents.config.items():
        if key.rpartition(".")[2] in SHOWN and value is not None:
            console.print(f"  {key}: {value}", markup=False)
    table = _table("parameter", "shape", "type", "mean", "std", "min", "max", "zeros")
    for row in rows:
        numbers = (f"{value:.4g}" for value in (row.mean, row.std, row.min, row.max))
        table.add_row(row.name, str(list(row.shape)), row.dtype, *numbers, f"{row.zeros:.1%}")
    console.print(table, soft_wrap=False)
    console.print(f"{len(rows):,} arrays, {size:,} parameters, {memory / 1e6:,.1f} MB")
    for group, some in _grouped(state, contents.parameters).items():
        values = sum(row.size for row in some)
        root = (sum(row.size * (row.mean**2 + row.std**2) for row in some) / max(values, 1)) ** 0.5
        what = f"{len(some)} arrays, {values:,} values, {sum(r.bytes for r in some) / 1e6:,.1f} MB, root mean square"
        console.print(f"{group}: {some[0].mean:g}" if values == 1 else f"{group}: {what} {root:.4g}", markup=False)
    for row in (*rows, *state):
        if row.bad:
            console.print(
                f"NOT FINITE: {row.bad:,} of {row.size:,} values of {row.name} are inf or nan", style="bold red"
            )


def _grouped(state: Any, parameters: list[str]) -> dict[str, list[Any]]:
    """The optimizer's arrays by what they are: the part of their name before that of a parameter."""
    known, found = {*parameters}, dict[str, list[Any]]()
    for row in state:
        words = row.name.split("/")
        cut = next((n for n in range(1, len(words)) if "/".join(words[n:]) in known), len(words))
        found.setdefault("/".join(words[:cut]), []).append(row)
    return found


def _table(*columns: str) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="right" if number else "left", no_wrap=number > 0)
    return table


def _show_differences(first: Any, second: Any, found: Any, console: Any) -> None:
    """Prints how two places differ."""
    console.print(f"{first.source}: {first.kind}\n{second.source}: {second.kind}", style="bold", markup=False)
    for source, names in ((first.source, found.here), (second.source, found.there)):
        for name in names:
            console.print(f"only in {source}: {name}", markup=False)
    for name, mine, theirs in found.types:
        console.print(f"{name}: {mine}, there {theirs}", markup=False)
    if found.changes:
        table = _table("array", "values that differ", "largest difference", "relative")
        for change in found.changes:
            table.add_row(change.name, f"{change.differ:,}", f"{change.largest:.4g}", f"{change.relative:.4g}")
        console.print(table, soft_wrap=False)
    for key, (mine, theirs) in list(found.config.items())[:MOST_KEYS]:
        console.print(f"{key}: {mine}, there {theirs}", markup=False)
    if len(found.config) > MOST_KEYS:
        console.print(f"and {len(found.config) - MOST_KEYS} more settings")
    arrays = "1 array is" if found.same == 1 else f"{found.same:,} arrays are"
    console.print(
        f"{arrays} equal, bit for bit" + ("" if found.equal else f"; {len(found.changes):,} have other values")
    )
