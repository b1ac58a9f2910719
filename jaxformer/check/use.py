"""Checks of the use of what a run trains: written and read again, tokenized by a pipeline, generated from."""

import importlib
import importlib.util
import json
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

from jaxformer.check.compare import Difference, difference
from jaxformer.check.model import TOLERANCE, ModelSubject, outputs
from jaxformer.check.outcome import Checks, DoesNotApplyError, Measured
from jaxformer.check.textbook import label_log_probs
from jaxformer.check.training import RunSubject
from jaxformer.families import get_family
from jaxformer.generation import generate
from jaxformer.hub import auto
from jaxformer.hub.kinds import KINDS, kind_of
from jaxformer.hub.save import save_pretrained
from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.models import Decoder, EncoderDecoder
from jaxformer.models.masked_lm import Discriminator
from jaxformer.models.sentence_encoder import SentenceEncoder
from jaxformer.models.value_head import without_value
from jaxformer.pipelines import pipeline
from jaxformer.pipelines.opened_model import as_kind
from jaxformer.schema import UserError
from jaxformer.tasks.responses import ResponseTask

CHECKS = Checks("use")
RECORDS = 8  # whose tokens are compared
NEW_TOKENS = 6
# The pipeline that answers what an objective trains.
PIPELINES = {
    "sequence_classification": "text-classification",
    "token_classification": "token-classification",
    "question_answering": "question-answering",
    "seq2seq": "text2text-generation",
}


def _as_exported(subject: ModelSubject) -> tuple[Any, Any]:
    """The model and the parameters that an export keeps: no value head, and no generator beside a discriminator."""
    model, params = without_value(subject.model, subject.params)
    if isinstance(model, Discriminator):
        model = model.clone(generator_config=None)
        params = {name: tree for name, tree in params.items() if not name.startswith("generator")}
    if isinstance(model, SentenceEncoder):  # its dense layers are in files of their own
        model, params = as_kind("the model", model, params, "body")
        params = {name: tree for name, tree in params.items() if not name.startswith("dense_layers")}
    return model, params


def _exported(subject: ModelSubject, tokenizer: Any, folder: Path, keys: Mapping[str, Any] | None = None) -> Path:
    model, params = _as_exported(subject)
    kind = kind_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if kind not in get_family(model.config.type).hub.heads:
                raise DoesNotApplyError(f"the Hugging Face format has no {kind} of {model.config.type}")
            return save_pretrained(folder, model, params, tokenizer, keys=keys)
        except UserError as reason:  # a family or a switch that the format has no word for
            raise DoesNotApplyError(str(reason)) from reason


def language_model(subject: ModelSubject) -> ModelSubject:
    """The subject without a value head, if it is a language model."""
    model, params = without_value(subject.model, subject.params)
    if not isinstance(model, Decoder | EncoderDecoder):
        raise DoesNotApplyError(f"a {type(model).__name__} writes no text")
    return replace(subject, model=model, params=params)


MODEL_CHECKS = Checks("use")


@dataclass(frozen=True)
class UseSubject:
    """A model with its tokenizer, and the run that trains it.

    Attributes:
        model_subject: the model, with parameters and texts as ids.
        tokenizer: None where there is none.
        sample_texts: some texts of the data.
        run_subject: None for a model alone.
    """

    model_subject: ModelSubject
    tokenizer: Any = None
    sample_texts: tuple[str, ...] = ()
    run_subject: RunSubject | None = None


