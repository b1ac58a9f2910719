"""Our models against the golden results of every family and head."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from jaxformer import functional as F
from jaxformer.families import get_family
from jaxformer.families.checkpoint import ArrayWeights, params_to_hf, read_params
from jaxformer.hub.kinds import abstract_params, build
from jaxformer.hub.pretrained import describe, untie
from tests.golden import heads

# A hundred small programs, each run once: compiling is all their time.
FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LENGTH = max(heads.LENGTHS)


def padded(kind, left):
    """The golden rows in one batch: the second padded right, the third left where that is asked for."""
    texts = heads.rows(kind)
    shape = (len(texts), *texts[0].shape[:-1], LENGTH)
    ids, mask = np.full(shape, heads.PADDING), np.zeros(shape, np.int32)
    for row, text in enumerate(texts):
        place = _place(row, text.shape[-1], left)
        ids[row, ..., place], mask[row, ..., place] = text, 1
    return ids, mask


def _place(row, size, left):
    return slice(LENGTH - size, LENGTH) if left and row == 2 else slice(0, size)


def inputs(model, kind, left):
    """What the model is called with."""
    ids, mask = padded(kind, left)
    batch = {"input_ids": jnp.asarray(ids), "attention_mask": jnp.asarray(mask)}
    if kind == "seq2seq_lm":
        target = np.full((len(ids), LENGTH), heads.PADDING)
        for row, truth in enumerate(heads.targets(kind)):
            target[row, : len(truth)] = [heads.START, *truth[:-1]]
        batch["decoder_input_ids"] = jnp.asarray(target)
    return batch


def named_outputs(output, row, place):
    """The outputs of one row under the names of the golden file, without padding."""
    names = ("last_hidden_state", "pooler_output", "start_logits", "end_logits", "logits", "pair_logits", "text_embeds")
    kept = {name: value[row] for name in names if (value := getattr(output, name, None)) is not None}
    if {"logits", "start_logits", "text_embeds"} & kept.keys():
        kept.pop("last_hidden_state", None)
    return {name: value[place] if value.shape[0] == LENGTH else value for name, value in kept.items()}


def loss_of(outputs, kind, target):
    """The loss of one row, as the golden file has it."""

    def cross_entropy(logits, truth):
        loss = F.cross_entropy(logits, truth)
        return loss.total / loss.tokens

    target = jnp.asarray(target)
    if kind in ("body", "text_encoding", "text_projection"):
        return sum(jnp.mean(jnp.sin(value)) for value in outputs.values())
    if kind == "question_answering":
        return sum(cross_entropy(s[None], target[i : i + 1]) for i, s in enumerate(outputs.values()))
    logits = outputs["logits"]
    if kind == "pre_training" and logits.ndim == 1:
        return jnp.mean(jnp.logaddexp(0.0, logits) - (target % 2) * logits)
    loss = cross_entropy(logits[None], target[None]) if logits.ndim == 1 else cross_entropy(logits, target)
    if kind == "pre_training":
        loss = loss + cross_entropy(outputs["pair_logits"][None], target[:1] % 2)
    return loss


def opened(case, golden):
    """Our model and parameters of a case, from the configuration and the shapes of PyTorch's."""
    name, kind = case.split("/")
    described = describe(golden["config"], {"unroll": 1})
    weights = ArrayWeights({key: heads.draw(key, tuple(shape)) for key, shape in golden["shapes"].items()})
    config = untie(described, kind, weights, case)
    assert config.type == heads.FAMILIES[name][0]
    hub = get_family(config.type).hub
    model = build(config, kind, num_labels=len(described.labels) or 2)
    loaded = read_params(hub, config, kind, weights, nn.unbox(abstract_params(model)))
    assert loaded.missing == []
    return model, unflatten_dict(loaded.params, sep="/")


def differences(case, golden, with_gradients=True):
    """The largest differences to PyTorch: of outputs, of the loss, and of gradients relative to the largest."""
    kind = case.split("/")[1]
    model, params = opened(case, golden)
    config = model.config
    hub = get_family(config.type).hub
    left = config.architecture != "encoder_decoder" or config.positions == "relative" or config.encoder is not None
    batch = inputs(model, kind, left)
    targets, places = heads.targets(kind), [_place(row, size, left) for row, size in enumerate(heads.LENGTHS)]
    if kind == "seq2seq_lm":
        places = [slice(0, size) for size in heads.LENGTHS]

    def total(params):
        output = model.apply({"params": params}, **batch)
        rows = [named_outputs(output, row, place) for row, place in enumerate(places)]
        return sum(loss_of(r, kind, t) for r, t in zip(rows, targets, strict=True)), rows

    if with_gradients:
        (loss, rows), gradients = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=FAST)(params)
    else:
        (loss, rows), gradients = jax.jit(total, compiler_options=FAST)(params), None
    worst = 0.0
    for got, expected in zip(rows, golden["outputs"], strict=True):
        assert got.keys() == expected.keys()
        for key, value in got.items():
            worst = max(worst, float(np.max(np.abs(np.asarray(value) - np.asarray(expected[key])))))
    if gradients is None:
        return worst, abs(float(loss) - golden["loss"]), None
    derived = {name.split(".", 1)[-1] for name in hub.derived(config)}  # not parameters, and without gradients
    # PyTorch's body of CLIP has names without the prefix that files have.
    back = {
        name if name in golden["gradients"] else name.removeprefix(hub.prefix): array
        for name, array in params_to_hf(hub, config, kind, gradients)
        if not any(name.endswith(part) for part in derived)
    }
    assert back.keys() <= golden["gradients"].keys()
    products = {
        key: float(np.sum(back[key].astype(np.float64) * heads.draw(key, back[key].shape, "direction"))) for key in back
    }
    scale = max(abs(value) for value in golden["gradients"].values())
    gradient = max(abs(products[key] - golden["gradients"][key]) for key in products) / max(scale, 1.0)
    return worst, abs(float(loss) - golden["loss"]), gradient
