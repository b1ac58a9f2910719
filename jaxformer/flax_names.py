"""The Flax models of ``transformers`` 4 under their old names, for programs that used them.

``from jaxformer.flax_names import FlaxBertForMaskedLM, FlaxT5EncoderModel, FlaxAutoModelForTokenClassification``

Every name is made of two tables, a prefix that says the family and a suffix that says the head. A model holds its
parameters and is called, saved and opened as version 4 documented it; the parameters have this library's names.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, path_aware_map, unflatten_dict

from jaxformer.external import class_defaults, import_transformers
from jaxformer.families import get_family
from jaxformer.generation import generate, generate_inside, is_inside, parse_options, read_settings
from jaxformer.generation.prompts import Prompt
from jaxformer.generation.request import start_ids
from jaxformer.hub.auto import EncoderDecoderModel
from jaxformer.hub.kinds import KINDS, build, init
from jaxformer.hub.pretrained import CONFIG_FILE, describe, load, read_config
from jaxformer.hub.repository import Repository
from jaxformer.hub.save import NOT_OF_THE_MODEL, config_json, push_to_hub, save_pretrained
from jaxformer.models import init_cache
from jaxformer.models.config import TransformerConfig, check_dtype
from jaxformer.models.stack import Context
from jaxformer.schema import UserError, nearest

# Families by the beginning of a name; what they are called under ``model.type``. Of ``Auto`` any.
FAMILIES: dict[str, tuple[str, ...]] = {
    "Auto": (),
    "Albert": ("albert",),
    "BartDecoder": ("bart",),
    "Bart": ("bart",),
    "Bert": ("bert",),
    "BigBird": ("big_bird",),
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
    "LongT5": ("longt5",),
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
# What the classes of a family have in common.
BASES = {f"Flax{family}PreTrainedModel": family for family in FAMILIES if family != "Auto"}
# Tables of version 4 from classes of configurations to classes of models, which programs list the families by.
MAPPINGS = {
    "FLAX_MODEL_MAPPING": "body",
    "FLAX_MODEL_FOR_CAUSAL_LM_MAPPING": "causal_lm",
    "FLAX_MODEL_FOR_MASKED_LM_MAPPING": "masked_lm",
    "FLAX_MODEL_FOR_MULTIPLE_CHOICE_MAPPING": "multiple_choice",
    "FLAX_MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING": "next_sentence_prediction",
    "FLAX_MODEL_FOR_PRETRAINING_MAPPING": "pre_training",
    "FLAX_MODEL_FOR_QUESTION_ANSWERING_MAPPING": "question_answering",
    "FLAX_MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING": "seq2seq_lm",
    "FLAX_MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING": "sequence_classification",
    "FLAX_MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING": "token_classification",
}
# Heads that a family has under a name of its own.
HEAD_OF = {"GPT2": {"causal_lm": "LMHeadModel"}, "Marian": {"seq2seq_lm": "MTModel"}}
# Inputs of a call after the ids and the mask, in the order of version 4.
ORDER = {
    "encoder": ("token_type_ids", "position_ids"),
    "decoder": ("position_ids",),
    "encoder_decoder": (*("decoder_input_ids", "decoder_attention_mask", "position_ids", "decoder_position_ids"),),
}
# Keywords of version 4's ``from_pretrained`` that change no number here.
WITHOUT_EFFECT = (
    *("trust_remote_code", "force_download", "resume_download", "proxies", "mirror", "from_tf", "use_safetensors"),
    *("low_cpu_mem_usage", "add_pooling_layer", "adapter_kwargs"),
)
__all__ = [
    "FlaxBaseModelOutput",
    "FlaxEncoderDecoderModel",
    "FlaxPreTrainedModel",
    "Output",
    "decay_mask",
    "shift_tokens_right",
]
# ... and ``NAMES``, ``BASES`` and ``MAPPINGS``, which are made when asked for.


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

    def to_tuple(self) -> tuple[Any, ...]:
        """The arrays without their names."""
        return tuple(self.values())

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[str, ...]]:
        """For JAX: the arrays and their names."""
        return tuple(self.values()), tuple(self.keys())

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], arrays: tuple[Any, ...]) -> "Output":
        """Undoes ``tree_flatten``."""
        return cls(zip(names, arrays, strict=True))


FlaxBaseModelOutput = Output  # what ``decode`` reads: ``FlaxBaseModelOutput(last_hidden_state=...)``


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
        families: of ``model.type``; empty for any.
        kind: of ``hub.kinds``.
    """

    families: ClassVar[tuple[str, ...]] = ()
    kind: ClassVar[str] = "body"
    module: Any

    def __init__(
        self,
        config: Any,
        input_shape: tuple[int, ...] = (1, 1),
        seed: int = 0,
        dtype: Any = jnp.float32,
        _do_init: bool = True,
        gradient_checkpointing: bool = False,
        **settings: Any,
    ) -> None:
        """Initialises a model from a configuration of ``transformers`` or the content of a ``config.json``.

        ``input_shape`` has no effect: no parameter depends on it.

        Args:
            config: the configuration.
            input_shape: of version 4.
            seed: of the parameters.
            dtype: of the computation, float32 or bfloat16; parameters are float32.
            _do_init: False: no parameters yet; ``init_weights`` makes them.
            gradient_checkpointing: blocks are computed again in the backward pass, which saves memory.
            **settings: keywords of version 4 that change no number here.

        Raises:
            UserError: if it is of another family or has no such head, or a keyword is not known.
        """
        keys = _keys(config)
        _check_settings(settings, ())
        described = describe(keys, {"dtype": _name_of(dtype)})
        self._check(described.config.type)
        count = int(getattr(config, "num_labels", 0) or keys.get("num_labels") or 0) or len(described.labels) or 2
        labels = described.labels if len(described.labels) == count else ()
        module = build(described.config, self.kind, num_labels=count, labels=labels)
        self._take(module, config, gradient_checkpointing)
        if _do_init:
            self.params = jax.jit(lambda: nn.unbox(init(module, jax.random.key(seed))))()

    def _take(self, module: Any, config: Any, gradient_checkpointing: bool) -> None:
        """Sets what the model is; ``config`` is the caller's own if it is an object."""
        self.module, self._params = module, None
        if hasattr(config, "to_dict"):
            self.__dict__["config"] = config
        if gradient_checkpointing:
            self.enable_gradient_checkpointing()

    @property
    def params(self) -> Any:
        """The parameters, which ``params=`` of a call replaces.

        Raises:
            UserError: if the model was made with ``_do_init=False``.
        """
        if self._params is None:
            raise UserError(
                "the model was made with _do_init=False and holds no parameters; give params=..., from init_weights or "
                "from_pretrained"
            )
        return self._params

    @params.setter
    def params(self, params: Any) -> None:
        self._params = params

    def init_weights(self, rng: Any, input_shape: tuple[int, ...] = (1, 1), params: Any = None) -> Any:
        """Initial parameters; where ``params`` are given, those take their place."""
        found = jax.jit(lambda key: nn.unbox(init(self.module, key)))(_key(rng))
        return unflatten_dict({**flatten_dict(found), **flatten_dict(params or {})})

    @property
    def params_shape_tree(self) -> Any:
        """The shapes and types of the parameters."""
        return jax.eval_shape(lambda: nn.unbox(init(self.module, jax.random.key(0))))

    def enable_gradient_checkpointing(self) -> None:
        """Computes blocks again in the backward pass, which saves memory; the numbers stay."""
        self.module = self.module.clone(config=self.module.config.model_copy(update={"remat": "full"}))
        self.__dict__.pop("_apply", None)

    def to_bf16(self, params: Any, mask: Any = None) -> Any:
        """The parameters in bfloat16; with ``mask``, a tree of booleans, those that it names."""
        return _cast(params, jnp.bfloat16, mask)

    def to_fp16(self, params: Any, mask: Any = None) -> Any:
        """The parameters in float16, as ``to_bf16``."""
        return _cast(params, jnp.float16, mask)

    def to_fp32(self, params: Any, mask: Any = None) -> Any:
        """The parameters in float32, as ``to_bf16``."""
        return _cast(params, jnp.float32, mask)

    @classmethod
    def from_config(cls, config: Any, seed: int = 0, dtype: Any = jnp.float32, **settings: Any) -> Any:
        """Initialises a model from a configuration; see the class."""
        return cls(config, seed=seed, dtype=dtype, **settings)

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
        gradient_checkpointing: bool = False,
        **settings: Any,
    ) -> Any:
        """Opens a model of the Hub or of a folder; ``dtype`` is that of the computation, parameters are float32.

        Args:
            name_or_path: a folder, or ``owner/name`` on the Hub.
            config: of ``transformers``; what it says replaces what the file says, its number and names of labels too.
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
            gradient_checkpointing: blocks are computed again in the backward pass, which saves memory.
            **settings: keys of ``config.json``, which replace the file's; of version 4 those that change no number.

        Raises:
            UserError: if there is no such model, or it is of another family or without this head, or a key is not
                known.
        """
        repository = Repository(
            str(name_or_path),
            revision,
            use_auth_token if token is None else token,
            cache_dir,
            local_files_only,
            subfolder,
        )
        asked, hf = read_config(repository), repository.get_json(CONFIG_FILE)
        cls._check(asked.config.type)
        known = {**class_defaults(hf["model_type"]), **hf} if settings else hf
        laid_over = _check_settings(settings, known)
        described = describe({**(hf if config is None else _keys(config)), **laid_over})
        labels: tuple[str, ...] = ()
        if config is not None or laid_over:
            labels = described.labels
            num_labels = num_labels or int(getattr(config, "num_labels", 0)) or None
        module, params = load(
            repository,
            cls.kind,
            num_labels=num_labels,
            labels=labels if num_labels in (None, len(labels)) else (),
            seed=seed,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            overrides=_differences(asked.config, described.config),
        )
        self = cls.__new__(cls)
        fits = num_labels in (None, len(labels))
        computed = module.config.model_copy(update={"dtype": _name_of(dtype)})
        self._take(module.clone(config=computed), config if fits else None, gradient_checkpointing)
        if not _do_init:
            return self, params
        self.params = params
        return self

    @classmethod
    def _check(cls, family: str) -> None:
        if cls.families and family not in cls.families:
            raise UserError(
                f"the model is a {family}, expected one of {', '.join(cls.families)} for {cls.__name__}; "
                "a FlaxAuto... class takes every family"
            )

    @cached_property
    def config(self) -> Any:
        """The configuration, an object of ``transformers``; names of classes and token ids set in it are saved."""
        hf = config_json(self.module)
        return import_transformers().AutoConfig.for_model(hf.pop("model_type"), **hf)

    def _current(self) -> Any:
        """The module with what was set in ``config`` since, as far as it is no matter of parameters."""
        if "config" not in self.__dict__:
            return self.module
        described = describe(_keys(self.config))
        now, module = described.config, self.module
        ids = {key: getattr(now, key) for key in TransformerConfig.model_fields if key.endswith("_token_id")}
        settings = {**module.config.generation_settings, **now.generation_settings}
        module = module.clone(config=module.config.model_copy(update={**ids, "generation": json.dumps(settings)}))
        if getattr(module, "labels", None) is None or not described.labels:
            return module
        if len(described.labels) != module.num_labels:
            raise UserError(
                f"config.id2label has {len(described.labels)} names, expected {module.num_labels}, as many as the head "
                "has classes"
            )
        return module.clone(labels=described.labels)

    @property
    def dtype(self) -> Any:
        """The type of the computation."""
        return jnp.dtype(self.module.config.dtype)

    @cached_property
    def _apply(self) -> Callable[..., Any]:
        static = ("deterministic", "output_attentions", "output_hidden_states", "method")
        return jax.jit(self.module.apply, static_argnames=static)

    def _variables(self, params: Any) -> dict[str, Any]:
        return {"params": self.params if params is None else params}

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        *more: Any,
        params: Any = None,
        past_key_values: Any = None,
        dropout_rng: Any = None,
        train: bool = False,
        return_dict: bool = True,
        **inputs: Any,
    ) -> Any:
        """The outputs of the model by name; other inputs are those of ``models.inputs.Inputs``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens; default: all real. With a cache ``[B, S]`` of all its places,
                as version 4 took it, or of the new tokens alone.
            *more: further inputs in the order of version 4, ``ORDER``.
            params: instead of the model's own.
            past_key_values: of ``init_cache`` or of the last call; the output has the next ones.
            dropout_rng: key of the dropout, for ``train``.
            train: dropout is on.
            return_dict: False: a tuple.
            **inputs: ``token_type_ids``, ``position_ids``, ``decoder_input_ids``, ``output_attentions`` ...

        Raises:
            UserError: with ``train`` and without a key, or with more inputs than there are.
        """
        if train and dropout_rng is None:
            raise UserError("train is true without dropout_rng, expected a key of jax.random for the dropout")
        order = ORDER[self.module.config.architecture]
        if len(more) > len(order):
            raise UserError(f"{2 + len(more)} inputs are given without their names, expected at most {2 + len(order)}")
        given = {**dict(zip(order, more, strict=False)), **inputs}
        if past_key_values is not None:
            given["cache"] = past_key_values
            attention_mask = _of_new_tokens(attention_mask, past_key_values, jnp.shape(input_ids)[1])
        given = {name: value for name, value in given.items() if value is not None}
        rngs = {"dropout": _key(dropout_rng)} if train else None
        output = self._apply(
            self._variables(params), input_ids, attention_mask, deterministic=not train, rngs=rngs, **given
        )
        found = _output(output, self.module.config.type)
        if past_key_values is not None:
            found["past_key_values"] = output.cache
        return found if return_dict else found.to_tuple()

    def init_cache(self, batch_size: int, max_length: int, encoder_outputs: Any = None) -> Any:
        """An empty cache for ``past_key_values`` of a decoder's call, or with ``encoder_outputs`` of ``decode``.

        Raises:
            UserError: if the model is an encoder.
        """
        c = self.module.config
        if c.architecture == "encoder":
            raise UserError(f"a cache is asked for and {c.type} is an encoder, expected a model that writes")
        return init_cache(c, batch_size, max_length)

    def encode(self, input_ids: Any, attention_mask: Any = None, *, params: Any = None) -> Output:
        """The encoder's ``last_hidden_state`` of an encoder-decoder."""
        context = self._apply(self._variables(params), input_ids, attention_mask, method="encode")
        return Output(last_hidden_state=context.hidden)

    def decode(
        self,
        decoder_input_ids: Any,
        encoder_outputs: Any,
        encoder_attention_mask: Any = None,
        decoder_attention_mask: Any = None,
        decoder_position_ids: Any = None,
        past_key_values: Any = None,
        *,
        params: Any = None,
    ) -> Output:
        """The ``logits`` of an encoder-decoder for what ``encode`` returned, and with a cache ``past_key_values``."""
        hidden, cache = encoder_outputs[0], past_key_values
        real = None if encoder_attention_mask is None else jnp.asarray(encoder_attention_mask, bool)
        if cache is not None:
            decoder_attention_mask = _of_new_tokens(decoder_attention_mask, cache, jnp.shape(decoder_input_ids)[1])
        more = {"decoder_attention_mask": decoder_attention_mask, "decoder_position_ids": decoder_position_ids}

        def logits(model: Any) -> Any:
            states, after = model.decode(Context(hidden, real), decoder_input_ids, cache=cache, **more)
            return model.logits(states), after

        found, after = self.module.apply(self._variables(params), method=logits)
        return Output(logits=found) if cache is None else Output(logits=found, past_key_values=after)

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
        """Writes on: ``sequences``, of a decoder with the prompts before them; also inside of ``jit`` and ``pmap``.

        Args:
            input_ids: ``[B, T]``.
            attention_mask: ``[B, T]``, 1 at real tokens.
            params: instead of the model's own.
            prng_key: of the draws.
            max_length: tokens of a sequence, of a decoder those of the prompt included; default: the settings', or 20.
            **options: of ``jaxformer.generate``: ``max_new_tokens``, ``num_beams``, ``do_sample``, ``eos_token_id``;
                others are the settings of the model's files and of ``config``.

        Raises:
            UserError: if an option makes no sense, or there is no room for a token.
        """
        ids, module, mine = jnp.asarray(input_ids), self._current(), self.params if params is None else params
        config = module.config
        writes = config.architecture == "encoder_decoder"
        settings = read_settings(config.generation_settings, "the model's settings")
        longest = max_length or (None if "max_new_tokens" in settings else settings.pop("max_length", None)) or 20
        if "max_new_tokens" not in options and (max_length is not None or "max_new_tokens" not in settings):
            options["max_new_tokens"] = longest - (1 if writes else ids.shape[1])
            if options["max_new_tokens"] < 1:
                raise UserError(
                    f"max_length is {longest} and a sequence begins with {longest - options['max_new_tokens']} tokens, "
                    "expected more; give max_length or max_new_tokens"
                )
        chosen = parse_options({name: value for name, value in options.items() if value is not None}, settings)
        seed = 0 if prng_key is None else (jax.random.bits(prng_key) >> 1).astype(jnp.int32)
        tokens: Any
        xp: Any
        if is_inside(mine, ids, attention_mask, seed):
            xp, tokens = jnp, generate_inside(module, mine, ids, attention_mask, seed=seed, options=chosen)
        else:
            # Tokenizers of version 5 take arrays of NumPy, and those of JAX no more.
            xp, tokens = np, generate(module, mine, ids, attention_mask, seed=int(seed), config=chosen).tokens
        first = xp.repeat(ids, len(tokens) // max(len(ids), 1), axis=0)
        if writes:
            first = start_ids(config, chosen, Prompt(first, None))[:, None]
        return Output(sequences=xp.concatenate([first, tokens], axis=1))

    def save_pretrained(self, save_directory: str | Path, params: Any = None, **settings: Any) -> None:
        """Writes a folder that this library and PyTorch's ``transformers`` open."""
        save_pretrained(save_directory, self._current(), self.params if params is None else params)

    def push_to_hub(self, repo_id: str, params: Any = None, **options: Any) -> None:
        """Uploads it; see ``jaxformer.hub.push_to_hub``."""
        push_to_hub(repo_id, self._current(), self.params if params is None else params, **options)


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


def decay_mask(params: Any) -> Any:
    """Which parameters decay, as version 4's examples had it: all but biases and the scales of norms; for ``optax``.

    >>> decay_mask({"dense": {"kernel": 0.0, "bias": 0.0}, "norm": {"scale": 1.0}})
    {'dense': {'kernel': True, 'bias': False}, 'norm': {'scale': False}}
    """
    return path_aware_map(lambda path, _: path[-1] not in ("bias", "scale"), params)


def _key(key: Any) -> Any:
    """A key of ``jax.random.key``, also from the two numbers of ``jax.random.PRNGKey``."""
    return key if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(key)


def _cast(params: Any, dtype: Any, mask: Any) -> Any:
    """Casts the parameters that ``mask`` names, all without it; what is no number of real ones stays."""

    def cast(leaf: Any, chosen: bool = True) -> Any:
        return leaf.astype(dtype) if chosen and jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, params) if mask is None else jax.tree.map(cast, params, mask)


