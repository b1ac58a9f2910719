"""Encoder-decoders of any encoder and any decoder (Rothe et al. 2020, "Leveraging Pre-trained Checkpoints")."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxformer.families.format import TOKEN_IDS, Family, Format, Head, Name, rows
from jaxformer.models.config import SIDES, TransformerConfig
from jaxformer.schema import UserError

NAME = "encoder_decoder"
# BERT on both sides, with which the paper begins: its decoder starts with [CLS].
DEFAULTS: dict[str, Any] = {
    "architecture": "encoder_decoder",
    "encoder": {"type": "bert"},
    "decoder": {"type": "bert"},
    "decoder_start": "cls",
}
PROJECTION = rows({"context_projection": "enc_to_dec_proj"})
# Poolers, which an encoder has and no decoder reads; buffers; the copies of tied output layers.
IGNORED = (
    r"^encoder\.pooler\.|(position_ids|inv_freq|embed_positions\.weight|(attn|attention)\.(masked_)?bias)$"
    r"|^decoder\.(cls\.predictions\.decoder|(generator_)?lm_head(\.decoder)?)\.(weight|bias)$"
)


def moved(names: list[Name], ours: str, theirs: str) -> list[Name]:
    """The rows with beginnings of both names."""
    return [
        name._replace(
            ours=ours + name.ours,
            theirs=theirs + name.theirs,
            otherwise=None if name.otherwise is None else theirs + name.otherwise,
        )
        for name in names
    ]


def ids_of_decoder(whole: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Any]:
    """The ids that the whole leaves to its decoder, by our keys of it."""
    return {key: decoder[key] for key in TOKEN_IDS if whole.get(key) is None and decoder.get(key) is not None}


def token_ids(hf: Mapping[str, Any], decoder: Mapping[str, Any]) -> dict[str, Any]:
    """``ids_of_decoder``; a target begins with the decoder's first token, where nothing says with which.

    ``transformers`` generates by the same rule.
    """
    found = ids_of_decoder(hf, decoder)
    start = hf.get("bos_token_id", decoder.get("bos_token_id"))
    if hf.get("decoder_start_token_id") is None and start is not None:
        found.setdefault("decoder_start_token_id", start)
    return found


class Pair:
    """The tables of the two sides' families as those of one: names and keys of either, under ``encoder``, ``decoder``.

    Attributes:
        find: the family of a ``config.json``.
        get: the family of a name.
        readers: returns the families whose decoders can read an encoder's states.
    """

    def __init__(
        self,
        find: Callable[[Mapping[str, Any]], Family],
        get: Callable[[str], Family],
        readers: Callable[[], list[str]],
    ) -> None:
        """Takes the families, which are known only after this file."""
        self.find, self.get, self.readers = find, get, readers

    def reader(self, family: Family) -> Format:
        """The format of a decoder's family.

        Raises:
            UserError: if its decoder has no attention to an encoder's states.
        """
        if not family.hub.cross:
            raise UserError(
                f"the decoder is a {family.name}, which cannot read an encoder's states in the Hugging Face format, "
                f"expected one of {', '.join(self.readers())}"
            )
        return family.hub

    def read(self, hf: Mapping[str, Any]) -> dict[str, Any]:
        """The keys of both sides."""
        keys: dict[str, dict[str, Any]] = {}
        for side in SIDES:
            part = hf.get(side)
            if not isinstance(part, Mapping):
                raise UserError(f"config.json has {side}: {part!r:.40}, expected the configuration of the {side}")
            family = self.find(part)
            if side == "decoder":
                self.reader(family)
                if not part.get("add_cross_attention"):
                    raise UserError("config.json has a decoder without add_cross_attention, expected true")
                part = {**part, "add_cross_attention": False, "is_decoder": True}
            keys[side] = family.from_hf(part)
            found = keys[side].get("architecture", family.defaults.get("architecture", "decoder"))
            if found != side:
                raise UserError(f"config.json has a {family.name} as {side}, which is {found}; expected an {side}")
        width = hf["decoder"].get("cross_attention_hidden_size")
        if width is not None and not width == keys["encoder"]["hidden_size"] == keys["decoder"]["hidden_size"]:
            raise UserError(
                f"config.json has cross_attention_hidden_size: {width}, expected none, or encoder and decoder of that "
                "width; this variant is not supported"
            )
        tied = keys["decoder"].get("tie_embeddings", True)
        return {**keys, "tie_embeddings": tied, **token_ids(hf, keys["decoder"])}

    def write(self, config: TransformerConfig) -> dict[str, Any]:
        """Undoes ``read``."""
        encoder, decoder = config.encoder_side, config.decoder_side
        if not config.project_context:
            raise UserError(
                "model.project_context is False, which the Hugging Face format of encoder_decoder cannot say; expected "
                "it left out"
            )
        reads = self.reader(self.get(decoder.type)).to_hf(decoder, "causal_lm")
        return {
            "encoder": {**self.get(encoder.type).hub.to_hf(encoder, "body"), "is_decoder": False},
            "decoder": {**reads, "is_decoder": True, "add_cross_attention": True},
            "tie_word_embeddings": False,
        }

    def names(self, config: TransformerConfig) -> list[Name]:
        """The rows of the encoder's body, of the decoder's language model with cross-attention, and between them."""
        encoder, decoder = config.encoder_side, config.decoder_side
        hub = self.reader(self.get(decoder.type))
        cross = moved(list(hub.cross), "", hub.prefix_of("causal_lm"))
        return [
            *moved(list(self.get(encoder.type).hub.body_names(encoder)), "encoder/", "encoder."),
            *moved([*hub.names(decoder, "causal_lm"), *cross], "decoder/", "decoder."),
            *PROJECTION,
        ]

    def derived(self, config: TransformerConfig) -> dict[str, Any]:
        """Tensors that follow from the encoder's configuration, and zeros for its pooler, which nothing uses."""
        encoder = config.encoder_side
        hub, D = self.get(encoder.type).hub, encoder.hidden_size
        zeros = {
            name.theirs: np.zeros((D, D) if name.ours.endswith("kernel") else D, np.float32)
            for name in hub.head("body").names
        }
        return {f"encoder.{name}": array for name, array in {**hub.derived(encoder), **zeros}.items()}

    def family(self) -> Family:
        """The family of both."""
        format = Format(
            "encoder-decoder",
            (),
            self.names,
            {"seq2seq_lm": Head("EncoderDecoderModel")},
            constants={"tie_encoder_decoder": False},
            read=self.read,
            write=self.write,
            derived=self.derived,
            ignored=IGNORED,
        )
        return Family(NAME, DEFAULTS, format, "span_corruption")
