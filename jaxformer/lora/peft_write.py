"""Factors of low rank written as the ``peft`` library reads them."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from jaxformer.families import get_family
from jaxformer.families.convert import params_to_hf
from jaxformer.hub.kinds import kind_of
from jaxformer.lora.factors import LoraConfig, Params
from jaxformer.lora.peft_format import (
    CONFIG_FILE,
    PREFIX,
    WEIGHTS_FILE,
    Module,
    Shapes,
    input_axes,
    modules_of,
    shapes_of,
)
from jaxformer.schema import UserError

TASK_TYPES = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}


def write_adapter(
    folder: str | Path,
    model: nn.Module,
    factors: Params,
    config: LoraConfig,
    *,
    whole: Params | None = None,
    base: str | None = None,
) -> Path:
    """Writes factors so that ``peft.PeftModel.from_pretrained(model, folder)`` opens them.

    Where several kernels of ours are one layer of theirs, its factor A is theirs under one another and its factor B has
    them on its diagonal, unless all have the same A: the product is the same, with a larger rank for this layer.

    Args:
        folder: to write.
        model: the frozen one.
        factors: of ``init_factors``, trained.
        config: of them.
        whole: parameters that were trained as they are, a part of the model's tree.
        base: where the frozen model is from, for ``adapter_config.json``.

    Raises:
        UserError: if the family has no place in the Hugging Face format.
    """
    from safetensors.numpy import save_file

    format = get_family(model.config.type).hub
    shapes = shapes_of(model)
    flat = {path: np.asarray(array, np.float32) for path, array in flatten_dict(dict(factors), sep="/").items()}
    modules = modules_of(format, model, shapes)
    tensors: dict[str, np.ndarray] = {}
    ranks: dict[str, int] = {}
    targets = []
    for module in modules:
        if any(f"{name.ours}/a" in flat for name in module.names):
            targets.append(module)
            for place, tensor in _layers_of(module, flat, shapes, config.rank):
                tensors[PREFIX + place] = tensor
                if place.endswith("lora_A.weight") and len(tensor) != config.rank:
                    ranks[place.removesuffix(".lora_A.weight")] = len(tensor)
    saved = dict(params_to_hf(format, model.config, kind_of(model), whole)) if whole else {}
    tensors |= {PREFIX + name: np.asarray(array, np.float32) for name, array in saved.items()}
    # The scale stays the same: alpha grows with the rank, or with its root.
    growth = 0.5 if config.rslora else 1.0
    alphas = {place: config.alpha * (rank / config.rank) ** growth for place, rank in ranks.items()}
    described = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(kind_of(model)),
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "rank_pattern": {_pattern(place): rank for place, rank in ranks.items()},
        "alpha_pattern": {_pattern(place): alpha for place, alpha in alphas.items()},
        "target_modules": _target_names(targets, modules, shapes),
        "modules_to_save": sorted({name.rsplit(".", 1)[0] for name in saved}) or None,
        "bias": "none",
        "fan_in_fan_out": not targets[0].names[0].transposed,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "init_lora_weights": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder


def _pattern(place: str) -> str:
    """PEFT takes the name for a regular expression."""
    return place.replace(".", r"\.")


def _target_names(targets: list[Module], modules: list[Module], shapes: Shapes) -> list[str]:
    """The shortest names that fit the targets and no other linear layer."""
    full = {place for module in targets for _, place in module.places(module.layers(shapes))}
    others = {place for m in modules for _, place in m.places(m.layers(shapes))} - full
    names = set()
    for module in targets:
        short = module.theirs.rsplit("{}.", 1)[-1]
        parts = short.split(".")
        for count in range(1, len(parts) + 1):
            name = ".".join(parts[-count:])
            if not any(other == name or other.endswith(f".{name}") for other in others):
                names.add(name)
                break
        else:
            names |= {place for _, place in module.places(module.layers(shapes))}
    return sorted(names)


def _layers_of(
    module: Module, flat: Mapping[str, np.ndarray], shapes: Shapes, rank: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and tensors of a module's factors in every layer."""
    for layer, place in module.places(module.layers(shapes)):
        pairs, lengths = [], []
        for name in module.names:
            shape = shapes[name.ours] if layer is None else shapes[name.ours][1:]
            outputs = int(np.prod(shape[input_axes(name.ours) :]))
            factor = {n: flat[f"{name.ours}/{n}"] for n in ("a", "b", "magnitude") if f"{name.ours}/{n}" in flat}
            factor = factor if layer is None else {n: array[layer] for n, array in factor.items()}
            if "a" in factor:
                pairs.append((factor["a"].reshape(-1, rank).T, factor["b"].reshape(rank, outputs).T))
            else:
                pairs.append(
                    (np.zeros((0, int(np.prod(shape)) // outputs), np.float32), np.zeros((outputs, 0), np.float32))
                )
            lengths.append(factor["magnitude"].ravel() if "magnitude" in factor else None)
        a, b = _joined(module, pairs)
        yield f"{place}.lora_A.weight", a
        yield f"{place}.lora_B.weight", b
        if all(length is not None for length in lengths):
            yield f"{place}.lora_magnitude_vector", module.join([x for x in lengths if x is not None])
        elif any(length is not None for length in lengths):
            raise UserError(
                f"dora is on some kernels of {place} only, which are one layer in the Hugging Face format; name all of "
                f"{', '.join(name.ours.removesuffix('/kernel') for name in module.names)} in lora.targets"
            )


def _joined(module: Module, pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """``A [r, in]`` and ``B [out, r]`` of a module from those of its parts."""
    first = pairs[0][0]
    if all(a.shape == first.shape and np.array_equal(a, first) for a, _ in pairs):
        return first, module.join([b for _, b in pairs])
    total = sum(len(a) for a, _ in pairs)
    blocks, start = [], 0
    for a, b in pairs:
        block = np.zeros((len(b), total), np.float32)
        block[:, start : start + len(a)] = b
        blocks.append(block)
        start += len(a)
    return np.concatenate([a for a, _ in pairs]), module.join(blocks)