def _of_new_tokens(mask: Any, cache: Any, count: int) -> Any:
    """The part of a mask of all places of a cache that is of the next ``count`` tokens."""
    if mask is None or jnp.shape(mask)[1] == count:
        return mask
    return jax.lax.dynamic_slice_in_dim(jnp.asarray(mask), cache.length, count, axis=1)


def _differences(file: TransformerConfig, wanted: TransformerConfig) -> dict[str, Any]:
    """The keys of ours in which a configuration differs from a file's; what only the file can say is left out."""
    of_the_file = {"tie_embeddings", "generation", *(NOT_OF_THE_MODEL - {"dropout", "attention_dropout"})}
    keys = TransformerConfig.model_fields.keys() - of_the_file
    return {key: getattr(wanted, key) for key in keys if getattr(wanted, key) != getattr(file, key)}


def _check_settings(settings: Mapping[str, Any], known: Any) -> dict[str, Any]:
    """The settings that are keys of a configuration.

    Raises:
        UserError: if one is neither that nor of version 4 without an effect.
    """
    found = {key: value for key, value in settings.items() if key not in WITHOUT_EFFECT}
    for key in found:
        if key not in known:
            raise UserError(f"{key!r} is no keyword of this model{nearest(key, [*known, *WITHOUT_EFFECT])}")
    return found


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
def _base(prefix: str) -> type[FlaxPreTrainedModel]:
    """The base class of all models of a family: ``isinstance(model, FlaxBertPreTrainedModel)``."""
    if prefix == "Auto":
        return FlaxPreTrainedModel
    doc = f"A model of {' or '.join(FAMILIES[prefix])} with its parameters, as ``transformers`` 4 had it."
    return type(f"Flax{prefix}PreTrainedModel", (FlaxPreTrainedModel,), {"families": FAMILIES[prefix], "__doc__": doc})