@MODEL_CHECKS.add(
    "written and read again",
    cause="a parameter, a switch, a class name or a token id is lost or renamed on its way to the format and back",
    bug="EasyDeL #168: a tied head was lost; maxtext #551, #2914, #3003: models that were not portable",
)
def round_trip(subject: UseSubject) -> Measured:
    """Outputs, parameters, class names and token ids of a model, against those of its export opened again."""
    here, tokenizer = subject.model_subject, subject.tokenizer
    model, params = _as_exported(here)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _exported(here, tokenizer, Path(folder))
        opened, read = getattr(auto, KINDS[kind_of(model)].opener).from_pretrained(folder)
        theirs = None if tokenizer is None else AutoTokenizer.from_pretrained(folder)
    got, expected = flatten_dict(nn.unbox(read), sep="/"), flatten_dict(params, sep="/")
    wrong = [f"{name} is {'lost' if name in expected else 'new'}" for name in got.keys() ^ expected.keys()]
    if wrong:
        return Measured("names of parameters", float("inf"), 0.0, "; ".join(wrong[:4]))
    if not model.config.first_norm:  # the first block's is not used, and the format has none
        for name in [name for name in expected if name.startswith("layers/attention_norm/")]:
            got[name], expected[name] = got[name][1:], expected[name][1:]
    found = [difference(got, expected)]
    there = replace(here, model=opened, params=read)
    plain = replace(here, model=model, params=params)
    found += [difference(a, b) for a, b in zip(there.alone, plain.alone, strict=True)]
    worst = max(found, key=lambda each: each.value)
    place = worst.place
    for name in ("labels", "num_labels"):
        before, after = getattr(model, name, None), getattr(opened, name, None)
        if before and before != after and not (name == "labels" and not before):
            worst, place = Difference(float("inf"), ""), f"{name}: {after}, expected {before}"
    for name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        before, after = getattr(model.config, name), getattr(opened.config, name)
        if before is not None and before != after:
            worst, place = Difference(float("inf"), ""), f"{name}: {after}, expected {before}"
    if tokenizer is not None and (text := _other_tokens(tokenizer, theirs, subject.sample_texts)) is not None:
        worst, place = Difference(float("inf"), ""), f"tokens of {text!r}"
    return Measured("export opened again | the model", worst.value, TOLERANCE, place)


def _other_tokens(before: Any, after: Any, texts: Sequence[str]) -> str | None:
    """The first text that two tokenizers read differently."""
    return next((t for t in texts if before(t)["input_ids"] != after(t)["input_ids"]), None)


@MODEL_CHECKS.add(
    "PyTorch computes the same",
    cause="a tensor is written under another name, transposed or in another order, or config.json says another switch",
    bug="maxtext #551, #2914, #3003: models that were not portable",
)
def pytorch(subject: UseSubject) -> Measured:
    """Outputs of the export in PyTorch, where transformers and torch are installed."""
    if importlib.util.find_spec("torch") is None:
        raise DoesNotApplyError("torch is not installed")
    torch, transformers = (importlib.import_module(name) for name in ("torch", "transformers"))
    here = subject.model_subject
    model, params = _as_exported(here)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _exported(here, None, Path(folder))
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        theirs = getattr(transformers, KINDS[kind_of(model)].opener).from_pretrained(folder).eval().float()
    plain = replace(here, model=model, params=params)
    row = plain.row(1)
    with torch.no_grad():
        inputs = {name: torch.tensor(np.asarray(array, np.int64)) for name, array in row.items()}
        if kind_of(model) == "multiple_choice":
            inputs = {name: array[None] for name, array in inputs.items()}
        found = theirs(**inputs)
    ours = plain.of_row({k: np.asarray(v) for k, v in outputs(model, params, row).items()}, 0)
    renamed = {"logits": "prediction_logits", "pair_logits": "seq_relationship_logits"}
    got, expected = {}, {}
    for name, array in ours.items():
        other = getattr(found, name, None)
        other = getattr(found, renamed.get(name, ""), None) if other is None else other
        if other is not None:
            expected[name] = other.reshape(-1, *other.shape[2:]).numpy() if other.dim() > 2 else other[0].numpy()
            got[name] = array.reshape(expected[name].shape)
    if not got:
        raise DoesNotApplyError(f"PyTorch's {type(theirs).__name__} has none of {', '.join(ours)}")
    apart = difference(got, expected)
    return Measured(f"{', '.join(got)} | transformers' {type(theirs).__name__}", apart.value, TOLERANCE, apart.place)


