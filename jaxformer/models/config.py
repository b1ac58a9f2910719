"""The configuration of a model: sizes and switches, with one set of names for all families."""

import json
import math
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from jaxformer.functional import ACTIVATIONS
from jaxformer.schema import LocalPath, Schema, UserError


def _known_activation(name: str) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}, expected one of {', '.join(ACTIVATIONS)}")
    return name


Architecture = Literal["encoder", "decoder", "encoder_decoder"]
Positions = Literal["learned", "sinusoidal", "rotary", "relative", "learned_relative", "disentangled", "alibi", "none"]
Activation = Annotated[str, AfterValidator(_known_activation)]


def _as_text(value: Any) -> str:
    try:
        found = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(found, sort_keys=True)
    except (TypeError, ValueError):
        found = text = None
    if text is None or not isinstance(found, dict):
        raise ValueError(f"is {value!r:.80}, expected names and values as in generation_config.json")
    return text


# Mappings have no hash, which a configuration needs: kept as text, written as the mapping.
Settings = Annotated[str, BeforeValidator(_as_text), PlainSerializer(json.loads, return_type=dict[str, Any])]
TokenId = Annotated[int, Field(ge=0)]


# No model is near these sizes: a file with more is broken, and is refused before memory is allocated.
LARGEST, MOST_LAYERS = 10_000_000, 10_000


class RopeScaling(Schema):
    """Scaling of rotary positions for texts longer than those of training."""

    type: Literal["linear", "llama3", "yarn", "longrope", "dynamic"] = Field(
        description="linear: every frequency; llama3, yarn: the long wavelengths only; longrope: each by its own "
        "number; dynamic: by the length of a row"
    )
    factor: float = Field(gt=0, description="factor by which the context becomes longer")
    low_frequency_factor: float = Field(1.0, gt=0, description="llama3: wavelengths above original/low are stretched")
    high_frequency_factor: float = Field(4.0, gt=0, description="llama3: wavelengths below original/high are kept")
    original_max_length: int = Field(8192, gt=0, description="tokens of a row that the model was trained on")
    attention_factor: float | None = Field(
        None, gt=0, description="yarn, longrope: factor of cosines and sines; default: by factor"
    )
    beta_fast: float = Field(32.0, gt=0, description="yarn: frequencies with more turns in that length are kept")
    beta_slow: float = Field(1.0, gt=0, description="yarn: frequencies with fewer turns are divided by factor")
    truncate: bool = Field(True, description="yarn: whole numbers as bounds of the interpolation")
    mscale: float = Field(0.0, ge=0, description="yarn: weight of log(factor) in the attention factor")
    mscale_all_dim: float = Field(0.0, ge=0, description="yarn: the same in its denominator")
    short_factors: tuple[float, ...] = Field((), description="longrope: divisors for rows of the original length")
    long_factors: tuple[float, ...] = Field((), description="longrope: divisors for longer rows")


SIDES: tuple[Literal["encoder"], Literal["decoder"]] = ("encoder", "decoder")
# How a model is computed: a model whose sides have configurations of their own says it once, for both.
OF_THE_COMPUTATION = ("dtype", "numerics", "remat", "unroll", "attention_implementation")
# All that such a model says itself; what else it has is its decoder's, but for ``max_length``, its encoder's.
OF_THE_WHOLE = (
    *("type", "pretrained", "architecture", *SIDES, "tie_embeddings", "decoder_start", "decoder_start_token_id"),
    *("project_context", "pad_token_id", "bos_token_id", "eos_token_id", "generation", *OF_THE_COMPUTATION),
)
DTYPES = ("float32", "bfloat16")


def check_dtype(dtype: Any) -> None:
    """Refuses a type in which nothing is computed or stored here, with a ``UserError``."""
    if dtype not in DTYPES:
        why = ": a number above 65,504 has no place in float16, and T5, for one, has such" if dtype == "float16" else ""
        raise UserError(f"dtype is {dtype!r}, expected {' or '.join(DTYPES)}{why}")


