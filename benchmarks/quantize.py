"""What fewer bits cost: a language model's loss on its validation data with float32, bfloat16 and int8 weights.

    python train.py --config configs/gpt_nano.yaml
    python benchmarks/quantize.py runs/gpt_nano

bfloat16 is measured twice, as weights alone and as weights and arithmetic.
"""

import argparse
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from _timing import print_table

from jaxformer import functional as F
from jaxformer.data.loader import evaluation_batches
from jaxformer.generation import prepare
from jaxformer.models import Decoder
from jaxformer.training.console import Display
from jaxformer.training.export import load_run
from jaxformer.training.run import prepare as prepare_run
from jaxformer.training.sources import load_config

INPUTS = ("input_ids", "attention_mask", "segment_ids", "position_ids")
# By name in the table: the weights and the dtype of the computation.
FORMS = {
    "float32": ("float32", "float32"),
    "bfloat16 weights": ("bfloat16", "float32"),
    "bfloat16 weights and arithmetic": ("bfloat16", "bfloat16"),
    "int8 weights, a scale a channel": ("int8", "float32"),
}


def mean_loss(model: Any, params: Any, batches: list[dict[str, np.ndarray]]) -> float:
    """Nats a token over all batches."""

    @jax.jit
    def sums(params: Any, batch: Any) -> Any:
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        found = F.cross_entropy(model.apply({"params": params}, **inputs).logits, batch["labels"])
        return found.total, found.tokens

    totals = [jax.device_get(sums(params, batch)) for batch in batches]
    return float(sum(total for total, _ in totals) / sum(tokens for _, tokens in totals))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="output folder of a run of a decoder")
    parser.add_argument("--batches", type=int, help="of 8 rows; default: all of the validation data")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    trained = load_run(options.run)
    if not isinstance(trained.model, Decoder):
        parser.error(f"{options.run} is no language model, expected a run of a decoder")
    config = load_config(f"{options.run}/config.yaml", [f"output_dir={options.run}"])
    run = prepare_run(config, Display(silent=True))
    rows = run.validation_rows
    assert rows is not None
    batches = list(evaluation_batches(rows, 8, config.seed, run.task.features))[: options.batches]
    lines: list[list[str]] = []
    exact = 0.0
    for name, (weights, dtype) in FORMS.items():
        model = trained.model.clone(config=trained.model.config.model_copy(update={"dtype": dtype}))
        params = prepare(model, jax.tree.map(jnp.asarray, trained.params), weights)
        loss, size = mean_loss(model, params, batches), sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        exact = loss if not lines else exact
        change = math.exp(loss - exact) - 1
        lines.append([name, f"{loss:.4f}", f"{math.exp(loss):.3f}", f"{change:+.3%}", f"{size / 2**20:.1f}"])
    title = f"{options.run}: {config.model.type}, {len(batches) * 8} rows of the validation data"
    print_table(title, ["weights", "loss, nats", "perplexity", "change", "MiB"], lines, options.markdown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
