"""The model that a student learns from: opened, checked against the student, read onto the devices of the run."""

import hashlib
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.hub.pretrained import read_config, untie
from jaxformer.hub.repository import Repository
from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.hub.weights import open_weights
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError
from jaxformer.tasks.distillation import WithTeacher
from jaxformer.tokenizers import PreTrainedTokenizer
from jaxformer.training.adapter import Adapter
from jaxformer.training.checkpoint import Checkpoints
from jaxformer.training.pretrained import earlier_params
from jaxformer.training.sources import CHECKPOINTS, CONFIG_FILE, check_run, is_run
from jaxformer.training.transfer import place_array

TEACHER, STUDENT = "teacher", "student"
WEIGHT_FILES = (".safetensors", ".msgpack", ".bin")
# What may be said of how a model is computed, whoever it is.
AS_THE_STUDENT = ("dtype", "attention_implementation", "unroll")


@dataclass(frozen=True)
class Teacher:
    """A model to learn from, of which nothing but its description is read yet.

    Attributes:
        source: as the configuration names it.
        config: of the model.
        tokenizer: that it was trained with.
        fingerprint: changes when the model does.
    """

    source: str
    config: TransformerConfig
    tokenizer: PreTrainedTokenizer
    fingerprint: str

    def check(self, student: TransformerConfig, tokenizer: PreTrainedTokenizer, length: int) -> None:
        """Refuses a teacher whose probabilities are not of the student's tokens.

        Raises:
            UserError: saying what differs.
        """
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
    """Reads what a teacher is, and none of its weights.

    Raises:
        UserError: if there is no such model.
    """
    if is_run(source):
        config, tokenizer, fingerprint = _open_run(Path(source).expanduser())
    else:
        config, tokenizer, fingerprint = _open_hub(source)
    alike = {key: getattr(student, key) for key in AS_THE_STUDENT}
    return Teacher(source, config.model_copy(update={**alike, "remat": "none"}), tokenizer, fingerprint)


def _open_run(folder: Path) -> tuple[TransformerConfig, PreTrainedTokenizer, str]:
    from jaxformer.training.pretrained import open_run

    check_run(folder, "task.teacher")
    run = open_run(folder)
    steps = Checkpoints(folder / CHECKPOINTS).steps()
    said = f"{(folder / CONFIG_FILE).read_text(encoding='utf-8')} {steps[-1:]}"
    return run.config.model, run.tokenizer, hashlib.sha256(said.encode()).hexdigest()


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
    """The teacher's parameters, each part on the device that holds it.

    Args:
        source: as the configuration names it.
        model: the teacher's.
        abstract: shapes of its parameters, with shardings.

    Raises:
        UserError: if a parameter is missing or has another shape.
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


@dataclass(frozen=True)
class Taught:
    """A run's division with a teacher in its frozen part, beside what LoRA freezes of the student, if it does.

    Attributes:
        boxed: shapes of the teacher's parameters with their logical axes.
        student: the same of the student's.
        adapter: where the student learns factors.
    """

    boxed: Any
    student: Any
    adapter: Adapter | None = None

    @cached_property
    def shapes(self) -> Any:
        """Shapes of the student's parameters."""
        return nn.unbox(self.student)

    def boxed_parts(self) -> tuple[Any, Any]:
        """Shapes of the frozen and the trained part with their logical axes."""
        frozen, trained = (None, self.student) if self.adapter is None else self.adapter.boxed_parts()
        return {TEACHER: self.boxed, STUDENT: frozen}, trained

    def begin(self, key: jax.Array, params: Any) -> tuple[Any, Any]:
        """The two parts of a new student, for their shapes: the teacher is zeros here."""
        frozen, trained = (None, params) if self.adapter is None else self.adapter.begin(key, params)
        teacher = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nn.unbox(self.boxed))
        return {TEACHER: teacher, STUDENT: frozen}, trained

    def kept(self, path: str, array: jax.Array) -> Any:
        """A parameter of the student in the form in which the run stores it."""
        return array if self.adapter is None else self.adapter.kept(path, array)

    def begin_from(self, key: jax.Array, params: Any, shardings: Any) -> tuple[Any, Any]:
        """See ``Division``; the teacher is not included."""
        frozen, trained = (None, params) if self.adapter is None else self.adapter.begin_from(key, params, shardings)
        return {STUDENT: frozen}, trained

    def joined(self, frozen: Any, trained: Any) -> Any:
        """The student's parameters without factors."""
        return trained if self.adapter is None else self.adapter.joined(frozen[STUDENT], trained)

    def assemble(
        self, frozen: Any, trained: Any, dropout_key: jax.Array | None = None, example_ids: jax.Array | None = None
    ) -> WithTeacher:
        """The parameters of student and teacher."""
        student = trained
        if self.adapter is not None:
            student = self.adapter.assemble(frozen[STUDENT], trained, dropout_key, example_ids)
        return WithTeacher(student, frozen[TEACHER])

    def merged(self, frozen: Any, trained: Any) -> Any:
        """The student's parameters as arrays alone."""
        return trained if self.adapter is None else self.adapter.merged(frozen[STUDENT], trained)
