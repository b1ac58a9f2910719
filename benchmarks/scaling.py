"""How memory and communication grow over 1, 2, 4 and 8 simulated devices, beside the textbook's formulas.

    python benchmarks/scaling.py

Prints the tables of docs/scaling.md: bytes of arrays that were really made, and of the collectives of programs that
were really compiled, for CPU devices. Nothing is timed.
"""

import argparse
from collections.abc import Mapping
from typing import Any, NamedTuple

BATCH, LENGTH = 32, 128
KEYS: dict[str, Any] = {
    "type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_layers": 4,
    "num_heads": 8,
    "intermediate_size": 768,
    "max_length": LENGTH,
    "tie_embeddings": False,
    "unroll": 1,
}
FLOAT = 4  # bytes


class Measured(NamedTuple):
    """What one layout costs each device.

    Attributes:
        parameters: bytes of the parameters on the first device.
        optimizer: bytes of Adam's two moments on the first device.
        sent: bytes it sends in a step, by kind of collective.
    """

    parameters: int
    optimizer: int
    sent: dict[str, float]


def measure(axes: Mapping[str, int], devices: int) -> Measured:
    """Makes the state of the model over these devices, and compiles its step."""
    import jax
    import numpy as np
    import optax

    from jaxformer.cost.hlo import collectives, parse_program
    from jaxformer.families import build_model, model_config
    from jaxformer.hub.kinds import abstract_params
    from jaxformer.models import TransformerConfig
    from jaxformer.parallel.mesh import ParallelConfig, make_mesh
    from jaxformer.parallel.strategy import DeviceStep
    from jaxformer.tasks import CausalLM, CausalLMConfig
    from jaxformer.training.state import abstract_state, init_state
    from jaxformer.training.step import make_train_step

    mesh = make_mesh(ParallelConfig.model_validate(axes), jax.devices()[:devices])
    model, adam = build_model(TransformerConfig(**model_config(KEYS))), optax.adam(1e-3)
    task = CausalLM(CausalLMConfig(chunk_tokens=BATCH * LENGTH), None, LENGTH)
    abstract = abstract_state(abstract_params(model), adam, False, mesh)
    state = init_state(model, adam, 0, abstract)
    step = DeviceStep(make_train_step(model, task, adam, seed=0), abstract, mesh, "jit", BATCH)
    tokens = jax.ShapeDtypeStruct((BATCH, LENGTH), np.int32)
    compiled = step.lower(abstract, {"input_ids": tokens, "labels": tokens}).compile()
    sent: dict[str, float] = {}
    for one in collectives(parse_program(compiled.as_text())):
        sent[one.kind] = sent.get(one.kind, 0.0) + one.sent * one.times

    def on_first(tree: Any) -> int:
        return sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(tree))

    return Measured(on_first(state.params), on_first(state.opt_state), sent)


def ring(size: float, devices: int) -> float:
    """Bytes a device sends to gather an array of this size or to scatter its sum; to reduce it is twice that."""
    return size * (devices - 1) / devices


def textbook(axis: str, n: int, parameters: int) -> tuple[str, float]:
    """What the axis should send in a step, in words and bytes.

    Data: Goyal et al. 2017; fsdp: Rajbhandari et al. 2020, "ZeRO", section 7; tensor: Shoeybi et al. 2019,
    "Megatron-LM", section 3; sequence: the keys and values of Llama Team 2024, section 3.3.2.
    """
    layers, activations = KEYS["num_layers"], BATCH * LENGTH * KEYS["hidden_size"] * FLOAT
    if axis == "data":
        return "all-reduce of the gradients", 2 * ring(parameters, n)
    if axis == "fsdp":
        # The output layer's gradient is taken in the forward pass, and the embedding's needs no table.
        tables = 2 * KEYS["vocab_size"] * KEYS["hidden_size"] * FLOAT
        return "blocks gathered twice, embedding and output layer once, gradients reduced", (
            2 * ring(parameters - tables, n) + ring(tables, n) + 2 * ring(parameters, n)
        )
    if axis == "tensor":
        return "7 all-reduces of the activations a block, 2 for embedding and logits", (
            2 * ring(activations, n) * (7 * layers + 2)
        )
    return "keys and values gathered and their gradients reduced in each block, all gradients reduced", (
        6 * layers * ring(activations, n) + 2 * ring(parameters, n)
    )


def main() -> None:
    """Prints the two tables."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)

    print("| devices | parameters, MiB each | optimizer state, MiB each | of one device |\n|---:|---:|---:|---:|")
    one = measure({"data": 1}, 1)
    for n in (1, 2, 4, 8):
        found = measure({"fsdp": n}, n)
        share = (found.parameters + found.optimizer) / (one.parameters + one.optimizer)
        print(f"| {n} | {found.parameters / 2**20:.2f} | {found.optimizer / 2**20:.2f} | {share:.3f} |")

    print("\n| axis | devices | sent, MB each | textbook, MB | ratio | textbook |\n|---|---:|---:|---:|---:|---|")
    for axis in ("data", "fsdp", "tensor", "sequence"):
        for n in (2, 4, 8):
            sent = sum(measure({axis: n}, n).sent.values())
            words, expected = textbook(axis, n, one.parameters)
            print(f"| `{axis}` | {n} | {sent / 1e6:.2f} | {expected / 1e6:.2f} | {sent / expected:.3f} | {words} |")


if __name__ == "__main__":
    main()