@MODEL_CHECKS.add(
    "sampler's log-probabilities = full pass",
    cause="generation computes with other masks, positions or weights than training",
    bug="marin #1879: sampler's and trainer's log-probabilities differed by 4e-3",
)
def sampler(subject: UseSubject) -> Measured:
    """Log-probabilities of drawn tokens as generation gives them, against those of the full pass over the text."""
    here = language_model(subject.model_subject)
    drawn = _generated(here, range(len(here.texts)), do_sample=True, temperature=1.0)
    each = []
    for number, (tokens, got) in enumerate(zip(np.asarray(drawn.tokens), drawn.log_probs, strict=True)):
        expected = label_log_probs(_logits(here, _prompt(here, number), tokens), tokens)
        found = difference({"log_probs": np.asarray(got)}, {"log_probs": expected}, least=1.0)
        each.append(Difference(found.value, f"text {number}: {found.place}"))
    worst = max(each, key=lambda x: x.value)
    return Measured(f"{NEW_TOKENS} drawn tokens, nats | the full pass", worst.value, TOLERANCE, worst.place)


def _prompt(here: ModelSubject, number: int) -> np.ndarray:
    return here.texts[number][: here.config.max_length - NEW_TOKENS - 1]


def _generated(here: ModelSubject, numbers: Sequence[int], **options: Any) -> Any:
    """Texts written after some prompts, each with a seed of its own."""
    options = {"max_new_tokens": NEW_TOKENS, "eos_token_id": (), **options}
    prompts = [_prompt(here, n).tolist() for n in numbers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generate(here.model, here.params, prompts, seed=[7 + n for n in numbers], **options)


def _logits(here: ModelSubject, text: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Logits ``[M, V]`` of each of ``tokens [M]`` after a text, or as a target, by one full pass."""
    c = here.config
    if here.two_sided:
        start = c.decoder_start_token_id
        if start is None:  # mBART's targets then begin with the source's last token, its language
            start = int(text[-1]) if c.decoder_start == "last" else 0
        return here.outputs(input_ids=text[None], decoder_input_ids=np.array([[start, *tokens[:-1]]]))["logits"][0]
    return here.outputs(input_ids=np.concatenate([text, tokens[:-1]])[None])["logits"][0, len(text) - 1 :]


@MODEL_CHECKS.add(
    "generation is a row's own",
    cause="padding, a neighbour or the size of the batch changes what is written",
    bug="transformers #26564: positions and padding",
)
def neighbours(subject: UseSubject) -> Measured:
    """Greedy, drawn and beam-searched texts of a batch of prompts, against those of each prompt alone."""
    here = language_model(subject.model_subject)
    wrong = []
    for said, options in (("greedy", {}), ("drawn", {"do_sample": True}), ("beams", {"num_beams": 2})):
        batch = _generated(here, range(len(here.texts)), **options)
        for number in range(1, len(here.texts)):
            alone = _generated(here, [number], **options)
            if not np.array_equal(np.asarray(alone.tokens)[0], np.asarray(batch.tokens)[number]):
                wrong.append(
                    f"{said}, prompt {number}: {np.asarray(batch.tokens)[number].tolist()}, alone "
                    f"{np.asarray(alone.tokens)[0].tolist()}"
                )
    return Measured("texts of a batch | of each prompt alone", len(wrong), 0, "; ".join(wrong[:2]))


@MODEL_CHECKS.add(
    "greedy = the likeliest token",
    cause="generation reads other weights than the model, or a rule changes what is written",
)
def greedy(subject: UseSubject) -> Measured:
    """Tokens written greedily, against the likeliest token of full passes, one after the other."""
    here = language_model(subject.model_subject)
    text = _prompt(here, 2)
    written = np.asarray(_generated(here, [2]).tokens)[0]
    expected: list[int] = []
    for _ in written:
        expected.append(int(np.argmax(_logits(here, text, np.array([*expected, 0]))[-1])))
    wrong = int(np.sum(written != np.array(expected)))
    return Measured("greedy tokens | argmax of full passes", wrong, 0, f"{written.tolist()}, expected {expected}")


CHECKS.extend(MODEL_CHECKS)


@CHECKS.add(
    "training frame = prediction frame",
    cause="a pipeline puts other special tokens, a prefix or another template around a text than training did",
    bug="trl #4147: other tokens were trained than meant",
)
def frame(subject: UseSubject) -> Measured:
    """The tokens of some records as training reads them, against those that the pipeline reads."""
    assert subject.run_subject is not None, "only of a run"
    run = subject.run_subject.run
    task, kind = run.task, run.config.task.type
    if run.config.task.reads == "text":
        raise DoesNotApplyError("rows of pre-training hold whole documents; a pipeline reads texts")
    records = list(islice(iter(run.splits.train), RECORDS))
    here = subject.model_subject
    if kind == "reward":
        raise DoesNotApplyError("a reward model reads prompt and response as one text: see the reward's place")
    if kind in PIPELINES:
        pairs, name = _items(run, records), PIPELINES[kind]
    elif isinstance(task, ResponseTask):
        pairs, name = _prompts(task, records), "text2text-generation" if task.two_sided else "text-generation"
    else:
        raise DoesNotApplyError(f"no pipeline answers {kind}")
    with tempfile.TemporaryDirectory() as folder:
        settings = json.dumps(task.generation(here.config))
        _exported(here.switched(generation=settings), run.tokenizer, Path(folder), task.export_keys)
        asked = pipeline(name, folder)
    wrong = []
    given = {"is_split_into_words": isinstance(pairs[0][0], list)} if kind == "token_classification" else {}
    for number, (item, expected) in enumerate(pairs):
        if len(expected) != 1 or len(expected[0]) >= run.config.sequence_length:
            continue  # a text that is too long is cut in training, and read in windows or refused by a pipeline
        got = [list(row.inputs["input_ids"]) for row in asked.encode([item], asked.parse(given))[0]]
        if len(got) == 1 and got != expected:
            wrong.append(_apart(run.tokenizer, number, got[0], expected[0]))
    return Measured(f"tokens of {len(pairs)} records | in a {name} pipeline", len(wrong), 0, "; ".join(wrong[:1]))


def _apart(tokenizer: Any, number: int, got: list[int], expected: list[int]) -> str:
    first = next(
        (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b), min(len(got), len(expected))
    )
    shown = [tokenizer.convert_ids_to_tokens(ids[max(0, first - 1) : first + 3]) for ids in (got, expected)]
    return f"record {number}, token {first}: the pipeline reads {shown[0]}, training {shown[1]}"


def _prompts(task: ResponseTask, records: Sequence[Any]) -> list[tuple[Any, list[list[int]]]]:
    """Prompts as a pipeline takes them, each with its tokens in training."""
    found: list[tuple[Any, list[list[int]]]] = []
    encoder = task.encoder
    for record in records:
        parts = task.config.parts(record)
        prompt = parts[0]
        if isinstance(prompt, str):
            ids = encoder.prompts([prompt])[0]
            found.append((prompt, [ids]))
        elif prompt and not task.two_sided and prompt[-1]["role"] == "user":
            found.append((list(prompt), [encoder.chat_prompt(list(prompt))]))
    if not found:
        raise DoesNotApplyError("no record has a prompt by itself")
    return found


def _items(run: Any, records: Sequence[Any]) -> list[tuple[Any, list[list[int]]]]:
    """Inputs of the objective's pipeline, each with its tokens in training."""
    c, kind = run.config.task, run.config.task.type
    found = []
    for record in records:
        rows = run.task.rows([record])
        taken = rows.take(np.arange(rows.num_rows))
        features = run.task.features(taken, [np.random.default_rng(0)] * rows.num_rows, rows)
        mask = features.get("attention_mask", np.ones_like(features["input_ids"])) > 0
        ids = [row[real].tolist() for row, real in zip(features["input_ids"], mask, strict=True)]
        if kind == "sequence_classification":
            pair = c.text_pair_column
            item: Any = (
                record[c.text_column] if pair is None else {"text": record[c.text_column], "text_pair": record[pair]}
            )
        elif kind == "token_classification":
            item = "".join(c.words_of(record)) if c.joined else c.words_of(record)
        elif kind == "question_answering":
            item = {"question": record[c.question_column], "context": record[c.context_column]}
        else:
            item = record[c.source_column]
        found.append((item, ids))
    return found
