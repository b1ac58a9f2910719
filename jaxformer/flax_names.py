"""The Flax models of ``transformers`` 4 under their old names, for programs that used them.

``from jaxformer.flax_names import FlaxBertForMaskedLM, FlaxT5EncoderModel, FlaxAutoModelForTokenClassification``

Every name is made of two tables, a prefix that says the family and a suffix that says the head. A model holds its
parameters and is called, saved and opened as version 4 documented it; the parameters have this library's names.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.external import import_transformers
from jaxformer.generation import generate
from jaxformer.hub.auto import EncoderDecoderModel
from jaxformer.hub.kinds import KINDS, build, init
from jaxformer.hub.pretrained import describe, load
from jaxformer.hub.repository import Repository
from jaxformer.hub.save import config_json, push_to_hub, save_pretrained
from jaxformer.models.config import check_dtype
from jaxformer.models.stack import Context
from jaxformer.schema import UserError, nearest

# Families by the beginning of a name; what they are called under ``model.type``. Of ``Auto`` any.
FAMILIES: dict[str, tuple[str, ...]] = {
    "Auto": (),
    "Albert": ("albert",),
    "BartDecoder": ("bart",),
    "Bart": ("bart",),
    "Bert": ("bert",),
    "BlenderbotSmall": ("blenderbot_small",),
    "Blenderbot": ("blenderbot",),
    "Bloom": ("bloom",),
    "CLIPText": ("clip_text",),
    "DistilBert": ("distilbert",),
    "Electra": ("electra",),
    "GPT2": ("gpt2",),
    "GPTNeo": ("gpt_neo",),
    "GPTJ": ("gptj",),
    "Gemma": ("gemma",),
    "Llama": ("llama",),
    "MBart": ("mbart",),
    "MT5": ("mt5", "umt5"),
    "Marian": ("marian",),
    "Mistral": ("mistral",),
    "OPT": ("opt",),
    "Pegasus": ("pegasus",),
    "RobertaPreLayerNorm": ("roberta_prelayernorm",),
    "Roberta": ("roberta",),
    "RoFormer": ("roformer",),
    "T5": ("t5", "t5_v1_1", "flan_t5", "byt5"),
    "XGLM": ("xglm",),
    "XLMRoberta": ("xlm_roberta",),
}
# Kinds of models by the end of a name.
HEADS = {
    "Model": "body",
    "EncoderModel": "text_encoding",
    "ModelWithProjection": "text_projection",
    "LMHeadModel": "causal_lm",
    "MTModel": "seq2seq_lm",
    "ForCausalLM": "causal_lm",
    "ForConditionalGeneration": "seq2seq_lm",
    "ForMaskedLM": "masked_lm",
    "ForMultipleChoice": "multiple_choice",
    "ForNextSentencePrediction": "next_sentence_prediction",
    "ForPreTraining": "pre_training",
    "ForQuestionAnswering": "question_answering",
    "ForSequenceClassification": "sequence_classification",
    "ForTokenClassification": "token_classification",
    "ModelForCausalLM": "causal_lm",
    "ModelForMaskedLM": "masked_lm",
    "ModelForMultipleChoice": "multiple_choice",
    "ModelForNextSentencePrediction": "next_sentence_prediction",
    "ModelForPreTraining": "pre_training",
    "ModelForQuestionAnswering": "question_answering",
    "ModelForSeq2SeqLM": "seq2seq_lm",
    "ModelForSequenceClassification": "sequence_classification",
    "ModelForTokenClassification": "token_classification",
}
# What version 4 calls the outputs of a model with two pre-training heads; ALBERT's second has another name.
OF_TWO_HEADS = {"logits": "prediction_logits", "pair_logits": "seq_relationship_logits"}
OF_ALBERT = {**OF_TWO_HEADS, "pair_logits": "sop_logits"}
NAMES = tuple(
    f"Flax{family}{head}"
    for family in FAMILIES
    for head in HEADS
    if (family == "Auto") == head.startswith("ModelFor") or (family == "Auto" and head == "Model")
)
__all__ = [
    "FlaxEncoderDecoderModel",
    "FlaxPreTrainedModel",
    "Output",
    "shift_tokens_right",
]  # and ``NAMES``, which are made when asked for


@jax.tree_util.register_pytree_node_class
class Output(dict[str, Any]):
    """The arrays of a model by name: ``output.logits``, ``output["logits"]`` or, the first, ``output[0]``."""

    def __getitem__(self, key: Any) -> Any:
        """An array by its name, or by its place."""
        return tuple(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        """An array by its name."""
        if name in self:
            return self[name]
        raise AttributeError(f"the output has no {name!r}, expected one of {', '.join(self)}")

    def __iter__(self) -> Iterator[str]:
        """The names."""
        return iter(self.keys())

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        """For JAX: the arrays and their names."""
        return tuple(self.values()), tuple(self.keys())

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], arrays: tuple[Any, ...]) -> "Output":
        """Undoes ``tree_flatten``."""
        return cls(zip(names, arrays, strict=True))


def _output(found: Any, family: str) -> Output:
    """The arrays of one of this library's outputs that are there, the scores first."""
    fields = {name: value for name, value in vars(found).items() if value is not None and name != "cache"}
    scores = sorted(fields, key=lambda name: "logits" not in name)
    kept = [name for name in scores if name != "last_hidden_state" or "logits" not in scores[0]]
    renamed = {} if "pair_logits" not in fields else OF_ALBERT if family == "albert" else OF_TWO_HEADS
    return Output({renamed.get(name, name): fields[name] for name in kept})


