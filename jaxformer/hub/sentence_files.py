"""The files of the sentence-transformers library: pooling, dense layers, length 1 and prompts around a model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.atomic import write_atomically
from jaxformer.hub.repository import Repository, bare_name
from jaxformer.hub.weights import SAFETENSORS, TORCH, open_weights
from jaxformer.models.sentence_encoder import DenseLayer, SentenceEncoder
from jaxformer.schema import UserError

MODULES_FILE = "modules.json"
LENGTH_FILE, PROMPTS_FILE = "sentence_bert_config.json", "config_sentence_transformers.json"
POOLINGS = {"mean": "mean", "cls": "first", "lasttoken": "last"}
# Keys of older files, one for each pooling.
OLD_POOLINGS = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATIONS = {
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.linear.Identity": None,
}
SCORES = {"torch.nn.modules.activation.Sigmoid": "sigmoid", "torch.nn.modules.linear.Identity": "none"}


@dataclass(frozen=True)
class SentenceFormat:
    """The way from the states of a text to its vector.

    Attributes:
        pooling: ``mean``, ``first`` or ``last``.
        dense: layers behind the pooling.
        normalize: the vectors have length 1.
        prompts: prefixes of texts by their names.
        default_prompt: the name of the one for texts of which no other is asked.
        longest: tokens of a text; None: what tokenizer and model allow.
    """

    pooling: str = "mean"
    dense: tuple[DenseLayer, ...] = ()
    normalize: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    longest: int | None = None

    def encoder(self, config: Any) -> SentenceEncoder:
        """The model."""
        prompts = tuple(self.prompts.items())
        parts = (self.pooling, self.dense, self.normalize, prompts, self.default_prompt, self.longest)
        return SentenceEncoder(config, *parts)


def format_of(model: SentenceEncoder) -> SentenceFormat:
    """The format of a model."""
    parts = (model.pooling, model.dense, model.normalize, dict(model.prompts), model.default_prompt, model.longest)
    return SentenceFormat(*parts)


def read_sentence_format(repository: Repository) -> tuple[SentenceFormat, dict[str, Any]] | None:
    """The format and the parameters of its dense layers; None if the model is no sentence encoder.

    Raises:
        UserError: if it has a part that is not known here.
    """
    modules = _modules(repository)
    if not any(kind == "Pooling" for kind, _ in modules):
        return None
    pooling, normalize = "mean", False
    dense: list[DenseLayer] = []
    params: dict[str, Any] = {}
    for place, (kind, path) in enumerate(modules):
        if kind in ("Transformer", "Dropout") and (kind == "Dropout" or place == 0):
            continue
        if kind == "Pooling" and place == 1:
            pooling = _pooling(repository, path)
        elif kind == "Dense" and place > 1 and not normalize:
            layer, weights = _dense(repository, path)
            params[f"dense_layers_{len(dense)}"] = weights
            dense.append(layer)
        elif kind == "Normalize" and place > 1:
            normalize = True
        else:
            raise UserError(
                f"{repository.name} has the module {kind} as number {place} in {MODULES_FILE}, expected Transformer, "
                "Pooling, then Dense and last Normalize; such a model is not supported"
            )
    said = repository.find_json(PROMPTS_FILE) or {}
    prompts, default = said.get("prompts") or {}, said.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"{PROMPTS_FILE} of {repository.name} has prompts {prompts!r:.60}, expected texts by name")
    if default is not None and default not in prompts:
        raise UserError(f"{PROMPTS_FILE} of {repository.name} has no prompt {default!r}, its default_prompt_name")
    longest = (repository.find_json(LENGTH_FILE) or {}).get("max_seq_length")
    return SentenceFormat(pooling, tuple(dense), normalize, prompts, default, longest), params


def _modules(repository: Repository) -> list[tuple[str, str]]:
    """Kind and folder of each module, none without ``modules.json``."""
    path = repository.find(MODULES_FILE)
    if path is None:
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        modules = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in found]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path} is damaged, expected a JSON list of modules with type and path") from None
    return [(kind, bare_name(path, MODULES_FILE) if path else path) for kind, path in modules]


def _pooling(repository: Repository, folder: str) -> str:
    said = repository.get_json(f"{folder}/config.json")
    names = said.get("pooling_mode")
    if names is None:
        on = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
        names = [OLD_POOLINGS.get(key, key) for key in on]
    names = [names] if isinstance(names, str) else names
    if len(names) != 1 or names[0] not in POOLINGS:
        raise UserError(
            f"{repository.name} pools by {' and '.join(map(str, names)) or 'nothing'}, expected mean, cls or "
            "lasttoken: such a model is not supported; pooling= takes another way than it was trained with"
        )
    if said.get("include_prompt") is False:
        raise UserError(f"{repository.name} leaves prompts out of its pooling (include_prompt), which is not supported")
    return POOLINGS[names[0]]


def _dense(repository: Repository, folder: str) -> tuple[DenseLayer, dict[str, Any]]:
    said = repository.get_json(f"{folder}/config.json")
    activation = said.get("activation_function", "torch.nn.modules.activation.Tanh")
    if activation not in ACTIVATIONS or said.get("use_residual"):
        what = "a residual" if said.get("use_residual") else f"the activation {activation!r}"
        raise UserError(f"{folder} of {repository.name} has {what}, expected one of {', '.join(ACTIVATIONS)} alone")
    files = [f"{folder}/{name}" for name in (SAFETENSORS, TORCH)]
    path = repository.find(files[0]) or repository.find(files[1]) or repository.get(files[0])
    weights = open_weights(Repository(str(path.parent)))
    kernel = np.ascontiguousarray(weights.read("linear.weight").T, np.float32)
    params = {"kernel": kernel}
    if said.get("bias", True):
        params["bias"] = np.array(weights.read("linear.bias"), np.float32)
    return DenseLayer(kernel.shape[1], ACTIVATIONS[activation], "bias" in params), params


def write_sentence_files(folder: Path, model: SentenceEncoder, params: Any) -> None:
    """Writes what makes a model's folder one of sentence-transformers, of any version."""
    from safetensors.numpy import save_file

    kinds = ["Transformer", "Pooling", *["Dense"] * len(model.dense), *["Normalize"] * model.normalize]
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    for path in paths[1:]:
        (folder / path).mkdir(exist_ok=True)
    width, theirs = model.config.hidden_size, {ours: name for name, ours in POOLINGS.items()}[model.pooling]
    on = {key: name == theirs for key, name in OLD_POOLINGS.items()}
    off = dict.fromkeys(("pooling_mode_max_tokens", "pooling_mode_mean_sqrt_len_tokens"), False)
    _write(folder / paths[1] / "config.json", {"word_embedding_dimension": width, **on, **off})
    for number, layer in enumerate(model.dense):
        target, weights = folder / paths[2 + number], params[f"dense_layers_{number}"]
        activation = next(name for name, ours in ACTIVATIONS.items() if ours == layer.activation)
        sizes = {"in_features": width, "out_features": layer.size, "bias": layer.use_bias}
        _write(target / "config.json", {**sizes, "activation_function": activation})
        tensors = {"linear.weight": np.ascontiguousarray(np.asarray(weights["kernel"]).T)}
        if layer.use_bias:
            tensors["linear.bias"] = np.asarray(weights["bias"])
        save_file(tensors, target / SAFETENSORS, metadata={"format": "pt"})
        width = layer.size
    _write(folder / LENGTH_FILE, {"max_seq_length": model.longest, "do_lower_case": False})
    prompts = {"prompts": dict(model.prompts), "default_prompt_name": model.default_prompt}
    _write(folder / PROMPTS_FILE, {**prompts, "similarity_fn_name": "cosine"})
    _write(folder / MODULES_FILE, modules)


def _write(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def score_function(repository: Repository, hf: Mapping[str, Any]) -> str | None:
    """``sigmoid`` or ``none``, what a cross-encoder does to its score; None if its files say nothing.

    Raises:
        UserError: if it is not known here.
    """
    said = (repository.find_json(PROMPTS_FILE) or {}).get("activation_fn")
    said = said or (hf.get("sentence_transformers") or {}).get("activation_fn")
    said = said or hf.get("sbert_ce_default_activation_function")
    if said is None:
        return None
    if said not in SCORES:
        raise UserError(f"{repository.name} has the activation {said!r}, expected one of {', '.join(SCORES)}")
    return SCORES[said]
