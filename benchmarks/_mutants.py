"""The faults of ``benchmarks/mutants.py``."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A fault.

    Attributes:
        name: of the fault, in words.
        file: of the package.
        old: a text that is in the file once.
        new: the text in its place.
        config: of ``_check_configs``, on which it is put in.
        lines: of the check, one of which must name it.
    """

    name: str
    file: str
    old: str
    new: str
    config: str
    lines: tuple[str, ...]


def _on(config: str, line: str, file: str, *faults: tuple[str, str, str]) -> list[Mutant]:
    """Faults in one file that one line names."""
    return [Mutant(name, file, old, new, config, tuple(line.split("|"))) for name, old, new in faults]


FORMULAS, VIEW, CACHED = "the textbook's formulas", "causality and view", "cached = full pass"
MODEL = [
    *_on(
        "causal",
        f"{VIEW}|{FORMULAS}",
        "functional/mask.py",
        ("a token sees the next one", "before = key <= query\n", "before = key <= query + 1\n"),
        ("a token does not see itself", "before = key <= query\n", "before = key < query\n"),
        ("a window one wider", "jnp.abs(query - key) < limit for", "jnp.abs(query - key) <= limit for"),
        ("the window is lost", "parts.extend(jnp.abs(query - key) < limit for limit in near)", "pass"),
    ),
    *_on(
        "masked",
        "padding on the right",
        "functional/mask.py",
        ("padding is seen", "parts.append(self.key_valid[:, None, key_start:key_stop])", "pass"),
    ),
    *_on(
        "causal",
        "packed = apart",
        "functional/mask.py",
        (
            "documents of a row see each other",
            "(query_segment == self.key_segments[:, None, key_start:key_stop]) & (query_segment > 0)",
            "(self.key_segments[:, None, key_start:key_stop] > 0) & (query_segment > 0)",
        ),
    ),
    *_on(
        "masked",
        "packed = apart",
        "functional/mask.py",
        (
            "positions go on in the second document",
            "return positions * (segment_ids > 0)",
            "return index * (segment_ids > 0)",
        ),
    ),
    *_on(
        "masked",
        "padding on the left",
        "functional/mask.py",
        (
            "positions count the padding",
            "return (jnp.cumsum(real, axis=-1) - 1) * real",
            "return jnp.broadcast_to(jnp.arange(real.shape[-1]), real.shape)",
        ),
    ),
    *_on(
        "causal",
        FORMULAS,
        "functional/attention.py",
        ("scores times 1/H", "scale = 1.0 / math.sqrt(query.shape[-1]) if", "scale = 1.0 / query.shape[-1] if"),
        (
            "a little mass is lost in the softmax",
            "total = jnp.sum(weights, axis=-1, keepdims=True)\n",
            "total = jnp.sum(weights, axis=-1, keepdims=True) + 0.01\n",
        ),
        ("queries are not rotated", "return query if rotary is None else apply_rotary(query, rotary)", "return query"),
        (
            "key heads are shared in another order",
            "query.reshape(B, T, kv_heads, N // kv_heads, H).transpose(0, 2, 3, 1, 4)",
            "query.reshape(B, T, N // kv_heads, kv_heads, H).transpose(0, 3, 2, 1, 4)",
        ),
    ),
    *_on(
        "encoder_decoder",
        FORMULAS,
        "functional/attention.py",
        (
            "cross-attention reads the target",
            "key, value = project_key_value(x if context is None else context, weights",
            "key, value = project_key_value(x if context is None else x[:, :1] + 0 * context, weights",
        ),
    ),
    *_on(
        "masked",
        "dropout",
        "functional/attention.py",
        ("attention weights are not dropped", "    if drop is not None:", "    if False:"),
    ),
    *_on(
        "causal",
        "ways to compute are one",
        "functional/kernels/blocked.py",
        (
            "a block's first key is left out",
            "first = 0 if window is None else max(0, start - window + 1)",
            "first = 0 if window is None else max(0, start - window + 2)",
        ),
        ("the last block has other queries", "query[:, :, :, start:stop],", "query[:, :, :, T - (stop - start):],"),
    ),
    *_on(
        "masked",
        FORMULAS,
        "functional/norm.py",
        (
            "the unbiased variance",
            "variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)",
            "variance = jnp.var(x32, axis=-1, keepdims=True, ddof=1)",
        ),
        ("a norm's bias is lost", "y = y + bias", "y = y"),
    ),
    *_on(
        "causal",
        FORMULAS,
        "functional/norm.py",
        (
            "RMS norm takes the mean away",
            "mean_square = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)",
            "mean_square = jnp.var(x32, axis=-1, keepdims=True)",
        ),
    ),
    *_on(
        "masked",
        FORMULAS,
        "functional/feed_forward.py",
        ("GELU by tanh", "return jax.nn.gelu(x, approximate=False)", "return jax.nn.gelu(x, approximate=True)"),
    ),
    *_on(
        "causal",
        FORMULAS,
        "functional/feed_forward.py",
        ("SiLU with another slope", "return jax.nn.silu(x)", "return x * jax.nn.sigmoid(1.702 * x)"),
        (
            "the gate is not activated",
            'names = ("gate", "up") if "gate" in weights else ("up",)',
            'names = ("up", "gate") if "gate" in weights else ("up",)',
        ),
    ),
    *_on(
        "causal",
        FORMULAS,
        "functional/positions.py",
        (
            "rotary wavelengths of another width",
            "frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / head_size)\n    if",
            "frequencies = theta ** (-jnp.arange(0, head_size, 2, dtype=jnp.float32) / (head_size + 2))\n    if",
        ),
        (
            "rotation the other way",
            "[a * cos - b * sin, b * cos + a * sin, rest]",
            "[a * cos + b * sin, b * cos - a * sin, rest]",
        ),
    ),
    *_on(
        "encoder_decoder",
        FORMULAS,
        "functional/positions.py",
        (
            "distance 0 has the bucket of those after",
            "jnp.where(distance > 0, num_buckets, 0)",
            "jnp.where(distance >= 0, num_buckets, 0)",
        ),
        ("far distances one bucket up", "exact + above)", "exact + above - 1)"),
    ),
    *_on(
        "encoder_decoder",
        FORMULAS,
        "models/stack.py",
        ("the decoder has buckets for both sides", "bidirectional=not self.causal", "bidirectional=True"),
    ),
    *_on(
        "masked",
        "dropout",
        "functional/random.py",
        ("what is kept is not scaled", "x / (1.0 - rate)", "x"),
        (
            "dropout depends on the place in the batch",
            "in_axes=(None, 0))(key, example_ids)",
            "in_axes=(None, 0))(key, jnp.arange(len(example_ids)))",
        ),
    ),
    *_on(
        "masked",
        "draws of a step",
        "functional/random.py",
        ("every step drops the same", "return jax.random.fold_in(key, step)", "return key"),
    ),
    *_on(
        "masked",
        "draws of a step",
        "training/step.py",
        ("dropout is that of step 0", 'purpose_key(seed, "dropout", state.step)', 'purpose_key(seed, "dropout", 0)'),
    ),
    *_on(
        "masked",
        "positions",
        "models/layers.py",
        ("positions one row on", "position_ids + c.first_position)", "position_ids + c.first_position + 1)"),
    ),
    *_on(
        "masked",
        FORMULAS,
        "models/layers.py",
        ("token types are not read", "given = None if c.token_types == 1 else inputs.token_type_ids", "given = None"),
        ("the embedding has no norm", "            x = self.norm(x)\n", "            self.norm(x)\n"),
    ),
    *_on(
        "causal",
        "masked inf and nan",
        "models/layers.py",
        ("padding is embedded", "x = jnp.where(real[..., None], x, 0.0)", "x = x"),
    ),
    *_on(
        "masked",
        "dropout",
        "models/layers.py",
        (
            "dropout is on in evaluation",
            "if rate == 0.0 or example_ids is None:\n            return None",
            "if rate == 0.0:\n            return None\n        if example_ids is None:\n            return F.example_keys(jax.random.key(0), jnp.arange(3))",
        ),
    ),
    *_on(
        "causal",
        FORMULAS,
        "models/stack.py",
        (
            "a residual is lost",
            "x = x + y if pre else attention_norm(x + y)",
            "x = y if pre else attention_norm(x + y)",
        ),
        ("no norm at the end", "            x = self.final_norm(x)\n", "            self.final_norm(x)\n"),
        (
            "no norm before the feed-forward",
            "feed_forward(feed_forward_norm(x) if pre else x))\n        return (x",
            "feed_forward(x if feed_forward_norm(x) is not None else x))\n        return (x",
        ),
    ),
    *_on(
        "masked",
        FORMULAS,
        "models/stack.py",
        (
            "post-norm before the residual",
            "return (x + y if pre else feed_forward_norm(x + y))",
            "return (x + y if pre else x + feed_forward_norm(y))",
        ),
    ),
    *_on(
        "encoder_decoder",
        "padding on the right|padding on the left",
        "models/stack.py",
        (
            "the decoder sees the source's padding",
            "context_mask = F.Mask(key_valid=context.real, query",
            "context_mask = F.Mask(key_valid=None, query",
        ),
    ),
    *_on(
        "encoder_decoder",
        "packed = apart",
        "models/stack.py",
        (
            "a target sees the sources of others",
            "segments = None if context.segment_ids is None else segment_ids",
            "segments = None if context.segment_ids is None else jnp.minimum(segment_ids, 1)",
        ),
    ),
    *_on(
        "causal",
        CACHED,
        "models/stack.py",
        ("positions after the cache begin one early", "return positions + 1 + jnp.max(", "return positions + jnp.max("),
    ),
    *_on(
        "encoder_decoder",
        FORMULAS,
        "models/transformer.py",
        (
            "T5's logits are not scaled",
            "return hidden * config.hidden_size**-0.5 if config.scale_logits else hidden",
            "return hidden",
        ),
    ),
    *_on(
        "causal",
        CACHED,
        "models/transformer.py",
        (
            "logits of the first token",
            "hidden[:, -1]), self.head_weights()), cache",
            "hidden[:, 0]), self.head_weights()), cache",
        ),
    ),
    *_on(
        "causal",
        "gradients",
        "models/transformer.py",
        (
            "the tied head has no gradient",
            "            return self.embeddings.head()\n",
            "            return jax.lax.stop_gradient(self.embeddings.head())\n",
        ),
    ),
    *_on(
        "causal",
        "tied stays tied",
        "models/transformer.py",
        (
            "the tied head is another table",
            "            return self.embeddings.head()\n",
            "            head = self.embeddings.head()\n            return F.HeadWeights(jax.tree.map(lambda x: x[::-1], head.kernel), head.bias, head.tied)\n",
        ),
    ),
    *_on(
        "encoder_decoder",
        "padding on the right|padding on the left",
        "models/transformer.py",
        (
            "the source's mask is lost",
            "Context(hidden, None if mask is None else jnp.asarray(mask, bool),",
            "Context(hidden, None,",
        ),
    ),
    *_on(
        "masked",
        FORMULAS,
        "models/masked_lm.py",
        (
            "the head has no activation",
            'hidden = activate(c, c.activation, Dense(c, c.token_size, None, c.use_bias, name="dense")(hidden))',
            'hidden = Dense(c, c.token_size, None, c.use_bias, name="dense")(hidden)',
        ),
        (
            "the output layer has no bias",
            "return hidden, tied_head(self.config, self.body.embeddings.token(), bias)",
            "return hidden, tied_head(self.config, self.body.embeddings.token(), None)",
        ),
    ),
    *_on(
        "causal",
        CACHED,
        "models/kv_cache.py",
        (
            "a new token overwrites the last",
            "slot: Any = 0 if cache.empty else cache.slot\n",
            "slot: Any = 0 if cache.empty else cache.slot - 1\n",
        ),
        (
            "every place of the cache is seen",
            "valid = jax.lax.dynamic_update_slice(cache.valid, now[:, -places:], (0, slot))",
            "valid = jnp.ones_like(cache.valid)",
        ),
        ("a token with a cache does not see itself", "query_offset=cache.length,", "query_offset=cache.length - 1,"),
        ("the cache does not grow", "length=cache.length + min(T, places)", "length=cache.length + T - T"),
        (
            "positions of the cache go stale",
            "positions = jax.lax.dynamic_update_slice(cache.positions, position_ids[:, -places:], (0, slot))",
            "positions = cache.positions",
        ),
    ),
    *_on(
        "causal",
        CACHED,
        "functional/decoding/key_value.py",
        (
            "keys of new tokens are not rotated",
            "append_key_value(cache, *project_key_value(x, weights, rotary, norm_epsilon), slot)",
            "append_key_value(cache, *project_key_value(x, weights, None, norm_epsilon), slot)",
        ),
        ("every key goes to place 0", "(0, 0, slot, 0)), buffer, new)", "(0, 0, slot * 0, 0)), buffer, new)"),
    ),
    *_on(
        "encoder_decoder",
        CACHED,
        "functional/decoding/key_value.py",
        (
            "keys of the source are its values",
            "cache = KeyValue(*(_stored(array, like) for array, like in zip(new, cache, strict=True)))",
            "cache = KeyValue(*(_stored(array, like) for array, like in zip(new[::-1], cache, strict=True)))",
        ),
    ),
    *_on(
        "causal",
        CACHED,
        "generation/prepare.py",
        (
            "layers are unstacked the other way round",
            "[leaf[i] for i in range(len(leaf))]",
            "[leaf[-1 - i] for i in range(len(leaf))]",
        ),
    ),
    *_on(
        "masked",
        "gradients",
        "functional/losses.py",
        ("smoothing that nobody asked for", "loss = nll = -log_p\n", "nll = -log_p\n    loss = 0.99 * nll\n"),
    ),
    *_on(
        "masked",
        "gradients|ways to compute are one",
        "functional/chunks.py",
        (
            "the loss's gradient is twice as large",
            "(g * cotangents.total).astype(g.dtype)",
            "(2 * g * cotangents.total).astype(g.dtype)",
        ),
    ),
    *_on(
        "causal",
        "ways to compute are one",
        "functional/chunks.py",
        (
            "chunks are joined in another order",
            "return chunks.transpose(1, 2, 0, *range(3, 3 + len(rest))).reshape(B, n * columns, *rest)[:, :length]",
            "return chunks.transpose(1, 0, 2, *range(3, 3 + len(rest))).reshape(B, n * columns, *rest)[:, :length]",
        ),
    ),
    *_on(
        "masked",
        "loss by hand",
        "functional/log_probs.py",
        (
            "ignored labels count",
            "return jnp.where(counted, chosen - log_z, 0.0), log_z, logits",
            "return chosen - log_z, log_z, logits",
        ),
        (
            "the logarithm of the largest logit alone",
            "log_z = jax.nn.logsumexp(logits, axis=-1)",
            "log_z = jnp.max(logits, axis=-1)",
        ),
    ),
]
TRAINING = [
    *_on(
        "masked",
        "accumulated = whole batch",
        "training/step.py",
        (
            "a mean of means",
            "        return jax.tree.map(jnp.add, sums, gradient(params, part)), None",
            "        found, s = gradient(params, part)\n"
            "        one = LossSums(s.objective / s.weight, jnp.float32(1), {k: v / s.weight for k, v in s.metrics.items()})\n"
            "        return jax.tree.map(jnp.add, sums, (jax.tree.map(lambda g: g / s.weight, found), one)), None",
        ),
        (
            "only the last part counts",
            "return jax.tree.map(jnp.add, sums, gradient(params, part)), None",
            "return gradient(params, part), None",
        ),
    ),
    *_on(
        "causal",
        "n devices = one, pmap",
        "training/step.py",
        (
            "a doubled psum",
            "return (gradients, sums) if axis_name is None else jax.lax.psum((gradients, sums), axis_name)",
            "sums = (gradients, sums) if axis_name is None else jax.lax.psum((gradients, sums), axis_name)\n        return sums if axis_name is None else (jax.lax.psum(sums[0], axis_name), sums[1])",
        ),
        (
            "a psum is missing",
            "return (gradients, sums) if axis_name is None else jax.lax.psum((gradients, sums), axis_name)",
            "return (gradients, sums) if axis_name is None else (gradients, jax.lax.psum(sums, axis_name))",
        ),
        (
            "each device divides by its own count",
            "return (gradients, sums) if axis_name is None else jax.lax.psum((gradients, sums), axis_name)",
            "return (gradients, sums) if axis_name is None else (jax.lax.psum(gradients, axis_name), sums)",
        ),
    ),
    *_on(
        "masked",
        "n devices = one, pmap",
        "training/step.py",
        (
            "rows of every device are numbered from 0",
            "jax.lax.axis_index(axis_name) * size",
            "jax.lax.axis_index(axis_name) * 0",
        ),
    ),
    *_on(
        "causal",
        "update by hand",
        "training/step.py",
        (
            "the sum is not divided",
            "lambda gradient: gradient / weight, gradients",
            "lambda gradient: gradient, gradients",
        ),
        (
            "divided by the number of places",
            "weight = jnp.where(sums.weight > 0, sums.weight, 1.0)",
            "weight = jnp.float32(8 * 48)",
        ),
    ),
    *_on(
        "causal",
        "a step with inf or nan is skipped",
        "training/step.py",
        ("nan is taken over", "lambda new, old: jnp.where(finite, new, old)", "lambda new, old: new"),
        ("skipped steps are not counted", "skipped = state.skipped + ~finite", "skipped = state.skipped"),
        (
            "only the loss is looked at",
            "finite = jnp.isfinite(sums.objective) & jnp.isfinite(norm)",
            "finite = jnp.isfinite(sums.weight)",
        ),
    ),
    *_on(
        "causal",
        "average of the weights",
        "training/step.py",
        (
            "the average is turned round",
            "ema_decay * average + (1 - ema_decay) * p",
            "(1 - ema_decay) * average + ema_decay * p",
        ),
        (
            "the average is of the old weights",
            "lambda average, p: ema_decay * average + (1 - ema_decay) * p, ema, params)",
            "lambda average, p: ema_decay * average + (1 - ema_decay) * p, ema, state.params)",
        ),
    ),
    *_on(
        "causal",
        "gradient reaches every parameter",
        "training/step.py",
        ("updates are not applied", "params = optax.apply_updates(state.params, updates)", "params = state.params"),
    ),
    *_on(
        "causal",
        "gradient reaches every parameter",
        "training/optimizer.py",
        (
            "freezing has no effect",
            "rates = [0.0 if frozen(name) else layer_decay",
            "rates = [1.0 if frozen(name) else layer_decay",
        ),
        (
            "freezing takes all layers",
            "rates = [0.0 if frozen(name) else layer_decay ** (count - i) for i, name in enumerate(each)]",
            "rates = [0.0 if any(map(frozen, each)) else layer_decay ** (count - i) for i, name in enumerate(each)]",
        ),
    ),
    *_on(
        "masked",
        "update by hand",
        "training/optimizer.py",
        ("layers decay the other way round", "else layer_decay ** (count - i) for", "else layer_decay ** (i + 1) for"),
        ("the embedding has the rate of a layer", "depth = deepest + 1 if", "depth = deepest if"),
    ),
    *_on(
        "masked",
        "weight decay",
        "training/optimizer.py",
        ("everything decays", "lambda path, _: path[-1].key in names, params", "lambda path, _: True, params"),
        ("nothing decays", "lambda path, _: path[-1].key in names, params", "lambda path, _: False, params"),
        (
            "biases decay, kernels do not",
            "lambda path, _: path[-1].key in names, params",
            "lambda path, _: path[-1].key not in names, params",
        ),
    ),
    *_on(
        "causal",
        "weight decay",
        "training/optimizer.py",
        (
            "decay is not times the weight",
            'weight_decay=c.weight_decay, mask=mask)\n        case "lion"',
            'weight_decay=c.weight_decay / 2, mask=mask)\n        case "lion"',
        ),
    ),
    *_on(
        "masked",
        "schedule",
        "training/optimizer.py",
        (
            "the first step has a rate of 0",
            "optax.linear_schedule(learning_rate / warmup, learning_rate,",
            "optax.linear_schedule(0.0, learning_rate,",
        ),
        ("the warm-up is a step longer", "learning_rate, max(1, warmup - 1))", "learning_rate, max(1, warmup))"),
        (
            "the fall begins a step late",
            "optax.join_schedules([rise, after], [warmup])",
            "optax.join_schedules([rise, after], [warmup + 1])",
        ),
        (
            "the last rate is 0",
            "after = optax.linear_schedule(learning_rate, final, rest)",
            "after = optax.linear_schedule(learning_rate, 0.0, rest)",
        ),
    ),
    *_on(
        "encoder_decoder",
        "schedule",
        "training/optimizer.py",
        ("the cosine is of all steps", "rest = max(1, steps - warmup)", "rest = max(1, steps)"),
    ),
    *_on(
        "causal",
        "schedule",
        "training/optimizer.py",
        ("the decay begins early", "transition_begin=rest - decay)", "transition_begin=rest - decay - 3)"),
    ),
    *_on(
        "ppo",
        "schedule",
        "training/run.py",
        (
            "a schedule of half the steps",
            "c.optimizer.learning_rate, c.training.steps)",
            "c.optimizer.learning_rate / 2, c.training.steps)",
        ),
    ),
    *_on(
        "causal",
        "batch n is a function of n",
        "data/loader.py",
        (
            "a resumed run begins at batch 0",
            "steps = grain.MapDataset.range(start_step, sys.maxsize)",
            "steps = grain.MapDataset.range(0, sys.maxsize)",
        ),
        (
            "every batch is the first",
            "numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)",
            "numbers = np.arange(0, self.batch_size)",
        ),
    ),
    *_on(
        "masked",
        "batch n is a function of n",
        "data/loader.py",
        (
            "masks are drawn from no seed",
            "return np.random.default_rng([_EXAMPLE, seed, epoch, example])",
            "return np.random.default_rng()",
        ),
        (
            "a process draws with the numbers of others",
            "zip(epochs[self._keep].tolist(), indices[self._keep].tolist(), strict=True)",
            "zip(epochs[self._keep].tolist(), indices[: len(self._keep)].tolist(), strict=True)",
        ),
    ),
    *_on(
        "causal",
        "resumed = uninterrupted, bit for bit",
        "training/checkpoint.py",
        (
            "the optimizer begins anew",
            "                self._saved.add(step)\n                return step, state",
            "                import dataclasses\n                self._saved.add(step)\n                return step, dataclasses.replace(state, opt_state=jax.tree.map(lambda x: x * 0, state.opt_state))",
        ),
        (
            "the step begins anew",
            "                self._saved.add(step)\n                return step, state",
            "                import dataclasses\n                self._saved.add(step)\n                return step, dataclasses.replace(state, step=state.step * 0)",
        ),
        (
            "parameters are rounded",
            "                self._saved.add(step)\n                return step, state",
            "                import dataclasses\n                self._saved.add(step)\n                return step, dataclasses.replace(state, params=jax.tree.map(lambda x: x.astype('bfloat16').astype(x.dtype), state.params))",
        ),
    ),
    *_on(
        "causal",
        "n devices = one, jit",
        "parallel/batch.py",
        ("every device has the first rows", "first = int(np.searchsorted(rows, start))", "first = 0"),
    ),
]
OBJECTIVES = [
    *_on(
        "dpo",
        "losses of pairs by hand",
        "tasks/dpo.py",
        (
            "chosen and rejected change places",
            "chosen, rejected = compared[:, 0], compared[:, 1]\n",
            "chosen, rejected = compared[:, 1], compared[:, 0]\n",
        ),
        (
            "beta is applied twice",
            "return F.dpo_loss(chosen, rejected, beta=beta)\n",
            "return F.dpo_loss(chosen, rejected, beta=beta * beta)\n",
        ),
        ("means instead of sums", "mean=self.config.loss in MEANS", "mean=True"),
    ),
    *_on(
        "dpo",
        "reference = start at step 0",
        "tasks/dpo.py",
        ("the reference is left out", "else log_probs - batch[REFERENCE]", "else log_probs"),
        ("the reference is added", "else log_probs - batch[REFERENCE]", "else log_probs + batch[REFERENCE]"),
    ),
    *_on(
        "dpo",
        "reference = start at step 0",
        "training/reference_log_probs.py",
        (
            "the reference is another model",
            "params = run.division.assemble(frozen, state.params)",
            "params = jax.tree.map(lambda x: x * 0.9, run.division.assemble(frozen, state.params))",
        ),
        (
            "the reference's rows are shifted",
            "rows.set_column(column, found[name])",
            "rows.set_column(column, np.roll(found[name], 1, axis=0))",
        ),
    ),
    *_on(
        "dpo",
        "losses of pairs by hand",
        "functional/preference.py",
        (
            "DPO's margin the other way",
            "difference = beta * (chosen - rejected)\n    loss = -(1",
            "difference = beta * (rejected - chosen)\n    loss = -(1",
        ),
    ),
    *_on(
        "dpo",
        "merged = factors",
        "lora/factors.py",
        (
            "merged factors are not scaled",
            "total = kernel.astype(jnp.float32) + scale * _update(",
            "total = kernel.astype(jnp.float32) + _update(",
        ),
        ("factors beside kernels are not scaled", 'b = config.scale * group["b"]', 'b = group["b"]'),
    ),
    *_on(
        "dpo",
        "gradient reaches every parameter",
        "lora/factors.py",
        (
            "factors are not trained",
            'F.LowRankKernel(flat[target.path], group["a"], b, keys',
            'F.LowRankKernel(flat[target.path], jax.lax.stop_gradient(group["a"]), b, keys',
        ),
    ),
    *_on(
        "ppo",
        "first ratio = 1",
        "tasks/policy.py",
        (
            "old log-probabilities of other weights",
            'columns = {"old_log_probs": old}',
            'columns = {"old_log_probs": old + 0.01}',
        ),
        (
            "log-probabilities one place on in the loss",
            '        old, advantages = batch["old_log_probs"], batch["advantages"]\n',
            '        log_probs = jnp.roll(log_probs, 1, axis=1)\n        old, advantages = batch["old_log_probs"], batch["advantages"]\n',
        ),
    ),
    *_on(
        "ppo",
        "policy loss by hand",
        "tasks/policy.py",
        (
            "the value loss is not weighted",
            "policy.total + c.value_coefficient * value.total",
            "policy.total + value.total",
        ),
    ),
    *_on(
        "ppo",
        "policy loss by hand",
        "functional/policy.py",
        (
            "the advantage has the wrong sign",
            "free, held = -A * ratio, -A * jnp.clip(",
            "free, held = A * ratio, A * jnp.clip(",
        ),
        (
            "the smaller of the two losses",
            "return jnp.maximum(free, held), held > free",
            "return jnp.minimum(free, held), held > free",
        ),
        (
            "values are clipped at twice the distance",
            "held = jnp.clip(values, old_values - clip, old_values + clip)",
            "held = jnp.clip(values, old_values - 2 * clip, old_values + 2 * clip)",
        ),
    ),
    *_on(
        "ppo",
        "responses are where the labels are",
        "tasks/policy.py",
        ("sampled log-probabilities one place on", "len(response.prompt) - 1\n", "len(response.prompt)\n"),
    ),
    *_on(
        "ppo",
        "advantages by hand",
        "functional/policy.py",
        (
            "the score is at the first token",
            "last = T - 1 - jnp.argmax(mask.astype(bool)[:, ::-1], axis=1)",
            "last = jnp.argmax(mask.astype(bool), axis=1)",
        ),
        (
            "the KL is a bonus",
            "_keep(-kl_coefficient * _keep(kl, mask), mask)",
            "_keep(kl_coefficient * _keep(kl, mask), mask)",
        ),
        ("the recursion runs forwards", "deltas.T, reverse=True)", "deltas.T)"),
        (
            "lambda is left out",
            "advantage = delta + discount * decay * advantage",
            "advantage = delta + discount * advantage",
        ),
        ("padding takes part in the mean", "mean = masked_mean(x, mask)\n    count", "mean = jnp.mean(x)\n    count"),
        ("the next value is this one", "following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))", "following = values"),
    ),
    *_on(
        "ppo",
        "reward at the right response",
        "training/rollout.py",
        ("an answer without an end is rewarded", "shaped -= c.missing_eos_penalty", "shaped += c.missing_eos_penalty"),
    ),
    *_on(
        "ppo",
        "reward at the right response",
        "training/rewards.py",
        (
            "scores go to other responses",
            "scores[numbers] = np.asarray(found)[: len(numbers)]",
            "scores[start : start + len(numbers)] = np.asarray(found)[: len(numbers)]",
        ),
        (
            "the reward model sees no mask",
            "ids, attention_mask=mask).logits[:, 0]",
            "ids, attention_mask=mask * 0 + 1).logits[:, 0]",
        ),
    ),
    *_on(
        "ppo",
        "reward at the right response",
        "models/heads.py",
        (
            "the reward is read at the padding",
            "else T - 1 - jnp.argmax(real[:, ::-1], axis=-1)\n",
            "else jnp.full(B, T - 1)\n",
        ),
    ),
    *_on(
        "ppo",
        "the reference does not train",
        "training/rollout.py",
        (
            "the reference is the policy of now",
            "self.log_probs(self.reference, placed)",
            "self.log_probs(params, placed)",
        ),
    ),
    *_on(
        "ppo",
        "KL 0 at the start",
        "training/rollout.py",
        (
            "the reference is other weights",
            "self.reference = run.division.joined(frozen, start_trained(run))",
            "self.reference = jax.tree.map(lambda x: x * 0.9, run.division.joined(frozen, start_trained(run)))",
        ),
    ),
]
USE = [
    *_on(
        "masked",
        "written and read again|PyTorch computes the same",
        "families/bert.py",
        (
            "queries and keys change names",
            '"attention/query": "attention.self.query",\n    "attention/key": "attention.self.key"',
            '"attention/query": "attention.self.key",\n    "attention/key": "attention.self.query"',
        ),
        (
            "another epsilon is written",
            'Key("norm_epsilon", "layer_norm_eps", 1e-12)',
            'Key("norm_epsilon", "layer_norm_epsilon", 1e-12)',
        ),
    ),
    *_on(
        "causal",
        "written and read again|PyTorch computes the same",
        "families/llama.py",
        (
            "gate and up change names",
            '"feed_forward/gate": "mlp.gate_proj",\n    "feed_forward/up": "mlp.up_proj"',
            '"feed_forward/gate": "mlp.up_proj",\n    "feed_forward/up": "mlp.gate_proj"',
        ),
    ),
    *_on(
        "causal",
        "written and read again|PyTorch computes the same",
        "families/mistral.py",
        (
            "the window is written under another name",
            'Key("window", "sliding_window", None)',
            'Key("window", "window", None)',
        ),
    ),
    *_on(
        "encoder_decoder",
        "written and read again|PyTorch computes the same",
        "families/t5.py",
        (
            "the sublayers of a block in another order",
            '"decoder": tuple(layers)}',
            '"decoder": ("cross_attention", "attention", "feed_forward")}',
        ),
        (
            "largest distance is lost",
            'Key("relative_max_distance", "relative_attention_max_distance", 128)',
            'Key("relative_max_distance", "relative_max", 128)',
        ),
    ),
    *_on(
        "dpo",
        "written and read again|PyTorch computes the same",
        "families/checkpoint.py",
        (
            "kernels are written transposed",
            "joined = joined.T if first.transposed else joined",
            "joined = joined.T if first.transposed or joined.ndim == 2 and joined.shape[0] == joined.shape[1] else joined",
        ),
        (
            "layers are written in reverse",
            "arrays = [np.asarray(flat[name.ours][layer]) for name in names]",
            "arrays = [np.asarray(flat[name.ours][-1 - layer]) for name in names]",
        ),
    ),
    *_on(
        "masked",
        "written and read again|PyTorch computes the same",
        "families/checkpoint.py",
        (
            "biases are dropped on export",
            "        if name.ours in flat:\n",
            '        if name.ours in flat and not name.ours.endswith("output/bias"):\n',
        ),
    ),
    *_on(
        "causal",
        "sampler's log-probabilities = full pass",
        "generation/decode.py",
        (
            "log-probabilities of the token before",
            "log_probs=state.log_probs.at[:, state.step].set(",
            "log_probs=state.log_probs.at[:, state.step + 1].set(",
        ),
        (
            "log-probabilities after the temperature",
            "log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)",
            "log_probs = jax.nn.log_softmax(1.1 * logits.astype(jnp.float32), axis=-1)",
        ),
        (
            "positions of new tokens one on",
            "jnp.sum(prompt.real, axis=1, dtype=jnp.int32) - 1",
            "jnp.sum(prompt.real, axis=1, dtype=jnp.int32)",
        ),
    ),
    *_on(
        "causal",
        "greedy = the likeliest token",
        "generation/decode.py",
        (
            "the least likely token",
            "largest = jnp.max(scores, axis=-1, keepdims=True)",
            "largest = jnp.min(scores, axis=-1, keepdims=True)",
        ),
    ),
    *_on(
        "causal",
        "generation is a row's own",
        "generation/decode.py",
        (
            "draws depend on the place in the batch",
            "jax.random.fold_in(F.purpose_key(pair[0], purpose, step), pair[1]))(seeds)",
            "jax.random.fold_in(F.purpose_key(pair[0], purpose, step), pair[1]))(seeds + jnp.arange(len(seeds))[:, None])",
        ),
    ),
    *_on(
        "encoder_decoder",
        "generation is a row's own|sampler's log-probabilities = full pass",
        "generation/decode.py",
        (
            "the source's padding is seen while writing",
            "return logits, cache, prompt.real, jnp.zeros(B, jnp.int32)",
            "return logits, cache, prompt.real | True, jnp.zeros(B, jnp.int32)",
        ),
    ),
    *_on(
        "dpo",
        "training frame = prediction frame",
        "tasks/responses.py",
        ("prompts begin with an end token", "else [*self.frame.before, *ids]\n", "else [self.end_id, *ids]\n"),
    ),
    *_on(
        "encoder_decoder",
        "training frame = prediction frame",
        "tasks/seq2seq.py",
        (
            "sources have no end token",
            "inputs = source_frame.join(source, None, self.sequence_length).ids",
            "inputs = source",
        ),
    ),
]
MUTANTS: list[Mutant] = [*MODEL, *TRAINING, *OBJECTIVES, *USE]