class FlaxPreTrainedModel:
    """A model with its parameters, as version 4 had them.

    Attributes:
        module: the model as a function, ``module.apply({"params": params}, ...)``.
        params: its parameters, which ``params=`` of a call replaces.
        families: of ``model.type``; empty for any.
        kind: of ``hub.kinds``.
    """

    families: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "body"

    def __init__(
        self,
        config: Any,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        **settings: Any,
    ) -> None:
        """Initialises a model from a configuration of ``transformers`` or the content of a ``config.json``.

        ``input_shape`` has no effect: no parameter depends on it.
        """
        described = describe(_keys(config), {"dtype": _name_of(dtype)})
        self._check(described.config.type)
        count = int(getattr(config, "num_labels", 0)) or len(described.labels) or 2
        self.module = build(described.config, self.kind, num_labels=count, labels=described.labels)
        module = self.module
        self.params = jax.jit(lambda: nn.unbox(init(module, jax.random.key(seed))))()

    @classmethod
    def from_config(
        cls, config: Any, seed: int = 0, dtype: Any = jnp.float32, **settings: Any
    ) -> "FlaxPreTrainedModel":
        """Initialises a model from a configuration; see the class."""
        return cls(config, seed=seed, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        config: Any = None,
        from_pt: bool = False,
        subfolder: str = "",
        dtype: Any = jnp.float32,
        seed: int = 0,
        revision: str | None = None,
        token: str | bool | None = None,
        use_auth_token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        ignore_mismatched_sizes: bool = False,
        num_labels: int | None = None,
        _do_init: bool = True,
        **settings: Any,
    ) -> Any:
        """Opens a model of the Hub or of a folder; ``dtype`` is that of the computation, parameters are float32.

        Args:
            name_or_path: a folder, or ``owner/name`` on the Hub.
            config: of ``transformers``, whose number and names of labels replace those of the file.
            from_pt: has no effect: safetensors, Flax msgpack and PyTorch's files are all read.
            subfolder: folder inside of the repository that holds the model.
            dtype: of the computation, float32 or bfloat16.
            seed: of parameters that the file lacks.
            revision: branch, tag or commit on the Hub.
            token: access token of the Hub.
            use_auth_token: its older name.
            cache_dir: where downloads are kept.
            local_files_only: use what the cache has, ask nobody.
            ignore_mismatched_sizes: initialise a head's parameter of another shape instead of refusing it.
            num_labels: classes of a classifier.
            _do_init: False: return the model and its parameters apart.
            **settings: other keys of version 4, which say nothing here.

        Raises:
            UserError: if there is no such model, or it is of another family or without this head.
        """
        repository = Repository(
            str(name_or_path),
            revision,
            use_auth_token if token is None else token,
            cache_dir,
            local_files_only,
            subfolder,
        )
        labels: tuple[str, ...] = ()
        if config is not None:
            labels = describe(_keys(config)).labels
            num_labels = num_labels or int(getattr(config, "num_labels", 0)) or None
        module, params = load(
            repository,
            cls.kind,
            num_labels=num_labels,
            labels=labels if num_labels in (None, len(labels)) else (),
            seed=seed,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
        )
        cls._check(module.config.type)
        self = cls.__new__(cls)
        self.module = module.clone(config=module.config.model_copy(update={"dtype": _name_of(dtype)}))
        self.params = params
        return self if _do_init else (self, params)

    @classmethod
    def _check(cls, family: str) -> None:
        if cls.families and family not in cls.families:
            raise UserError(
                f"the model is a {family}, expected one of {', '.join(cls.families)} for {cls.__name__}; "
                "a FlaxAuto... class takes every family"
            )

    @cached_property
    def config(self) -> Any:
        """The configuration, an object of ``transformers``."""
        hf = config_json(self.module)
        return import_transformers().AutoConfig.for_model(hf.pop("model_type"), **hf)

    @property
    def dtype(self) -> Any:
        """The type of the computation."""
        return jnp.dtype(self.module.config.dtype)

    @cached_property
    def _apply(self) -> Callable[..., Any]:
        static = ("deterministic", "output_attentions", "output_hidden_states", "method")
        return jax.jit(self.module.apply, static_argnames=static)

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        params: Any = None,
        dropout_rng: Any = None,
        train: bool = False,
        return_dict: bool = True,
        **inputs: Any,
    ) -> Any:
        """The outputs of the model by name; other inputs are those of ``models.inputs.Inputs``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens; default: all real.
            params: instead of the model's own.
            dropout_rng: key of the dropout, for ``train``.
            train: dropout is on.
            return_dict: False: a tuple.
            **inputs: ``token_type_ids``, ``position_ids``, ``decoder_input_ids``, ``output_attentions`` ...

        Raises:
            UserError: with ``train`` and without a key.
        """
        if train and dropout_rng is None:
            raise UserError("train is true without dropout_rng, expected a key of jax.random for the dropout")
        given = {name: value for name, value in inputs.items() if value is not None}
        variables = {"params": self.params if params is None else params}
        rngs = {"dropout": dropout_rng} if train else None
        output = self._apply(variables, input_ids, attention_mask, deterministic=not train, rngs=rngs, **given)
        found = _output(output, self.module.config.type)
        return found if return_dict else tuple(found.values())

    def encode(self, input_ids: Any, attention_mask: Any = None, *, params: Any = None) -> Output:
        """The encoder's ``last_hidden_state`` of an encoder-decoder."""
        variables = {"params": self.params if params is None else params}
        context = self._apply(variables, input_ids, attention_mask, method="encode")
        return Output(last_hidden_state=context.hidden)

    def decode(
        self, decoder_input_ids: Any, encoder_outputs: Any, encoder_attention_mask: Any = None, *, params: Any = None
    ) -> Output:
        """The ``logits`` of an encoder-decoder for what ``encode`` returned."""
        hidden = encoder_outputs[0]
        real = None if encoder_attention_mask is None else jnp.asarray(encoder_attention_mask, bool)
        variables = {"params": self.params if params is None else params}

        def logits(model: Any) -> Any:
            return model.logits(model.decode(Context(hidden, real), decoder_input_ids)[0])

        return Output(logits=self.module.apply(variables, method=logits))

    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        params: Any = None,
        prng_key: Any = None,
        max_length: int | None = None,
        **options: Any,
    ) -> Output:
        """Writes on: ``sequences``, of a decoder with the prompts before them.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens.
            params: instead of the model's own.
            prng_key: of the draws.
            max_length: tokens of a sequence, of a decoder those of the prompt included.
            **options: of ``jaxformer.generate``: ``max_new_tokens``, ``num_beams``, ``do_sample``, ``eos_token_id`` ...
        """
        ids, config = jnp.asarray(input_ids), self.module.config
        writes = config.architecture == "encoder_decoder"
        if max_length is not None and "max_new_tokens" not in options:
            options["max_new_tokens"] = max_length - (1 if writes else ids.shape[1])
        if prng_key is not None:
            options["seed"] = int(jax.random.bits(prng_key) >> 1)
        for name in ("pad_token_id", "eos_token_id"):
            value = config.end_ids if name == "eos_token_id" else config.special_id(name)
            if value is not None and value != ():
                options.setdefault(name, list(value) if isinstance(value, tuple) else value)
        mine = self.params if params is None else params
        tokens = generate(self.module, mine, ids, attention_mask, **options).tokens
        first = ids
        if writes:
            start = options.get("decoder_start_token_id", config.special_id("decoder_start_token_id"))
            first = jnp.full((len(tokens), 1), 0 if start is None else start)
        elif len(tokens) != len(ids):
            first = jnp.repeat(ids, len(tokens) // len(ids), axis=0)
        return Output(sequences=jnp.concatenate([first, jnp.asarray(tokens)], axis=1))

    def save_pretrained(self, save_directory: str | Path, params: Any = None, **settings: Any) -> None:
        """Writes a folder that this library and PyTorch's ``transformers`` open."""
        save_pretrained(save_directory, self.module, self.params if params is None else params)

    def push_to_hub(self, repo_id: str, params: Any = None, **options: Any) -> None:
        """Uploads it; see ``jaxformer.hub.push_to_hub``."""
        push_to_hub(repo_id, self.module, self.params if params is None else params, **options)


class FlaxEncoderDecoderModel(FlaxPreTrainedModel):
    """``EncoderDecoderModel`` with its parameters, as ``transformers`` 4 had it."""

    families = ("encoder_decoder",)
    kind = "seq2seq_lm"

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | Path,
        decoder_pretrained_model_name_or_path: str | Path,
        dtype: Any = jnp.float32,
        seed: int = 0,
        encoder_from_pt: bool = False,
        decoder_from_pt: bool = False,
        **settings: Any,
    ) -> "FlaxEncoderDecoderModel":
        """Begins a model with an encoder and a decoder; see ``EncoderDecoderModel.from_encoder_decoder_pretrained``.

        ``encoder_from_pt`` and ``decoder_from_pt`` have no effect: all kinds of files are read.
        """
        paths = (encoder_pretrained_model_name_or_path, decoder_pretrained_model_name_or_path)
        self = cls.__new__(cls)
        module, self.params = EncoderDecoderModel.from_encoder_decoder_pretrained(*paths, seed=seed, **settings)
        self.module = module.clone(config=module.config.model_copy(update={"dtype": _name_of(dtype)}))
        return self


