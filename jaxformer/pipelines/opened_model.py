"""Opens a model from a run's folder, a folder in the Hugging Face format, or a name on the Hub."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.families import get_family
from jaxformer.generation import read_settings
from jaxformer.hub.kinds import abstract_params, kind_of
from jaxformer.hub.pretrained import CONFIG_FILE, GENERATION_FILE, read_checkpoint, read_config
from jaxformer.hub.repository import Repository
from jaxformer.hub.sentence_files import SentenceFormat, format_of, read_sentence_format, score_function
from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.models.config import check_dtype
from jaxformer.models.exact import check_exact, with_numerics
from jaxformer.models.heads import Body
from jaxformer.models.sentence_encoder import SentenceEncoder
from jaxformer.pipelines.task_names import tasks_of
from jaxformer.schema import UserError, local_path
from jaxformer.tokenizers import PreTrainedTokenizer


@dataclass(frozen=True)
class Opened:
    """A model ready for use.

    Attributes:
        name: what it was opened from, for messages.
        model: the module.
        params: its parameters.
        tokenizer: its tokenizer.
        sentences: of a sentence encoder, how the states of a text become one vector; None if nothing says.
        score: of a cross-encoder, the function from its logit to its score, ``sigmoid`` or ``none``; None likewise.
        settings_from: the file with the settings of generation, for messages.
        generation: what it says, as options of ``generate``.
        hf: the keys of ``config.json``.
    """

    name: str
    model: Any
    params: Any
    tokenizer: PreTrainedTokenizer
    sentences: SentenceFormat | None = None
    score: str | None = None
    settings_from: str = "the model's configuration"
    generation: Mapping[str, Any] = field(default_factory=dict)
    hf: Mapping[str, Any] = field(default_factory=dict)

    @property
    def problem(self) -> str | None:
        """A classifier's ``problem_type``, None if nothing says."""
        return self.hf.get("problem_type")


def open_model(
    name: Any,
    kind: str | None = None,
    *,
    params: Any = None,
    tokenizer: Any = None,
    dtype: str | None = None,
    numerics: str | None = None,
    **hub: Any,
) -> Opened:
    """The model ``name`` with its parameters and its tokenizer; the arguments are those of ``pipeline``.

    ``kind`` is the kind of model wanted, as in ``jaxformer.hub.kinds`` (``causal_lm``, ...);
    ``body`` takes the body of any model. Default: the model's own kind.

    Raises:
        UserError: there is no such model, it has no trained head of that kind, or no tokenizer.
    """
    if dtype is not None:
        check_dtype(dtype)
    if isinstance(name, tuple | list) and len(name) == 2:
        name, params = name
    if isinstance(name, nn.Module):
        opened = _given(name, params, tokenizer, kind)
    elif isinstance(name, str | Path):
        if params is not None:
            raise UserError(f"params were given beside the model {str(name)!r}, which has its own; leave them out")
        folder = local_path(name)
        if folder.is_dir() and not (folder / "config.json").exists():
            opened = _run(folder, kind)
        else:
            _refuse_missing_folder(str(name))
            repository = Repository(str(name), **hub)
            opened = _hub(repository, kind, tokenizer is None, dtype)
    else:
        raise UserError(
            f"model is a {type(name).__name__}, expected a folder, a name on the Hub, or a model with its parameters"
        )
    if isinstance(tokenizer, str | Path):
        tokenizer = AutoTokenizer.from_pretrained(tokenizer)
    if tokenizer is not None:
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            raise UserError(
                f"tokenizer is a {type(tokenizer).__name__}, expected one of jaxformer.AutoTokenizer.from_pretrained, "
                "or the name or folder to open it from"
            )
        opened = replace(opened, tokenizer=tokenizer)
    if dtype is not None and opened.model.config.dtype != dtype:
        config = opened.model.config.model_copy(update={"dtype": dtype})
        opened = replace(opened, model=opened.model.clone(config=config))
    if numerics is not None:
        opened = replace(opened, model=opened.model.clone(config=with_numerics(opened.model.config, numerics)))
    check_exact(opened.model.config)
    cast = (lambda x: x.astype(dtype)) if dtype is not None else lambda x: x
    settings = opened.model.config.generation_settings
    if settings and kind_of(opened.model) in ("causal_lm", "seq2seq_lm"):
        opened = replace(opened, generation=read_settings(settings, opened.settings_from))
    # On the device once: a jitted call would send arrays of NumPy there every time.
    return replace(opened, params=jax.tree.map(lambda x: jax.device_put(cast(x)), opened.params))


def _refuse_missing_folder(name: str) -> None:
    """Refuses a name that can only be a path and does not exist."""
    path = local_path(name)
    if not path.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
        near = difflib.get_close_matches(path.name, [entry.name for entry in folder.iterdir()], n=3)
        hint = f"near names in {folder}: {', '.join(near)}" if near else "check the path"
        raise UserError(f"no such folder: {name}, expected a run's folder or one in the Hugging Face format; {hint}")


