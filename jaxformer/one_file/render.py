"""A model as the text of one file: the pieces of the templates that it needs, in the order of reading."""

import re
import textwrap
from functools import cache
from typing import Any

import jinja2

from jaxformer.functional import RotaryScaling
from jaxformer.functional.kernels.blocked import QUERY_BLOCK
from jaxformer.models.config import TransformerConfig
from jaxformer.one_file.families import ACTIVATIONS, KINDS, PAPERS, POOLED, RESIDUALS, WRITTEN
from jaxformer.one_file.parameters import has_two_depths, parameter_table
from jaxformer.schema import UserError

# Every line of code is as a formatter wants it at 88 characters and at 120.
WIDTH = 88
MARK = "Written by ``jaxformer export --one-file``"
PARTS = (
    *("constants", "norm", "positions", "attention", "feed_forward", "block", "embeddings", "model", "heads"),
    *("parameters", "main"),
)
SCALINGS = {
    "linear": 'Chen et al. 2023, "Extending Context Window of Large Language Models".',
    "llama3": 'Llama Team 2024, "The Llama 3 Herd of Models".',
    "yarn": 'Peng et al. 2023, "YaRN", section 3.2.',
}


def render(model: Any, origin: str, *, weights: bool = False) -> str:
    """The file of a model: Python that imports JAX, NumPy and the standard library.

    Args:
        model: one of jaxformer's, of dtype float32.
        origin: what the model was opened from, for the first lines.
        weights: whether its parameters are beside the file, as the demonstration then expects.

    Raises:
        UserError: if there is no such file for this model.
    """
    c, kind = model.config, type(model).__name__
    check_written(c, kind)
    table = parameter_table(model)
    names = {row.name for row in table}
    switches = _switches(c, kind, names)
    facts: dict[str, Any] = {
        "c": c,
        "kind": kind,
        "names": names,
        "parameters": table,
        "weights": weights,
        "constants": _constants(model, switches),
        "docstring": _docstring(c, kind, origin),
        "define": _define,
        "act": lambda x: ACTIVATIONS[c.activation][0].format(x),
        "pooler_act": lambda x: ACTIVATIONS[c.pooler or "tanh"][0].format(x),
        **switches,
        **_words(c, kind, switches),
    }
    parts = [_environment().get_template(f"{part}.py.j2").render(facts).strip() for part in PARTS]
    # Pieces that are left out leave blank lines.
    text = re.sub(r"\n{4,}", "\n\n\n", "\n\n\n".join(filter(None, parts))) + "\n"
    standard = [line for use, line in (("math.", "import math"), ("Path(", "from pathlib import Path")) if use in text]
    others = ["import jax", "import jax.numpy as jnp", *(["import numpy as np"] if " np." in text else [])]
    return text.replace("IMPORTS", "\n".join([*standard, *([""] if standard else []), *others]))


def check_written(c: TransformerConfig, kind: str) -> None:
    """Refuses a model that the templates have no piece for, with a ``UserError`` that names the key."""
    if kind not in KINDS:
        raise UserError(f"the model is a {kind}, expected one of {', '.join(KINDS)}: others have no file")
    if c.rope_scaling is not None and c.rope_scaling.type not in SCALINGS:
        raise UserError(
            f"model.rope_scaling.type is {c.rope_scaling.type}, expected one of {', '.join(SCALINGS)}: angles that "
            "depend on the length of a row have no file"
        )
    if c.encoder is not None or c.decoder is not None:
        raise UserError(f"model.type is {c.type}, whose sides have a configuration each, expected one: it has no file")
    if c.mixer != "attention":
        raise UserError(f"model.mixer is {c.mixer}, expected attention: a state-space model has no file")
    if c.num_experts is not None:
        raise UserError(f"model.num_experts is {c.num_experts}, expected null: a mixture of experts has no file")
    for name, known in WRITTEN.items():
        value = getattr(c, name)
        if value not in known:
            raise UserError(f"model.{name} is {value}, expected {' or '.join(map(str, known))}: others have no file")
    if (c.decoder_heads, c.decoder_inner_size) != (c.num_heads, c.inner_size):
        raise UserError(
            f"the decoder has {c.decoder_heads} heads and an inner width of {c.decoder_inner_size}, expected those of "
            "the encoder: others have no file"
        )
    if c.has_head_transform:
        raise UserError("model.head_transform is True of a decoder, expected False: others have no file")
    if c.local_rope_theta is not None and c.rope_scaling is not None:
        raise UserError(
            "model.local_rope_theta and model.rope_scaling are both given, expected one: others have no file"
        )
    if c.norm_offset not in (0, 1):
        raise UserError(f"model.norm_offset is {c.norm_offset}, expected 0 or 1: others have no file")


@cache
def _environment() -> jinja2.Environment:
    loader = jinja2.PackageLoader("jaxformer.one_file")
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _define(name: str, *arguments: str | bool) -> str:
    """The head of a function, on one line or with a line for each argument; arguments that are False are left out."""
    given = ", ".join(str(argument) for argument in arguments if argument)
    line = f"def {name}({given}):"
    return line if len(line) <= WIDTH else f"def {name}(\n    " + given.replace(", ", ",\n    ") + ",\n):"


