"""A model family: its defaults and its Hugging Face format.

What the format or this library does not support is a ``UserError`` that names the key.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxformer.external import class_defaults
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError


class Name(NamedTuple):
    """One row of a family's table of parameters: our name, theirs, and how the layout differs.

    Attributes:
        ours: path in the parameter tree, ``/`` between levels; under ``layers/`` it carries the layer axis.
        theirs: name in the Hugging Face state dict, ``{}`` where the layer's number goes, ``{expert}`` an expert's.
        transposed: theirs is ``[out, in]`` (``torch.nn.Linear``) where ours is ``[in, out]``.
        part: index of this parameter among equal parts of theirs along its output axis, and the number of parts
            (GPT-2 has query, key and value in one matrix).
        sizes: of all parts in relation to each other, where they are not equal (Phi-3 has queries of more heads).
        groups: number of groups of their output axis, each with all parts (GPT-NeoX and BLOOM have query, key and value
            of a head together: a group for each head).
        not_first: theirs has no such parameter in layer 0, where ours is not used and stays at ones (ModernBERT).
        leading_one: theirs has an additional first axis of size 1.
        middle_one: theirs has an additional axis of size 1 after its first (the taps of a depthwise convolution).
        otherwise: another name of theirs for the same values.
    """

    ours: str
    theirs: str
    transposed: bool = False
    part: tuple[int, int] = (0, 1)
    groups: int = 1
    not_first: bool = False
    leading_one: bool = False
    middle_one: bool = False
    otherwise: str | None = None
    sizes: tuple[int, ...] = ()

    @property
    def units(self) -> tuple[int, ...]:
        """The sizes of all parts in relation to each other."""
        return self.sizes or (1,) * self.part[1]

    @property
    def has_experts(self) -> bool:
        """True if theirs is one tensor for each expert."""
        return "{expert}" in self.theirs


# The last words of the paths of embeddings.
EMBEDDINGS = ("token", "position", "token_type", "shared", "relative_bias", "distances")


def rows(
    table: Mapping[str, str],
    ours: str = "",
    theirs: str = "",
    *,
    transposed: bool = True,
    groups: int = 1,
    sizes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[Name]:
    """The rows of a table of layers, from our paths to their names.

    The last word of a path says what a layer is: an embedding, a norm (scale and bias) or else linear (kernel and
    bias). Layers of ours that are one of theirs have a plus between them. What a model lacks, such as the biases of an
    RMS norm, may stand in the table: it is not looked for.

    Args:
        table: the layers.
        ours: the beginning of all paths, with the slash.
        theirs: the beginning of all names, with the dot.
        transposed: linear layers are of ``torch.nn.Linear``, ``[out, in]``.
        groups: as in ``Name``, of layers of ours that are one of theirs.
        sizes: as in ``Name``, by the layer in the table.
    """
    names = []
    for layer, name in table.items():
        *folder, last = (ours + layer).split("/")
        words = last.split("+")
        for index, word in enumerate(words):
            path, weight, bias = "/".join((*folder, word)), f"{theirs}{name}.weight", f"{theirs}{name}.bias"
            if word in EMBEDDINGS:
                names.append(Name(f"{path}/embedding", weight))
            elif word.endswith("norm"):
                names += [Name(f"{path}/scale", weight), Name(f"{path}/bias", bias)]
            else:
                layout: dict[str, Any] = {"part": (index, len(words)), "groups": groups if len(words) > 1 else 1}
                layout["sizes"] = (sizes or {}).get(layer, ())
                names += [
                    Name(f"{path}/kernel", weight, transposed=transposed, **layout),
                    Name(f"{path}/bias", bias, **layout),
                ]
    return names


REQUIRED = object()


def _same(value: Any) -> Any:
    return value


class Key(NamedTuple):
    """One row of a family's table of configuration keys.

    Attributes:
        ours: key of ``TransformerConfig``.
        theirs: key of ``config.json``. If two rows have one key of ours, their values must agree.
        absent: their value if ``config.json`` has no such key or null; without one the key is required.
        read: converts their value to ours.
        write: converts our value, resolved, to theirs.
    """

    ours: str
    theirs: str
    absent: Any = REQUIRED
    read: Callable[[Any], Any] = _same
    write: Callable[[Any], Any] = _same


def same(*keys: str) -> tuple[Key, ...]:
    """Rows of keys that have one name here and there."""
    return tuple(Key(key, key) for key in keys)


# The names of sizes that most families share.
SIZES = (
    *same("vocab_size", "hidden_size", "intermediate_size", "initializer_range"),
    Key("num_layers", "num_hidden_layers"),
    Key("num_heads", "num_attention_heads"),
    Key("max_length", "max_position_embeddings"),
)


def attention_bias(absent: bool) -> tuple[Key, Key]:
    """The rows of the biases of queries, keys, values and of the projection that follows attention."""
    return Key("qkv_bias", "attention_bias", absent), Key("attention_output_bias", "attention_bias", absent)


MLP_BIAS = Key("feed_forward_bias", "mlp_bias", False)
# Keys of ``TransformerConfig`` that follow from others if they are not given, and the property with their value.
RESOLVED = {
    "num_kv_heads": "kv_heads",
    "head_size": "head_width",
    "intermediate_size": "inner_size",
    "num_decoder_layers": "decoder_layers",
    "num_decoder_heads": "decoder_heads",
    "decoder_intermediate_size": "decoder_inner_size",
    "projection_size": "projection_width",
    "pooling": "pooled_state",
    "head_transform": "has_head_transform",
    "score_width": "score_size",
    # Formats list the blocks; of few blocks the order after which they repeat cannot be told.
    "window_from": "windowed_layers",
    "global_every": "windowed_layers",
    "global_first": "windowed_layers",
    "embedding_size": "token_size",
    "qkv_bias": "has_qkv_bias",
    "attention_output_bias": "has_output_bias",
    "feed_forward_bias": "has_feed_forward_bias",
    "time_step_rank": "rank",
}
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


class Head(NamedTuple):
    """A kind of model in the Hugging Face format.

    Attributes:
        architecture: its class in transformers, for ``config.json``.
        names: of the head's parameters.
        prefix: of the backbone's names, if not the family's.
    """

    architecture: str
    names: Sequence[Name] = ()
    prefix: str | None = None


def decoder_heads(
    name: str,
    *,
    output: str = "lm_head",
    tokens: str = "classifier",
    qa_prefix: str | None = None,
    bias: bool = False,
) -> dict[str, Head]:
    """The heads of a decoder, whose classes begin with ``name``; ``output`` and ``tokens`` are their last layers.

    With ``bias`` the output layer has one.
    """
    spans = rows({"span_classifier": "qa_outputs"})
    logits = rows({"lm_head": output})
    if bias:
        logits[-1] = Name("logits_bias/bias", f"{output}.bias")
    return {
        "body": Head(f"{name}Model"),
        "causal_lm": Head(f"{name}ForCausalLM", logits),
        "sequence_classification": Head(f"{name}ForSequenceClassification", rows({"classifier": "score"})),
        "token_classification": Head(f"{name}ForTokenClassification", rows({"classifier": tokens})),
        "question_answering": Head(f"{name}ForQuestionAnswering", spans, prefix=qa_prefix),
    }


class _WithDefaults(dict[str, Any]):
    """A ``config.json`` whose missing keys, if asked for by ``[]``, are those of the class in transformers."""

    def __init__(self, hf: Mapping[str, Any], model_type: str) -> None:
        super().__init__({key: value for key, value in hf.items() if value is not None})
        self._model_type = model_type

    def __missing__(self, key: str) -> Any:
        value = class_defaults(self._model_type).get(key)
        if value is None:
            raise KeyError(key)
        return value


@dataclass(frozen=True)
class Format:
    """The Hugging Face format of a family: two tables, which are read in both directions, and their exceptions.

    Attributes:
        model_type: name of the family in ``config.json``.
        keys: the table of configuration keys.
        body: the table of parameter names of the backbone alone, which may depend on the configuration.
        heads: by kind of model.
        prefix: of the backbone's names if there is a head, with the dot.
        constants: keys of ``config.json`` that must have this value: other values are not supported.
        read: further keys of ours, which no row can express.
        write: undoes ``read``.
        zeros: names of tensors that must be zero if a checkpoint has them.
        derived: tensors of the backbone that transformers expects in a file though they follow from the configuration.
        copies: names of tensors that must equal the shared embedding if a checkpoint has them.
        writes_copies: they are written where the output layer is not tied: transformers then ties nothing.
        ignored: pattern of names in checkpoints that are not parameters.
        cross: the rows of cross-attention, without a prefix, of a family whose decoder can read an encoder's states.
    """

    model_type: str
    keys: tuple[Key, ...]
    body: Sequence[Name] | Callable[[TransformerConfig], list[Name]]
    heads: Mapping[str, Head]
    prefix: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda hf: {}
    write: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {}
    zeros: tuple[str, ...] = ()
    derived: Callable[[TransformerConfig], dict[str, Any]] = lambda config: {}
    copies: tuple[str, ...] = ()
    writes_copies: bool = False
    ignored: str = r"\b\B"
    cross: Sequence[Name] = ()

    def head(self, kind: str) -> Head:
        """The head of a model of this kind."""
        if kind not in self.heads:
            fits = ", ".join(self.heads)
            raise UserError(f"transformers has no {self.model_type} model with head {kind!r}, expected one of: {fits}")
        return self.heads[kind]

    def prefix_of(self, kind: str) -> str:
        """Prefix of the backbone's names in a model of this kind."""
        own = self.head(kind).prefix
        return own if own is not None else "" if kind == "body" else self.prefix

    def names(self, config: TransformerConfig, kind: str) -> list[Name]:
        """The table of parameter names of a model of this kind."""
        prefix = self.prefix_of(kind)
        body = [name._replace(theirs=prefix + name.theirs) for name in self.body_names(config)]
        head = list(self.head(kind).names)
        for index, name in enumerate(head):
            # An output layer that is not tied has its bias under its own name only.
            if name.ours == "mlm_head/bias" and name.otherwise is not None and not config.tie_embeddings:
                head[index] = name._replace(theirs=name.otherwise, otherwise=name.theirs)
        return [*body, *head]

    def body_names(self, config: TransformerConfig) -> Sequence[Name]:
        """The table of parameter names of the backbone, without a prefix."""
        return self.body(config) if callable(self.body) else self.body

    def from_hf(self, hf: Mapping[str, Any], family: str) -> dict[str, Any]:
        """Keys of ``TransformerConfig`` from a ``config.json``, for the family of this name.

        A key that it lacks and that has no value of its own here has that of the class in transformers, as in
        ``transformers.AutoConfig``.
        """
        hf = _WithDefaults(hf, self.model_type)
        require(hf, **self.constants)
        keys: dict[str, Any] = {"type": family}
        said: dict[str, str] = {}
        for row in self.keys:
            value = hf.get(row.theirs)
            if value is None:
                value = row.absent
            try:
                value = hf[row.theirs] if value is REQUIRED else value
            except KeyError:
                raise UserError(
                    f"config.json has no {row.theirs!r}, expected it for model_type {self.model_type!r}"
                ) from None
            try:
                value = row.read(value)
            except (TypeError, ValueError, AttributeError) as error:
                if isinstance(error, UserError):
                    raise
                raise UserError(f"config.json has {row.theirs}: {value!r}, which makes no sense there") from error
            if keys.get(row.ours, value) != value:
                first = said[row.ours]
                raise UserError(
                    f"config.json has {first}: {hf.get(first)}, {row.theirs}: {hf.get(row.theirs)}; expected the same"
                )
            keys[row.ours], said[row.ours] = value, row.theirs
        for key in TOKEN_IDS:
            # A text may have several ends; -1 stands for none.
            several = hf.get(key)
            ids = several if isinstance(several, list) else [several]
            ids = [value for value in ids if value is not None and value != -1]
            if ids:
                keys[key] = ids if isinstance(several, list) and key == "eos_token_id" else ids[0]
        try:
            return {**keys, **self.read(hf)}
        except KeyError as error:
            raise UserError(f"config.json has no {error}, expected it for model_type {self.model_type!r}") from error
        except (TypeError, AttributeError) as error:
            raise UserError(f"config.json makes no sense for model_type {self.model_type!r}: {error}") from error

    def to_hf(self, config: TransformerConfig, kind: str) -> dict[str, Any]:
        """``config.json`` of a model of this kind."""
        hf = {"model_type": self.model_type, "architectures": [self.head(kind).architecture], **self.constants}
        for row in self.keys:
            hf[row.theirs] = row.write(getattr(config, RESOLVED.get(row.ours, row.ours)))
        for key in TOKEN_IDS:
            value = getattr(config, key)
            if value is not None:
                hf[key] = list(value) if isinstance(value, tuple) else value
        if config.architecture == "encoder_decoder":
            hf["is_encoder_decoder"] = True
        return {**hf, **self.write(config)}


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        name: the value of ``model.type``.
        defaults: the keys of ``TransformerConfig`` that differ from its own defaults.
        format: its Hugging Face format, None if it has none.
        objective: the default of ``task.type``.
    """

    name: str
    defaults: Mapping[str, Any]
    format: Format | None = None
    objective: str = "causal_lm"

    @property
    def hub(self) -> Format:
        """Its Hugging Face format."""
        if self.format is None:
            raise UserError(f"model.type {self.name!r} has no Hugging Face format; expected another family")
        return self.format

    def from_hf(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """Keys of ``TransformerConfig`` from a ``config.json``."""
        return self.hub.from_hf(hf, self.name)


def require(hf: Mapping[str, Any], **values: Any) -> None:
    """Refuses a ``config.json`` in which one of these keys has another value; absent keys are accepted."""
    for key, value in values.items():
        if hf.get(key, value) != value:
            raise UserError(f"config.json has {key}: {hf[key]!r}, expected {value!r}; this variant is not supported")


# Their names of the activations; some formulas have several.
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "gelu_sigmoid",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


def read_activation(name: str) -> str:
    """Converts their name of an activation to ours."""
    if name not in ACTIVATIONS:
        raise UserError(f"config.json has the activation {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def write_activation(name: str) -> str:
    """Converts our name of an activation to theirs."""
    for theirs, ours in ACTIVATIONS.items():
        if ours == name:
            return theirs
    raise UserError(f"the Hugging Face format has no activation {name!r}, expected one of {set(ACTIVATIONS.values())}")


def activation(theirs: str, absent: Any = REQUIRED) -> Key:
    """The row of the activation."""
    return Key("activation", theirs, absent, read_activation, write_activation)
