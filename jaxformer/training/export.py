"""A run's model in the Hugging Face format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flax.traverse_util import unflatten_dict

from jaxformer.hub.save import push_to_hub, save_pretrained
from jaxformer.lora.peft import write_adapter
from jaxformer.models.masked_lm import Discriminator
from jaxformer.models.value_head import without_value
from jaxformer.schema import UserError, local_path
from jaxformer.tokenizers import PreTrainedTokenizer, save_tokenizer
from jaxformer.training.config import RunConfig
from jaxformer.training.metrics import RECORDS
from jaxformer.training.pretrained import open_run, read_params, read_trained


class Trained(NamedTuple):
    """The product of a run: model, parameters, tokenizer, metrics of the last evaluation, configuration.

    ``keys`` are further ones of ``config.json``.
    """

    model: Any
    params: Any
    tokenizer: PreTrainedTokenizer
    metrics: Mapping[str, float]
    config: RunConfig
    keys: Mapping[str, Any]


def load_run(folder: str | Path) -> Trained:
    """The model of a run, from the newest intact checkpoint in its folder; the average of the weights if there is one.

    The data it was trained on is not read.

    Raises:
        UserError: if the folder holds no run, or one that has not saved yet.
    """
    path = local_path(folder)
    run = open_run(path)
    # A value head serves training alone and is in no format: the product of a policy is its language model.
    model, params = without_value(run.model, unflatten_dict(read_params(path), sep="/"))
    if isinstance(model, Discriminator):
        model = model.clone(disentangled=False)
    # Texts are written as in the evaluation.
    settings = json.dumps(run.task.generation(model.config))
    model = model.clone(config=model.config.model_copy(update={"generation": settings}))
    return Trained(model, params, run.tokenizer, _last_metrics(path), run.config, run.task.export_keys)


def _last_metrics(folder: Path) -> dict[str, float]:
    """The results of the last evaluation, by name."""
    path = folder / RECORDS
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if '"eval"' in line]
    if not records:
        return {}
    return {k: float(v) for k, v in records[-1].items() if k not in ("step", "split", "examples", "tokens")}


def export_adapter(folder: str | Path, target: str | Path) -> str:
    """Writes the LoRA factors of a run in the format of the ``peft`` library, with the tokenizer.

    Args:
        folder: ``output_dir`` of the run.
        target: folder to write.

    Returns:
        The folder.

    Raises:
        UserError: if there is no such run, or it trained a whole model.
    """
    target = local_path(target)  # before a model is opened
    run = open_run(local_path(folder))
    if run.config.lora is None:
        raise UserError(f"{folder} trained a whole model, expected a run with lora; leave out --adapter")
    trained = read_trained(local_path(folder))
    base = run.config.model.pretrained
    model, whole = without_value(run.model, trained.get("whole"))
    write_adapter(target, model, trained["factors"], run.config.lora, whole=whole, base=base)
    save_tokenizer(run.tokenizer, target)
    return str(target)


def export(folder: str | Path, target: str | Path, *, push: str | None = None, dtype: str | None = None) -> list[str]:
    """Writes a run's model in the Hugging Face format, and to the Hub if asked.

    Args:
        folder: ``output_dir`` of the run.
        target: folder to write.
        push: ``owner/name`` on the Hub, which the same files are uploaded to.
        dtype: of the file's tensors; default float32.

    Returns:
        The folder, and the address on the Hub.

    Raises:
        UserError: if there is no such run, its model has no Hugging Face format, or the Hub refuses it.
    """
    target = local_path(target)  # before a model is opened
    trained = load_run(folder)
    model, params, tokenizer = trained[:3]
    saved: dict[str, Any] = {"metrics": trained.metrics, "keys": trained.keys, "dtype": dtype}
    written = [str(save_pretrained(target, model, params, tokenizer, **saved))]
    if push is not None:
        written.append(push_to_hub(push, model, params, tokenizer, **saved))
    return written
