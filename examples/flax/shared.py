"""What the examples of this folder share: options, files, the optimizer and the loop over epochs.

The rest is in each of them: its data, its loss and its measure. They are written with the calls that version 4 of
``transformers`` documented for Flax, and run on all devices that JAX sees.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from datasets import DatasetDict, load_dataset
from flax.jax_utils import replicate, unreplicate
from flax.training.common_utils import get_metrics, onehot, shard
from flax.training.train_state import TrainState
from transformers import AutoConfig, AutoTokenizer

from jaxformer.flax_names import decay_mask

IGNORED = -100  # a label that trains nothing
LABELS = ("labels", "start_positions", "end_positions")
Batch = dict[str, Any]
Collate = Callable[[Mapping[str, Any]], Batch]  # the columns of some rows to arrays
Loss = Callable[[Callable[..., Any], Batch], tuple[Any, Any]]  # a model's call and a batch to a sum and a count


def arguments(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """The options that all examples have, under their old names; ``defaults`` are an example's own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--model_name_or_path", help="folder or name of the weights to begin with")
    add("--config_name", help="folder or name of a configuration, to begin with random weights")
    add("--tokenizer_name", help="folder or name, if another than the model's")
    add("--train_file", required=True, help=".txt, .csv, .json or .jsonl")
    add("--validation_file", help="the same; without it a part of the training file is taken")
    add("--validation_split_percentage", type=int, default=10, help="that part")
    add("--output_dir", required=True, help="folder of the model")
    add("--cache_dir", help="folder where datasets keeps its files")
    add("--dtype", default="float32", help="of the computation, float32 or bfloat16")
    add("--gradient_checkpointing", action="store_true", help="compute blocks again in the backward pass")
    add("--per_device_train_batch_size", type=int, default=8)
    add("--per_device_eval_batch_size", type=int, default=8)
    add("--num_train_epochs", type=int, default=3)
    add("--learning_rate", type=float, default=5e-5)
    add("--warmup_steps", type=int, default=0)
    add("--weight_decay", type=float, default=0.0, help="of all parameters but biases and the scales of norms")
    add("--adam_beta1", type=float, default=0.9)
    add("--adam_beta2", type=float, default=0.999)
    add("--adafactor", action="store_true", help="instead of AdamW")
    add("--logging_steps", type=int, default=100)
    add("--seed", type=int, default=42)
    parser.set_defaults(**defaults)
    return parser


def open_data(options: argparse.Namespace, **how: Any) -> DatasetDict:
    """The splits ``train`` and ``validation``."""
    files = {"train": options.train_file, "validation": options.validation_file}
    files = {split: str(file) for split, file in files.items() if file}
    kind = Path(options.train_file).suffix.lstrip(".").replace("txt", "text").replace("jsonl", "json")
    data = load_dataset(kind, data_files=files, cache_dir=options.cache_dir, **how)
    if "validation" not in data:
        parts = data["train"].train_test_split(options.validation_split_percentage / 100, seed=options.seed)
        data = DatasetDict(train=parts["train"], validation=parts["test"])
    return data


def open_tokenizer(options: argparse.Namespace) -> Any:
    """The tokenizer of ``transformers``."""
    return AutoTokenizer.from_pretrained(options.tokenizer_name or options.model_name_or_path or options.config_name)


def open_model(options: argparse.Namespace, model_class: Any, **keys: Any) -> Any:
    """The model, of a folder's weights or of a configuration; ``keys`` are of the configuration."""
    config = AutoConfig.from_pretrained(options.config_name or options.model_name_or_path, **keys)
    with_options = {"seed": options.seed, "dtype": getattr(jnp, options.dtype)}
    if options.model_name_or_path:
        model = model_class.from_pretrained(options.model_name_or_path, config=config, **with_options)
    else:
        model = model_class.from_config(config, **with_options)
    if options.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def cross_entropy(logits: Any, labels: Any, smoothing: float = 0.0) -> tuple[Any, Any]:
    """The summed loss of the labels that are not ``IGNORED``, and their number."""
    counted = labels != IGNORED
    targets = optax.smooth_labels(onehot(labels, logits.shape[-1]), smoothing)
    return jnp.sum(optax.softmax_cross_entropy(logits, targets) * counted), jnp.sum(counted)


def optimizer(options: argparse.Namespace, steps: int) -> optax.GradientTransformation:
    """AdamW or Adafactor; the learning rate rises over ``warmup_steps`` and falls to 0 at the end."""
    peak, warmup = options.learning_rate, options.warmup_steps
    rise, fall = optax.linear_schedule(0.0, peak, warmup), optax.linear_schedule(peak, 0.0, steps - warmup)
    rate = optax.join_schedules([rise, fall], [warmup])
    if options.adafactor:
        return optax.adafactor(rate)
    return optax.adamw(rate, options.adam_beta1, options.adam_beta2, weight_decay=options.weight_decay, mask=decay_mask)


