"""What the stages of an assistant gained: score, distance from the model before, length, on prompts that were held out.

    python benchmarks/assistant.py --reward runs/reward --reference runs/sft runs/sft runs/best runs/dpo runs/ppo

The prompts are the rows that the reward's run held out, so that no stage with that data and fraction learned from them.
KL is that of a model from the reference, in nats a response: the mean over texts of the model of
``log p_model(text) - log p_reference(text)``. Intervals are 95 %, by the normal distribution over prompts.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from _timing import print_table
from rich.console import Console

from jaxformer import functional as F
from jaxformer.data.config import DataConfig
from jaxformer.data.records import open_records
from jaxformer.generation import GenerationConfig, prepare
from jaxformer.generation.best_of_n import DEVIATIONS, Drawn, draw, prompt_seed
from jaxformer.models import Decoder
from jaxformer.pipelines.opened_model import Opened, open_model
from jaxformer.schema import UserError
from jaxformer.tasks.records import Tally, stack_rows
from jaxformer.tasks.responses import FILL, Encoded, ResponseEncoder, causal_row, encode_prompts
from jaxformer.tasks.row_readers import PromptReader
from jaxformer.tokenizers import difference
from jaxformer.training.console import Display, show_warnings
from jaxformer.training.evaluation import Evaluator, evaluate_checkpoint
from jaxformer.training.initial_state import start_state
from jaxformer.training.rewards import Reward, Sample, function_of, open_reward
from jaxformer.training.run import Run
from jaxformer.training.run import prepare as prepare_run
from jaxformer.training.sources import load_config

BATCH = 16  # prompts at once
BUCKET = 64
HEADER = ["model", "score", "score over the reference's", "KL, nats a response", "tokens", "cut"]


class Measured(NamedTuple):
    """Of each prompt ``[P]``, means over its texts."""

    score: np.ndarray
    kl: np.ndarray
    tokens: np.ndarray
    cut: np.ndarray


class Prompts(NamedTuple):
    """Rows and the ids of their prompts."""

    rows: list[Any]
    ids: list[list[int]]


def stored(folder: str) -> Run:
    """A run as its folder says, with its data."""
    config = load_config(f"{folder}/config.yaml", [f"output_dir={folder}"])
    return prepare_run(config, Display(silent=True))


def open_writer(name: str) -> Opened:
    """A model that writes.

    Raises:
        UserError: it does not, or reads its prompt in an encoder.
    """
    opened = open_model(name)
    if not isinstance(opened.model, Decoder):
        raise UserError(f"{name} is a {type(opened.model).__name__}, expected a decoder with a language-model head")
    return opened


def held_out(options: argparse.Namespace, reference: Opened) -> Prompts:
    """The prompts, as the reference meets them.

    Raises:
        UserError: there are none.
    """
    if options.file is not None:
        rows: Sequence[Any] = open_records(DataConfig(path=options.file, validation_fraction=0.0)).train
    elif function_of(options.reward) is None and (Path(options.reward) / "config.yaml").exists():
        rows = open_records(load_config(f"{options.reward}/config.yaml").data).validation or ()
    else:
        raise UserError(f"the reward {options.reward} is no run and has no data, expected --file with prompts")
    encoder = ResponseEncoder(reference.tokenizer, None)
    reader = PromptReader({}, as_messages=encoder.writer is not None and not options.plain)
    tally = Tally(total=len(rows))
    found = encode_prompts(encoder, rows, reader, tally, reference.model.config.max_length - options.max_new_tokens)
    tally.report()
    found = found[: options.prompts]
    if not found:
        raise UserError("no row is held out, expected a run with data.validation_fraction, or --file with prompts")
    return Prompts([row for row, _ in found], [ids for _, ids in found])


@partial(jax.jit, static_argnames="model")
def log_probs(model: Any, params: Any, batch: Any) -> jax.Array:
    """``[B]``, of the labelled tokens."""
    logits = model.apply({"params": params}, batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.sequence_log_probs(F.token_log_probs(logits, batch["labels"]), batch["labels"])


def reference_log_probs(reference: Opened, prompts: Sequence[list[int]], texts: Sequence[list[int]]) -> np.ndarray:
    """What the reference says of texts, nats ``[n]``."""
    found = []
    for start in range(0, len(texts), BATCH):
        stop = start + BATCH
        pairs = list(zip(prompts[start:stop], texts[start:stop], strict=True))
        pairs += pairs[:1] * (BATCH - len(pairs))
        rows = [causal_row(Encoded(prompt, text, [True] * len(text))) for prompt, text in pairs]
        batch = stack_rows(rows, FILL)
        # Few lengths are compiled.
        longest = np.shape(batch["input_ids"])[1]
        width = min(-(-longest // BUCKET) * BUCKET, reference.model.config.max_length) - longest
        fills = {"input_ids": 0, "attention_mask": 0, "labels": F.IGNORE}
        padded = {n: np.pad(np.asarray(batch[n]), ((0, 0), (0, width)), constant_values=fills[n]) for n in fills}
        found.append(np.asarray(log_probs(reference.model, reference.params, padded)))
    return np.concatenate(found)[: len(texts)]


def measure(
    writer: Opened, reference: Opened, reward: Reward, prompts: Prompts, options: argparse.Namespace
) -> Measured:
    """Draws texts from a model at a temperature of 1, without other options, and measures them."""
    config = GenerationConfig(
        max_new_tokens=options.max_new_tokens, do_sample=True, pad_token_id=writer.tokenizer.pad_token_id
    )
    seeds = [prompt_seed(options.seed, number) for number in range(len(prompts.ids))]
    params = prepare(writer.model, writer.params)
    drawn = draw(writer.model, params, writer.tokenizer, prompts.ids, seeds, options.n, config, BATCH)
    before = [ids for ids in prompts.ids for _ in range(options.n)]
    texts: list[Drawn] = [text for some in drawn for text in some]
    rows = [row for row in prompts.rows for _ in range(options.n)]
    said = [writer.tokenizer.decode(ids, skip_special_tokens=False) for ids in before]
    samples = [
        Sample(row, ids, text.ids, text.ended, prompt, text.text)
        for row, ids, prompt, text in zip(rows, before, said, texts, strict=True)
    ]
    own = np.array([text.log_prob for text in texts])
    values = (
        reward(samples),
        own - reference_log_probs(reference, before, [text.ids for text in texts]),
        np.array([len(text.ids) for text in texts]),
        np.array([not text.ended for text in texts]),
    )
    return Measured(*(value.reshape(-1, options.n).astype(np.float64).mean(axis=1) for value in values))


def with_interval(values: np.ndarray) -> str:
    """The mean and half of its interval."""
    half = DEVIATIONS * np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{round(float(np.mean(values)), 3) + 0.0:.3f} ± {half:.3f}"  # no minus before a zero


def proportion_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson 1927)."""
    z2 = DEVIATIONS**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = DEVIATIONS / (1 + z2 / count) * np.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return float(middle - half), float(middle + half)


