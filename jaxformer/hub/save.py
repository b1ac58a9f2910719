"""Models into the Hugging Face format, in a folder or on the Hub."""

import itertools
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxformer.atomic import write_atomically
from jaxformer.families import get_family
from jaxformer.families.checkpoint import params_to_hf
from jaxformer.families.format import RESOLVED
from jaxformer.hub.card import model_card
from jaxformer.hub.kinds import kind_of
from jaxformer.hub.pretrained import CONFIG_FILE, GENERATION_FILE, describe
from jaxformer.hub.repository import first_line
from jaxformer.hub.sentence_files import write_sentence_files
from jaxformer.hub.weights import SAFETENSORS, SAFETENSORS_INDEX
from jaxformer.models.config import SIDES, TransformerConfig, check_dtype
from jaxformer.models.sentence_encoder import SentenceEncoder
from jaxformer.schema import UserError, local_path
from jaxformer.tokenizers import PreTrainedTokenizer, save_tokenizer

SHARD_BYTES = 5_000_000_000  # above it a checkpoint is cut, as transformers does
CARD_FILE = "README.md"
# Keys that say how a model is run or was started, not what it is: the format need not hold them.
NOT_OF_THE_MODEL = {
    "type",
    "pretrained",
    *SIDES,  # each is compared by itself
    "decoder_start",
    "generation",
    "dropout",
    "attention_dropout",
    "initializer",
    "initializer_range",
    "dtype",
    "numerics",
    "remat",
    "unroll",
    "attention_implementation",
}


def config_json(model: Any) -> dict[str, Any]:
    """The ``config.json`` of a model.

    Raises:
        UserError: if the Hugging Face format cannot say what it is.
    """
    config: TransformerConfig = model.config
    family = get_family(config.type)
    hf = family.hub.to_hf(config, kind_of(model))
    _check_says_it(config, hf)
    if getattr(model, "num_labels", None) is not None:
        names = model.labels or tuple(f"LABEL_{i}" for i in range(model.num_labels))
        hf["id2label"] = {str(i): name for i, name in enumerate(names)}
        hf["label2id"] = {name: i for i, name in enumerate(names)}
    return hf


def _check_says_it(config: TransformerConfig, hf: Mapping[str, Any]) -> None:
    """Reads what is to be written: a switch that the family's format has no word for must not get lost."""
    again = describe(json.loads(json.dumps(hf))).config
    pairs = {"model": (config, again)}
    if config.encoder is not None:
        sides = {f"model.{side}": tuple(getattr(c, f"{side}_side") for c in (config, again)) for side in SIDES}
        pairs = {**sides, **pairs}
    for (at, (written, read)), key in itertools.product(pairs.items(), TransformerConfig.model_fields):
        name = RESOLVED.get(key, key)
        ours, theirs = getattr(written, name), getattr(read, name)
        if key not in NOT_OF_THE_MODEL and ours != theirs:
            raise UserError(
                f"{at}.{key} is {ours!r}, which the Hugging Face format of {config.type} cannot say (it would be read "
                f"as {theirs!r}); expected the family's own switches"
            )


