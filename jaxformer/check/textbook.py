"""The Transformer once more: one row, loops over layers and heads, float64, NumPy. Slow, and independent of all else.

Every formula is written from the papers that ``functional`` cites and shares no code with it, so that a fault there
cannot be here as well. Parameters are those of the models, by the same names.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F
from jaxformer.models.config import TransformerConfig

Array = np.ndarray
Tree = Mapping[str, Any]


def float64(tree: Any) -> Any:
    """A tree of parameters in float64."""
    if isinstance(tree, Mapping):
        return {name: float64(leaf) for name, leaf in tree.items()}
    return np.asarray(tree, np.float64)


def _erf(x: Array) -> Array:
    return np.vectorize(math.erf)(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "gelu_sigmoid": lambda x: x / (1 + np.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
}


def norm(c: TransformerConfig, x: Array, p: Tree) -> Array:
    """Layer norm or RMS norm of the last axis."""
    scale = p.get("scale", 1.0 - c.norm_offset) + c.norm_offset
    if c.norm == "rms_norm":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_epsilon) * scale
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + c.norm_epsilon) * scale + p.get("bias", 0.0)


def label_log_probs(logits: Array, labels: Array) -> Array:
    """Log-probabilities ``[...]`` of labels under logits ``[..., V]``; those below 0 are read as label 0."""
    logits = np.asarray(logits, np.float64)
    top = logits.max(-1, keepdims=True)
    chosen = np.take_along_axis(logits - top, np.maximum(labels, 0)[..., None], -1)[..., 0]
    return np.asarray(chosen - np.log(np.exp(logits - top).sum(-1)))


def is_windowed(c: TransformerConfig, layer: int) -> bool:
    """True for a layer, counted from 0, that attends with the window."""
    every, first = c.global_every, c.global_first
    is_global = every is not None and layer >= first and (layer - first) % every == 0
    return c.window is not None and layer >= c.window_from and not is_global


def dense(x: Array, p: Tree) -> Array:
    """``x W + b``."""
    return x @ p["kernel"] + p.get("bias", 0.0)


class Side(NamedTuple):
    """The sources of keys and values of an attention: states, their positions, and which queries may see which."""

    states: Array  # [S, D]
    sees: Array  # [T, S] bool
    distance: Array  # [T, S], key position minus query position


def _rotated(c: TransformerConfig, x: Array, positions: Array, theta: float, local: bool) -> Array:
    """The heads ``[T, N, H]`` rotated by their positions, entry i with entry i + half or with its neighbour."""
    half = c.rotary_size // 2
    magnitude = 1.0
    if c.rope_scaling is None or local:
        frequencies = theta ** (-np.arange(half) / half)
    else:
        scaling = F.RotaryScaling(**c.rope_scaling.model_dump())
        lengths = jnp.array([int(positions.max()) + 1])
        found = F.rotary_frequencies(c.rotary_size, theta=theta, scaling=scaling, lengths=lengths)
        frequencies, magnitude = np.asarray(found, np.float64).reshape(-1), scaling.magnitude
    angles = (positions[:, None] * frequencies)[:, None]
    cos, sin = magnitude * np.cos(angles), magnitude * np.sin(angles)
    turned = x.copy()
    first, second = (
        (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if c.rotary_adjacent else (slice(half), slice(half, 2 * half))
    )
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., second] * cos + x[..., first] * sin
    return turned


def _bucket(c: TransformerConfig, distance: int, both_sides: bool) -> int:
    """T5's bucket of one distance."""
    buckets = c.relative_buckets // 2 if both_sides else c.relative_buckets
    first = buckets if both_sides and distance > 0 else 0
    back = abs(distance) if both_sides else max(-distance, 0)
    exact = buckets // 2
    if back < exact:
        return first + back
    share = math.log(back / exact) / math.log(c.relative_max_distance / exact)
    return first + min(exact + int(share * (buckets - exact) + 1e-9), buckets - 1)


def _relative_bias(c: TransformerConfig, table: Array, distance: Array, both_sides: bool) -> Array:
    """T5's bias ``[N, T, S]`` of all distances."""
    bucket = np.vectorize(lambda d: _bucket(c, int(d), both_sides), otypes=[int])(distance)
    return np.moveaxis(table[bucket], -1, 0)


