"""A run reduced to the size of a check: the same graph, data, tokenizer and settings, with less depth and width."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax

from jaxformer.models.config import OF_THE_WHOLE, SIDES, TransformerConfig
from jaxformer.schema import local_path
from jaxformer.training.config import RunConfig
from jaxformer.training.run import Run

# A model of at most this width and depth is checked as it is.
WIDTH, DEPTH = 64, 2
HEAD_SIZE, HEADS, EXPERTS = 16, 4, 4
TOKENS, ROWS = 64, 8
# Narrower than the texts of the checks, so that its edge is seen.
WINDOW = 5


def small_model(c: TransformerConfig) -> TransformerConfig:
    """The configuration with at most 2 layers of width 64, else with 2 of four heads of 16; its switches are kept."""
    keys: dict[str, Any] = {"unroll": 1, "pretrained": None}
    if c.encoder is not None and c.decoder is not None:
        # The whole's own numbers are its decoder's.
        keys |= {side: small_model(getattr(c, side)) for side in SIDES}
        mirrored = keys["decoder"].model_dump(exclude={*OF_THE_WHOLE, "max_length"})
        return c.model_copy(update={**mirrored, **keys})
    if c.window is not None:
        keys["window"] = min(c.window, WINDOW)
    if c.hidden_size <= WIDTH and max(c.num_layers, c.decoder_layers) <= DEPTH:
        return c.model_copy(update=keys)
    groups = math.gcd(HEADS, c.num_heads // c.kv_heads)
    D = HEADS * HEAD_SIZE
    keys |= {"num_heads": HEADS, "num_kv_heads": HEADS // groups, "head_size": HEAD_SIZE, "hidden_size": D}
    keys |= {"intermediate_size": 2 * D, "num_layers": min(c.num_layers, 3 if c.global_every else 2)}
    if c.num_decoder_layers is not None:
        keys["num_decoder_layers"] = min(c.num_decoder_layers, 2)
    if c.mixer != "attention":
        keys |= {"state_groups": math.gcd(c.state_groups, HEADS), "state_size": min(c.state_size, D)}
        keys["time_step_rank"] = None
    if c.num_experts is not None:
        keys |= {"num_experts": min(c.num_experts, EXPERTS), "experts_per_token": min(c.experts_per_token, EXPERTS - 1)}
    if c.embedding_size is not None:
        keys["embedding_size"] = D // 2
    # The patterns of layers are kept at the depth that is left.
    keys |= {"window_from": min(c.window_from, 1), "global_every": c.global_every and min(c.global_every, 2)}
    keys |= {"global_first": min(c.global_first, 1)}
    return c.model_copy(update=keys)


def small_config(c: RunConfig, folder: Path) -> RunConfig:
    """The run's configuration with a small model, few rows and short ones, and an output folder of its own."""
    t = c.training
    unit = math.lcm(t.accumulate * c.task.minibatch_count, c.task.responses_per_prompt)
    training = {
        "batch_size": max(unit, ROWS // unit * unit),
        "eval_batch_size": None,
        "eval_every": None,
        "profile": None,
        "dump_hlo": False,
        "compilation_cache": None,
    }
    # Rows of records are as long as their texts, and one that is longer than all tokens would be left out.
    if c.task.reads == "text":
        training["sequence_length"] = min(c.sequence_length, TOKENS)
    keys = {
        "output_dir": str(folder),
        "model": small_model(c.model),
        "training": t.model_copy(update=training),
        "logging": c.logging.model_copy(update={"tensorboard": False}),
        "sample": c.sample.model_copy(update={"max_new_tokens": 0}),
    }
    return c.model_copy(update=keys)


def with_config(run: Run, config: RunConfig, devices: tuple[jax.Device, ...] | None = None) -> Run:
    """The run with another configuration or other devices; what does not depend on them is not made again."""
    changed = dataclasses.replace(run, config=config, folder=local_path(config.output_dir), devices=devices)
    kept = ["teacher"]
    if config.task == run.config.task and config.sequence_length == run.config.sequence_length:
        kept.append("task")
        if config.training.batch_size == run.config.training.batch_size:
            kept.append("train_batches")
    for name in kept:
        if name in vars(run):
            vars(changed)[name] = vars(run)[name]
    return changed


def reduction(before: RunConfig, after: RunConfig) -> str:
    """Words for what was reduced, and the size of a batch."""
    names = ("hidden_size", "num_layers", "num_heads", "window")
    pairs = [(name, getattr(before.model, name), getattr(after.model, name)) for name in names]
    said = [f"{name} {a} -> {b}" for name, a, b in pairs if a != b]
    rows = f"{after.training.batch_size} rows of {after.sequence_length} tokens"
    return f"{', '.join(said)}; {rows}" if said else rows
