"""LoRA adapters in the format of the ``peft`` library, read and written."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.families import get_family
from jaxformer.families.checkpoint import ArrayWeights, join_parts, params_to_hf, read_params, take_part
from jaxformer.families.format import Format, Name
from jaxformer.hub.kinds import abstract_params, kind_of
from jaxformer.hub.weights import SafetensorsWeights
from jaxformer.lora.factors import LoraConfig, Params
from jaxformer.models.kernel_layout import has_experts, kernel_axes
from jaxformer.schema import UserError, local_path

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
Shapes = Mapping[str, tuple[int, ...]]
# Options of PEFT that are not supported, with the value that switches them off.
REFUSED: dict[str, Any] = {
    "bias": "none",
    "layers_to_transform": None,
    "layer_replication": None,
    "trainable_token_indices": None,
    "lora_bias": False,
    "target_parameters": None,
    "alora_invocation_tokens": None,
}
TABLES = {"embeddings/token/embedding", "shared/embedding"}  # of tokens
OUTPUT_LAYER = "the output layer"
UNTIE = "expected an untied model: model, params = jaxformer.lora.untie(model, params)"
TIE = "expected an adapter that holds the same embedding under all of its names"
TASK_TYPES = {
    "causal_lm": "CAUSAL_LM",
    "seq2seq_lm": "SEQ_2_SEQ_LM",
    "sequence_classification": "SEQ_CLS",
    "token_classification": "TOKEN_CLS",
    "question_answering": "QUESTION_ANS",
}


class Module:
    """A linear layer of theirs: one kernel of ours, or several joined (GPT-2's query, key and value)."""

    def __init__(self, theirs: str, names: list[Name]) -> None:
        self.theirs = theirs.removesuffix(".weight")
        self.names = sorted(names, key=lambda name: name.part[0])

    def layers(self, shapes: Shapes) -> int:
        """Number of layers, the first axis of its kernels, if they are stacked."""
        return shapes[self.names[0].ours][0]

    def places(self, layers: int) -> list[tuple[int | None, str]]:
        """Number and full name of this module in each layer; number None for one outside of the layers."""
        if "{}" not in self.theirs:
            return [(None, self.theirs)]
        return [(layer, self.theirs.format(layer)) for layer in range(layers)]

    def split(self, rows: np.ndarray) -> list[np.ndarray]:
        """Splits their outputs, the first axis, into those of each kernel of ours."""
        return [take_part(rows.T, name).T for name in self.names]

    def join(self, arrays: list[np.ndarray]) -> np.ndarray:
        """Undoes ``split``."""
        return join_parts([array.T for array in arrays], self.names[0]).T


def modules_of(format: Format, model: nn.Module, shapes: Shapes) -> list[Module]:
    """The linear layers of a model in the Hugging Face format."""
    grouped: dict[str, list[Name]] = {}
    for name in format.names(model.config, kind_of(model)):
        if name.ours in shapes and name.ours.endswith("/kernel") and not name.has_experts:
            grouped.setdefault(name.theirs, []).append(name)
    return [Module(theirs, names) for theirs, names in grouped.items()]


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a model's parameters by path."""
    flat = flatten_dict(nn.unbox(abstract_params(model)), sep="/")
    return {path: tuple(leaf.shape) for path, leaf in flat.items()}


def read_config(folder: str | Path) -> dict[str, Any]:
    """Reads ``adapter_config.json``.

    Raises:
        UserError: if there is none, or it asks for something that is not supported.
    """
    path = local_path(folder) / CONFIG_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no {CONFIG_FILE}, expected the folder of an adapter of peft") from None
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if found.get("peft_type") != "LORA":
        raise UserError(f"{path} has peft_type: {found.get('peft_type')!r}, expected 'LORA'")
    for key, value in REFUSED.items():
        if found.get(key, value) not in (value, None):
            raise UserError(f"{path} has {key}: {found[key]!r}, expected {value!r}; this variant is not read")
    return dict(found)


def read_adapter(folder: str | Path, model: nn.Module) -> tuple[LoraConfig, dict[str, Any], dict[str, Any]]:
    """Reads an adapter.

    Where several kernels of ours are one layer of theirs, each gets the same A and its own rows of B. If the ranks or
    alphas of the layers differ (``rank_pattern``, ``alpha_pattern``), factors are padded with zeros to the largest
    rank, and their scale is multiplied into B.

    Args:
        folder: of the adapter.
        model: the base model.

    Returns:
        The configuration, the factors for ``adapt`` and ``merge``, and a tree of parameters that were trained whole,
        often empty.

    Raises:
        UserError: if the files are missing, broken or of another model, or ask for something that is not supported.
    """
    described = read_config(folder)
    path = local_path(folder) / WEIGHTS_FILE
    if not path.exists():
        raise UserError(f"{folder} has no {WEIGHTS_FILE}, expected it beside {CONFIG_FILE}")
    weights = SafetensorsWeights([path])
    tensors = {name.removeprefix(PREFIX): np.asarray(weights.read(name), np.float32) for name in weights.names()}
    format, shapes = get_family(model.config.type).hub, shapes_of(model)
    scaled = _Scales(described, tensors)
    config = scaled.config(described)
    flat: dict[str, np.ndarray] = {}
    used: set[str] = set()
    for module in modules_of(format, model, shapes):
        found = {
            layer: place for layer, place in module.places(module.layers(shapes)) if f"{place}.lora_A.weight" in tensors
        }
        if found:
            used |= {
                f"{place}.{end}"
                for place in found.values()
                for end in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector")
            }
            _read_module(module, found, tensors, scaled, shapes, flat)
    rest = {name: array for name, array in tensors.items() if name not in used}
    lora = sorted(name for name in rest if ".lora_" in name)
    if lora and ".lora_embedding_" in lora[0]:
        raise UserError(
            f"{path} has {lora[0]}, expected factors of linear layers alone: those of embeddings are not read"
        )
    if lora:
        if _copies(format, model).get(lora[0].split(".lora_")[0] + ".weight") == OUTPUT_LAYER:
            raise UserError(f"{path} has {lora[0]}, and {OUTPUT_LAYER} of this model is its token embedding; {UNTIE}")
        raise UserError(
            f"{path} has {lora[0]}, which is no linear layer of this {model.config.type} model; "
            "check that the two belong together"
        )
    targets = sorted({p.removesuffix("/kernel") for p in (name.rsplit("/", 1)[0] for name in flat)})
    whole = _read_whole(path, format, model, rest)
    config = config.model_copy(update={"targets": targets, "also_train": sorted(flatten_dict(whole, sep="/"))})
    return config, unflatten_dict({name: jnp.asarray(array) for name, array in flat.items()}, sep="/"), whole


class _Scales:
    """Rank and scale of each of their layers, reduced to one for all layers."""

    def __init__(self, described: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> None:
        self._described = described
        ranks = [len(array) for name, array in tensors.items() if name.endswith(".lora_A.weight")]
        if not ranks:
            raise UserError(f"{WEIGHTS_FILE} has no factors, expected names that end in lora_A.weight")
        self.rank = max(ranks)

    def config(self, described: Mapping[str, Any]) -> LoraConfig:
        """The configuration."""
        uniform = not described.get("rank_pattern") and not described.get("alpha_pattern")
        return LoraConfig(
            rank=self.rank,
            alpha=float(described.get("lora_alpha", 8)) if uniform else float(self.rank),
            dropout=0.0 if described.get("use_dora") else float(described.get("lora_dropout") or 0.0),
            rslora=bool(described.get("use_rslora")) and uniform,
            dora=bool(described.get("use_dora")),
        )

    def factor(self, place: str, rank: int) -> float:
        """Factor of a layer's B."""
        if not self._described.get("rank_pattern") and not self._described.get("alpha_pattern"):
            return 1.0
        patterns = self._described.get("alpha_pattern") or {}
        alpha = next(
            (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", place)),
            self._described.get("lora_alpha", 8),
        )
        return float(alpha) / (rank**0.5 if self._described.get("use_rslora") else rank)


def _read_module(
    module: Module,
    found: Mapping[int | None, str],
    tensors: Mapping[str, np.ndarray],
    scaled: _Scales,
    shapes: Shapes,
    flat: dict[str, np.ndarray],
) -> None:
    """Adds the factors of one module in all its layers to ``flat``."""
    stacked = None not in found
    for number, name in enumerate(module.names):
        shape = shapes[name.ours]
        layers = shape[:1] if stacked else ()
        inner = shape[len(layers) :]
        inputs = kernel_axes(name.ours).inputs
        a = np.zeros((*layers, *inner[:inputs], scaled.rank), np.float32)
        b = np.zeros((*layers, scaled.rank, *inner[inputs:]), np.float32)
        lengths = np.zeros((*layers, *inner[inputs:]), np.float32)
        has_lengths = False
        for layer, place in found.items():
            theirs_a, theirs_b = tensors[f"{place}.lora_A.weight"], tensors[f"{place}.lora_B.weight"]
            rank, mine = len(theirs_a), module.split(theirs_b)[number]
            if theirs_a.shape[1] != math.prod(inner[:inputs]) or len(mine) != math.prod(inner[inputs:]):
                raise UserError(
                    f"{place} of the adapter is {theirs_a.shape[1]} to {len(theirs_b)}, expected a kernel "
                    f"{list(inner)}; check that adapter and model belong together"
                )
            index = (layer,) if stacked else ()
            a[(*index, ..., slice(rank))] = theirs_a.T.reshape(*inner[:inputs], rank)
            b[(*index, slice(rank))] = scaled.factor(place, rank) * mine.T.reshape(rank, *inner[inputs:])
            if f"{place}.lora_magnitude_vector" in tensors:
                vector = tensors[f"{place}.lora_magnitude_vector"].ravel()
                lengths[index] = module.split(vector)[number].reshape(inner[inputs:])
                has_lengths = True
        if has_lengths and len(found) < (layers[0] if stacked else 1):
            raise UserError(f"the adapter has dora in some layers of {module.theirs} only, expected all of them")
        flat[f"{name.ours}/a"], flat[f"{name.ours}/b"] = a, b
        if has_lengths:
            flat[f"{name.ours}/magnitude"] = lengths


def untie(model: Any, params: Params) -> tuple[Any, dict[str, Any]]:
    """The model with an output layer of its own, as yet equal to its embedding, and its parameters.

    An adapter of PEFT that trains one of the two whole leaves the other as it was, also where the model ties them.

    Raises:
        UserError: if the output layer is not tied, or stands in one of two sides.
    """
    if model.config.encoder is not None:
        raise UserError(
            f"the model is a {model.config.type}, whose sides have tokens of their own, expected one table of tokens"
        )
    if not model.config.tie_embeddings:
        raise UserError("the model's output layer is not tied to its embedding, expected one that is")
    model = model.clone(config=model.config.model_copy(update={"tie_embeddings": False}))
    table = params["shared" if "shared" in params else "embeddings"]
    table = table.get("token", table)["embedding"]
    return model, {**params, "lm_head": {"kernel": table.T}}


def _copies(format: Format, model: nn.Module) -> dict[str, str]:
    """Names of their tensors that are the token embedding again, in a model of ours that has it once."""
    kind, config = kind_of(model), model.config
    found: dict[str, str] = {}
    if config.architecture == "encoder_decoder":
        found |= {f"{format.prefix_of(kind)}{name}": "the embedding of encoder or decoder" for name in format.copies}
    if config.tie_embeddings:
        untied = config.model_copy(update={"tie_embeddings": False})
        heads = [row.theirs for row in format.names(untied, kind) if row.ours == "lm_head/kernel"]
        found |= dict.fromkeys(heads, OUTPUT_LAYER)
    return found


def _places(format: Format, model: nn.Module, shapes: Shapes) -> dict[str, tuple[list[str], list[str]]]:
    """Our parameters that each tensor of theirs holds, and the names of that tensor in all layers."""
    rows = [name for name in format.names(model.config, kind_of(model)) if name.ours in shapes]
    found: dict[str, tuple[list[str], list[str]]] = {}
    for spelling in ("theirs", "otherwise"):
        own: dict[str, tuple[list[str], list[str]]] = {}
        for row in rows:
            theirs = getattr(row, spelling)
            if theirs is None or row.has_experts:
                continue
            layers = range(int(row.not_first), shapes[row.ours][0]) if "{}" in theirs else range(1)
            names = [theirs.format(layer) for layer in layers]
            for name in names:
                own.setdefault(name, ([], names))[0].append(row.ours)
        found |= {name: place for name, place in own.items() if name not in found}
    return found


def _read_whole(path: Path, format: Format, model: nn.Module, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters that an adapter holds whole: of ``modules_to_save``, and the base of an adapted output layer.

    Every tensor has a place or is refused.
    """
    # The kernel below factors, which PEFT saves of output layers.
    tensors = {name.replace(".base_layer.", "."): array for name, array in tensors.items()}
    kind, leaves = kind_of(model), flatten_dict(nn.unbox(abstract_params(model)), sep="/")
    places = _places(format, model, {name: leaf.shape for name, leaf in leaves.items()})
    table = next((name for name, (ours, _) in places.items() if name in tensors and TABLES & {*ours}), None)
    for copy, what in _copies(format, model).items():
        pair = [tensors[name] for name in (copy, table) if name in tensors]
        if len(pair) == 1 or (pair and not np.array_equal(pair[0], pair[1])):
            raise UserError(
                f"{path} trains {' and '.join(name for name in (table, copy) if name in tensors)} apart, and {what} of "
                f"this model is its token embedding; {UNTIE if what == OUTPUT_LAYER else TIE}"
            )
        tensors.pop(copy, None)
    wanted: set[str] = set()
    for name in sorted(tensors):
        if name not in places:
            raise UserError(
                f"{path} has {name}, which this {model.config.type} model does not have; check that the two belong "
                "together"
            )
        ours, layers = places[name]
        lacking = [layer for layer in layers if layer not in tensors]
        if lacking:
            raise UserError(
                f"{path} has {name} and not {lacking[0]}, expected a module that is trained whole in all layers or none"
            )
        wanted |= {*ours}
    if not wanted:
        return {}
    shapes = unflatten_dict({name: leaf for name, leaf in leaves.items() if name in wanted}, sep="/")
    loaded = read_params(format, model.config, kind, ArrayWeights(tensors), shapes)
    return unflatten_dict(loaded.params, sep="/")


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

    Where several kernels of ours are one layer of theirs and have different A, its A is a stack of ours and its B is
    block-diagonal: the product is the same, with a larger rank for this layer.

    Args:
        folder: to write.
        model: the base model.
        factors: of ``init_factors``, trained.
        config: of the factors.
        whole: parameters that were trained whole, a part of the model's tree.
        base: name or folder of the base model, for ``adapter_config.json``.

    Raises:
        UserError: if the family has no Hugging Face format, or a parameter no place in it.
    """
    from safetensors.numpy import save_file

    format = get_family(model.config.type).hub
    shapes = shapes_of(model)
    flat = {path: np.asarray(array, np.float32) for path, array in flatten_dict(dict(factors), sep="/").items()}
    if any(has_experts(path.rpartition("/")[0]) for path in flat):
        raise UserError(
            "lora.targets names the kernels of experts, for which peft's format has no names; export the merged model, "
            "or name attention alone"
        )
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
    saved = _whole_tensors(format, model, shapes, whole or {})
    tensors |= {PREFIX + name: np.asarray(array, np.float32) for name, array in saved.items()}
    # The scale stays the same: alpha grows with the rank, or with its square root.
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
        # Of an encoder-decoder PEFT would put a linear layer in place of its embeddings: equal copies do.
        "ensure_weight_tying": bool(
            model.config.architecture != "encoder_decoder"
            and TABLES & flatten_dict(dict(whole or {}), sep="/").keys()
            and _copies(format, model)
        ),
        "bias": "none",
        "fan_in_fan_out": not targets[0].names[0].transposed,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "init_lora_weights": True,
    }
    folder = local_path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder


def _whole_tensors(format: Format, model: nn.Module, shapes: Shapes, whole: Params) -> dict[str, np.ndarray]:
    """Their tensors of parameters that were trained whole; refuses a part of a tensor and what has no place."""
    flat = flatten_dict(dict(whole), sep="/")
    places = [ours for ours, _ in _places(format, model, shapes).values()]
    for path in flat:
        together = next((ours for ours in places if path in ours), None)
        if together is None:
            raise UserError(
                f"{path} was trained whole, and the Hugging Face format of {model.config.type} has no place for it"
            )
        if lacking := [ours for ours in together if ours not in flat]:
            raise UserError(
                f"{path} was trained whole and {lacking[0]} was not, which are one tensor in the Hugging Face format; "
                "name both in lora.also_train"
            )
    found = dict(params_to_hf(format, model.config, kind_of(model), whole)) if flat else {}
    table = next(
        (name for name, (ours, _) in _places(format, model, shapes).items() if TABLES & flat.keys() & {*ours}), None
    )
    # Else PEFT would leave the output layer, or the decoder's embedding, as it was.
    return found if table is None else {**found, **dict.fromkeys(_copies(format, model), found[table])}


def _pattern(place: str) -> str:
    """The name as a regular expression, for which PEFT takes it."""
    return place.replace(".", r"\.")


def _target_names(targets: list[Module], modules: list[Module], shapes: Shapes) -> list[str]:
    """The shortest names that match the targets and no other linear layer."""
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
    """Names and tensors of a module's factors in all layers."""
    for layer, place in module.places(module.layers(shapes)):
        pairs, lengths = [], []
        for name in module.names:
            shape = shapes[name.ours] if layer is None else shapes[name.ours][1:]
            inputs = math.prod(shape[: kernel_axes(name.ours).inputs])
            outputs = math.prod(shape) // inputs
            factor = {n: flat[f"{name.ours}/{n}"] for n in ("a", "b", "magnitude") if f"{name.ours}/{n}" in flat}
            factor = factor if layer is None else {n: array[layer] for n, array in factor.items()}
            if "a" in factor:
                pairs.append((factor["a"].reshape(-1, rank).T, factor["b"].reshape(rank, outputs).T))
            else:
                pairs.append((np.zeros((0, inputs), np.float32), np.zeros((outputs, 0), np.float32)))
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
    """``A [r, in]`` and ``B [out, r]`` of a module from those of its kernels."""
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