def say_pairs(folder: str) -> None:
    """How often the reward model prefers what people preferred, on pairs that it did not learn from."""
    step, _, count, report = evaluate_checkpoint(stored(folder))
    assert report is not None, "the objective reward has a report"
    accuracy = report.metrics["pair_accuracy"]
    low, high = proportion_interval(accuracy, int(count))
    print(
        f"\n{folder}, step {step}: pair accuracy {accuracy:.3f} on {count:,.0f} pairs held out, 95 % interval", end=" "
    )
    print(f"{low:.3f} to {high:.3f}; by chance it is 0.5")


def say_losses(folder: str) -> None:
    """The loss on answers that were held out, before and after the fine-tuning."""
    run = stored(folder)
    _, after, tokens, _ = evaluate_checkpoint(run)
    state, frozen = start_state(run)
    before, _ = Evaluator(run, frozen).losses(state)
    start = run.config.model.pretrained
    print(f"{folder}: loss on the {tokens:,.0f} tokens of answers held out {after['loss']:.4f}", end=", ")
    print(f"of {start}, which it starts from, {before['loss']:.4f}")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="runs, folders or names on the Hub")
    parser.add_argument("--reward", required=True, help="a run of task.type reward, or what best-of-n takes")
    parser.add_argument("--reference", required=True, help="the model that KL is measured from, a run of instruction")
    parser.add_argument("--file", help="prompts; default: the rows that the reward's run held out")
    parser.add_argument("--plain", action="store_true", help="prompts are texts even if there is a chat template")
    parser.add_argument("--prompts", type=int, help="at most so many")
    parser.add_argument("--n", type=int, default=4, help="texts for each prompt (default %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="of a text (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    show_warnings(Console(stderr=True), debug=False)
    reference = open_writer(options.reference)
    tokenizer = reference.tokenizer
    reward, prompts = open_reward(options.reward, tokenizer), held_out(options, reference)
    first = measure(reference, reference, reward, prompts, options)
    lines = []
    for name in options.models:
        writer = reference if name == options.reference else open_writer(name)
        other = difference(writer.tokenizer, tokenizer)
        if other is not None:
            raise UserError(f"{name} has another tokenizer than {options.reference}: {other}; expected the same")
        found = first if writer is reference else measure(writer, reference, reward, prompts, options)
        gain = "" if writer is reference else with_interval(found.score - first.score)
        cells = [with_interval(found.score), gain, with_interval(found.kl)]
        lines.append([name, *cells, f"{np.mean(found.tokens):.1f}", f"{np.mean(found.cut):.1%}"])
    title = f"{options.n} texts at temperature 1 for each of {len(prompts.ids)} prompts held out, of at most "
    print_table(f"{title}{options.max_new_tokens} tokens; scores of {options.reward}", HEADER, lines, options.markdown)
    if (Path(options.reward) / "config.yaml").exists():
        say_pairs(options.reward)
    if (Path(options.reference) / "config.yaml").exists():
        say_losses(options.reference)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