def shift_tokens_right(input_ids: Any, pad_token_id: int, decoder_start_token_id: int) -> Any:
    """The labels as a decoder reads them: the start token, then all but the last; -100 becomes the padding token."""
    ids = jnp.asarray(input_ids)
    shifted = jnp.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=decoder_start_token_id)
    return jnp.where(shifted == -100, pad_token_id, shifted)


def _keys(config: Any) -> Mapping[str, Any]:
    if isinstance(config, Mapping):
        return config
    if hasattr(config, "to_dict"):
        keys: Mapping[str, Any] = config.to_dict()
        return keys
    raise UserError(f"config is a {type(config).__name__}, expected one of transformers.AutoConfig or a mapping")


def _name_of(dtype: Any) -> str:
    name = jnp.dtype(dtype).name
    check_dtype(name)
    return name


@cache
def _class(name: str) -> type[FlaxPreTrainedModel]:
    prefix = next(p for p in sorted(FAMILIES, key=len, reverse=True) if name.startswith(f"Flax{p}"))
    kind = HEADS[name.removeprefix(f"Flax{prefix}")]
    doc = f"``{KINDS[kind].opener}`` with its parameters, as ``transformers`` 4 had it."
    return type(name, (FlaxPreTrainedModel,), {"families": FAMILIES[prefix], "kind": kind, "__doc__": doc})


def __getattr__(name: str) -> Any:
    if name in NAMES:
        return _class(name)
    near = nearest(name, NAMES) if name.startswith("Flax") else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