def save_pretrained(
    folder: str | Path,
    model: Any,
    params: Any,
    tokenizer: PreTrainedTokenizer | None = None,
    *,
    metrics: Mapping[str, float] | None = None,
    card: Mapping[str, Any] | None = None,
    keys: Mapping[str, Any] | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Writes a model so that ``AutoModel...`` here and in PyTorch's transformers open it.

    ``config.json``, ``model.safetensors`` (above ``shard_bytes`` in shards, with an index), a model card, and the
    tokenizer's files; of a model that writes text ``generation_config.json`` with its token ids and the settings in
    ``config.generation``; of a sentence encoder the files of sentence-transformers. Nothing of the training's state.

    Args:
        folder: made if need be; files of these names are replaced.
        model: from ``AutoModel...`` or ``build_model``, or one of a task.
        params: its parameters.
        tokenizer: from ``AutoTokenizer``.
        metrics: results that the model card lists, by name.
        card: further keys of the card's head: ``license``, ``language``, ``datasets``, ``base_model``, ...
        keys: further keys of ``config.json``, such as ``problem_type``.
        dtype: of the file's tensors, ``float32`` or ``bfloat16``; default: as the parameters are.
        shard_bytes: size from which on a file is cut.

    Returns:
        The folder.

    Raises:
        UserError: if the format cannot hold this model, or the folder cannot be written.
    """
    if dtype is not None:
        check_dtype(dtype)
    kind, config = kind_of(model), model.config
    hf = config_json(model)
    target = local_path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{target} cannot be made: {error.strerror}; choose another folder") from None
    # What ``model.init`` gives is still in boxes with the names of its axes.
    tensors = params_to_hf(get_family(config.type).hub, config, kind, nn.unbox(params))
    written = _write_weights(target, tensors, dtype, shard_bytes)
    _write_json(target / CONFIG_FILE, {**hf, **(keys or {}), "dtype": written})
    if kind in ("causal_lm", "seq2seq_lm"):
        ids = {key: value for key, value in hf.items() if key.endswith("_token_id")}
        _write_json(target / GENERATION_FILE, {**ids, **config.generation_settings})
    if tokenizer is not None:
        save_tokenizer(tokenizer, target)
    if isinstance(model, SentenceEncoder):
        write_sentence_files(target, model, nn.unbox(params))
    write_atomically(target / CARD_FILE, model_card(target.name, model, metrics or {}, card or {}))
    return target


def _write_weights(folder: Path, tensors: Iterator[tuple[str, np.ndarray]], dtype: str | None, shard_bytes: int) -> str:
    """Writes the tensors and returns the name of their type; no more than a shard is in memory twice."""
    from safetensors.numpy import save_file

    shards: list[tuple[Path, list[str]]] = []
    shard: dict[str, np.ndarray] = {}
    size, total, name = 0, 0, "float32"

    def flush() -> None:
        path = folder / f".shard-{len(shards)}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        shards.append((path, list(shard)))

    for key, array in tensors:
        array = array if dtype is None else array.astype(jnp.dtype(dtype))
        if shard and size + array.nbytes > shard_bytes:
            flush()
            shard, size = {}, 0
        shard[key] = array
        size, total, name = size + array.nbytes, total + array.nbytes, array.dtype.name
    flush()
    for old in (*folder.glob("model-*-of-*.safetensors"), folder / SAFETENSORS, folder / SAFETENSORS_INDEX):
        old.unlink(missing_ok=True)
    if len(shards) == 1:
        shards[0][0].replace(folder / SAFETENSORS)
        return name
    index: dict[str, str] = {}
    for number, (path, keys) in enumerate(shards, 1):
        final = folder / f"model-{number:05}-of-{len(shards):05}.safetensors"
        path.replace(final)
        index |= dict.fromkeys(keys, final.name)
    _write_json(folder / SAFETENSORS_INDEX, {"metadata": {"total_size": total}, "weight_map": index})
    return name


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def push_to_hub(
    name: str,
    model: Any,
    params: Any,
    tokenizer: PreTrainedTokenizer | None = None,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    message: str = "Upload model",
    **saved: Any,
) -> str:
    """Writes a model as ``save_pretrained`` does and uploads it, in one commit.

    Weights of an earlier model that the new files do not replace, such as its shards, are deleted by the same commit.

    Args:
        name: ``owner/name``, or ``name`` of your own; the repository is made if there is none.
        model: as of ``save_pretrained``.
        params: its parameters.
        tokenizer: from ``AutoTokenizer``.
        private: whether a new repository is; default: the owner's.
        token: access token with the right to write; default: the stored one.
        revision: branch, made if there is none; default ``main``.
        message: of the commit.
        **saved: ``metrics``, ``card``, ``keys``, ``dtype``, ``shard_bytes`` of ``save_pretrained``.

    Returns:
        The address of the commit.

    Raises:
        UserError: if the format cannot hold the model, or the Hub refuses it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name!r} is no name on the Hub, expected owner/name: {first_line(error)}") from None
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        path = save_pretrained(folder, model, params, tokenizer, **saved)
        try:
            made = api.create_repo(name, private=private, exist_ok=True)
            metrics, card = saved.get("metrics") or {}, saved.get("card") or {}
            write_atomically(path / CARD_FILE, model_card(made.repo_id, model, metrics, card))
            return _commit(api, made.repo_id, path, revision, message)
        except Exception as error:  # the library, the one below it and the one for large files raise many kinds
            raise UserError(f"{name} could not be uploaded: {_refusal(error)}") from error


# What ``open_weights`` would read: files of these names that a commit does not replace are of the model before.
WEIGHTS = re.compile(r"(model|pytorch_model|flax_model)(-\d+-of-\d+)?\.(safetensors|bin|msgpack)(\.index\.json)?")


def _commit(api: Any, name: str, folder: Path, revision: str | None, message: str) -> str:
    """One commit with all files, so that no one can read half a model; the address of the commit."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(name, branch=revision, exist_ok=True)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    there = api.list_repo_files(name, revision=revision)
    stale = [file for file in there if WEIGHTS.fullmatch(file) and file not in files]
    operations = [
        *(CommitOperationAdd(path_in_repo=file, path_or_fileobj=path) for file, path in files.items()),
        *(CommitOperationDelete(path_in_repo=file) for file in stale),
    ]
    return str(api.create_commit(name, operations, commit_message=message, revision=revision).commit_url)


def _refusal(error: BaseException) -> str:
    """The reason why the Hub refused an upload and what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError

    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # it only says which file it was
        error = error.__cause__
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if status == 401 or isinstance(error, LocalTokenNotFoundError):
        return "expected a valid token with the right to write; log in with `hf auth login` or set HF_TOKEN"
    if status == 403:
        return "this token has no right to write there; use another token, or a name of your own"
    if status is None and isinstance(error, HTTPError):
        return f"the Hub cannot be reached: {first_line(error)}; check the connection and HF_ENDPOINT"
    return f"{first_line(error)}; try again later"