def train_step(state: TrainState, batch: Batch, rng: Any, *, loss: Loss) -> tuple[TrainState, Any, Any]:
    """A step on one of the devices: sums over all of them are divided once, so that each label weighs the same."""
    rng, dropout_rng = jax.random.split(rng)

    def summed(params: Any) -> tuple[Any, Any]:
        return loss(partial(state.apply_fn, params=params, dropout_rng=dropout_rng, train=True), dict(batch))

    (total, count), gradients = jax.value_and_grad(summed, has_aux=True)(state.params)
    total, count, gradients = jax.lax.psum((total, count, gradients), "batch")
    gradients = jax.tree.map(lambda gradient: gradient / jnp.maximum(count, 1), gradients)
    return state.apply_gradients(grads=gradients), {"loss": total / jnp.maximum(count, 1)}, rng


def batches(rows: Any, size: int, collate: Collate, order: Any = None) -> Iterator[tuple[Batch, int]]:
    """Batches of ``size`` rows and how many of them count: with ``order`` whole ones, else the last is filled up."""
    order, whole = np.arange(len(rows)) if order is None else order, order is not None
    for start in range(0, len(order) // size * size if whole else len(order), size):
        batch = collate(rows[order[start : start + size]])
        count = len(next(iter(batch.values())))
        for name, array in batch.items():
            fill = np.repeat(array[:1], size - count, axis=0)
            batch[name] = np.concatenate([array, np.full_like(fill, IGNORED) if name in LABELS else fill])
        yield batch, count


def fit(options: argparse.Namespace, model: Any, rows: Any, collate: Collate, loss: Loss) -> tuple[Any, list[float]]:
    """Trains the model; its parameters on every device, and the loss of each step."""
    size = options.per_device_train_batch_size * jax.local_device_count()
    steps = len(rows) // size * options.num_train_epochs
    if steps == 0:
        raise SystemExit(f"there are {len(rows)} rows to train on, expected a batch of {size} at least")
    tx = optimizer(options, steps)
    state = replicate(TrainState.create(apply_fn=model.__call__, params=model.params, tx=tx))
    step = jax.pmap(partial(train_step, loss=loss), "batch", donate_argnums=(0,))
    rngs = jax.random.split(jax.random.PRNGKey(options.seed), jax.local_device_count())
    orders, losses = np.random.default_rng(options.seed), []
    for _ in range(options.num_train_epochs):
        for batch, _ in batches(rows, size, collate, orders.permutation(len(rows))):
            # The batch was made while the last step ran. Steps do not queue up: on simulated devices, programs that sum
            # over them could wait for each other.
            jax.block_until_ready(rngs)
            state, metric, rngs = step(state, shard(batch), rngs)
            losses.append(metric)
            if len(losses) % options.logging_steps == 0:
                print(f"step {len(losses)} of {steps}: loss {float(metric['loss'][0]):.4f}", flush=True)
    return state.params, get_metrics(losses)["loss"].tolist()


def evaluate(options: argparse.Namespace, model: Any, params: Any, rows: Any, collate: Collate, loss: Loss) -> float:
    """The mean loss over rows, without dropout."""

    def eval_step(params: Any, batch: Batch) -> Any:
        return jax.lax.psum(loss(partial(model, params=params, train=False), dict(batch)), "batch")

    step, sums = jax.pmap(eval_step, "batch"), np.zeros(2)
    for batch, _ in batches(rows, options.per_device_eval_batch_size * jax.local_device_count(), collate):
        sums += np.array(unreplicate(step(params, shard(batch))))
    return float(sums[0] / max(sums[1], 1))


def predict(options: argparse.Namespace, call: Any, params: Any, rows: Any, collate: Collate) -> Any:
    """What ``call(params, batch)`` gives for each row; labels are not among its inputs."""
    step, found = jax.pmap(call, "batch"), []
    for batch, count in batches(rows, options.per_device_eval_batch_size * jax.local_device_count(), collate):
        arrays = step(params, shard({name: array for name, array in batch.items() if name not in LABELS}))
        found.append(jax.tree.map(lambda array, kept=count: np.reshape(array, (-1, *array.shape[2:]))[:kept], arrays))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def save(options: argparse.Namespace, model: Any, params: Any, tokenizer: Any, results: dict[str, Any]) -> None:
    """Writes model, tokenizer and ``all_results.json``, and prints the results."""
    if jax.process_index() == 0:
        model.save_pretrained(options.output_dir, params=jax.device_get(unreplicate(params)))
        tokenizer.save_pretrained(options.output_dir)
        Path(options.output_dir, "all_results.json").write_text(json.dumps(results, indent=2))
        print({name: value for name, value in results.items() if name != "losses"})