def _switches(c: TransformerConfig, kind: str, names: set[str]) -> dict[str, Any]:
    """Facts by which the templates choose, beside those of the configuration."""
    two_sided, classifies = c.architecture == "encoder_decoder", kind == "SequenceClassifier"
    decodes = two_sided and kind != "TokenClassifier"
    parts = {
        "position": c.positions == "learned",
        "token_type": c.token_types > 0,
        "norm": c.embedding_norm,
        "projection": c.embedding_size is not None,
    }
    embedded = [name for name, there in parts.items() if there]
    biased, rotary = c.positions in ("alibi", "relative"), c.positions == "rotary"
    shared = [name for name, there in {"rotary": rotary, "bias": biased}.items() if there]
    extra = "".join(f", {name}" for name in shared)
    start = c.decoder_start == "last" or c.decoder_start_token_id is not None
    return {
        "two_sided": two_sided,
        "decodes": decodes,
        "causal": c.architecture == "decoder" or decodes,
        "grouped": c.kv_heads != c.num_heads,
        "biased": biased,
        "mixed": c.has_mixed_windows,
        "numbered": c.positions in ("learned", "sinusoidal", "rotary"),
        "placed": c.positions in ("learned", "sinusoidal"),
        "typed": c.token_types > 1,
        "skips_first": not c.first_norm and c.norm_place == "pre",
        "local_theta": rotary and c.has_mixed_windows and c.local_rope_theta is not None,
        "partial": c.rotary_size < c.head_width,
        "magnitude": _magnitude(c) != 1.0,
        "residual": c.initializer == "normal" and c.norm_place == "pre",
        "own_embeddings": bool(embedded) or not two_sided,
        "embedding_weights": ", ".join(["table" if two_sided else "token", *embedded]),
        # Arguments of a block, of a call of attention in it, and of attention before and after its weights.
        "extra_arguments": extra,
        "given_arguments": "".join(f", {name}={name}" for name in shared) if two_sided else extra,
        "own_arguments": "" if two_sided else extra,
        "optional_arguments": "".join(f", {name}=None" for name in shared) if two_sided else "",
        "pairs": "pair_classifier/kernel" in names,
        "pools": classifies or "pair_classifier/kernel" in names or (kind == "Body" and "pooler/dense/kernel" in names),
        "has_pooler": "pooler/dense/kernel" in names,
        "shifts": decodes and kind != "EncoderDecoder" and start,
        "reads_pad": classifies and c.architecture == "decoder" and c.pad_token_id is not None,
        "reads_ends": classifies and two_sided and bool(c.end_ids),
    }


def _magnitude(c: TransformerConfig) -> float:
    s = c.rope_scaling
    return 1.0 if s is None else RotaryScaling(**s.model_dump()).magnitude


def _words(c: TransformerConfig, kind: str, switches: dict[str, Any]) -> dict[str, Any]:
    """Names and phrases in the templates."""
    table = '["shared"]["embedding"]' if switches["two_sided"] else '["embeddings"]["token"]["embedding"]'
    embedded = "Token embedding" + (" times sqrt(D)" if c.scale_embedding else "")
    embedded += {"learned": " plus position", "sinusoidal": " plus sinusoids"}.get(c.positions, "")
    embedded += (" plus type" if c.token_types else "") + ", 0 at padding"
    return {
        "norm": "offset_norm" if c.norm_offset else c.norm,
        "bias_of_norm": ", bias" if c.norm == "layer_norm" and c.use_bias else "",
        "E": "E" if c.token_size != c.hidden_size else "D",
        "attention_weights": "query, key, value, output" + (", query_norm, key_norm" if c.qk_norm else ""),
        "decoder_layers": "M" if has_two_depths(c) else "L",
        "output_kernel": f"params{table}.T" if c.tie_embeddings else 'params["lm_head"]["kernel"]',
        "activation_source": ACTIVATIONS[c.activation][1],
        "scaling_source": SCALINGS.get("" if c.rope_scaling is None else c.rope_scaling.type, ""),
        "residual_source": "Both read the same x: GPT-J, 2021." if c.parallel_residual else RESIDUALS[c.norm_place],
        "embedded": embedded + (", then a norm" if c.embedding_norm else ""),
        "pooled": POOLED[c.pooled_state],
        "returns": KINDS[kind][1],
        "norm_of_heads": "offset_norm" if c.norm_offset and c.norm == "rms_norm" else "rms_norm",
        "centre": "around 0" if c.norm_offset else "scales around 1",
        "length": min(4, c.max_length - 1),
        "longest": min(12, c.max_length),
        "start": "0" if c.decoder_start_token_id is None else "START",
    }


