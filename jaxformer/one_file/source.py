"""Opens what one file is asked of: a configuration, a family's name, a run, or a model in the Hugging Face format."""

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict

from jaxformer.external import class_defaults
from jaxformer.families import FAMILIES, build_model, get_family
from jaxformer.hub.kinds import abstract_params
from jaxformer.hub.pretrained import read_checkpoint, read_config
from jaxformer.hub.repository import Repository
from jaxformer.models.heads import Body, QuestionAnswering, SequenceClassifier, TokenClassifier
from jaxformer.models.masked_lm import Discriminator, MaskedLM
from jaxformer.schema import UserError, local_path, nearest
from jaxformer.tasks import name_of
from jaxformer.training.config import RunConfig
from jaxformer.training.export import load_run
from jaxformer.training.sources import is_run, load_config

TRAINED = ("bpe", "wordpiece", "unigram")  # tokenizers whose size is the configured one


@dataclass(frozen=True)
class Source:
    """A model to be written as one file.

    Attributes:
        model: the module; it computes in float32 with fast numerics.
        name: what it was opened from.
        params: its parameters by name, None for a configuration alone.
        notes: lines for the user on what is assumed.
    """

    model: Any
    name: str
    params: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def read_source(name: str, overrides: tuple[str, ...] = ()) -> Source:
    """The model of a YAML file of ``train.py``, a family's name, a run's folder, or one in the Hugging Face format.

    Args:
        name: the file, family, folder, ``owner/name`` on the Hub, or a first override, such as ``model.type=bert``.
        overrides: ``key.path=value``, for a configuration.

    Raises:
        UserError: if there is no such model, or its sizes are not known.
    """
    if "=" in name:
        name, overrides = "", (name, *overrides)
    if name in FAMILIES or name == "" or local_path(name).suffix in (".yaml", ".yml"):
        return _configured(name, overrides)
    if overrides:
        raise UserError(f"{overrides[0]!r} is given with {name}, which is trained: leave it out, or give a YAML file")
    return _trained(name)


def _configured(name: str, overrides: tuple[str, ...]) -> Source:
    is_family = name in FAMILIES
    given = (f"model.type={name}", *overrides) if is_family else overrides
    config = load_config(name if name and not is_family else None, given)
    notes: list[str] = []
    if config.model.vocab_size is None:
        size, said = _vocabulary(config, bare=not name or is_family)
        notes.append(f"model.vocab_size is not set: {size:,}, {said}")
        config = config.model_copy(update={"model": config.model.model_copy(update={"vocab_size": size})})
    origin = " ".join([*([name] if name else []), *overrides])
    return _plain(_model_of(config), origin, None, notes)


def _vocabulary(config: RunConfig, bare: bool) -> tuple[int, str]:
    """The size of the vocabulary that nothing gives, and where it is from."""
    c, family = config.tokenizer, get_family(config.model.type)
    if bare and family.format is not None and c == type(c)():
        kind = family.format.model_type
        return int(class_defaults(kind)["vocab_size"]), f"the default of {kind} in transformers"
    if c.type in TRAINED:
        return c.vocab_size, "tokenizer.vocab_size, which training may exceed by special tokens"
    raise UserError(
        f"model.vocab_size is not set and tokenizer.type is {c.type!r}, whose size is known once it is opened; "
        "give model.vocab_size=N"
    )


def _model_of(config: RunConfig) -> Any:
    """The model with the head of a run's objective."""
    task: Any = getattr(config.task, "of", config.task)
    model, kind = config.model, name_of(task)
    if kind == "masked_lm":
        return MaskedLM(model, sentence_pairs=task.sentence_pairs != "none")
    if kind == "replaced_token_detection":
        return Discriminator(model)
    if kind == "reward" or getattr(task, "problem", None) == "regression":
        return SequenceClassifier(model, 1)
    if kind in ("sequence_classification", "token_classification"):
        if task.labels is None:
            raise UserError("task.labels is not set and comes from the data of a run; give task.labels=[a, b]")
        head = SequenceClassifier if kind == "sequence_classification" else TokenClassifier
        return head(model, len(task.labels))
    if kind == "question_answering":
        return QuestionAnswering(model)
    if kind == "multiple_choice":
        raise UserError("task.type is multiple_choice, for which there is no file; expected another objective")
    return build_model(model)


def _trained(name: str) -> Source:
    if is_run(name):
        trained = load_run(name)
        return _plain(trained.model, name, flatten_dict(nn.unbox(trained.params), sep="/"))
    repository = Repository(name)
    try:
        described = read_config(repository)
    except UserError as error:
        # One word may be a family, misspelt.
        raise UserError(f"{error}{nearest(name, FAMILIES)}") from error
    heads = get_family(described.config.type).hub.heads
    named = described.hf.get("architectures") or []
    kind = next((kind for kind, head in heads.items() if kind != "body" and head.architecture in named), "body")
    model, _, loaded, _ = read_checkpoint(repository, kind)
    if any(path.startswith("pooler/") for path in loaded.missing) and isinstance(model, Body):
        model = model.clone(pooled=False)
    return _plain(model, name, loaded.params)


def _plain(model: Any, name: str, params: Any, notes: list[str] | None = None) -> Source:
    """The model in float32 with fast numerics and without what only training reads."""
    c, notes = model.config, [*(notes or [])]
    if c.dtype != "float32":
        notes.append(f"model.dtype is {c.dtype}: the file computes in float32")
    if c.numerics != "fast":
        notes.append(f"model.numerics is {c.numerics}: the file computes as with fast")
    model = model.clone(config=c.model_copy(update={"dtype": "float32", "numerics": "fast"}))
    if isinstance(model, Discriminator):
        model = model.clone(generator_config=None, disentangled=False)
    if params is not None:
        names = flatten_dict(dict(abstract_params(model)), sep="/").keys()
        lacking = sorted(names - params.keys())
        if lacking:
            raise UserError(f"{name} has no {', '.join(lacking)}, expected it for its head; open a model that has it")
        params = {path: params[path] for path in names}
    return Source(model, name, params, notes)
