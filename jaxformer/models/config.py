"""The typed switches that tell one Transformer family from another, one set of names for all of them."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from jaxformer.functional import ACTIVATIONS
from jaxformer.schema import Schema, UserError


def _known_activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return name


Architecture = Literal["encoder", "decoder", "encoder_decoder"]
Activation = Annotated[str, AfterValidator(_known_activation)]


class RopeScaling(Schema):
    """How rotary positions reach beyond the length the model was trained on."""

    type: Literal["linear", "llama3"] = Field(description="linear: every frequency; llama3: the long wavelengths only")
    factor: float = Field(gt=0, description="how many times longer the context becomes")
    low_frequency_factor: float = Field(1.0, gt=0, description="llama3: wavelengths above original/low are stretched")
    high_frequency_factor: float = Field(4.0, gt=0, description="llama3: wavelengths below original/high are kept")
    original_max_length: int = Field(8192, gt=0, description="llama3: tokens the model was trained on")


class TransformerConfig(Schema):
    """A Transformer's shape and switches. ``type`` names the family whose defaults fill what is not given."""

    type: str = Field("gpt2", description="model family; chooses the defaults of the keys below")
    vocab_size: int | None = Field(None, ge=1, description="rows of the embedding; default: the tokenizer's size")
    hidden_size: int = Field(768, ge=1, description="D, width of the residual stream")
    num_layers: int = Field(12, ge=1, description="L, number of blocks")
    num_heads: int = Field(12, ge=1, description="N, query heads")
    num_kv_heads: int | None = Field(None, ge=1, description="K, key/value heads; default: num_heads")
    head_size: int | None = Field(None, ge=1, description="H, width of a head; default: hidden_size / num_heads")
    intermediate_size: int | None = Field(
        None, ge=1, description="F, inner width of the feed-forward; default: 4 D, gated 8/3 D in steps of 64"
    )
    max_length: int = Field(1024, ge=1, description="longest sequence, in tokens")

    norm: Literal["layer_norm", "rms_norm"] = Field("layer_norm", description="kind of normalisation")
    norm_place: Literal["pre", "post"] = Field("pre", description="before each sublayer, or after its residual sum")
    norm_epsilon: float = Field(1e-5, gt=0, description="added to the variance")
    parallel_residual: bool = Field(False, description="attention and feed-forward both read the block's input")
    activation: Activation = Field("gelu_tanh", description="feed-forward activation: " + ", ".join(ACTIVATIONS))
    gated: bool = Field(False, description="gated feed-forward: act(gate) * up")
    use_bias: bool = Field(True, description="biases in projections and layer norms")
    positions: Literal["learned", "sinusoidal", "rotary", "none"] = Field("learned", description="position scheme")
    rope_theta: float = Field(10_000.0, gt=0, description="rotary: base of the wavelengths")
    rope_scaling: RopeScaling | None = Field(None, description="rotary: stretching of the wavelengths")
    window: int | None = Field(None, ge=1, description="sliding-window attention: tokens seen, itself included")
    tie_embeddings: bool = Field(True, description="the output layer is the token embedding")

    dropout: float = Field(0.0, ge=0, lt=1, description="on the embedding and on each sublayer's output")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="on the attention weights")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of the initial weights")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute dtype; parameters stay float32")
    remat: Literal["none", "dots", "full"] = Field(
        "none", description="recompute in the backward pass: nothing, all but matrix products, the whole block"
    )
    unroll: int | None = Field(
        None, ge=1, description="blocks unrolled in the compiled loop over layers; default: all on a CPU, else 1"
    )
    attention_implementation: Literal["auto", "blocked", "reference"] = Field(
        "auto", description="how scores are computed"
    )

    @property
    def kv_heads(self) -> int:
        """K, resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """H, resolved."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def inner_size(self) -> int:
        """F, resolved. A gate is a third matrix: two thirds of the width keep the parameter count (Shazeer 2020)."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        return -(-8 * self.hidden_size // (3 * 64)) * 64 if self.gated else 4 * self.hidden_size

    @property
    def vocabulary(self) -> int:
        """V, once it is known."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not set, expected a number; give it or train with a tokenizer")
        return self.vocab_size

    @model_validator(mode="after")
    def _consistent(self) -> "TransformerConfig":
        if self.head_size is None and self.hidden_size % self.num_heads:
            nearest = max(1, round(self.hidden_size / self.num_heads)) * self.num_heads
            raise ValueError(
                f"hidden_size is {self.hidden_size} and num_heads {self.num_heads}, expected a multiple: "
                f"set hidden_size to {nearest}, or give head_size"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads} and num_kv_heads {self.kv_heads}, expected a multiple of the latter"
            )
        if self.positions == "rotary" and self.head_width % 2:
            raise ValueError(f"head_size is {self.head_width}, expected an even number for rotary positions")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected an even number for sinusoidal positions")
        if self.rope_scaling is not None and self.positions != "rotary":
            raise ValueError(f"rope_scaling is given with positions: {self.positions}, expected positions: rotary")
        if self.parallel_residual and self.norm_place == "post":
            raise ValueError("parallel_residual is given with norm_place: post, expected norm_place: pre")
        return self