def _with_summaries(c: TransformerConfig, p: Tree, side: Side, bias: Array, table: Array) -> tuple[Side, Array]:
    """Keys of LongT5's encoder: also the sums of blocks of the text, whose last takes what is left."""
    T, size = len(side.states), c.summary_size or 1
    if size > T:
        return side, bias
    block = np.minimum(np.arange(T) // size, T // size - 1)
    sums = np.stack([side.states[block == g].sum(0) for g in range(T // size)])
    distance = np.arange(T // size)[None] - block[:, None]
    further = _relative_bias(c, table, distance, True)
    return Side(
        np.concatenate([side.states, norm(c, sums, p["summary_norm"])]),
        np.concatenate([side.sees, np.ones(distance.shape, bool)], axis=1),
        np.concatenate([side.distance, distance], axis=1),
    ), np.concatenate([bias, further], axis=2)


def _times_seen(c: TransformerConfig, length: int) -> Array:
    """Counts ``[T, T]`` of how often each of BigBird's tokens sees each other in evaluation.

    The blocks that training chooses at random are all the first one.
    """
    size = c.sparse_block_size or 1
    block = np.arange(length) // size
    query, key, last = block[:, None], block[None], block[-1]
    middle = (query > 0) & (query < last)
    near = (np.abs(query - key) <= 1) | (key == 0) | (key == last)
    return np.where(middle, near + c.num_random_blocks * (key == 0), 1)


def _disentangled(c: TransformerConfig, distance: int) -> int:
    """DeBERTa's bucket of one distance, query position minus key position."""
    exact, far = c.relative_buckets // 2, abs(distance)
    if far > exact:
        share = math.log(far / exact) / math.log((c.relative_max_distance - 1) / exact)
        far = exact + math.ceil(share * (exact - 1) - 1e-9)
    bucket = c.relative_buckets + (far if distance > 0 else -far)
    return max(0, min(bucket, 2 * c.relative_buckets - 1))


def _slope(head: int, heads: int) -> float:
    """ALiBi's slope of a head, counted from 0."""
    power = 2 ** int(math.log2(heads))
    if head < power:
        return float(2.0 ** (-8 * (head + 1) / power))
    return float(2.0 ** (-8 * (2 * (head - power) + 1) / (2 * power)))


def attention(
    c: TransformerConfig,
    p: Tree,
    x: Array,
    side: Side,
    *,
    theta: float | None = None,
    local: bool = False,
    bias: Array | None = None,
    vectors: Array | None = None,
) -> Array:
    """Multi-head attention of ``x [T, D]``, head by head.

    ``theta`` is the base of rotary positions, None without, ``local`` that of a block with a window; ``bias`` T5's,
    ``[N, T, S]``; ``vectors`` DeBERTa's, one a bucket of distances.
    """
    project = {n: np.tensordot(s, p[n]["kernel"], 1) + p[n].get("bias", 0.0) for n, s in _sources(x, side)}
    query, key, value = (project[name] for name in ("query", "key", "value"))
    if c.qk_norm:
        axes = (-2, -1) if c.qk_norm == "width" else -1
        query, key = (
            y
            / np.sqrt((y**2).mean(axes, keepdims=True) + c.norm_epsilon)
            * (p[f"{name}_norm"]["scale"] + c.norm_offset).reshape(-1, y.shape[-1])
            for name, y in (("query", query), ("key", key))
        )
    if c.qkv_clip is not None:
        query, key, value = (np.clip(y, -c.qkv_clip, c.qkv_clip) for y in (query, key, value))
    if theta is not None:
        query, key = (_rotated(c, y, np.arange(len(y)), theta, local) for y in (query, key))
    scale = 1 / math.sqrt(c.score_width or c.head_width) if c.scale_scores else 1.0
    if vectors is not None:
        scale = scale / math.sqrt(3)
        of_query, of_key = (np.tensordot(vectors, p[n]["kernel"], 1) + p[n].get("bias", 0.0) for n in ("query", "key"))
        places = np.vectorize(lambda distance: _disentangled(c, -distance))(side.distance.astype(int))
    output = np.zeros(x.shape)
    for head in range(c.num_heads):
        shared = head // (c.num_heads // c.kv_heads)
        scores = query[:, head] @ key[:, shared].T * scale
        if vectors is not None:
            scores = scores + np.einsum("th,tsh->ts", query[:, head], of_key[:, shared][places]) * scale
            scores = scores + np.einsum("sh,tsh->ts", key[:, shared], of_query[:, head][places]) * scale
        if c.score_softcap is not None:
            scores = c.score_softcap * np.tanh(scores / c.score_softcap)
        if bias is not None:
            scores = scores + bias[head]
        if c.positions == "alibi":
            scores = scores - _slope(head, c.num_heads) * np.abs(side.distance)
        scores = np.where(side.sees, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = weights / weights.sum(-1, keepdims=True)
        output = output + weights @ value[:, shared] @ p["output"]["kernel"][head]
    return output + p["output"].get("bias", 0.0)


def _sources(x: Array, side: Side) -> list[tuple[str, Array]]:
    return [("query", x), ("key", side.states), ("value", side.states)]


def feed_forward(c: TransformerConfig, p: Tree, x: Array) -> Array:
    """The feed-forward network, plain or gated."""
    if "router" in p:
        return experts(c, p, x)
    act = ACTIVATIONS[c.activation]
    inner = act(dense(x, p["gate"])) * dense(x, p["up"]) if c.gated else act(dense(x, p["up"]))
    return dense(inner, p["down"])


def _softplus(x: Array) -> Array:
    return np.logaddexp(0.0, x)


def _convolved(c: TransformerConfig, p: Tree, x: Array) -> Array:
    """The causal convolution of every channel of ``x [T, I]``, and the activation."""
    padded = np.concatenate([np.zeros((c.conv_size - 1, x.shape[1])), x])
    y = [(padded[t : t + c.conv_size] * p["taps"]).sum(0) + p["bias"] for t in range(len(x))]
    return ACTIVATIONS[c.activation](np.array(y))


def mamba(c: TransformerConfig, p: Tree, x: Array) -> Array:
    """Mamba's mixer of ``x [T, D]``, token by token."""
    R, rank = c.state_size, c.rank
    u, gate = _convolved(c, p["conv"], dense(x, p["inner"])), dense(x, p["gate"])
    chosen = dense(u, p["select"])
    steps = _softplus(dense(chosen[:, :rank], p["time_step"]))
    state, outputs = np.zeros((u.shape[1], R)), []
    for t in range(len(x)):
        decay = np.exp(-steps[t][:, None] * np.exp(p["A_log"]))
        state = decay * state + (steps[t] * u[t])[:, None] * chosen[t, rank : rank + R]
        outputs.append(state @ chosen[t, rank + R :] + p["D"] * u[t])
    return dense(np.array(outputs) * ACTIVATIONS["silu"](gate), p["output"])


def mamba2(c: TransformerConfig, p: Tree, x: Array) -> Array:
    """Mamba-2's mixer of ``x [T, D]``, token by token and head by head."""
    inner, N, G, R, P = c.inner_size, c.num_heads, c.state_groups, c.state_size, c.channel_head
    gate, mixed, low = np.split(dense(x, p["input"]), (inner, inner + c.conv_channels), axis=-1)
    u = _convolved(c, p["conv"], mixed)
    steps = _softplus(low + p["time_step"]["bias"])
    state, outputs = np.zeros((N, P, R)), np.zeros((len(x), N, P))
    for t in range(len(x)):
        heads = u[t, :inner].reshape(N, P)
        b, c_ = u[t, inner:].reshape(2, G, R)
        for n in range(N):
            g = n // (N // G)
            state[n] = np.exp(-steps[t, n] * np.exp(p["a_log"][n])) * state[n]
            state[n] += steps[t, n] * np.outer(heads[n], b[g])
            outputs[t, n] = state[n] @ c_[g] + p["D"][n] * heads[n]
    y = (outputs.reshape(len(x), inner) * ACTIVATIONS["silu"](gate)).reshape(len(x), G, -1)
    y = y / np.sqrt((y**2).mean(-1, keepdims=True) + c.norm_epsilon)
    return dense(y.reshape(len(x), inner) * p["norm"]["scale"], p["output"])


def experts(c: TransformerConfig, p: Tree, x: Array) -> Array:
    """The feed-forward of the most probable experts of each token, token by token."""
    output = np.zeros(x.shape)
    for t, token in enumerate(x):
        logits = dense(token, p["router"])
        shares = np.exp(logits - logits.max())
        shares = shares / shares.sum()
        chosen = np.argsort(-shares, kind="stable")[: c.experts_per_token]
        total = shares[chosen].sum() if c.normalize_expert_weights else 1.0
        for e in chosen:
            own = {name: {"kernel": p[name]["kernel"][e]} for name in ("gate", "up", "down") if name in p}
            output[t] += shares[e] / total * feed_forward(c, own, token)
    return output


def embedded(c: TransformerConfig, p: Tree, ids: Array, table: Array, types: Array | None) -> Array:
    """The embedding of a row."""
    T = len(ids)
    x = table[ids] * (math.sqrt(c.hidden_size) if c.scale_embedding else 1.0)
    if c.embedding_norm == "tokens":
        x = norm(c, x, p["norm"])
    if c.positions in ("learned", "learned_relative"):
        x = x + p["position"]["embedding"][np.arange(T) + c.first_position]
    elif c.positions == "sinusoidal":
        E = c.token_size
        steps = E // 2 - (1 if c.sinusoidal_inclusive else 0)
        angles = (np.arange(T) + c.first_position)[:, None] / 10_000.0 ** (np.arange(E // 2) / steps)
        if c.sinusoidal_halves:
            x = x + np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
        else:
            x = x + np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(T, E)
    if c.token_types:
        given = np.zeros(T, int) if types is None or c.token_types == 1 else types
        x = x + p["token_type"]["embedding"][given]
    if c.embedding_norm is True:
        x = norm(c, x, p["norm"])
    return dense(x, p["projection"]) if c.embedding_size is not None else x


def states(
    c: TransformerConfig,
    p: Tree,
    ids: Array,
    *,
    causal: bool,
    table: Array | None = None,
    context: Array | None = None,
    types: Array | None = None,
) -> Array:
    """The last hidden states ``[T, D]`` of one row without padding.

    Args:
        c: of the model.
        p: parameters of a stack in float64.
        ids: ``[T]``.
        causal: whether a token sees only itself and those before it.
        table: ``[V, E]``, the token embedding where it is shared.
        context: ``[S, D]``, an encoder's states.
        types: ``[T]``, token types.
    """
    T = len(ids)
    tables = p.get("embeddings", {})
    embedding = x = embedded(c, tables, ids, tables["token"]["embedding"] if table is None else table, types)
    distance = np.arange(T)[None] - np.arange(T)[:, None]
    relative = c.positions in ("relative", "learned_relative")
    bias = None
    if relative and not c.relative_per_layer:
        bias = _relative_bias(c, p["relative_bias"]["embedding"], distance, not causal)
    sparse = None
    if c.is_sparse(T) and not causal:
        sparse = _times_seen(c, T)
        bias = np.broadcast_to(np.log(np.maximum(sparse, 1)), (c.num_heads, T, T))
    vectors = norm(c, p["distances"]["embedding"], p["distance_norm"]) if c.positions == "disentangled" else None
    before, after = c.norm_place in ("pre", "both"), c.norm_place in ("output", "both")

    def read(x: Array, layer: Tree, name: str) -> Array:
        return norm(c, x, layer.get(f"{name}_norm", {})) if before else x

    def add(x: Array, y: Array, layer: Tree, name: str) -> Array:
        if c.norm_place == "post":
            return norm(c, x + y, layer.get(f"{name}_norm", {}))
        return x + (norm(c, y, layer.get(f"{name}_output_norm" if before else f"{name}_norm", {})) if after else y)

    for i in range(c.num_layers):
        layer = p["layers"] if c.share_layers else _of_layer(p["layers"], i)
        if c.mixer != "attention":
            x = x + (mamba if c.mixer == "mamba" else mamba2)(c, layer["mixer"], norm(c, x, layer["mixer_norm"]))
            continue
        inner = layer.get("experts") or layer["feed_forward"]
        windowed = is_windowed(c, i)
        sees = distance <= 0 if causal else np.ones((T, T), bool)
        if sparse is not None:
            sees = sees & (sparse > 0)
        if windowed:
            sees = sees & (np.abs(distance) < int(c.window or 0))
        theta = None
        if c.positions == "rotary":
            theta = c.local_rope_theta if windowed and c.local_rope_theta is not None else c.rope_theta
        normed = read(x, layer, "attention") if i > 0 or c.first_norm else x
        own = bias
        if c.relative_per_layer:
            own = _relative_bias(c, layer["relative_bias"]["embedding"], distance, not causal)
        local, side = windowed and c.local_rope_theta is not None, Side(normed, sees, distance)
        if own is not None and c.summary_size is not None:
            side, own = _with_summaries(c, layer["attention"], side, own, p["summary_bias"]["embedding"])
        y = attention(c, layer["attention"], normed, side, theta=theta, local=local, bias=own, vectors=vectors)
        if c.parallel_residual:
            other = normed if c.shared_norm else read(x, layer, "feed_forward")
            x = x + y + feed_forward(c, inner, other)
            continue
        x = add(x, y, layer, "attention")
        if context is not None:
            every = Side(context, np.ones((T, len(context)), bool), np.zeros((T, len(context))))
            normed = read(x, layer, "cross_attention")
            x = add(x, attention(c, layer["cross_attention"], normed, every), layer, "cross_attention")
        x = add(x, feed_forward(c, inner, read(x, layer, "feed_forward")), layer, "feed_forward")
        if i == 0 and c.embedding_conv_size is not None:
            conv, reach = p["embedding_conv"], c.embedding_conv_size // 2
            around = np.pad(embedding, ((reach, reach), (0, 0)))
            more = sum(around[j : j + T] @ taps for j, taps in enumerate(conv["taps"])) + conv["bias"]
            x = norm(c, x + ACTIVATIONS[c.embedding_conv_activation](more), conv["norm"])
    return x if c.norm_place == "post" else norm(c, x, p.get("final_norm", {}))


def _of_layer(tree: Any, i: int) -> Any:
    return {name: _of_layer(leaf, i) for name, leaf in tree.items()} if isinstance(tree, Mapping) else tree[i]


def language_logits(c: TransformerConfig, p: Tree, hidden: Array) -> Array:
    """Logits ``[T, V]`` of a language model's states; with BERT's head where the parameters have one."""
    table = (p["shared"] if "shared" in p else p["embeddings"]["token"])["embedding"]
    bias = p["logits_bias"]["bias"] if "logits_bias" in p else 0.0
    if "mlm_head" in p:
        head = p["mlm_head"]
        hidden, bias = norm(c, ACTIVATIONS[c.activation](dense(hidden, head["dense"])), head["norm"]), head["bias"]
    elif c.scale_logits:
        hidden = hidden / math.sqrt(c.hidden_size)
    logits = hidden @ (table.T if c.tie_embeddings else p["lm_head"]["kernel"]) + bias
    return logits if c.logits_softcap is None else c.logits_softcap * np.tanh(logits / c.logits_softcap)


def row_outputs(
    c: TransformerConfig, params: Tree, ids: Array, target: Array | None, types: Array | None = None
) -> dict[str, Array]:
    """The outputs of a model for one row, by the names that the model's output has.

    ``params`` are in float64, ``target`` the tokens that the decoder of an encoder-decoder reads, ``types`` the token
    types. Hidden states, the logits of language models and the scores of classifiers.
    """
    found: dict[str, Array] = {}
    if c.architecture == "encoder_decoder":
        table = params["shared"]["embedding"] if "shared" in params else None
        encoder = c.encoder_side
        context = states(encoder, params["encoder"], ids, causal=False, table=table, types=types)
        found["encoder_last_hidden_state"] = context
        if "context_projection" in params:
            context = dense(context, params["context_projection"])
        read = ids if target is None else target
        hidden = states(c.decoder_side, params["decoder"], read, causal=True, table=table, context=context)
    else:
        hidden = states(c, params, ids, causal=c.architecture == "decoder", types=types)
    found["last_hidden_state"] = hidden
    if "classifier" not in params and "span_classifier" not in params:
        if c.architecture != "encoder" or "mlm_head" in params:
            # The head stands beside both sides or, where each has a configuration of its own, with the decoder.
            own = c.decoder is not None
            found["logits"] = language_logits(
                c.decoder_side if own else c, params["decoder"] if own else params, hidden
            )
    elif "span_classifier" in params:
        scores = dense(_transformed(c, params, hidden) if c.token_pooler else hidden, params["span_classifier"])
        found = {"start_logits": scores[:, 0], "end_logits": scores[:, 1]}
    return found


def _transformed(c: TransformerConfig, params: Tree, x: Array) -> Array:
    """A pooler's dense layer, activation and norm, if the model has them."""
    if c.pooler is None:
        return x
    y = ACTIVATIONS[c.pooler](dense(x, params["pooler"]["dense"]))
    return norm(c, y, params["pooler"]["norm"]) if c.pooler_norm else y


def class_scores(c: TransformerConfig, params: Tree, hidden: Array) -> Array:
    """Scores ``[C]`` of a classifier of whole texts without padding, from the states ``[T, D]``."""
    if c.classifier_pooler is not None:
        c = c.model_copy(update={"pooler": c.classifier_pooler})
    pooled = {"first": hidden[0], "last": hidden[-1], "mean": hidden.mean(0)}[c.pooled_state]
    return dense(_transformed(c, params, pooled), params["classifier"])


def token_scores(c: TransformerConfig, params: Tree, hidden: Array) -> Array:
    """Scores ``[T, C]`` of a classifier of tokens."""
    return dense(_transformed(c, params, hidden) if c.token_pooler else hidden, params["classifier"])
