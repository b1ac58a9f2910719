"""A training step as each library's user has it: jaxformer's training loop, and PyTorch written for speed.

Both are forward pass, loss, backward pass, clipping and AdamW, which decays the matrices but not the embeddings.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from _compare import Step
from _floor import floor

LEARNING_RATE, BETAS, DECAY, CLIP_NORM, EPSILON = 1e-3, (0.9, 0.99), 0.1, 1.0, 1e-8

Arrays = dict[str, np.ndarray]


def jaxformer_step(model: Mapping[str, Any], batch: Arrays, weights: Path) -> Step:
    """The step of the training loop for the objective of the model's family, compiled as the loop compiles it.

    Args:
        model: keys of ``model`` in a configuration.
        batch: as the objective's loss takes it.
        weights: file for the initial weights, under Hugging Face's names.
    """
    from jaxformer.training.memory import keep_freed_memory

    keep_freed_memory()  # before JAX is imported, as the command line does
    import jax
    from flax.traverse_util import flatten_dict

    from jaxformer.hub.kinds import abstract_params
    from jaxformer.parallel.mesh import make_mesh
    from jaxformer.parallel.strategy import DeviceStep
    from jaxformer.tasks import build_task
    from jaxformer.training.flops import flops_per_step
    from jaxformer.training.forecast import peak_memory
    from jaxformer.training.memory import peak_memory_used
    from jaxformer.training.optimizer import build_optimizer, build_schedule
    from jaxformer.training.sources import resolve_config
    from jaxformer.training.state import abstract_state, init_state
    from jaxformer.training.step import make_train_step

    optimizer_keys = {
        "type": "adamw",
        "learning_rate": LEARNING_RATE,
        "beta1": BETAS[0],
        "beta2": BETAS[1],
        "epsilon": EPSILON,
        "weight_decay": DECAY,
        "clip_norm": CLIP_NORM,
    }
    keys = {"model": model, "optimizer": optimizer_keys, "schedule": {"type": "constant"}}
    c = resolve_config(keys, "the benchmark")
    no_tokenizer: Any = None  # it makes batches from text, and here the batch is given
    task = build_task(c.task, no_tokenizer, c.model, c.sequence_length)
    network, mesh = task.model(c.model), make_mesh(c.parallel)
    optimizer = build_optimizer(c.optimizer, build_schedule(c.schedule, c.optimizer.learning_rate, c.training.steps))
    abstract = abstract_state(abstract_params(network), optimizer, False, mesh)
    state = init_state(network, optimizer, c.seed, abstract)
    params = {name: np.asarray(array) for name, array in flatten_dict(state.params, sep="/").items()}
    arrays: Any = hugging_face_weights(c.model, params)
    np.savez(weights, **arrays)
    train_step = make_train_step(network, task, optimizer, seed=c.seed)
    traced = jax.make_jaxpr(train_step)(state, batch)
    compiled = DeviceStep(train_step, abstract, mesh, c.parallel.strategy, len(next(iter(batch.values()))))
    on_device = compiled.put(batch)

    def step() -> float:
        nonlocal state
        state, metrics, _ = jax.block_until_ready(compiled(state, on_device))
        return float(metrics.sums["loss"]) / float(metrics.weight)

    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in batch.items()}
    return Step(
        step,
        lambda: floor(traced.jaxpr),
        flops_per_step(c.model, abstract.params, {name: array.shape for name, array in batch.items()}),
        lambda: peak_memory(compiled.lower(abstract, shapes).compile()),
        lambda: peak_memory_used(mesh.local_devices),
    )


def hugging_face_weights(config: Any, params: Arrays) -> Arrays:
    """jaxformer's parameters, by path, under Hugging Face's names and in their layout."""
    from jaxformer.families import FAMILIES
    from jaxformer.families.checkpoint import params_to_hf

    kind = "causal_lm" if config.architecture == "decoder" else "masked_lm"
    return dict(params_to_hf(FAMILIES[config.type].hub, config, kind, params))


def torch_step(
    build: Callable[[dict[str, Any]], tuple[Any, Callable[..., Any]]],
    batch: Arrays,
    weights: Path,
    compiled: bool,
    device: str = "cpu",
    dtype: str = "float32",
) -> Step:
    """A training step as a PyTorch user would write it for speed.

    Args:
        build: makes the model with the weights given, and the function from the batch, by name, to the loss.
        batch: integers, by the names of that function's arguments.
        weights: file of the initial weights, under Hugging Face's names.
        compiled: whether forward pass and loss, and with them the backward pass, go through ``torch.compile``.
        device: on which it runs.
        dtype: of the products, by ``torch.autocast``; parameters are float32.
    """
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    with np.load(weights) as arrays:
        model, loss_of = build({name: torch.from_numpy(array) for name, array in arrays.items()})
    model.to(device)
    tensors = {name: torch.from_numpy(array).long().to(device) for name, array in batch.items()}
    tables = {module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    parameters = list(model.parameters())
    decaying = [p for p in parameters if p.ndim > 1 and p not in tables]
    others = [p for p in parameters if p.ndim == 1 or p in tables]
    groups = [{"params": decaying, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=BETAS, eps=EPSILON, fused=True)
    forward = torch.compile(loss_of) if compiled else loss_of

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, getattr(torch, dtype), enabled=dtype != "float32"):
            loss = forward(**tensors)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP_NORM, foreach=True)
        optimizer.step()
        return loss.item()

    return Step(step, used=lambda: torch.cuda.max_memory_allocated() if device == "cuda" else None)
