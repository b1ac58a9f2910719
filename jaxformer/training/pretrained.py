"""Reads an earlier model: a run as it is saved in its folder, and parameters by name.

The earlier model is a run's folder, or one in the Hugging Face format: a folder or a name on the Hub.
"""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxformer.families import get_family
from jaxformer.families.checkpoint import read_params as read_hub_params
from jaxformer.hub.kinds import abstract_params, build, kind_of
from jaxformer.hub.pretrained import read_config, untie
from jaxformer.hub.repository import Repository
from jaxformer.hub.sentence_files import read_sentence_format
from jaxformer.hub.weights import open_weights
from jaxformer.models.config import TransformerConfig
from jaxformer.models.heads import Body
from jaxformer.models.masked_lm import with_one_table
from jaxformer.models.sentence_encoder import SentenceEncoder
from jaxformer.models.transformer import Decoder
from jaxformer.models.value_head import without_value
from jaxformer.schema import UserError, local_path
from jaxformer.tasks import build_task
from jaxformer.tasks.base import Task
from jaxformer.tokenizers import PreTrainedTokenizer, open_tokenizer
from jaxformer.training.adapter import Division
from jaxformer.training.checkpoint import Checkpoints
from jaxformer.training.config import RunConfig, parse_config, read_yaml
from jaxformer.training.sources import CHECKPOINTS, CONFIG_FILE, check_run, is_run
from jaxformer.training.transfer import start_params


class SavedRun(NamedTuple):
    """A run as it is saved in its folder, without its data; the model has the head of the objective."""

    config: RunConfig
    tokenizer: PreTrainedTokenizer
    model: Any
    task: Task


def open_run(folder: Path, key: str = "model.pretrained") -> SavedRun:
    """Opens the folder of a run; its data and the model that it started from are not read.

    Raises ``UserError`` if the folder, which the configuration names in ``key``, holds no run.
    """
    check_run(folder, key)
    config = parse_config(read_yaml(folder / CONFIG_FILE), str(folder / CONFIG_FILE))
    tokenizer = open_tokenizer(folder, str(folder))
    task = build_task(config.task, tokenizer, config.model, config.sequence_length, config.data.layout, ())
    return SavedRun(config, tokenizer, task.model(config.model), task)


def begin_with(
    sources: Mapping[str, str], model: nn.Module, labels: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """``earlier_params`` of a model, or of its sides, from ``TransformerConfig.sources``."""
    if "" in sources:
        return earlier_params(sources[""], model, labels)
    params: dict[str, np.ndarray] = {}
    elsewhere: list[str] = []
    for side, source in sources.items():
        own = getattr(model.config, f"{side}_side")
        found, left = earlier_params(source, Body(own) if side == "encoder" else Decoder(own))
        params |= {f"{side}/{name}": array for name, array in found.items()}
        elsewhere += left
    return params, elsewhere


def earlier_params(
    source: str, model: nn.Module, labels: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The parameters of an earlier model by our names, and names of others that have no place here.

    ``source`` is a run's folder, a folder in the Hugging Face format or a name on the Hub. From the Hugging Face format
    the head comes along where it is of the same kind, with the same classes (``labels``) in the same order. Raises
    ``UserError`` if there are no parameters.
    """
    if is_run(source):
        return read_params(local_path(source)), []
    repository = Repository(source)
    # BERT may be the decoder of another model.
    described = read_config(repository, {"architecture": model.config.architecture})
    hub = get_family(described.config.type).hub
    # A value head is in no format: it is new, and the language model beside it is read.
    wanted = kind_of(without_value(model, {})[0])
    kind = wanted if wanted in hub.heads else "body"
    weights = open_weights(repository)
    config: TransformerConfig = untie(described, kind, weights, source)
    if kind == wanted and model.config.tie_embeddings and not config.tie_embeddings:
        raise UserError(
            f"{source} has an output layer that differs from its embedding, though config.json calls them tied: "
            "set model.tie_embeddings to false to train both"
        )
    theirs = build(config, kind, num_labels=getattr(model, "num_labels", 2))
    loaded = read_hub_params(hub, config, kind, weights, nn.unbox(abstract_params(theirs)), may_differ=True)
    params = {name: np.asarray(array) for name, array in loaded.params.items()}
    if isinstance(model, SentenceEncoder) and (read := read_sentence_format(repository)) is not None:
        params |= flatten_dict(read[1], sep="/")
    named = described.labels and not all(name.startswith("LABEL_") for name in described.labels)
    if labels and named and described.labels != labels:
        params = {name: array for name, array in params.items() if not name.startswith("classifier/")}
    return params, loaded.left


def read_params(folder: Path) -> dict[str, np.ndarray]:
    """The parameters of the newest intact checkpoint of a run, by name; the average of the weights if there is one.

    LoRA factors are merged into the base model, and two token tables into one. Raises ``UserError`` if there is no
    checkpoint.
    """
    params = read_trained(folder)
    if "factors" in params:
        params = merged_run(folder, params)
    return with_one_table({name: np.asarray(array) for name, array in flatten_dict(params, sep="/").items()})


def read_trained(folder: Path) -> dict[str, Any]:
    """The parameters in the newest intact checkpoint of a run, as a tree: all of them, or LoRA factors."""
    with closing(Checkpoints(folder / CHECKPOINTS, read_only=True)) as checkpoints:
        state = checkpoints.read()
    params: dict[str, Any] = state["ema"] if state.get("ema") is not None else state["params"]
    return params


def merged_run(folder: Path, trained: Any) -> Any:
    """The parameters of a LoRA run: the base model, read again, with the trained factors merged in."""
    run = open_run(folder)
    assert run.config.lora is not None and run.config.model.pretrained is not None
    division = Division(abstract_params(run.model), run.config.lora)
    earlier, _ = earlier_params(run.config.model.pretrained, run.model, run.task.labels)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shardings = jax.tree.map(lambda _: here, division.shapes)
    base, _ = start_params(run.model, run.config.seed, earlier, shardings, division.kept)
    return division.merged(division.frozen(base), jax.tree.map(jnp.asarray, trained))
