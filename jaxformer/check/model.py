"""Checks of a model alone: what its outputs may and may not depend on, and its numbers against the textbook's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer import functional as F
from jaxformer.check import textbook
from jaxformer.check.compare import Difference, difference, unequal_bits
from jaxformer.check.outcome import Checks, DoesNotApplyError, Measured
from jaxformer.generation import prepare
from jaxformer.models import Context, Decoder, EncoderDecoder, init_cache
from jaxformer.models.heads import MultipleChoice, QuestionAnswering, SequenceClassifier, TokenClassifier
from jaxformer.models.masked_lm import Discriminator

CHECKS = Checks("model")
# Rounding of float32 over a few layers is some 1e-6 of the largest output; a fault is seldom below 1e-3.
TOLERANCE = 1e-4
PADDING = 3  # tokens of padding put beside a row
# The table of tokens, of which the output layer may be.
TABLES = ("embeddings/token/embedding", "shared/embedding", "decoder/embeddings/token/embedding")
LONG = 80  # tokens of a row that attention reads in several blocks


@dataclass(frozen=True)
class ModelSubject:
    """A model with parameters and a few texts.

    Attributes:
        model: one of jaxformer's.
        params: its parameters, arrays in float32.
        texts: token ids of three texts of different lengths, longest first.
        targets: for the decoder of an encoder-decoder, one for each text.
        names: text of a token id, for the place of a difference.
        dtype: in which the model computes.
    """

    model: Any
    params: Any
    texts: tuple[np.ndarray, ...]
    targets: tuple[np.ndarray, ...] = ()
    names: Callable[[int], str] = field(default=str)
    dtype: str = "float32"

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def types(self) -> list[np.ndarray] | None:
        """Token types of each text, 0 in its first half and 1 in its second; None for a model without."""
        if self.config.encoder_side.token_types < 2:
            return None
        return [(np.arange(len(text)) >= len(text) // 2).astype(int) for text in self.texts]

    @property
    def two_sided(self) -> bool:
        """True for an encoder-decoder whose decoder reads a text of its own."""
        return isinstance(self.model, EncoderDecoder)

    def switched(self, **switches: Any) -> "ModelSubject":
        """Returns the model with other switches of its configuration."""
        return replace(self, model=self.model.clone(config=self.config.switched(**switches)))

    def in_dtype(self, dtype: str) -> "ModelSubject":
        """Returns the model in another dtype."""
        return replace(self.switched(dtype=dtype), dtype=dtype)

    @cached_property
    def _program(self) -> Any:
        return jax.jit(partial(outputs, self.model))

    def outputs(self, **inputs: Any) -> dict[str, np.ndarray]:
        """The model's outputs in float32, by name, batch axis first."""
        found = self._program(self.params, inputs)
        return {name: np.asarray(array, np.float32) for name, array in found.items()}

    @cached_property
    def alone(self) -> list[dict[str, np.ndarray]]:
        """The outputs for each text by itself, without padding or a mask."""
        return [self.of_row(self.outputs(**self.row(n)), 0) for n in range(len(self.texts))]

    def row(self, number: int) -> dict[str, np.ndarray]:
        """A text as a batch of one."""
        batch = {"input_ids": self.texts[number][None]}
        if self.types is not None:
            batch["token_type_ids"] = self.types[number][None]
        return {**batch, "decoder_input_ids": self.targets[number][None]} if self.two_sided else batch

    def padded(self, side: str, fill: int = 0) -> dict[str, np.ndarray]:
        """All texts as one batch, padded on a side with tokens ``fill``; even the longest has padding."""
        batch: dict[str, np.ndarray] = {}
        named = {"": self.texts, "decoder_": self.targets} if self.two_sided else {"": self.texts}
        for prefix, rows in named.items():
            T = max(map(len, rows)) + PADDING
            at = [slice(0, len(row)) if side == "right" else slice(T - len(row), T) for row in rows]
            ids, mask = np.full((len(rows), T), fill), np.zeros((len(rows), T), int)
            for number, (place, row) in enumerate(zip(at, rows, strict=True)):
                ids[number, place], mask[number, place] = row, 1
            batch |= {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask}
            if self.types is not None and not prefix:
                batch["token_type_ids"] = np.zeros((len(rows), T), int)
                for number, place in enumerate(at):
                    batch["token_type_ids"][number, place] = self.types[number]
        return batch

    def of_row(
        self, found: Mapping[str, np.ndarray], number: int, batch: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """The outputs of one row; of those of tokens only the real ones."""
        row = {name: array[number] for name, array in found.items()}
        if batch is None:
            return row
        for name, array in row.items():
            source = not self.two_sided or name.startswith("encoder")
            mask = batch["attention_mask" if source else "decoder_attention_mask"][number] > 0
            if array.ndim and len(array) == len(mask) and not _of_texts(self.model, name):
                row[name] = array[mask]
        return row

    def compared(self, batch: Mapping[str, np.ndarray]) -> Difference:
        """The largest difference of the rows of a batch and the texts alone."""
        found = self.outputs(**batch)
        each = [difference(self.of_row(found, n, batch), alone) for n, alone in enumerate(self.alone)]
        worst = max(range(len(each)), key=lambda n: each[n].value)
        text = " ".join(self.names(int(i)) for i in self.texts[worst][:6])
        return Difference(each[worst].value, f"text {worst} ({text} ...): {each[worst].place}")

    @cached_property
    def tolerance(self) -> float:
        """The difference that rounding explains: in a coarser type than float32 what that type itself makes.

        Two programs of one formula may round differently everywhere, so the bound is four times the difference between
        this type and float32 on the same row.
        """
        if self.dtype == "float32":
            return TOLERANCE
        exact = self.in_dtype("float32")
        pairs = zip(self.alone, exact.alone, strict=True)
        return 4 * max(difference(here, there).value for here, there in pairs)


def _of_texts(model: Any, name: str) -> bool:
    """True if an output belongs to whole texts, not to tokens."""
    return name in ("pair_logits", "embedding") or (name == "logits" and isinstance(model, SequenceClassifier))


def outputs(model: Any, params: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """All outputs of a model, by name: states, logits, values; pure."""
    variables = {"params": params}
    if hasattr(model, "hidden_head_and_values"):
        hidden, head, values = model.apply(variables, **inputs, method="hidden_head_and_values")
        return {"logits": F.head_logits(hidden, head), "values": values}
    if isinstance(model, MultipleChoice):
        # The texts are the choices of one question.
        logits = model.apply(variables, **{name: jnp.asarray(array)[None] for name, array in inputs.items()}).logits
        return {"logits": logits[0, :, None]}
    found = {**vars(model.apply(variables, **inputs))}
    if isinstance(model, Discriminator) and model.generator_config is not None:
        hidden, head = model.apply(variables, **inputs, method="generator_hidden_and_head")
        found["generator_logits"] = F.head_logits(hidden, head)
    return {name: array for name, array in found.items() if array is not None and name != "cache"}


def stirred(params: Any, seed: int = 0) -> Any:
    """Parameters larger than an initialisation, norms and biases too, so that nothing hides behind being small.

    Normal noise is added, with a standard deviation of a tenth for vectors, a third for tables, and for kernels
    of half of their own or ``fan_in^-1/2``, the larger: more would make attention choose one key, which hides the rest.
    """
    random = np.random.default_rng(seed)

    def stir(name: str, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        array = np.asarray(leaf)
        size = {"embedding": 0.3}.get(name, 0.1)
        if name == "kernel" and leaf.ndim > 1:
            size = 0.5 * max(float(array.std()), (leaf.size / leaf.shape[-1]) ** -0.5)
        return jnp.asarray(array + size * random.standard_normal(leaf.shape), leaf.dtype)

    return jax.tree_util.tree_map_with_path(lambda path, leaf: stir(str(path[-1].key), leaf), params)


def _measured(subject: ModelSubject, compared: str, found: Difference, tolerance: float | None = None) -> Measured:
    return Measured(compared, found.value, subject.tolerance if tolerance is None else tolerance, found.place)


@CHECKS.add(
    "padding on the right",
    cause="padding takes part: in attention, in a norm, or in the place that is pooled",
    bug="transformers #21176, #26663: positions and padding",
)
def padding_right(subject: ModelSubject) -> Measured:
    """Outputs of real tokens with padding after them and neighbours beside them, against each text alone."""
    return _measured(
        subject, "texts in one batch, padded on the right | each alone", subject.compared(subject.padded("right"))
    )


@CHECKS.add(
    "padding on the left",
    cause="positions do not follow the mask, or padding takes part in attention",
    bug="transformers #20666, #26564; keras-hub #571; trl #469: positions and padding",
)
def padding_left(subject: ModelSubject) -> Measured:
    """Outputs of real tokens with padding before them and neighbours beside them, against each text alone."""
    return _measured(
        subject, "texts in one batch, padded on the left | each alone", subject.compared(subject.padded("left"))
    )


@CHECKS.add("a row's own bits", cause="another machine or version of XLA than exact numerics were tried on")
def own_bits(subject: ModelSubject) -> Measured:
    """With exact numerics the bits of a text alone, and in a padded batch."""
    if not subject.config.exact:
        raise DoesNotApplyError("model.numerics is fast")
    worst = Difference(0.0, "")
    for side in ("right", "left"):
        batch = subject.padded(side)
        found = subject.outputs(**batch)
        for number, alone in enumerate(subject.alone):
            count, place = unequal_bits(subject.of_row(found, number, batch), alone)
            worst = max(
                worst, Difference(count, f"text {number}, padded on the {side}: {place}"), key=lambda x: x.value
            )
    return Measured("bits of texts in a padded batch | alone", worst.value, 0, worst.place)


@CHECKS.add(
    "content of padding",
    cause="a token at a place of padding is read",
    bug="trl #3750: the reward was read at the padding",
)
def padding_content(subject: ModelSubject) -> Measured:
    """Outputs with one token or another at the places of padding."""
    other = int(subject.texts[0][1])
    batches = [subject.padded(side, fill) for side in ("right", "left") for fill in (0, other)]
    found = []
    for one, two in zip(batches[::2], batches[1::2], strict=True):
        rows = range(len(subject.texts))
        a, b = subject.outputs(**one), subject.outputs(**two)
        found += [difference(subject.of_row(b, n, two), subject.of_row(a, n, one)) for n in rows]
    worst = max(found, key=lambda each: each.value)
    return _measured(subject, f"padding of token 0 | of token {other}", worst)


@CHECKS.add(
    "masked inf and nan",
    cause="a product or a norm is computed with what padding holds; 0 * inf is nan in a gradient",
    bug="tunix #2310: masked tokens gave nan gradients",
)
def masked_nonfinite(subject: ModelSubject) -> Measured:
    """Gradients of the states at real tokens while padding holds a token whose embedding is inf or nan."""
    flat = flatten_dict(subject.params, sep="/")
    names = [name for name in flat if name in (*TABLES, "encoder/embeddings/token/embedding")]
    used = {int(i) for row in (*subject.texts, *subject.targets) for i in row}
    free = next((i for i in range(len(flat[names[0]])) if i not in used), None)
    if free is None:
        raise DoesNotApplyError("every token of the vocabulary is in the texts")
    batch = subject.padded("left", free)

    def total(params: Any, batch: Any) -> jax.Array:
        found = outputs(subject.model, params, batch)
        key = next((key for key in ("last_hidden_state", "values", "start_logits") if key in found), None)
        if key is None:
            return jnp.sum(found["logits"].astype(jnp.float32))
        mask = batch.get("decoder_attention_mask", batch["attention_mask"]) > 0
        states = found[key].reshape(*mask.shape, -1)
        return jnp.sum(jnp.where(mask[..., None], jnp.sin(states.astype(jnp.float32)), 0.0))

    gradient = jax.jit(jax.grad(total))
    expected = gradient(subject.params, batch)
    worst = Difference(0.0, "")
    for bad in (np.inf, np.nan):
        tables = {name: jnp.asarray(flat[name]).at[free].set(bad) for name in names}
        got = gradient(unflatten_dict({**flat, **tables}, sep="/"), batch)
        worst = max(worst, difference(got, expected), key=lambda each: each.value)
    return _measured(subject, "gradients, padding of inf and nan | of a finite token", worst)


def _token_outputs(subject: ModelSubject, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: array for name, array in found.items() if not _of_texts(subject.model, name)}


@CHECKS.add(
    "causality and view",
    cause="the mask lets a token see what it must not, or hides what it should see",
)
def view(subject: ModelSubject) -> Measured:
    """Which outputs change with which token, one token after the other, against what the mask means."""
    c, T = subject.config, min(10, len(subject.texts[0]))
    ids = subject.texts[0][:T]
    # A token that differs from each; its number does not matter.
    different = np.where(ids == ids[0], ids[np.argmax(ids != ids[0])], ids[0])
    if (different == ids).all():
        raise DoesNotApplyError("the text has one token only")
    batch: Any = np.repeat(ids[None], T + 1, axis=0)
    batch[np.arange(T) + 1, np.arange(T)] = different
    target = subject.targets[0][:T] if subject.two_sided else None
    extra = {} if target is None else {"decoder_input_ids": np.repeat(target[None], T + 1, axis=0)}
    wrong: list[str] = []
    found = _token_outputs(subject, subject.outputs(input_ids=batch, **extra))
    if isinstance(subject.model, SequenceClassifier):
        changed = _changed(subject.outputs(input_ids=batch)["logits"][:, None])[:, 0]
        wrong += [f"the classes do not depend on token {s}" for s in range(T) if not changed[s]]
        found.pop("last_hidden_state", None)
    for name, array in found.items():
        decoder = subject.two_sided and not name.startswith("encoder")
        expected = np.ones((T, array.shape[1]), bool) if decoder else _sees(c, T, c.architecture == "decoder")
        # One number may happen to stay as it is; the states of its token do not.
        changed = _changed(array) | (expected if array.ndim < 3 or array.shape[-1] < 8 else False)
        wrong += _wrong(name, changed, expected)
    if target is not None:
        changed_targets = np.repeat(target[None], len(target) + 1, axis=0)
        changed_targets[np.arange(len(target)) + 1, np.arange(len(target))] = np.where(
            target == different[0], ids[0], different[0]
        )
        sources = np.repeat(ids[None], len(target) + 1, axis=0)
        array = subject.outputs(input_ids=sources, decoder_input_ids=changed_targets)["last_hidden_state"]
        same = changed_targets[1:][np.arange(len(target)), np.arange(len(target))] == target
        expected = _sees(c, len(target), True) & ~same[:, None]
        wrong += _wrong("the target's last_hidden_state", _changed(array), expected)
    what = "tokens that see only those before" if c.architecture == "decoder" else "tokens that see what the mask shows"
    return Measured(f"{what}: {T} x {T} pairs of a changed token and an output", len(wrong), 0, "; ".join(wrong[:3]))


def _changed(array: np.ndarray) -> np.ndarray:
    """``[T, S]``, where row ``s + 1`` of ``[T + 1, S, ...]`` differs from row 0."""
    flat = array.reshape(*array.shape[:2], -1).astype(np.float64)
    scale = np.abs(flat).max() or 1.0
    return np.abs(flat[1:] - flat[:1]).max(-1) / scale > 1e-5


def _sees(c: Any, T: int, causal: bool) -> np.ndarray:
    """``[token, output]``, True where an output may depend on a token through all layers."""
    apart = np.arange(T)[None] - np.arange(T)[:, None]
    sees = np.eye(T, dtype=int)
    for i in range(c.num_layers):
        here = (apart >= 0) if causal else np.ones((T, T), bool)
        here = here & (np.abs(apart) < c.window) if textbook.is_windowed(c, i) else here
        sees = ((sees @ here.astype(int)) > 0).astype(int)
    return sees > 0


def _wrong(name: str, changed: np.ndarray, expected: np.ndarray) -> list[str]:
    pairs = np.argwhere(changed != expected)
    return [f"{name} {t} {'depends' if changed[s, t] else 'does not depend'} on token {s}" for s, t in pairs]


@CHECKS.add(
    "positions",
    cause="positions are counted from another place, or are not read",
    bug="keras-hub #571, trl #469: positions and padding",
)
def positions(subject: ModelSubject) -> Measured:
    """Default positions against ``0 ... T - 1``, order, and the rows of a learned table that a text uses."""
    c, text = subject.config, subject.texts[0]
    if isinstance(subject.model, MultipleChoice):
        raise DoesNotApplyError("choices take no positions; those of their texts are the default ones")
    row = subject.row(0)
    wrong: list[str] = []
    explicit = {"position_ids": np.arange(len(text))[None]}
    if subject.two_sided:
        explicit["decoder_position_ids"] = np.arange(len(subject.targets[0]))[None]
    worst = difference(subject.of_row(subject.outputs(**row, **explicit), 0), subject.alone[0])
    if c.positions != "none":
        other = text.copy()
        place = int(np.argmax(text[:-1] != text[1:]))
        other[[place, place + 1]] = other[[place + 1, place]]
        moved = subject.of_row(subject.outputs(**{**row, "input_ids": other[None]}), 0)
        if difference(moved, subject.alone[0]).value < 1e-6:
            wrong.append("two neighbouring tokens may change places and nothing changes")
    tables = {n: t for n, t in flatten_dict(subject.params, sep="/").items() if n.endswith("position/embedding")}
    for name, table in tables.items():
        if name.startswith("generator"):
            continue
        length = len(subject.targets[0]) if "decoder/" in name else len(text)
        rows = np.arange(length) + c.first_position
        read = _rows_read(subject, name, table, row)
        if not np.array_equal(read, rows):
            wrong.append(f"{name}: rows {read[:1]} to {read[-1:]} are read, expected {rows[0]} to {rows[-1]}")
    if wrong:
        return Measured("positions", float("inf"), subject.tolerance, "; ".join(wrong))
    return _measured(subject, "default positions | 0, 1, 2 ...; order; rows of the table", worst)


def _rows_read(subject: ModelSubject, name: str, table: Any, row: Mapping[str, Any]) -> np.ndarray:
    flat = flatten_dict(subject.params, sep="/")

    def total(table: Any) -> jax.Array:
        found = outputs(subject.model, unflatten_dict({**flat, name: table}, sep="/"), row)
        return jnp.sum(jnp.stack([jnp.sum(jnp.sin(array.astype(jnp.float32))) for array in found.values()]))

    gradient = np.asarray(jax.jit(jax.grad(total))(table))
    return np.flatnonzero(np.abs(gradient).max(-1))


@CHECKS.add(
    "packed = apart",
    cause="attention or positions cross the border of two documents",
    bug="maxtext #4476: documents of a packed row leaked into each other",
)
def packed(subject: ModelSubject) -> Measured:
    """Two texts in one row with segment numbers, against each alone."""
    if isinstance(subject.model, SequenceClassifier | QuestionAnswering | MultipleChoice | TokenClassifier):
        raise DoesNotApplyError("texts of a classifier are not packed")
    lengths = [len(text) for text in subject.texts[1:3]]
    batch: dict[str, np.ndarray] = {}
    named = {"": subject.texts, "decoder_": subject.targets} if subject.two_sided else {"": subject.texts}
    for prefix, rows in named.items():
        pair = rows[1:3]
        ids = np.concatenate([*pair, np.zeros(PADDING, int)])
        numbers = np.concatenate([np.full(len(pair[0]), 1), np.full(len(pair[1]), 2), np.zeros(PADDING, int)])
        batch |= {f"{prefix}input_ids": ids[None], f"{prefix}segment_ids": numbers[None]}
        if subject.types is not None:
            batch["token_type_ids"] = np.concatenate([*subject.types[1:3], np.zeros(PADDING, int)])[None]
    if sum(lengths) + PADDING > subject.config.max_length:
        raise DoesNotApplyError(f"two texts do not fit the model's {subject.config.max_length} tokens")
    found = _token_outputs(subject, subject.outputs(**batch))
    each = []
    for number in (1, 2):
        mine = {}
        for name, array in found.items():
            source = not subject.two_sided or name.startswith("encoder")
            mine[name] = array[0][batch["segment_ids" if source else "decoder_segment_ids"][0] == number]
        alone = _token_outputs(subject, subject.alone[number])
        found_here = difference(mine, alone)
        each.append(Difference(found_here.value, f"document {number}: {found_here.place}"))
    return _measured(subject, "two documents in one row | each alone", max(each, key=lambda x: x.value))


@CHECKS.add(
    "the textbook's formulas",
    cause="a formula of the forward pass is wrong: a scale, a bias, a norm, a position, an activation",
    bug="maxtext #551, #2914, #3003: models that were not portable",
)
def formulas(subject: ModelSubject) -> Measured:
    """The outputs against the same formulas in float64, row by row and head by head."""
    _check_size(subject, 300_000_000)
    params = textbook.float64(subject.params)
    each = [difference(*_by_hand(subject, params, number)) for number in range(len(subject.texts))]
    return _measured(subject, "outputs | float64, written by hand", max(each, key=lambda x: x.value))


def _check_size(subject: ModelSubject, largest: int) -> None:
    """Leaves out what would take minutes or twice the memory; a run's configuration is checked at a small size."""
    if (size := sum(leaf.size for leaf in jax.tree.leaves(subject.params))) > largest:
        raise DoesNotApplyError(
            f"{size:,} parameters, more than {largest:,}: check --config checks them at a small size"
        )


def _by_hand(subject: ModelSubject, params: Any, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs of the model and of the textbook that both have."""
    c, model, text = subject.config, subject.model, subject.texts[number]
    target = subject.targets[number] if subject.two_sided else None
    if c.architecture == "encoder_decoder" and target is None:
        shifted = model.body.shifted if hasattr(model, "body") else None
        if shifted is not None or isinstance(model, TokenClassifier):
            raise DoesNotApplyError("a classifier on an encoder-decoder")
    types = None if subject.types is None else subject.types[number]
    expected = textbook.row_outputs(c, params, text, target, types)
    if isinstance(model, SequenceClassifier):
        expected["logits"] = textbook.class_scores(c, params, expected["last_hidden_state"])
    elif isinstance(model, TokenClassifier):
        expected["logits"] = textbook.token_scores(c, params, expected["last_hidden_state"])
    got = subject.alone[number]
    both = expected.keys() & got.keys()
    if not both:
        raise DoesNotApplyError(f"the textbook has no {type(model).__name__}")
    return {name: got[name] for name in both}, {name: expected[name] for name in both}


@CHECKS.add(
    "cached = full pass",
    cause="the cache is written at a wrong place, keeps stale keys, or positions go on from the wrong number",
    bug="transformers #20666: positions and padding",
)
def cached(subject: ModelSubject) -> Measured:
    """Logits token by token with a cache, as generation computes them, against the full pass."""
    model = subject.model
    if not isinstance(model, Decoder | EncoderDecoder):
        raise DoesNotApplyError("only a language model has a cache")
    rows = subject.targets if subject.two_sided else subject.texts
    T, start = min(map(len, rows)), 2
    params = prepare(model, subject.params)
    step: Any
    cache = init_cache(subject.config, len(rows), T + PADDING + 2, stacked=False)
    variables = {"params": params}
    if isinstance(model, EncoderDecoder):
        batch = subject.padded("left")
        source = {name: array for name, array in batch.items() if not name.startswith("decoder_")}
        context = jax.jit(partial(model.apply, method="encode"))(variables, **source)
        step = jax.jit(lambda real, ids, cache: _decoded(model, variables, Context(context.hidden, real), ids, cache))
        step = partial(step, context.real)
        ids = np.stack([row[:T] for row in rows])
        read = [ids[:, :1], *(ids[:, n : n + 1] for n in range(1, T))]
        mask: Any = None
    else:
        ids = np.stack([row[:T] for row in rows])
        first = np.concatenate([np.zeros((len(rows), PADDING), int), ids[:, :start]], axis=1)
        mask = np.concatenate([np.zeros((len(rows), PADDING), int), np.ones((len(rows), start), int)], axis=1)
        read = [first, *(ids[:, n : n + 1] for n in range(start, T))]
        step = jax.jit(lambda ids, cache: model.apply(variables, ids, cache=cache, method="last_logits"))
    got = []
    for number, ids_now in enumerate(read):
        if mask is not None and number == 0:
            logits, cache = jax.jit(
                lambda ids, real, cache: model.apply(variables, ids, real, cache=cache, method="last_logits")
            )(ids_now, mask, cache)
        else:
            logits, cache = step(ids_now, cache)
        got.append(np.asarray(logits, np.float32))
    first_seen = 0 if subject.two_sided else start - 1
    full = np.stack([subject.alone[n]["logits"][first_seen:T] for n in range(len(rows))], axis=1)
    found = difference(np.stack(got), full)
    return _measured(subject, f"logits of {len(got)} steps with a cache | the full pass", found)


def _decoded(model: Any, variables: Any, context: Context, ids: Any, cache: Any) -> tuple[jax.Array, Any]:
    hidden, cache = model.apply(variables, context, ids, cache=cache, method="decode")
    return model.apply(variables, hidden[:, -1], method="logits"), cache


def _loss_and_gradient(subject: ModelSubject, *, chunk_tokens: int, long: bool = True) -> tuple[Any, Any]:
    """Cross-entropy of the next tokens of all texts, padded on the right, and its gradient."""
    batch = subject.padded("right")
    longer = min(LONG, subject.config.max_length) - batch["input_ids"].shape[1]
    if long and longer > 0 and not subject.two_sided:
        # One row of more tokens than a block of queries.
        batch = {name: np.pad(array, ((0, 0), (0, longer))) for name, array in batch.items()}
        text = np.resize(subject.texts[0], batch["input_ids"].shape[1])
        batch["input_ids"][0], batch["attention_mask"][0] = text, 1
    ids, mask = (batch.get(f"decoder_{name}", batch[name]) for name in ("input_ids", "attention_mask"))
    following = np.where(mask[:, 1:] > 0, ids[:, 1:], F.IGNORE)
    labels = jnp.asarray(np.concatenate([following, np.full((len(ids), 1), F.IGNORE)], axis=1))

    def loss(params: Any) -> jax.Array:
        hidden, head = subject.model.apply({"params": params}, **batch, method="hidden_and_head")
        return F.chunked_cross_entropy(hidden, head, labels, chunk_tokens=chunk_tokens).total

    return jax.jit(jax.value_and_grad(loss))(subject.params)


def _check_language_model(subject: ModelSubject) -> None:
    if not hasattr(subject.model, "hidden_and_head"):
        raise DoesNotApplyError(f"a {type(subject.model).__name__} has no output layer over the vocabulary")


@CHECKS.add(
    "ways to compute are one",
    cause="a way to save memory or time computes something else",
)
def ways(subject: ModelSubject) -> Measured:
    """Loss and gradients with other attention implementations, recomputation, unrolling and chunks of the loss."""
    _check_language_model(subject)
    c = subject.config
    base = {"attention_implementation": "reference", "remat": "none", "unroll": 1}
    expected = _loss_and_gradient(subject.switched(**base), chunk_tokens=10**6)
    causal = c.architecture == "decoder"
    several: list[tuple[dict[str, Any], int]] = [
        ({"attention_implementation": c.attention_implementation, "remat": "none", "unroll": c.num_layers}, 7),
        ({"attention_implementation": "blocked" if causal else "auto", "remat": "full", "unroll": 1}, 10**6),
    ]
    worst, said = Difference(0.0, ""), []
    for switches, chunk in several:
        found = difference(_loss_and_gradient(subject.switched(**switches), chunk_tokens=chunk), expected)
        said.append(f"{', '.join(f'{k} {v}' for k, v in switches.items())}, chunks of {chunk}")
        worst = max(worst, Difference(found.value, f"{said[-1]}: {found.place}"), key=lambda x: x.value)
    return _measured(subject, f"loss and gradients: reference | {' | '.join(said)}", worst)


@CHECKS.add(
    "gradients",
    cause="a gradient is stopped, doubled or that of another formula",
)
def gradients(subject: ModelSubject) -> Measured:
    """Each parameter's gradient in a random direction, against the difference quotient of the textbook in float64."""
    _check_language_model(subject)
    if isinstance(subject.model, Discriminator):
        raise DoesNotApplyError("the textbook has no discriminator")
    _check_size(subject, 20_000_000)
    _, gradient = _loss_and_gradient(subject, chunk_tokens=64, long=False)
    flat = {name: np.asarray(leaf, np.float64) for name, leaf in flatten_dict(gradient, sep="/").items()}
    params = flatten_dict(textbook.float64(subject.params), sep="/")
    random, worst, step = np.random.default_rng(0), Difference(0.0, ""), 1e-5
    largest = max(float(np.linalg.norm(leaf)) for leaf in flat.values())
    for name, leaf in flat.items():
        direction = random.standard_normal(leaf.shape)
        direction /= np.linalg.norm(direction)
        quotient = (
            _textbook_loss(subject, params, name, step * direction)
            - _textbook_loss(subject, params, name, -step * direction)
        ) / (2 * step)
        got = float((leaf * direction).sum())
        # Beside a gradient that is zero in truth only rounding stands, which is a share of the largest.
        scale = max(float(np.linalg.norm(leaf)) / leaf.size**0.5, 1e-4 * largest, 1e-12)
        found = Difference(abs(got - quotient) / scale, f"{name}: {got:.6g}, expected {quotient:.6g}")
        worst = max(worst, found, key=lambda x: x.value)
    return _measured(subject, f"{len(flat)} parameters: gradient | difference quotient", worst, 20 * subject.tolerance)


def _textbook_loss(subject: ModelSubject, params: Mapping[str, Any], name: str, change: np.ndarray) -> float:
    """The loss of the two shorter texts' next tokens by the textbook, with one parameter changed."""
    tree = unflatten_dict({**params, name: params[name] + change}, sep="/")
    total = 0.0
    for number, text in enumerate(subject.texts):
        target = subject.targets[number] if subject.two_sided else None
        types = None if subject.types is None else subject.types[number]
        logits = textbook.row_outputs(subject.config, tree, text, target, types)["logits"][:-1]
        total -= float(textbook.label_log_probs(logits, (text if target is None else target)[1:]).sum())
    return total


@CHECKS.add(
    "tied stays tied",
    cause="the output layer is a copy of the embedding, or is not tied though the configuration says so",
    bug="EasyDeL #168: a tied head was lost",
)
def tied(subject: ModelSubject) -> Measured:
    """The logits after a row of the embedding has changed: that row's alone change."""
    _check_language_model(subject)
    c = subject.config
    flat = flatten_dict(subject.params, sep="/")
    name = next(name for name in flat if name in TABLES)
    used = {int(i) for row in (*subject.texts, *subject.targets) for i in row}
    free = next((i for i in range(len(flat[name])) if i not in used), None)
    if free is None or isinstance(subject.model, Discriminator):
        raise DoesNotApplyError("no token outside the texts" if free is None else "a discriminator has no such layer")
    changed = unflatten_dict({**flat, name: jnp.asarray(flat[name]).at[free].add(1.0)}, sep="/")
    after = replace(subject, params=changed).alone[1]["logits"]
    before = subject.alone[1]["logits"]
    moved = np.flatnonzero(np.abs(after - before).max(0) > 1e-6 * np.abs(before).max())
    expected = [free] if c.tie_embeddings else []
    wrong = sorted(set(moved.tolist()) ^ set(expected))
    has_head = any(key.removeprefix("decoder/").startswith("lm_head/") for key in flat)
    place = f"logits of tokens {wrong[:5]}" if wrong else ""
    if has_head == c.tie_embeddings:
        wrong, place = (
            [*wrong, -1],
            f"tie_embeddings is {c.tie_embeddings}, and lm_head is {'' if has_head else 'not '}there",
        )
    said = "its own logit" if c.tie_embeddings else "no logit"
    return Measured(f"an embedding row changed | {said} changes", len(wrong), 0, place)


@CHECKS.add(
    "dropout",
    cause="dropout is on in evaluation, off in training, or depends on the batch around an example",
)
def dropout(subject: ModelSubject) -> Measured:
    """Training draws, an example's draws are its own, the mean is kept, and evaluation draws nothing."""
    wrong = []
    if isinstance(subject.model, MultipleChoice):
        raise DoesNotApplyError("choices draw by their question; the classifier's check is the same")
    row = subject.padded("right")
    for key in ("dropout", "attention_dropout") if subject.config.mixer == "attention" else ("dropout",):
        switched = subject.switched(**{"dropout": 0.0, "attention_dropout": 0.0, key: 0.3})

        def trained(seed: Any, batch: Any, ids: Any, model: Any = switched.model) -> Any:
            options = {"deterministic": False, "rngs": {"dropout": jax.random.key(seed)}, "example_ids": ids}
            found = model.apply({"params": subject.params}, **batch, **options)
            return {name: array for name, array in vars(found).items() if array is not None and name != "cache"}

        program = jax.jit(trained)
        ids = jnp.arange(len(subject.texts))
        one, again, other = program(0, row, ids), program(0, row, ids), program(1, row, ids)
        order = np.arange(len(ids))[::-1]
        turned = program(0, {name: array[order] for name, array in row.items()}, order)
        back = {name: np.asarray(array)[order] for name, array in turned.items()}
        evaluated = switched.outputs(**row)
        still = subject.switched(dropout=0.0, attention_dropout=0.0).outputs(**row)
        evaluated = {name: array for name, array in evaluated.items() if name in still}
        if difference(evaluated, still).value > subject.tolerance:
            wrong.append(f"{key}: evaluation differs from a model without dropout")
        if difference(one, again).value:
            wrong.append(f"{key}: one key draws differently twice")
        if difference(other, one).value < 1e-3:
            wrong.append(f"{key}: training draws nothing")
        if difference(back, one).value > 10 * subject.tolerance:
            wrong.append(f"{key}: an example's draws depend on its place in the batch")
    mean = float(F.dropout(jnp.ones((8, 4096)), 0.3, F.example_keys(jax.random.key(0), jnp.arange(8))).mean())
    if abs(mean - 1) > 0.03:
        wrong.append(f"the mean of ones after dropout is {mean:.3f}")
    said = "training draws, an example's draws are its own, evaluation draws nothing"
    return Measured(said, len(wrong), 0, "; ".join(wrong))
