"""The families: each one's defaults, its Hugging Face config mapping and its table of parameter names."""

from collections.abc import Mapping
from typing import Any

from jaxformer.families import (
    bart,
    bert,
    big_bird,
    blenderbot,
    bloom,
    clip_text,
    deberta,
    electra,
    encoder_decoder,
    gemma,
    gemma3,
    gpt1,
    gpt2,
    gpt_neo,
    gpt_neox,
    gptj,
    llama,
    longt5,
    m2m100,
    mamba,
    marian,
    mistral,
    mixtral,
    modernbert,
    modernbert_decoder,
    mpnet,
    olmo,
    olmoe,
    opt,
    phi,
    qwen,
    qwen3_moe,
    roberta,
    roformer,
    t5,
    t5gemma,
    xglm,
)
from jaxformer.families.format import Family
from jaxformer.models.config import OF_THE_WHOLE, SIDES, TransformerConfig
from jaxformer.models.transformer import BODIES
from jaxformer.schema import UserError, nearest

_DECODERS = (
    *(file.FAMILY for file in (gpt2, gpt1, gpt_neo, gptj, gpt_neox, opt, xglm, bloom, llama)),
    *(family for file in (gemma, qwen, phi, olmo) for family in file.FAMILIES),
    *(file.FAMILY for file in (gemma3, mistral, modernbert_decoder, clip_text)),
    *(file.FAMILY for file in (mixtral, qwen3_moe, olmoe)),
    *mamba.FAMILIES,
)
_ENCODERS = (
    *(family for file in (bert, roberta, electra) for family in file.FAMILIES),
    *(file.FAMILY for file in (big_bird, deberta, mpnet, roformer, modernbert)),
    gemma3.ENCODER_FAMILY,
)
_ENCODER_DECODERS = (*t5.FAMILIES, longt5.FAMILY, *bart.FAMILIES, *marian.FAMILIES, m2m100.FAMILY)
_ENCODER_DECODERS += (*blenderbot.FAMILIES, t5gemma.FAMILY)
FAMILIES: dict[str, Family] = {family.name: family for family in (*_DECODERS, *_ENCODERS, *_ENCODER_DECODERS)}


def _readers() -> list[str]:
    """The families whose decoders can read an encoder's states, beside one that shares its embedding with them."""
    return [name for name, family in FAMILIES.items() if family.format is not None and family.format.cross]


_ENCODES = [family.name for family in _ENCODERS]
_PAIR = encoder_decoder.Pair(lambda hf: family_of(hf), lambda name: get_family(name), _readers)
FAMILIES |= {family.name: family for family in (_PAIR.family(),)}


# By what ``config.json`` calls them; T5's successors are called T5 too, and differ by switches.
MODEL_TYPES: dict[str, Family] = {}
for _family in FAMILIES.values():
    if _family.format is not None:
        MODEL_TYPES.setdefault(_family.format.model_type, _family)


def get_family(name: str) -> Family:
    """The family called ``name``."""
    if name not in FAMILIES:
        raise UserError(f"model.type is {name!r}, expected one of {', '.join(FAMILIES)}{nearest(name, FAMILIES)}")
    return FAMILIES[name]


# Sizes that belong to a family's own width: with another width or number of heads they are worked out from those, so
# that swapping the family of a small model is one override.
DERIVED_SIZES = (
    *("num_kv_heads", "head_size", "intermediate_size", "embedding_size", "score_width", "projection_size"),
    *("num_decoder_heads", "decoder_intermediate_size"),
)


def family_of(hf: Mapping[str, Any]) -> Family:
    """The family that a ``config.json`` is of."""
    kind = hf.get("model_type")
    if kind not in MODEL_TYPES:
        raise UserError(
            f"config.json has model_type: {kind!r}, expected one of {', '.join(MODEL_TYPES)}"
            f"{nearest(str(kind), MODEL_TYPES)}"
        )
    family = MODEL_TYPES[kind]
    if family.name == "gemma3" and hf.get("use_bidirectional_attention"):
        return FAMILIES["embedding_gemma"]
    gated = str(hf.get("feed_forward_proj", "")).startswith("gated-")
    return FAMILIES["t5_v1_1"] if family.name == "t5" and gated else family


def text_part(hf: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a ``config.json`` that is about the text encoder, where a model of text and images is described."""
    return clip_text.text_config(hf) if hf.get("model_type") == "clip" else hf


def model_config(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys given over the defaults of the family they name, not validated yet.

    Of a model whose sides have configurations of their own, keys beside them are those of both, where a side does not
    say otherwise.
    """
    family = get_family(str(keys.get("type", "gpt2")))
    defaults = dict(family.defaults)
    if "hidden_size" in keys or "num_heads" in keys:
        for name in DERIVED_SIZES:
            defaults.pop(name, None)
    if SIDES[0] in defaults:
        return _two_sides(defaults, keys, family.name)
    return {**defaults, **keys, "type": family.name}


def _two_sides(defaults: Mapping[str, Any], keys: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``model_config`` of a family whose sides have configurations of their own."""
    known = TransformerConfig.model_fields
    both = {key: value for key, value in keys.items() if key in known and key not in OF_THE_WHOLE}
    sides: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        own = keys.get(side) or {}
        if not isinstance(own, Mapping):
            raise UserError(f"model.{side} is {own!r:.40}, expected keys of a model")
        first = dict(defaults[side])
        kind = str(own.get("type", first["type"]))
        fits = [first["type"]] if name != encoder_decoder.NAME else _ENCODES if side == "encoder" else _readers()
        if kind not in fits:
            raise UserError(
                f"model.{side}.type is {kind!r}, expected one of {', '.join(fits)}, for model.type {name!r}"
                f"{nearest(kind, fits)}"
            )
        # Of a family of encoders the tokens of a decoder see only those before them.
        start = (first if kind == first["type"] else {"type": kind}) | {"architecture": side}
        sides[side] = model_config({**start, **both, **own})
    whole = {key: value for key, value in {**defaults, **keys}.items() if key in OF_THE_WHOLE or key not in known}
    whole |= encoder_decoder.ids_of_decoder(whole, sides["decoder"])
    # What is asked of the whole, such as the vocabulary, is of the decoder, which writes; the encoder reads the text.
    mirrored = {key: value for key, value in sides["decoder"].items() if key in known and key not in OF_THE_WHOLE}
    mirrored |= {"tie_embeddings": sides["decoder"].get("tie_embeddings", known["tie_embeddings"].default)}
    mirrored |= {"max_length": sides["encoder"].get("max_length", known["max_length"].default)}
    return {**mirrored, **whole, **sides, "type": name}


def over(keys: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of a model with others laid over them; those that either side of two has are laid over both sides."""
    found = {**keys, **more}
    both = {key: value for key, value in more.items() if key not in OF_THE_WHOLE}
    for side in SIDES:
        if isinstance(keys.get(side), Mapping):
            found[side] = {**keys[side], **both, **(more.get(side) or {})}
    return found


def build_model(config: TransformerConfig) -> Any:
    """The model a configuration describes: a Flax module, ``model.init`` and ``model.apply`` are pure functions.

    An ``Encoder``, a ``Decoder`` or an ``EncoderDecoder``, as the family is; the last two with a language-model head.
    """
    get_family(config.type)
    return BODIES[config.architecture](config)