class TransformerConfig(Schema):
    """A Transformer's shape and switches. ``type`` names the family whose defaults fill what is not given."""

    type: str = Field("gpt2", description="model family; chooses the defaults of the keys below")
    pretrained: LocalPath | None = Field(
        None,
        description="base model, which gives sizes, tokenizer and common parameters: the output_dir of a run, a folder "
        "in the Hugging Face format, or owner/name on the Hub",
    )
    architecture: Architecture = Field("decoder", description="set by the family; not meant to be changed")
    encoder: "TransformerConfig | None" = Field(
        None, description="encoder_decoder: configuration of the encoder, where the two sides have one each"
    )
    decoder: "TransformerConfig | None" = Field(None, description="encoder_decoder: configuration of the decoder then")
    vocab_size: int | None = Field(
        None, ge=1, le=LARGEST, description="rows of the embedding; default: the tokenizer's size"
    )
    hidden_size: int = Field(768, ge=1, le=LARGEST, description="D, width of the residual stream")
    num_layers: int = Field(12, ge=1, le=MOST_LAYERS, description="L, number of blocks")
    num_decoder_layers: int | None = Field(
        None, ge=1, le=MOST_LAYERS, description="encoder_decoder: blocks of the decoder; default: num_layers"
    )
    num_heads: int = Field(12, ge=1, le=LARGEST, description="N, query heads")
    num_decoder_heads: int | None = Field(
        None, ge=1, le=LARGEST, description="encoder_decoder: query heads of the decoder; default: num_heads"
    )
    num_kv_heads: int | None = Field(None, ge=1, description="K, key/value heads; default: num_heads")
    head_size: int | None = Field(None, ge=1, description="H, width of a head; default: hidden_size / num_heads")
    intermediate_size: int | None = Field(
        None,
        ge=1,
        le=LARGEST,
        description="F, inner width of the feed-forward; default: 4 D, gated 8/3 D in steps of 64",
    )
    decoder_intermediate_size: int | None = Field(
        None, ge=1, le=LARGEST, description="encoder_decoder: F of the decoder; default: intermediate_size"
    )
    project_context: bool = Field(
        True,
        description="encoder, decoder of other widths: a linear layer between them; False: cross-attention reads what "
        "the encoder gives, T5Gemma",
    )
    context_size: int | None = Field(
        None,
        ge=1,
        le=LARGEST,
        description="width of what cross-attention reads; follows from a model's sides, not meant to be set",
    )
    max_length: int = Field(1024, ge=1, le=10 * LARGEST, description="longest sequence, in tokens")
    embedding_size: int | None = Field(
        None, ge=1, description="E, width of the token embedding where a projection from E to D follows it"
    )
    share_layers: bool = Field(False, description="all blocks have the same parameters")

    norm: Literal["layer_norm", "rms_norm"] = Field("layer_norm", description="kind of normalisation")
    norm_place: Literal["pre", "post", "output", "both"] = Field(
        "pre",
        description="pre: before each sublayer; post: after its residual sum; output: of its output, before the sum; "
        "both: pre and output, with a norm each",
    )
    norm_scale: bool = Field(True, description="norms have a scale; False: no parameters at all, as OLMo")
    norm_epsilon: float = Field(1e-5, gt=0, description="added to the variance")
    norm_offset: float = Field(0.0, description="added to the norms' scale; Gemma 1, so that a scale of 0 is neutral")
    embedding_norm: bool | Literal["tokens"] = Field(
        False, description="a norm after the embedding; tokens: of the token embedding alone, before positions"
    )
    embedding_conv_size: int | None = Field(
        None,
        ge=1,
        description="encoder: tokens of a convolution of the embedding, whose output is added to the first block's and "
        "normalised; an odd number; DeBERTa v2 xlarge",
    )
    embedding_conv_activation: Activation = Field("tanh", description="embedding_conv_size: its activation")
    decoder_embedding_norm: Literal["tokens"] | None = Field(
        None, description="encoder_decoder: embedding_norm of the decoder, if another; Blenderbot-small"
    )
    first_norm: bool = Field(True, description="False: the first block's attention has no norm of its own")
    qk_norm: bool | Literal["width"] = Field(
        False, description="RMS norm of every query and key head; width: of all heads of a token together, as OLMo 2"
    )
    qkv_clip: float | None = Field(None, gt=0, description="largest magnitude in queries, keys and values; OLMo")
    parallel_residual: bool = Field(False, description="attention and feed-forward both read the block's input")
    shared_norm: bool = Field(False, description="parallel_residual: both read it through one norm; GPT-J, Phi")
    activation: Activation = Field("gelu_tanh", description="feed-forward activation: " + ", ".join(ACTIVATIONS))
    gated: bool = Field(False, description="gated feed-forward: act(gate) * up")
    use_bias: bool = Field(True, description="biases in projections and layer norms")
    qkv_bias: bool | None = Field(
        None, description="biases in the projections to queries, keys and values; default: use_bias"
    )
    attention_output_bias: bool | None = Field(
        None, description="bias in the projection that follows attention; default: use_bias"
    )
    feed_forward_bias: bool | None = Field(None, description="biases in the feed-forward; default: use_bias")
    positions: Positions = Field("learned", description="position scheme")
    position_offset: Annotated[int, Field(ge=0)] | Literal["after_pad"] = Field(
        0,
        description="learned: rows of the table before the one of position 0; after_pad: pad_token_id + 1, as RoBERTa",
    )
    sinusoidal_halves: bool = Field(
        False, description="sinusoidal: all sines before all cosines; Marian, instead of pairs"
    )
    sinusoidal_inclusive: bool = Field(
        False, description="sinusoidal: the wavelengths reach 2 pi 10,000 itself; fairseq's models"
    )
    token_types: int = Field(0, ge=0, description="rows of the token type (segment) embedding; 0: none")
    scale_embedding: bool = Field(False, description="token embedding times sqrt(D)")
    relative_buckets: int = Field(
        32, ge=4, description="relative: buckets of distances, each with a bias per head; disentangled: on either side"
    )
    relative_max_distance: int = Field(128, ge=2, description="relative: distances from here on share a bucket")
    relative_per_layer: bool = Field(False, description="relative: each block has biases of its own, as UMT5")
    rotary_fraction: float = Field(1.0, gt=0, le=1, description="rotary: share of each head that is rotated")
    rotary_adjacent: bool = Field(
        False, description="rotary: neighbouring entries of a head are a pair, instead of one from each half; GPT-J"
    )
    rope_theta: float = Field(10_000.0, gt=0, description="rotary: base of the wavelengths")
    rope_scaling: RopeScaling | None = Field(None, description="rotary: stretching of the wavelengths")
    window: int | None = Field(
        None, ge=1, description="sliding-window attention: tokens seen on a side, itself included"
    )
    global_every: int | None = Field(
        None, ge=1, description="every n-th block, from global_first on, attends without the window"
    )
    global_first: int = Field(0, ge=0, description="global_every: number of the first such block, counted from 0")
    window_from: int = Field(0, ge=0, description="the blocks before this one attend without the window")
    encoder_window: int | None = Field(
        None, ge=1, description="encoder_decoder: window of the encoder alone, with relative positions; LongT5"
    )
    summary_size: int | None = Field(
        None,
        ge=1,
        description="encoder_window: each token also sees the sum of every block of so many tokens; LongT5's transient "
        "global attention",
    )
    sparse_block_size: int | None = Field(
        None,
        ge=1,
        description="encoder: tokens of a block of block-sparse attention; BigBird. Rows of no more than 5 + 2 "
        "num_random_blocks blocks have full attention",
    )
    num_random_blocks: int = Field(
        3,
        ge=0,
        description="sparse_block_size: blocks that each also sees in training, chosen once at random; in evaluation "
        "the first one, as many times, as transformers does",
    )
    local_rope_theta: float | None = Field(None, gt=0, description="rotary: rope_theta of blocks with the window")
    scale_scores: bool = Field(True, description="attention scores times 1/sqrt(H)")
    score_width: int | None = Field(None, ge=1, description="scale_scores: this instead of H; Gemma 2")
    score_softcap: float | None = Field(
        None, gt=0, description="largest magnitude of the scores, by softcap tanh(score / softcap); Gemma 2"
    )
    tie_embeddings: bool = Field(True, description="the output layer is the token embedding")
    scale_logits: bool = Field(False, description="logits times 1/sqrt(D)")
    logits_bias: bool = Field(False, description="a bias of the output layer; Marian, GPT-J")
    logits_softcap: float | None = Field(
        None, gt=0, description="largest magnitude of the logits, by softcap tanh(logit / softcap); Gemma 2"
    )
    head_transform: bool = Field(
        False, description="decoder: dense layer, activation and norm before the output layer, as encoders have them"
    )
    decoder_start: Literal["pad", "cls", "sep", "last"] = Field(
        "pad",
        description="encoder_decoder: token before the first of the target; T5: pad, Blenderbot: cls, BART: sep, "
        "mBART: the text's last",
    )
    pooling: Literal["first", "last", "mean", "end"] | None = Field(
        None,
        description="pooled state; default: the first token of an encoder, else the last real token; end: the first "
        "that ends the text, CLIP",
    )
    projection_size: int | None = Field(
        None, ge=1, le=LARGEST, description="width of a text's embedding behind the pooled state, CLIP; default: D"
    )
    pooler: Activation | None = Field(
        None, description="classification: activation of the dense layer over the pooled state; null: no such layer"
    )
    classifier_pooler: Activation | None = Field(
        None, description="classification of texts: that activation, if another than the pooler's; BigBird"
    )
    span_feed_forward: bool = Field(
        False, description="answers to questions: a feed-forward with residual and norm precedes the scores; BigBird"
    )
    pooler_norm: bool = Field(False, description="classification: a norm after that layer; ModernBERT")
    token_pooler: bool = Field(False, description="that layer also precedes the scores of single tokens; ModernBERT")
    choice_pooler: bool = Field(
        True,
        description="that layer precedes the scores of choices; False: they are of the last token's state, RoFormer",
    )
    pad_token_id: int | None = Field(None, ge=0, description="id of the padding token, for other programs")
    bos_token_id: int | None = Field(None, ge=0, description="id of the token that begins a text, for other programs")
    eos_token_id: TokenId | tuple[TokenId, ...] | None = Field(
        None, description="id of the token that ends a text, or a list of several"
    )
    decoder_start_token_id: int | None = Field(
        None, ge=0, description="encoder_decoder: id of the token before the first of the target"
    )
    generation: Settings = Field(
        "{}",
        description="settings of generation_config.json, by the names of transformers: pipelines follow them, exports "
        "hold them",
    )

    num_experts: int | None = Field(
        None,
        ge=1,
        le=MOST_LAYERS,
        description="E, experts of each block, instead of one feed-forward; intermediate_size is that of an expert",
    )
    experts_per_token: int = Field(2, ge=1, description="num_experts: those that a token uses")
    normalize_expert_weights: bool = Field(
        False, description="num_experts: the weights of a token's experts sum to 1, instead of being probabilities"
    )
    balance_loss: float = Field(
        0.0, ge=0, description="num_experts: weight of the loss that spreads tokens over experts; language modelling"
    )
    router_z_loss: float = Field(
        0.0, ge=0, description="num_experts: weight of (log Z)^2 of the router; ST-MoE: 1e-3; language modelling"
    )

    mixer: Literal["attention", "mamba", "mamba2"] = Field(
        "attention",
        description="mamba, mamba2: a state-space model instead of attention and feed-forward, with intermediate_size "
        "(default: 2 D) channels, in mamba2 in num_heads heads",
    )
    state_size: int = Field(16, ge=1, le=LARGEST, description="mixer: R, entries of a channel's state")
    state_groups: int = Field(1, ge=1, description="mamba2: G, groups of heads that share B and C")
    conv_size: int = Field(4, ge=2, le=LARGEST, description="mixer: tokens that its convolution sees, itself included")
    time_step_rank: int | None = Field(
        None, ge=1, le=LARGEST, description="mamba: entries of which a time step is made; default: D / 16"
    )

    dropout: float = Field(0.0, ge=0, lt=1, description="on the embedding and on each sublayer's output")
    attention_dropout: float = Field(0.0, ge=0, lt=1, description="on the attention weights")
    initializer: Literal["normal", "fan_in"] = Field(
        "normal", description="normal: every weight by initializer_range; fan_in: kernels by 1/sqrt(inputs), as T5"
    )
    initializer_range: float = Field(0.02, gt=0, description="normal: standard deviation of the initial weights")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute dtype; parameters stay float32")
    numerics: Literal["fast", "exact", "bfloat16"] = Field(
        "fast",
        description="exact: a row's bits depend on the row alone, not on batch, padding, cache or number of devices; "
        "bfloat16: products of kernels are of numbers rounded to bfloat16, sums and all else float32",
    )
    remat: Literal["none", "dots", "full"] = Field(
        "none", description="recompute in the backward pass: nothing, all but matrix products, the whole block"
    )
    unroll: int | None = Field(
        None,
        ge=1,
        description="blocks unrolled in the compiled loop over layers; default: all on a CPU without remat, else 1",
    )
    attention_implementation: Literal["auto", "splash", "cudnn", "blocked", "local", "tokamax", "reference"] = Field(
        "auto", description="how attention is computed"
    )

    @property
    def exact(self) -> bool:
        """True if ``numerics`` is exact."""
        return self.numerics == "exact"

    @property
    def generation_settings(self) -> dict[str, Any]:
        """``generation`` as a mapping."""
        return dict(json.loads(self.generation))

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a text: of ``generation``, else of the model."""
        ends = self.generation_settings.get("eos_token_id")
        ends = self.eos_token_id if ends is None else ends
        ends = () if ends is None else (ends,) if isinstance(ends, int) else tuple(ends)
        return tuple(end for end in ends if end >= 0)

    def special_id(self, name: str) -> int | None:
        """A token id by its key, ``pad_token_id`` or another: of ``generation``, else of the model."""
        found = self.generation_settings.get(name)
        found = None if isinstance(found, int) and found < 0 else found
        value: int | None = getattr(self, name) if found is None else found
        return value

    @property
    def has_mixed_windows(self) -> bool:
        """True if some blocks attend with the window and some without."""
        return self.window is not None and (self.global_every is not None or self.window_from > 0)

    def has_window(self, layer: int) -> bool:
        """True if a block, counted from 0, attends with the window."""
        every, first = self.global_every, self.global_first
        if every is not None and layer >= first and (layer - first) % every == 0:
            return False
        return self.window is not None and layer >= self.window_from

    @property
    def windowed_layers(self) -> tuple[bool, ...]:
        """For each block, True if it attends with the window."""
        return tuple(self.has_window(layer) for layer in range(self.num_layers))

    @property
    def has_head_transform(self) -> bool:
        """True of a decoder whose output layer reads transformed states; the head of an encoder says so itself."""
        return self.head_transform and self.architecture == "decoder"

    @property
    def norms_inputs(self) -> bool:
        """True if a sublayer reads the residual stream through a norm, which then also ends the stack."""
        return self.norm_place in ("pre", "both")

    @property
    def norms_outputs(self) -> bool:
        """True if the output of a sublayer passes a norm before it is added to the residual stream."""
        return self.norm_place in ("output", "both")

    @property
    def has_learned_positions(self) -> bool:
        """True if a learned table of positions is added to the embedding."""
        return self.positions in ("learned", "learned_relative")

    @property
    def has_relative_bias(self) -> bool:
        """True if the scores have learned biases by distance."""
        return self.positions in ("relative", "learned_relative")

    @property
    def score_size(self) -> int:
        """The width that scores are scaled by, resolved."""
        return self.score_width or self.head_width

    @property
    def score_scale(self) -> float:
        """Factor of the scores, resolved."""
        # Disentangled scores are a sum of three.
        width = self.score_size * (3 if self.positions == "disentangled" else 1)
        return 1.0 / math.sqrt(width) if self.scale_scores else 1.0

    @property
    def has_qkv_bias(self) -> bool:
        """True if queries, keys and values have biases, resolved."""
        return self.use_bias if self.qkv_bias is None else self.qkv_bias

    @property
    def has_output_bias(self) -> bool:
        """True if the projection that follows attention has a bias, resolved."""
        return self.use_bias if self.attention_output_bias is None else self.attention_output_bias

    @property
    def has_feed_forward_bias(self) -> bool:
        """True if the feed-forward has biases, resolved."""
        return self.use_bias if self.feed_forward_bias is None else self.feed_forward_bias

    @property
    def pooled_state(self) -> str:
        """The pooled state, resolved."""
        return self.pooling or ("first" if self.architecture == "encoder" else "last")

    @property
    def first_position(self) -> int:
        """Row of position 0 in the table of learned positions, resolved; RoBERTa's own padding token is 1."""
        if self.position_offset == "after_pad":
            return 2 if self.pad_token_id is None else self.pad_token_id + 1
        return self.position_offset

    @property
    def kv_heads(self) -> int:
        """K, resolved."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """H, resolved."""
        return self.head_size or self.hidden_size // self.num_heads

    @property
    def rotary_size(self) -> int:
        """Number of entries of a head that are rotated."""
        return int(self.head_width * self.rotary_fraction)

    @property
    def decoder_layers(self) -> int:
        """Blocks of the decoder, resolved."""
        return self.num_decoder_layers or self.num_layers

    @property
    def scales_given_embeds(self) -> bool:
        """True for Marian and PEGASUS, where what is given instead of target ids is multiplied by sqrt(D) too."""
        return self.scale_embedding and self.sinusoidal_halves and not self.sinusoidal_inclusive

    @property
    def norms_last_state(self) -> bool:
        """False for CLIP, whose last hidden state is the last block's output, before the final norm."""
        return self.type != "clip_text"

    @property
    def decoder_heads(self) -> int:
        """N of the decoder, resolved."""
        return self.num_decoder_heads or self.num_heads

    @property
    def decoder_inner_size(self) -> int:
        """F of the decoder, resolved."""
        return self.decoder_intermediate_size or self.inner_size

    def is_sparse(self, length: int) -> bool:
        """True if rows of so many tokens have block-sparse attention."""
        size = self.sparse_block_size
        most = (5 + 2 * self.num_random_blocks) * (size or 0)
        return size is not None and self.architecture == "encoder" and length > most

    @property
    def encoder_side(self) -> "TransformerConfig":
        """The configuration by which the encoder is built; that of a model with one configuration is itself."""
        if self.encoder is not None:
            return self._completed(self.encoder)
        return self if self.encoder_window is None else self.model_copy(update={"window": self.encoder_window})

    @property
    def decoder_side(self) -> "TransformerConfig":
        """The configuration by which the decoder's blocks are built; that of a model with one side is itself."""
        if self.decoder is not None:
            size = None if self.project_context else self.encoder_side.hidden_size
            changes: dict[str, Any] = {"tie_embeddings": self.tie_embeddings, "context_size": size}
            return self._completed(self.decoder).model_copy(update=changes)
        if self.architecture != "encoder_decoder":
            return self
        changes = {"num_layers": self.decoder_layers, "num_heads": self.decoder_heads}
        changes |= {"intermediate_size": self.decoder_inner_size, "encoder_window": None, "summary_size": None}
        if self.decoder_embedding_norm is not None:
            changes["embedding_norm"] = self.decoder_embedding_norm
        return self.model_copy(update=changes)

    def switched(self, **changes: Any) -> "TransformerConfig":
        """The configuration with other values, not validated; what either of two sides has changes in both."""
        both = {key: value for key, value in changes.items() if key not in OF_THE_WHOLE}
        for name in SIDES:
            side: TransformerConfig | None = getattr(self, name)
            if side is not None:
                changes[name] = side.model_copy(update=both)
        return self.model_copy(update=changes)

    def _completed(self, side: "TransformerConfig") -> "TransformerConfig":
        """The configuration of a side with what the whole says for both."""
        return side.model_copy(update={name: getattr(self, name) for name in OF_THE_COMPUTATION})

    @property
    def sources(self) -> dict[str, str]:
        """Earlier models that parameters are taken from: of the whole, under an empty name, or of each side."""
        if self.pretrained is not None:
            return {"": self.pretrained}
        sides = {side: getattr(self, side) for side in SIDES}
        return {name: side.pretrained for name, side in sides.items() if side is not None and side.pretrained}

    @property
    def context_width(self) -> int:
        """Width of the states that cross-attention reads, resolved."""
        return self.context_size or self.hidden_size

    @property
    def projects_context(self) -> bool:
        """True if a linear layer takes the encoder's states to the width that the decoder reads."""
        return self.encoder_side.hidden_size != self.decoder_side.context_width

    @property
    def projection_width(self) -> int:
        """P, resolved."""
        return self.projection_size or self.hidden_size

    @property
    def token_size(self) -> int:
        """E, resolved."""
        return self.embedding_size or self.hidden_size

    @property
    def inner_size(self) -> int:
        """F, resolved. A gate is a third matrix: two thirds of the width keep the parameter count (Shazeer 2020)."""
        if self.intermediate_size is not None:
            return self.intermediate_size
        if self.mixer != "attention":
            return 2 * self.hidden_size
        return -(-8 * self.hidden_size // (3 * 64)) * 64 if self.gated else 4 * self.hidden_size

    @property
    def rank(self) -> int:
        """Entries of which a time step of Mamba is made, resolved."""
        return self.time_step_rank or -(-self.hidden_size // 16)

    @property
    def channel_head(self) -> int:
        """P, channels of a head of Mamba-2."""
        return self.inner_size // self.num_heads

    @property
    def conv_channels(self) -> int:
        """Channels that pass the convolution; in Mamba-2 B and C do too."""
        return self.inner_size + (2 * self.state_groups * self.state_size if self.mixer == "mamba2" else 0)

    @property
    def vocabulary(self) -> int:
        """V, once it is known."""
        if self.vocab_size is None:
            raise UserError("model.vocab_size is not set, expected a number; give it or train with a tokenizer")
        return self.vocab_size

    def _check_experts(self, count: int) -> None:
        if self.experts_per_token > count:
            raise ValueError(
                f"experts_per_token is {self.experts_per_token} and num_experts {count}, expected at most {count}"
            )
        if self.architecture != "decoder":
            raise ValueError(f"num_experts is given with architecture {self.architecture}, expected a decoder")
        if self.has_feed_forward_bias:
            raise ValueError("num_experts is given with biases in the feed-forward, expected feed_forward_bias: false")
        if self.numerics != "fast":
            why = "depend on how many there are" if self.exact else "are not rounded"
            raise ValueError(
                f"numerics is {self.numerics} and num_experts {count}, expected fast: the products of an expert's rows "
                f"{why}"
            )

    def _check_embedding_conv(self, size: int) -> None:
        if size % 2 == 0:
            raise ValueError(
                f"embedding_conv_size is {size}, expected an odd number: a token and as many on either side"
            )
        if self.architecture != "encoder" or self.norm_place != "post" or self.norm != "layer_norm" or self.exact:
            given = f"architecture {self.architecture}, {self.norm} {self.norm_place}, numerics {self.numerics}"
            raise ValueError(
                f"embedding_conv_size is {size} with {given}, expected an encoder, layer_norm post and numerics fast"
            )

    def _check_encoder_window(self) -> None:
        refused: dict[str, tuple[Any, Any]] = {
            "architecture": (self.architecture, "encoder_decoder"),
            "positions": (self.positions, "relative"),
            "relative_per_layer": (self.relative_per_layer, False),
            "window": (self.window, None),
            "numerics": (self.numerics, "fast"),
        }
        for key, (value, fits) in refused.items():
            if value != fits:
                raise ValueError(f"encoder_window is {self.encoder_window} and {key} {value}, expected {key} {fits}")

    def _check_mixer(self) -> None:
        refused = {
            "architecture": (self.architecture, ("decoder",)),
            "positions": (self.positions, ("none", "learned", "sinusoidal")),
            "norm_place": (self.norm_place, ("pre",)),
            "window": (self.window, (None,)),
            "num_experts": (self.num_experts, (None,)),
            "numerics": (self.numerics, ("fast",)),
        }
        for key, (value, fits) in refused.items():
            if value not in fits:
                expected = " or ".join("null" if fit is None else str(fit) for fit in fits)
                raise ValueError(f"mixer is {self.mixer} and {key} {value}, expected {expected}")
        if self.mixer == "mamba2" and (self.inner_size % self.num_heads or self.num_heads % self.state_groups):
            raise ValueError(
                f"mixer is mamba2 with {self.inner_size} channels, num_heads {self.num_heads} and state_groups "
                f"{self.state_groups}, expected each a multiple of the next"
            )

    def _check_exact(self) -> None:
        if self.dtype != "float32":
            raise ValueError(f"numerics is exact and dtype {self.dtype}, expected float32; set dtype to float32")
        if self.attention_implementation != "auto":
            raise ValueError(
                f"numerics is exact and attention_implementation {self.attention_implementation}, expected auto: exact "
                "attention is a way of its own"
            )
        if self.positions == "disentangled":
            raise ValueError("numerics is exact and positions disentangled, expected fast: its bias has no exact form")
        if self.rope_scaling is not None and self.rope_scaling.type in ("dynamic", "longrope"):
            raise ValueError(
                f"numerics is exact and rope_scaling.type {self.rope_scaling.type}, expected one whose angles do not "
                "depend on the length of a row: cached keys were rotated for a shorter one"
            )

    @model_serializer(mode="wrap")
    def _written(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The keys; of a model whose sides have configurations of their own those that are not its decoder's."""
        keys: dict[str, Any] = write(self)
        dropped = SIDES if self.encoder is None else set(keys) - set(OF_THE_WHOLE)
        return {key: value for key, value in keys.items() if key not in dropped}

    def _check_sides(self) -> None:
        if self.context_size is not None:
            raise ValueError(
                f"context_size is {self.context_size}, expected none: it follows from the sides; leave it out"
            )
        for name in SIDES:
            side = getattr(self, name)
            if self.architecture != "encoder_decoder" and side is not None:
                raise ValueError(
                    f"{name} is given with architecture {self.architecture}, expected none: its keys stand in model"
                )
            if side is None and (self.encoder or self.decoder) is not None:
                raise ValueError(f"{name} is missing beside the other side, expected both")
            if side is not None and side.architecture != name:
                raise ValueError(f"{name} is a {side.type}, whose architecture is {side.architecture}, expected {name}")
            if side is not None and (side.parallel_residual or side.mixer != "attention"):
                switch = "parallel_residual" if side.parallel_residual else f"mixer {side.mixer}"
                raise ValueError(f"{name} has {switch}, expected attention and feed-forward one after the other")

    @model_validator(mode="after")
    def _consistent(self) -> "TransformerConfig":
        self._check_sides()
        if self.head_size is None and self.hidden_size % self.num_heads:
            nearest = max(1, round(self.hidden_size / self.num_heads)) * self.num_heads
            raise ValueError(
                f"hidden_size is {self.hidden_size} and num_heads {self.num_heads}, expected a multiple: "
                f"set hidden_size to {nearest}, or give head_size"
            )
        if self.head_size is None and self.hidden_size % self.decoder_heads:
            raise ValueError(
                f"hidden_size is {self.hidden_size} and num_decoder_heads {self.num_decoder_heads}, expected a multiple"
            )
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads} and num_kv_heads {self.kv_heads}, expected a multiple of the latter"
            )
        if self.positions == "rotary" and self.rotary_size % 2:
            share = "" if self.rotary_fraction == 1 else f" times rotary_fraction {self.rotary_fraction}"
            raise ValueError(f"head_size is {self.head_width}{share}, expected an even number for rotary positions")
        if self.positions == "sinusoidal" and self.hidden_size % 2:
            raise ValueError(f"hidden_size is {self.hidden_size}, expected an even number for sinusoidal positions")
        if self.has_relative_bias and self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance is {self.relative_max_distance} and relative_buckets {self.relative_buckets}, "
                f"expected a distance above {self.relative_buckets // 2}: smaller distances have a bucket each"
            )
        if self.rope_scaling is not None and self.positions != "rotary":
            raise ValueError(f"rope_scaling is given with positions: {self.positions}, expected positions: rotary")
        if (self.global_every is not None or self.window_from) and self.window is None:
            raise ValueError("global_every or window_from is given without window; the other blocks need one")
        if self.positions == "disentangled" and self.architecture != "encoder":
            raise ValueError(
                f"positions is disentangled with the architecture {self.architecture}, expected an encoder"
            )
        if self.sparse_block_size is not None and (self.exact or self.window is not None):
            given = "numerics exact" if self.exact else f"window {self.window}"
            raise ValueError(f"sparse_block_size is {self.sparse_block_size} with {given}, expected one of them")
        if self.embedding_conv_size is not None:
            self._check_embedding_conv(self.embedding_conv_size)
        if self.encoder_window is not None:
            self._check_encoder_window()
        elif self.summary_size is not None:
            raise ValueError(f"summary_size is {self.summary_size} without encoder_window, expected both")
        if self.relative_per_layer and not self.has_relative_bias:
            raise ValueError(f"relative_per_layer is given with positions: {self.positions}, expected relative")
        if self.shared_norm and not self.parallel_residual:
            raise ValueError("shared_norm is given without parallel_residual, expected both")
        if self.parallel_residual and self.architecture == "encoder_decoder":
            raise ValueError("parallel_residual is given with an encoder_decoder, expected an encoder or a decoder")
        if self.mixer != "attention":
            self._check_mixer()
        if self.num_experts is not None:
            self._check_experts(self.num_experts)
        if self.exact:
            self._check_exact()
        if self.numerics == "bfloat16" and self.dtype != "float32":
            raise ValueError(f"numerics is bfloat16 and dtype {self.dtype}, which rounds everything; set one of them")
        if self.parallel_residual and self.norm_place != "pre":
            raise ValueError(f"parallel_residual is given with norm_place: {self.norm_place}, expected norm_place: pre")
        return self