@cache
def _class(name: str) -> type[FlaxPreTrainedModel]:
    prefix = next(p for p in sorted(FAMILIES, key=len, reverse=True) if name.startswith(f"Flax{p}"))
    kind = HEADS[name.removeprefix(f"Flax{prefix}")]
    doc = f"``{KINDS[kind].opener}`` with its parameters, as ``transformers`` 4 had it."
    return type(name, (_base(prefix),), {"kind": kind, "__doc__": doc})


@cache
def _mapping(kind: str) -> dict[type, type[FlaxPreTrainedModel]]:
    """The classes of models with this head by those of their configurations in ``transformers``."""
    suffix = next(head for head, found in HEADS.items() if found == kind and head.startswith(("For", "Model")))
    configs = import_transformers().CONFIG_MAPPING
    found = {}
    for prefix, families in FAMILIES.items():
        name = HEAD_OF.get(prefix, {}).get(kind, suffix)
        for family in families[:1]:
            hub = get_family(family).hub
            if kind in hub.heads and hub.model_type in configs and prefix != "BartDecoder":
                found[configs[hub.model_type]] = _class(f"Flax{prefix}{name}")
    return found


def __getattr__(name: str) -> Any:
    if name in NAMES:
        return _class(name)
    if name in MAPPINGS:
        return _mapping(MAPPINGS[name])
    if name in BASES:
        return _base(BASES[name])
    near = nearest(name, (*NAMES, *MAPPINGS, *BASES)) if name.upper().startswith("FLAX") else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{near}")
