"""Every way to spread a step over 8 devices computes what one device computes: with SGD, dropout and uneven padding."""

import functools

import jax
import numpy as np
import optax
import pytest

from jaxformer.families import model_config
from jaxformer.models import TransformerConfig
from jaxformer.parallel.mesh import ParallelConfig, make_mesh
from jaxformer.parallel.strategy import AXIS_NAME, DeviceStep
from jaxformer.tasks import Bound, build_task, task_config
from jaxformer.training.state import abstract_state, init_state
from jaxformer.training.step import make_train_step

LAYOUTS = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "sequence": {"sequence": 8},
    "tensor": {"tensor": 4},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    "2x2x2 with sequence": {"fsdp": 2, "sequence": 2, "tensor": 2},
    "pmap": {"strategy": "pmap"},
}
FAMILIES = {"gpt2": "causal_lm", "bert": "masked_lm", "t5": "span_corruption"}
STEPS, ROWS, LENGTH, VOCABULARY = 10, 16, 32, 64
# SGD, since Adam's normalisation would hide a gradient that is off by a factor.
SGD = optax.sgd(0.1)
