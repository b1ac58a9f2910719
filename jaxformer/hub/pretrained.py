"""Models from the Hugging Face format: configuration, parameters, what was initialised and what was left out."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh
from pydantic import ValidationError

from jaxformer.families import family_of, get_family, model_config, over, text_part
from jaxformer.families.checkpoint import Loaded, Weights, has_own_head, read_params
from jaxformer.hub.kinds import abstract_params, build, init_params
from jaxformer.hub.repository import Repository
from jaxformer.hub.weights import open_weights
from jaxformer.models.config import TransformerConfig, check_dtype
from jaxformer.parallel.mesh import parameter_shardings
from jaxformer.schema import UserError, nearest

CONFIG_FILE, GENERATION_FILE = "config.json", "generation_config.json"
# Settings of generation, which files older than ``generation_config.json`` have in their ``config.json``.
GENERATION_KEYS = (
    *("max_length", "max_new_tokens", "min_length", "min_new_tokens", "early_stopping", "max_time", "stop_strings"),
    *("do_sample", "num_beams", "num_beam_groups", "diversity_penalty", "penalty_alpha", "num_return_sequences"),
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"),
    *("repetition_penalty", "encoder_repetition_penalty", "length_penalty", "exponential_decay_length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "force_words_ids", "sequence_bias"),
    *("suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "forced_decoder_ids"),
    *("renormalize_logits", "remove_invalid_values", "guidance_scale", "token_healing", "watermarking_config"),
)
# Version 5 of transformers writes all models of these kinds as tied and tells by the checkpoint.
ALWAYS_TIED = ("t5", "mt5")


# Keys of ``generation_config.json`` that are about the file.
OF_THE_FILE = ("transformers_version", "_from_model_config")


class PretrainedWarning(UserWarning):
    """Something of a checkpoint was not used, or something of the model was not in it."""


class Pretrained(NamedTuple):
    """A model and its parameters: ``model.apply({"params": params}, **batch)``."""

    model: Any
    params: Any


@dataclass(frozen=True)
class Described:
    """The content of a ``config.json``.

    Attributes:
        config: the model's configuration.
        labels: names of its classes in order, empty if it has none.
        hf: the file's own keys.
    """

    config: TransformerConfig
    labels: tuple[str, ...]
    hf: Mapping[str, Any]


def describe(
    hf: Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> Described:
    """Our configuration from a ``config.json``, with keys of ours laid over it.

    ``generation`` is the content of ``generation_config.json``; without it the settings in ``hf`` itself count.

    Raises:
        UserError: if it is of a family that is not here, or a key is missing or makes no sense.
    """
    hf = text_part(hf)
    family = family_of(hf)
    if generation is None:
        generation = {key: hf[key] for key in GENERATION_KEYS if hf.get(key) is not None}
    settings = {key: value for key, value in generation.items() if key not in OF_THE_FILE}
    keys = over({**family.from_hf(hf), "generation": settings}, overrides or {})
    for key in overrides or {}:
        if key not in TransformerConfig.model_fields:
            near = nearest(key, TransformerConfig.model_fields)
            raise UserError(f"{key!r} is no key of the model's configuration{near}")
    try:
        config = TransformerConfig(**model_config(keys))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        if where in (overrides or {}):
            expected = first["msg"].removeprefix("Input should be ")
            raise UserError(
                f"{where} is {first['input']!r}, given in place of config.json's, expected {expected}"
            ) from None
        raise UserError(
            f"config.json does not describe a {family.name} model: {where}: {first['msg']}, got {first['input']!r}"[
                :400
            ]
        ) from None
    return Described(config, _labels(hf), hf)


def _labels(hf: Mapping[str, Any]) -> tuple[str, ...]:
    names = hf.get("id2label")
    if not isinstance(names, dict):
        return ()
    try:
        ordered = {int(index): str(name) for index, name in names.items()}
    except ValueError:
        raise UserError(f"config.json has id2label with the keys {list(names)[:5]}, expected numbers from 0") from None
    if sorted(ordered) != list(range(len(ordered))):
        raise UserError(
            f"config.json has id2label with the keys {sorted(ordered)[:5]}, expected 0 to {len(ordered) - 1}"
        )
    return tuple(ordered[index] for index in range(len(ordered)))


def read_config(repository: Repository, overrides: Mapping[str, Any] | None = None) -> Described:
    """Reads a model's ``config.json`` and ``generation_config.json``; nothing else of the model is downloaded.

    Raises:
        UserError: if it has no ``config.json``, or it makes no sense.
    """
    hf = repository.get_json(CONFIG_FILE)
    described = describe(hf, overrides)
    if described.config.architecture == "encoder":
        return described
    generation = repository.find_json(GENERATION_FILE)
    return described if generation is None else describe(hf, overrides, generation)


def untie(described: Described, kind: str, weights: Weights, name: str) -> TransformerConfig:
    """The configuration, with a head of its own where the checkpoint has one though ``config.json`` calls it tied."""
    config = described.config
    if not config.tie_embeddings or not has_own_head(get_family(config.type).hub, config, kind, weights):
        return config
    if described.hf.get("model_type") not in ALWAYS_TIED:
        warnings.warn(
            f"{name} has an output layer that differs from its embedding, though its config.json calls them tied: it "
            "is kept",
            PretrainedWarning,
            stacklevel=4,
        )
    return config.model_copy(update={"tie_embeddings": False})


class Checkpoint(NamedTuple):
    """A checkpoint as read: the model, its parameters as shapes, those that were there, and its ``config.json``."""

    model: Any
    boxed: Any
    loaded: Loaded
    hf: Mapping[str, Any]


def read_checkpoint(
    repository: Repository,
    kind: str,
    *,
    num_labels: int | None = None,
    labels: tuple[str, ...] = (),
    dtype: str = "float32",
    mesh: Mesh | None = None,
    ignore_mismatched_sizes: bool = False,
    overrides: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """The model of this kind and what the checkpoint has of it, without initialising the rest; see ``load``."""
    check_dtype(dtype)
    described = read_config(repository, {"dtype": dtype, **(overrides or {})})
    family = get_family(described.config.type)
    family.hub.head(kind)  # before anything large is downloaded
    names = labels or (described.labels if num_labels in (None, len(described.labels)) else ())
    count = num_labels or len(names) or int(described.hf.get("num_labels") or 2)
    build(described.config, kind)
    weights = open_weights(repository)
    config = untie(described, kind, weights, repository.name)
    model = build(config, kind, num_labels=count, labels=names)
    boxed = abstract_params(model)
    loaded = read_params(
        family.hub,
        config,
        kind,
        weights,
        nn.unbox(boxed),
        shardings=None if mesh is None else parameter_shardings(boxed, mesh),
        dtype=jnp.dtype(dtype),
        may_differ=ignore_mismatched_sizes,
    )
    return Checkpoint(model, boxed, loaded, described.hf)


def load(
    repository: Repository,
    kind: str,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    seed: int = 0,
    **options: Any,
) -> Pretrained:
    """The model of this kind and its parameters; see ``AutoModel.from_pretrained``."""
    model, boxed, loaded, _ = read_checkpoint(repository, kind, dtype=dtype, mesh=mesh, **options)
    return completed(repository.name, model, boxed, loaded, jax.random.key(seed), dtype, mesh)


def completed(
    name: str, model: Any, boxed: Any, loaded: Loaded, key: jax.Array, dtype: str, mesh: Mesh | None
) -> Pretrained:
    """A model, whose parameters as shapes are ``boxed``, with those that were read; a warning names the new ones."""
    warn(name, loaded)
    if loaded.missing:
        new = init_params(model, key, loaded.missing)
        shardings = None if mesh is None else flatten_dict(parameter_shardings(boxed, mesh), sep="/")
        for path, array in new.items():
            array = array.astype(dtype)
            loaded.params[path] = array if shardings is None else jax.device_put(array, shardings[path])
    return Pretrained(model, unflatten_dict(loaded.params, sep="/"))


def warn(name: str, loaded: Loaded) -> None:
    """Says which parameters are new and which of the checkpoint were left out."""
    if loaded.missing:
        warnings.warn(
            f"{name} has no {', '.join(loaded.missing)}: newly initialised. Train the model before use.",
            PretrainedWarning,
            stacklevel=4,
        )
    if loaded.left:
        shown = ", ".join(loaded.left[:8]) + (f" and {len(loaded.left) - 8} more" if len(loaded.left) > 8 else "")
        warnings.warn(f"{name} has more than this model reads, left out: {shown}", PretrainedWarning, stacklevel=4)
