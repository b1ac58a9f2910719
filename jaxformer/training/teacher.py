"""The model that a student learns from: opened, checked against the student, read onto the devices of the run."""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.hub.pretrained import read_config, untie
from jaxformer.hub.repository import Repository
from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.hub.weights import open_weights
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError, local_path
from jaxformer.tokenizers import PreTrainedTokenizer
from jaxformer.training.checkpoint import Checkpoints
from jaxformer.training.pretrained import earlier_params, open_run
from jaxformer.training.sources import CHECKPOINTS, CONFIG_FILE, is_run
from jaxformer.training.transfer import place_array

WEIGHT_FILES = (".safetensors", ".msgpack", ".bin")
# What may be said of how a model is computed, whoever it is.
AS_THE_STUDENT = ("dtype", "attention_implementation", "unroll")


@dataclass(frozen=True)
class Teacher:
    """A model to learn from, of which only the description is read yet; the fingerprint changes when the model does."""

    source: str
    config: TransformerConfig
    tokenizer: PreTrainedTokenizer
    fingerprint: str

    def check(self, student: TransformerConfig, tokenizer: PreTrainedTokenizer, length: int, target: int = 0) -> None:
        """Refuses a teacher whose probabilities are not of the student's tokens, saying what differs."""
        said, mine = f"task.teacher is {self.source}", self.config
        if mine.architecture != student.architecture:
            theirs, ours = (f"{c.type} ({c.architecture.replace('_', '-')})" for c in (mine, student))
            raise UserError(
                f"{said}, a {theirs}, and the student a {ours}, expected models of one kind; choose another model.type"
            )
        if other := differing_token(tokenizer, self.tokenizer):
            raise UserError(
                f"{said}, whose tokenizer is not the student's ({other}), expected the same: leave out tokenizer to "
                "take the teacher's"
            )
        if student.vocabulary > mine.vocabulary:
            raise UserError(
                f"model.vocab_size is {student.vocabulary} and that of {said.removeprefix('task.')} {mine.vocabulary}, "
                "expected at most as many; leave it out to take the tokenizer's"
            )
        if student.architecture == "encoder_decoder" and student.decoder_start != mine.decoder_start:
            raise UserError(
                f"{said}, whose decoder starts with {mine.decoder_start}, and the student's with "
                f"{student.decoder_start}, expected the same; set model.decoder_start to {mine.decoder_start}"
            )
        if length > mine.max_length:
            raise UserError(
                f"training.sequence_length is {length} and {said}, which reads {mine.max_length} tokens, expected at "
                "most as many; lower training.sequence_length"
            )
        longest = mine.decoder_side.max_length
        if target > longest:
            raise UserError(
                f"a target of the task may have {target} tokens and {said}, which reads {longest}, expected at "
                "most as many; set task.of.target_length lower"
            )


def differing_token(student: PreTrainedTokenizer, teacher: PreTrainedTokenizer) -> str | None:
    """The first token of the student's that is another in the teacher's, in words; None if all are the same.

    The teacher's may have more: they are no tokens of the student's.
    """
    theirs = {number: token for token, number in teacher.get_vocab().items()}
    for token, number in sorted(student.get_vocab().items(), key=lambda item: item[1]):
        if theirs.get(number) != token:
            return f"{number} is {token!r} there {theirs[number]!r}" if number in theirs else f"it has no {token!r}"
    return None


def open_teacher(source: str, student: TransformerConfig) -> Teacher:
    """Reads the description of a teacher, and none of its weights; raises ``UserError`` if there is no such model."""
    if is_run(source):
        folder = local_path(source)
        run = open_run(folder, "task.teacher")
        said = f"{(folder / CONFIG_FILE).read_text(encoding='utf-8')} {Checkpoints(folder / CHECKPOINTS).steps()[-1:]}"
        config, tokenizer = run.config.model, run.tokenizer
        fingerprint = hashlib.sha256(said.encode()).hexdigest()
    else:
        config, tokenizer, fingerprint = _open_hub(source)
    alike = {key: getattr(student, key) for key in AS_THE_STUDENT}
    return Teacher(source, config.model_copy(update={**alike, "remat": "none"}), tokenizer, fingerprint)


def _open_hub(source: str) -> tuple[TransformerConfig, PreTrainedTokenizer, str]:
    repository = Repository(source)
    described = read_config(repository)
    kind = {"encoder": "masked_lm", "decoder": "causal_lm"}.get(described.config.architecture, "seq2seq_lm")
    config = untie(described, kind, open_weights(repository), source)
    folder = repository.get("config.json").parent
    if repository.folder is None:
        fingerprint = folder.name  # the commit
    else:
        files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_FILES)
        fingerprint = " ".join(f"{path.name} {_checksum(path):08x}" for path in files)
    return config, AutoTokenizer.from_pretrained(source), fingerprint


def _checksum(path: Path) -> int:
    total = 0
    with path.open("rb") as file:
        while part := file.read(1 << 24):
            total = zlib.crc32(part, total)
    return total


def read_teacher(source: str, model: nn.Module, abstract: Any) -> Any:
    """The teacher's parameters, each part on the device that holds it; ``abstract`` are shapes with shardings.

    Raises ``UserError`` if a parameter is missing or has another shape.
    """
    earlier, _ = earlier_params(source, model)
    wanted = flatten_dict(abstract, sep="/")
    params = {}
    for name, leaf in wanted.items():
        found = earlier.pop(name, None)
        if found is None or found.shape != leaf.shape:
            got = "no such parameter" if found is None else f"shape {list(found.shape)}"
            raise UserError(
                f"task.teacher is {source}, expected {name} {list(leaf.shape)} in it, got {got}; choose a model that "
                "was trained to predict tokens"
            )
        params[name] = place_array(found.astype(leaf.dtype, copy=False), leaf.sharding)
    if heads := [name for name in earlier if "classifier" in name and "pair_classifier" not in name]:
        raise UserError(
            f"task.teacher is {source}, which has {heads[0]} and is a classifier, expected a model that was trained to "
            "predict tokens"
        )
    return unflatten_dict(params, sep="/")
