"""Writes shardings.json: how every parameter of some full-size configurations lies on a mesh of 2 x 2 x 2 devices.

python -m tests.golden.shardings
"""

import json
from pathlib import Path

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict

from jaxformer.hub.kinds import abstract_params
from jaxformer.parallel.mesh import ParallelConfig, make_mesh, parameter_shardings
from jaxformer.tasks import build_task
from jaxformer.training.sources import load_config
from tests.tasks.tiny import WITH_MASK

ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).parent / "shardings.json"
CONFIGS = ("gpt2_124m", "llama_1b", "bert_base", "t5_small")


def shardings(name):
    """``{parameter: [shape, mesh axes of each dimension]}``."""
    # BERT's vocabulary of 30,522 is even, GPT-2's 50,304 and the others are multiples of more.
    config = load_config(ROOT / "configs" / f"{name}.yaml", ["tokenizer={type: byte}"])
    task = build_task(config.task, WITH_MASK, config.model, config.sequence_length, "packed", ())
    boxed = abstract_params(task.model(config.model))
    found = flatten_dict(parameter_shardings(boxed, make_mesh(ParallelConfig(fsdp=2, tensor=2))), sep="/")
    shapes = flatten_dict(nn.unbox(boxed), sep="/")
    return {path: [list(shapes[path].shape), [str(axis) for axis in found[path].spec]] for path in sorted(found)}


def main():
    golden = {name: shardings(name) for name in CONFIGS}
    text = json.dumps(golden).replace('"], "', '"],\n"').replace("]], ", "]],\n").replace("}, ", "},\n")
    GOLDEN.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    main()