def _docstring(c: TransformerConfig, kind: str, origin: str) -> str:
    title, paper = PAPERS[c.type]
    origin = origin.replace("\\", "/").replace('"', "'")
    limit = "" if c.architecture == "encoder" else f", for rows of up to {QUERY_BLOCK} tokens"
    source = ", S in one of the source" if c.architecture == "encoder_decoder" else ""
    paragraphs = [
        f"{title}, {KINDS[kind][0]}, in plain JAX.",
        f"{paper}.",
        f"{MARK} from {origin}. ``forward``, jitted on a CPU, equals jaxformer's model without dropout, bit for bit"
        f"{limit}.",
        f"In shapes B is the number of rows of a batch and T of tokens in a row{source}.",
    ]
    filled = (textwrap.fill(text, WIDTH, break_on_hyphens=False, break_long_words=False) for text in paragraphs)
    return "\n\n".join(filled)


def _constants(model: Any, switches: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Name, value and comment of each constant."""
    c: TransformerConfig = model.config
    depths, s, labels = has_two_depths(c), c.rope_scaling, getattr(model, "num_labels", None)
    learned, relative, rotary = (c.positions == name for name in ("learned", "relative", "rotary"))
    scaling = "" if s is None else s.type
    begins = (type(model).__name__ == "EncoderDecoder" or switches["shifts"]) and c.decoder_start != "last"
    rows: list[tuple[Any, str, Any, str]] = [
        (True, "V", c.vocabulary, "tokens of the vocabulary"),
        (True, "D", c.hidden_size, "width of the hidden states"),
        (c.token_size != c.hidden_size, "E", c.embedding_size, "width of the token embedding"),
        (True, "L", c.num_layers, "layers of the encoder" if depths else "layers"),
        (depths, "M", c.decoder_layers, "layers of the decoder"),
        (True, "N", c.num_heads, "attention heads"),
        (switches["grouped"], "K", c.kv_heads, "heads of keys and values"),
        (True, "H", c.head_width, "width of a head"),
        (True, "F", c.inner_size, "inner width of the feed-forward network"),
        (labels is not None, "C", labels, "classes"),
        (learned, "P", c.max_length, "tokens of the longest row"),
        (learned and c.first_position, "OFFSET", c.first_position, "row of position 0 in its table"),
        (c.token_types, "TYPES", c.token_types, "types of tokens"),
        (relative, "BUCKETS", c.relative_buckets, "buckets of distances"),
        (relative, "FAR", c.relative_max_distance, "distances from here on share a bucket"),
        (rotary, "R", c.rotary_size, "entries of a head that are rotated"),
        (rotary, "THETA", c.rope_theta, "base of the wavelengths"),
        (switches["local_theta"], "LOCAL_THETA", c.local_rope_theta, "that of layers with a window"),
        (s is not None, "FACTOR", s and s.factor, "long waves are stretched by it"),
        (scaling in ("llama3", "yarn"), "ORIGINAL", s and s.original_max_length, "tokens of a row in training"),
        (scaling == "llama3", "LOW", s and s.low_frequency_factor, "waves above ORIGINAL / LOW are stretched"),
        (scaling == "llama3", "HIGH", s and s.high_frequency_factor, "waves below ORIGINAL / HIGH are kept"),
        (scaling == "yarn", "FAST", s and s.beta_fast, "turns from which on a pair is kept"),
        (scaling == "yarn", "SLOW", s and s.beta_slow, "turns up to which a pair is stretched"),
        (switches["magnitude"], "MAGNITUDE", _magnitude(c), "factor of cosines and sines"),
        (c.window, "WINDOW", c.window, "tokens seen on a side, itself included"),
        (switches["mixed"], "EVERYWHERE", 2**30, "farther than any two tokens are apart"),
        (
            switches["mixed"] and c.global_every,
            "GLOBAL_EVERY",
            c.global_every,
            "from one layer without the window to the next",
        ),
        (switches["mixed"] and not c.global_every, "WINDOW_FROM", c.window_from, "first layer with the window"),
        (switches["reads_pad"], "PAD", c.pad_token_id, "id of the padding token"),
        (switches["reads_ends"], "ENDS", c.end_ids, "ids of the tokens that end a text"),
        (begins and c.decoder_start_token_id is not None, "START", c.decoder_start_token_id, "id that begins a target"),
        (True, "EPSILON", c.norm_epsilon, "added under the root of norms"),
        (True, "MASKED", -1e30, "score of a key that is not seen"),
        (c.initializer == "normal", "STD", c.initializer_range, "deviation of initial values"),
    ]
    found = [(name, _literal(value), comment) for needed, name, value, comment in rows if needed]
    if switches["residual"]:
        found.append(("RESIDUAL", "STD / (2 * L) ** 0.5", "of what is added to x: Radford et al. 2019, 2.3"))
    return found


def _literal(value: Any) -> str:
    """A value as Python writes it, exponents without zero and plus.

    >>> _literal(1e-05), _literal(-1e30), _literal((1, 2))
    ('1e-5', '-1e30', '(1, 2)')
    """
    return repr(value).replace("e-0", "e-").replace("e+", "e")