def _refuse(name: str, found: str, wanted: str, why: str) -> UserError:
    """The error for a model without the head that is wanted."""
    able = ", ".join(tasks_of(found)) or "no task"
    for_what = " or ".join(tasks_of(wanted)[:2]) if wanted != "body" else "it"
    return UserError(
        f"{name} has no trained head {wanted}: {why}; expected a model trained for {for_what}; this one can do: {able}"
    )


def use_of(kind: str, family: str) -> str:
    """The kind that a pre-trained model is used as: BERT as its first head, a discriminator as a body."""
    if kind != "pre_training":
        return kind
    return "body" if family == "electra" else "masked_lm"


def as_kind(name: str, model: Any, params: Any, kind: str | None) -> tuple[Any, Any]:
    """The model and parameters as a model of this kind: itself, or its body; another kind is refused."""
    found = use_of(kind_of(model), model.config.type)
    if kind in (None, found) and found != "body":
        return model, params
    if kind not in (None, "body"):
        raise _refuse(name, found, kind, f"its head is {found}")
    body = Body(model.config)
    if isinstance(model, SentenceEncoder):
        return body, nn.unbox(params)  # with its dense layers
    names = flatten_dict(nn.unbox(abstract_params(body)), sep="/").keys()
    flat = flatten_dict(nn.unbox(params), sep="/")
    return body, unflatten_dict({path: flat[path] for path in names}, sep="/")


def _given(model: nn.Module, params: Any, tokenizer: Any, kind: str | None) -> Opened:
    if params is None or tokenizer is None:
        missing = "params" if params is None else "tokenizer"
        raise UserError(f"a model was given without {missing}, expected model=, params= and tokenizer= together")
    name, given = type(model).__name__, model
    model, params = as_kind(name, model, nn.unbox(params), kind)
    sentences = format_of(given) if isinstance(given, SentenceEncoder) else None
    return Opened(name, model, params, tokenizer, sentences)


def _run(folder: Path, kind: str | None) -> Opened:
    # Imported here: slow, and only needed for a run.
    from jaxformer.training.export import load_run
    from jaxformer.training.sources import CHECKPOINTS
    from jaxformer.training.sources import CONFIG_FILE as RUN_FILE

    if not (folder / RUN_FILE).exists():
        raise UserError(
            f"{folder} holds neither config.json nor {RUN_FILE}, expected a folder in the Hugging Face format or "
            "the output_dir of a run"
        )
    if not (folder / CHECKPOINTS).exists():
        raise UserError(f"{folder} is a run that has not saved a checkpoint yet; train it further")
    trained = load_run(folder)
    model, params = as_kind(str(folder), trained.model, trained.params, kind)
    sentences = None
    if isinstance(trained.model, SentenceEncoder):
        sentences = format_of(trained.model)
    return Opened(
        str(folder),
        model,
        params,
        trained.tokenizer,
        sentences,
        settings_from=f"model.generation in {RUN_FILE} of {folder}",
        hf=trained.keys,
    )


def _hub(repository: Repository, kind: str | None, with_tokenizer: bool, dtype: str | None) -> Opened:
    described = read_config(repository)
    heads = get_family(described.config.type).hub.heads
    named = described.hf.get("architectures") or []
    kinds = (name for name, head in heads.items() if name != "body" and head.architecture in named)
    found = use_of(next(kinds, "body"), described.config.type)
    wanted = found if kind is None else kind
    # Not by the parameters: heads of two kinds may have the same names.
    if found not in (wanted, "body") and wanted != "body":
        raise _refuse(repository.name, found, wanted, f"its head is {found}")
    if wanted not in heads:
        raise _refuse(repository.name, found, wanted, f"{described.config.type} models have none")
    tokenizer = None
    if with_tokenizer:
        r = repository
        options: dict[str, Any] = {"revision": r.revision, "token": r.token, "cache_dir": r.cache_dir}
        tokenizer = AutoTokenizer.from_pretrained(r.name, local_files_only=r.local_files_only, **options)
    model, _, loaded, hf = read_checkpoint(repository, wanted, dtype=dtype or "float32")
    params, sentences, score = unflatten_dict(loaded.params, sep="/"), None, None
    if wanted == "body":
        model = Body(model.config)
        params.pop("pooler", None)  # trained for pairs of sentences, not a part of the states
        if (read := read_sentence_format(repository)) is not None:
            sentences, params = read[0], params | read[1]
    elif loaded.missing:
        raise _refuse(repository.name, found, wanted, f"the checkpoint has no {', '.join(loaded.missing)}")
    elif wanted == "sequence_classification":
        score = score_function(repository, hf)
    return Opened(
        repository.name,
        model,
        params,
        tokenizer,
        sentences,
        score,
        f"{CONFIG_FILE if repository.find(GENERATION_FILE) is None else GENERATION_FILE} of {repository.name}",
        hf=hf,
    )
