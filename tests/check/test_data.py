"""Checks of data: tiny runs of every objective pass, and each deliberate mistake fails by its name and place."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxformer import functional as F
from jaxformer.check.data import CHECKS
from jaxformer.check.meant import Compared, config_of, fold
from jaxformer.check.outcome import outcomes
from jaxformer.tasks import (
    causal_lm,
    denoising,
    instruction,
    masked_lm,
    prefix_lm,
    records,
    replaced_token_detection,
    responses,
    seq2seq,
    span_corruption,
)
from jaxformer.tasks.chat_template import ChatWriter
from jaxformer.tasks.distillation import DistillationConfig
from jaxformer.tasks.multiple_choice import MultipleChoiceConfig
from jaxformer.tasks.question_answering import QuestionAnswering
from jaxformer.tasks.row_readers import PairReader
from jaxformer.tasks.seq2seq import Seq2SeqConfig
from jaxformer.tasks.sequence_classification import SequenceClassificationConfig
from jaxformer.tasks.token_classification import TokenClassificationConfig
from jaxformer.tokenizers import TokenizerConfig, add_special_tokens, train_tokenizer
from tests.training.helpers import make_run, tiny_keys

WORDS = ["Kim", "ran", "far", "away", "from", "the", "old", "dog", "and", "sat", "on", "a", "mat", "again"]
PHRASES = [" ".join(WORDS[(n * 3 + i) % 14] for i in range(3 + n % 4)) + f" {n}" for n in range(40)]
TEXTS = [{"text": f"{a}. {b}, then {c}."} for a, b, c in zip(PHRASES, PHRASES[5:], PHRASES[9:], strict=False)]
LABELLED = [{"text": text, "pair": text[::-1], "label": "yn"[n % 2], "score": n / 7} for n, text in enumerate(PHRASES)]
TAGGED = [{"words": t.split(), "tags": ["B-X" if w == "Kim" else "O" for w in t.split()]} for t in PHRASES]
JOINED = [{"words": list(t), "tags": ["B-X" if c == "K" else "O" for c in t]} for t in PHRASES]
SPANS = [
    {"question": "who", "context": f"the dog saw {t}", "answers": {"text": [t[:7].strip()], "answer_start": [12]}}
    for t in PHRASES
]
SCORED = {"text_pair_column": "pair", "label_column": "score", "label_range": (0, 7)}
RELATED = [{"text": t, "positive": t[::-1], "no": [f"{t} not", "why"][: n % 3] or None} for n, t in enumerate(PHRASES)]
NEGATIVES = {"negatives_column": "no"}
CHOICES = [{"question": t, "choices": [t[:5], f"{t} not", "why"], "label": n % 3} for n, t in enumerate(PHRASES)]
PAIRS = [{"source": t, "target": t.upper()[:20]} for t in PHRASES]
ANSWERS = [{"prompt": f"Say {t}:", "completion": f" It is {t}"} for t in PHRASES]
TURNS = (("user", "tell me of"), ("assistant", "answer"))
DIALOGUES = [
    {"messages": [{"role": role, "content": f"{word} {n} {t}"} for n in "12" for role, word in TURNS]} for t in PHRASES
]
SIDES = [{"prompt": f"Say {t}:", "chosen": f" it is {t}", "rejected": f" no {n}"} for n, t in enumerate(PHRASES)]
HUMAN = "\n\nHuman: tell me of {}\n\nAssistant: {}"
HH = [{"chosen": HUMAN.format(t, f"it is {t}"), "rejected": HUMAN.format(t, f"no {n}")} for n, t in enumerate(PHRASES)]
CHAT = {"chat_template": "human_assistant"}
POLICY = {"reward": "reward.py:score", "max_new_tokens": 8, "group_size": 2}
CLASSES = {"type": "sequence_classification"}
CASES = {
    "causal": ("gpt2", {"type": "causal_lm"}, TEXTS),
    "masked": ("bert", {"type": "masked_lm", "rate": 0.3}, TEXTS),
    "whole words": ("bert", {"type": "masked_lm", "rate": 0.3, "whole_words": True}, TEXTS),
    "next sentence": ("bert", {"type": "masked_lm", "sentence_pairs": "next_sentence"}, TEXTS),
    "sentence order": ("bert", {"type": "masked_lm", "sentence_pairs": "sentence_order"}, TEXTS),
    "replaced": ("electra", {"type": "replaced_token_detection"}, TEXTS),
    "spans": ("t5", {"type": "span_corruption"}, TEXTS),
    "denoising": ("bart", {"type": "denoising"}, TEXTS),
    "prefix": ("gpt2", {"type": "prefix_lm"}, TEXTS),
    "prefix, two-sided": ("t5", {"type": "prefix_lm"}, TEXTS),
    "classes": ("bert", CLASSES, LABELLED),
    "pairs of texts": ("bert", {**CLASSES, "text_pair_column": "pair"}, LABELLED),
    "numbers": ("bert", {**CLASSES, "problem": "regression", "label_column": "score"}, LABELLED),
    "tags": ("bert", {"type": "token_classification"}, TAGGED),
    "joined tags": ("bert", {"type": "token_classification", "joined": True}, JOINED),
    "answers": ("bert", {"type": "question_answering", "max_question_tokens": 8, "stride": 4}, SPANS),
    "choices": ("bert", {"type": "multiple_choice"}, CHOICES),
    "vectors": (
        "bert",
        {"type": "embedding", **SCORED, "query_prompt": "find: ", "matryoshka": [4]},
        LABELLED,
    ),
    "vectors and negatives": ("gpt2", {"type": "embedding", **NEGATIVES, "pooling": "last", "dense_size": 6}, RELATED),
    "scores": ("bert", {"type": "ranking", **SCORED}, LABELLED),
    "lists": ("bert", {"type": "ranking", **NEGATIVES}, RELATED),
    "seq2seq": ("t5", {"type": "seq2seq", "target_length": 32, "prefix": "up: "}, PAIRS),
    "completions": ("gpt2", {"type": "instruction"}, ANSWERS),
    "completions, two-sided": ("bart", {"type": "instruction"}, ANSWERS),
    "dialogues": ("gpt2", {"type": "instruction", **CHAT}, DIALOGUES),
    "preferences": ("gpt2", {"type": "dpo"}, SIDES),
    "preferences, two-sided": ("bart", {"type": "dpo"}, SIDES),
    "mismatched": ("gpt2", {"type": "dpo", "loss": "kto"}, SIDES),
    "preferred dialogues": ("gpt2", {"type": "dpo", **CHAT}, HH),
    "rewards": ("gpt2", {"type": "reward"}, HH),
    "prompts": ("gpt2", {"type": "grpo", **POLICY}, SIDES),
    "prompts of dialogues": ("gpt2", {"type": "grpo", **POLICY, **CHAT}, HH),
}


def run_of(tmp_path, name, length=128, rows=None, validation=None, tokenizer=None):
    """A prepared run of a case."""
    model, task, known = CASES[name]
    for file, some in (("rows", rows or known), ("validation", validation)):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some or ())
        (tmp_path / f"{file}.jsonl").write_text(text, encoding="utf-8")
    made = tiny_keys(tmp_path)
    made["model"] = {"type": model, "hidden_size": 8, "num_heads": 2, "num_layers": 1, "max_length": length}
    made["data"] |= {"path": str(tmp_path / "rows.jsonl"), "validation_fraction": 0}
    made["tokenizer"] = tokenizer or made["tokenizer"]
    if validation:
        made["data"]["validation_path"] = str(tmp_path / "validation.jsonl")
    return make_run({**made, "task": task})


def found(run):
    return {outcome.name: outcome for outcome in outcomes(CHECKS, run)}


@pytest.mark.parametrize("name", CASES)
def test_every_objective_passes(tmp_path, name):
    results = found(run_of(tmp_path, name))
    assert {n: (o.compared, o.place) for n, o in results.items() if o.passed is False} == {}
    assert results["trained tokens"].passed and results["trained tokens"].notes
    assert all(len(line) <= 100 for line in results["trained tokens"].notes)
    shifted = {"causal", "masked", "spans", "denoising", "seq2seq", "completions", "preferences", "prefix"}
    assert results["shifted labels"].passed or name not in shifted
    assert (results["hidden share"].passed is None) == (name not in HIDING)


HIDING = {"masked", "whole words", "next sentence", "sentence order", "replaced", "spans", "denoising"}


def test_the_inner_objective_of_a_distillation():
    inner = causal_lm.CausalLMConfig()
    task = DistillationConfig(teacher="a run", of=inner)
    assert config_of(SimpleNamespace(config=SimpleNamespace(task=task))) is task.of
    assert config_of(SimpleNamespace(config=SimpleNamespace(task=inner))) is inner


def changed(change):
    """A patch of a function or method: ``change`` of its result, which also gets the arguments."""
    return lambda original: lambda *args, **keys: change(original(*args, **keys), *args, **keys)


def labels_of(function):
    """A patch of features that changes the labels."""
    return changed(lambda batch, *args, **keys: {**batch, "labels": function(batch)})


def no_mask(row, *args):
    """All tokens are learned, those of the prompt too."""
    text = args[0]
    return {**row, "labels": np.array([*text.prompt, *text.response], np.int32)[1:]}


def all_learned(rendered, *args, **keys):
    return rendered._replace(learned=[(0, len(rendered.text))])


def without(part):
    """The pieces of rows without a part of each."""
    return changed(lambda rows, *args: [[piece[part] for piece in row] for row in rows])


def source_as_target(original):
    return lambda rows, *args: original([[(source, source) for source, _ in row] for row in rows], *args)


swapped = changed(lambda pair, *args: pair._replace(chosen=pair.rejected, rejected=pair.chosen))
turned = changed(lambda tags, *args: [*tags[1:], tags[0]])
seen = labels_of(
    lambda b: np.where(b["labels"] >= 0, np.take_along_axis(b["input_ids"], b["masked_positions"], 1), F.IGNORE)
)
endless = changed(lambda e, *args: responses.Encoded(e.prompt, e.response[:-1], e.learned[:-1]))
LANGUAGE, MASKED, ENCODER = causal_lm.CausalLM, masked_lm.MaskedLanguageModelling, responses.ResponseEncoder
# A case, what is patched and how, and the place of the failure.
MISTAKES = {
    "labels are the inputs": ("causal", LANGUAGE, "features", labels_of(lambda b: b["input_ids"]), "row 1"),
    "documents run on": (
        "causal",
        LANGUAGE,
        "features",
        labels_of(lambda b: np.append(b["input_ids"][:, 1:], b["labels"][:, -1:], axis=1)),
        "(rows.jsonl:1, token 61): label: trained 'a (97)', meant 'nothing'",
    ),
    "labels are what the model sees": ("masked", MASKED, "features", seen, "row 1"),
    "spans in another order": (
        "spans",
        span_corruption,
        "corrupt_spans",
        changed(lambda pair, *args, **keys: (pair[0], np.append(pair[1][-2::-1], pair[1][-1:]))),
        "row 1",
    ),
    "the holes are asked for": ("denoising", denoising, "packed_pairs", source_as_target, "row 1"),
    "the end of each text is lost": ("prefix", prefix_lm, "pieces_of", without(slice(-1)), "row 2"),
    "the start of each text is lost": ("prefix, two-sided", prefix_lm, "pieces_of", without(slice(1, None)), "row "),
    "a text is reversed": (
        "replaced",
        replaced_token_detection,
        "pieces_of",
        without(slice(None, None, -1)),
        "row 1",
    ),
    "classes in another order": (
        "classes",
        records.LabelledTask,
        "label_number",
        changed(lambda n, *args: 1 - n),
        "line 1: label: trained 'n', meant 'y'",
    ),
    "texts in another order": (
        "pairs of texts",
        SequenceClassificationConfig,
        "texts",
        changed(lambda texts, *args: texts[::-1]),
        "line 1: text",
    ),
    "another number": (
        "numbers",
        SequenceClassificationConfig,
        "target_of",
        changed(lambda n, *args: n + 1),
        "line 1: number: trained '1', meant '0'",
    ),
    "tags of the next words": ("tags", TokenClassificationConfig, "tags_of", turned, "line 1: tags"),
    "tags of the next characters": ("joined tags", TokenClassificationConfig, "tags_of", turned, "line 1: tags"),
    "answers begin too late": (
        "answers",
        QuestionAnswering,
        "span_labels",
        changed(lambda at, *args: (at[0] + 2, at[1] + 2) if at[0] else at),
        "line 1: answer",
    ),
    "choices from 1": (
        "choices",
        MultipleChoiceConfig,
        "label_of",
        changed(lambda n, *args: (n + 1) % 3),
        "line 1: the right choice",
    ),
    "no prefix": ("seq2seq", Seq2SeqConfig, "texts", changed(lambda t, *args: [t[0][4:], t[1]]), "line 1: source"),
    "no end": (
        "seq2seq",
        seq2seq,
        "two_sided_row",
        lambda original: lambda prompt, response, start: original(prompt, response[:-1], start),
        "no end token",
    ),
    "prompts are trained": ("completions", instruction, "causal_row", changed(no_mask), "line 1: answer: trained 'ayk"),
    "questions are trained": ("dialogues", ChatWriter, "write", changed(all_learned), "line 1: answers"),
    "no end, two-sided": ("completions, two-sided", ENCODER, "_answer", endless, "no end token"),
    "the rejected one is preferred": (
        "preferences",
        PairReader,
        "read",
        swapped,
        "line 1: chosen: trained 'no0', meant 'it",
    ),
    "the rejected one is preferred, two-sided": (
        "preferences, two-sided",
        PairReader,
        "read",
        swapped,
        "line 1: chosen",
    ),
    "the rejected dialogue is preferred": ("preferred dialogues", PairReader, "read", swapped, "line 1: chosen"),
    "the rejected one is rewarded": ("rewards", PairReader, "read", swapped, "line 1: chosen"),
    "prompts lose their end": (
        "prompts",
        ENCODER,
        "prompts",
        changed(lambda rows, *args: [ids[:-3] for ids in rows]),
        "line 1: prompt",
    ),
    "dialogues lose their question": (
        "prompts of dialogues",
        ENCODER,
        "chat_prompt",
        changed(lambda ids, *args: ids[-11:]),
        "line 1: prompt",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_objective_fails(tmp_path, monkeypatch, mistake):
    name, owner, attribute, patch, place = MISTAKES[mistake]
    original = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, patch(original))
    outcome = found(run_of(tmp_path, name))["trained tokens"]
    assert outcome.passed is False and place in outcome.place, outcome
    assert outcome.cause and "nanochat #582" in outcome.bug


def test_nothing_is_learned_of_the_questions(tmp_path, monkeypatch):
    monkeypatch.setattr(QuestionAnswering, "span_labels", lambda *args: (0, 0))
    outcome = found(run_of(tmp_path, "answers"))["trained share"]
    assert outcome.passed is False and outcome.difference == 1 and outcome.place.startswith("row 1: '<s>who")


def test_labels_that_are_not_the_next_tokens(tmp_path, monkeypatch):
    features = causal_lm.CausalLM.features
    monkeypatch.setattr(causal_lm.CausalLM, "features", labels_of(lambda b: b["input_ids"])(features))
    outcome = found(run_of(tmp_path, "causal"))["shifted labels"]
    assert outcome.passed is False and outcome.place.startswith("row 1, token 1: trained ")
    assert "MaxText #4476" in outcome.bug


def test_a_decoder_that_reads_its_target(tmp_path, monkeypatch):
    unshifted = changed(lambda row, *args: {**row, "decoder_input_ids": row["labels"]})
    monkeypatch.setattr(seq2seq, "two_sided_row", unshifted(seq2seq.two_sided_row))
    assert found(run_of(tmp_path, "seq2seq"))["shifted labels"].place.startswith(
        "row 1, token 1: trained 'D (68)', expected '<pad> ("
    )


def test_another_share_is_hidden(tmp_path, monkeypatch):
    half = lambda original: lambda *args: original(*args[:2], args[2]._replace(rate=0.5), args[3])  # noqa: E731
    monkeypatch.setattr(masked_lm, "mask_tokens", half(masked_lm.mask_tokens))
    keys = CASES["masked"][1]
    monkeypatch.setitem(CASES, "masked", ("bert", {**keys, "rate": 0.15}, TEXTS))
    masked = masked_lm.masked_features
    wide = lambda texts, masking, g: masked(texts, masking._replace(rate=0.5), g)  # noqa: E731
    monkeypatch.setattr(masked_lm, "masked_features", wide)
    outcome = found(run_of(tmp_path, "masked"))["hidden share"]
    assert outcome.passed is False and abs(outcome.difference - 0.35) < 0.02


def test_a_text_that_does_not_come_back(tmp_path):
    tokenizer = train_tokenizer(TokenizerConfig(type="byte"), ["a"])
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("dog", "cat")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    outcome = found(run_of(tmp_path, "causal", tokenizer={"type": "pretrained", "path": str(tmp_path / "tokenizer")}))
    outcome = outcome["round trip"]
    assert outcome.passed is False and "cat" in outcome.place and "dog" in outcome.place


def test_unknown_tokens(tmp_path):
    vocabulary = {
        token: n for n, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS[:9], "n", "y"])
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")),
        unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    results = found(run_of(tmp_path, "classes", tokenizer={"type": "pretrained", "path": str(tmp_path / "tokenizer")}))
    assert results["trained tokens"].passed and results["round trip"].passed
    outcome = results["unknown tokens"]
    assert outcome.passed is False and outcome.place.endswith("line 1: '0'") and 0.2 < outcome.difference < 0.7


def test_special_tokens_in_texts(tmp_path):
    rows = [{**row, "text": "a <|endoftext|> b" if n in (3, 5, 6) else row["text"]} for n, row in enumerate(LABELLED)]
    outcome = found(run_of(tmp_path, "classes", rows=rows))["special tokens"]
    assert outcome.passed and outcome.notes[0].startswith("3 texts contain one, read as text, the first ")
    tokenizer = add_special_tokens(train_tokenizer(TokenizerConfig(type="byte"), ["a"]), ("pad", "cls", "sep"))
    tokenizer.split_special_tokens = False
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    keys = {"type": "pretrained", "path": str(tmp_path / "tokenizer")}
    outcome = found(run_of(tmp_path, "classes", rows=rows, tokenizer=keys))["special tokens"]
    assert outcome.passed is False and outcome.difference == 3 / 40 and "line 4: '<|endoftext|>'" in outcome.place


def test_texts_that_are_cut_or_left_out(tmp_path):
    rows = [{**row, "text": row["text"] * (5 if n < 30 else 1)} for n, row in enumerate(LABELLED)]
    outcome = found(run_of(tmp_path, "classes", length=32, rows=rows))["cut or left out"]
    assert outcome.passed is False and outcome.difference >= 0.75 and "line 1: " in outcome.place
    rows = [{**row, "label": None if n < 3 else row["label"]} for n, row in enumerate(LABELLED)]
    outcome = found(run_of(tmp_path, "classes", rows=rows))["cut or left out"]
    assert outcome.passed and outcome.difference == 3 / 40 and "line 1: column 'label'" in outcome.notes[0]


def test_empty_texts(tmp_path):
    rows = [{**row, "text": " " if n == 7 else row["text"]} for n, row in enumerate(LABELLED)]
    outcome = found(run_of(tmp_path, "classes", rows=rows))["empty texts"]
    assert outcome.passed is False and outcome.difference == 1 / 40 and outcome.place.endswith("line 8")


def test_validation_texts_that_are_trained(tmp_path):
    new = [{"text": f"unseen {n}", "label": "y"} for n in range(8)]
    assert found(run_of(tmp_path, "classes", validation=new))["train and validation"].difference == 0
    same = [{"text": PHRASES[4].upper(), "label": "y"}, *new[1:]]
    outcome = found(run_of(tmp_path, "classes", validation=same))["train and validation"]
    assert outcome.passed is False and outcome.difference == 1 / 8
    assert "validation.jsonl, line 1 is " in outcome.place and "rows.jsonl, line 5: " in outcome.place
    outcome = found(run_of(tmp_path, "causal", validation=TEXTS[:2]))["train and validation"]
    assert outcome.difference == 1 and "document 1 is document 1: 'Kim ran far 0" in outcome.place


def test_a_class_without_examples(tmp_path, monkeypatch):
    model, task, rows = CASES["classes"]
    monkeypatch.setitem(CASES, "classes", (model, {**task, "labels": ["n", "y", "z"]}, rows))
    new = [{"text": f"unseen {n}", "label": "z"} for n in range(2)]
    outcome = found(run_of(tmp_path, "classes", validation=new))["labels"]
    assert outcome.passed is False and outcome.place == "'z' (2 times in validation)"


def test_a_class_spelt_in_another_way_in_validation(tmp_path):
    new = [{"text": f"unseen {n}", "label": "Y" if n else "y"} for n in range(3)]
    outcome = found(run_of(tmp_path, "classes", validation=new))["labels"]
    assert outcome.passed is False and outcome.place == "label 'Y' of 2 validation records is no class"


def test_one_class_alone_is_said(tmp_path):
    rows = [{**row, "label": "n" if n else "y"} for n, row in enumerate(LABELLED)]
    outcome = found(run_of(tmp_path, "classes", rows=rows))["labels"]
    assert outcome.passed and outcome.notes[1].startswith("warning: 97.5% are n")


def test_what_counts_as_the_same_text():
    assert fold("Ünïcode ﬁ\u0301 A\u200bB") == "unicodefiab"
    assert Compared("", "ab", ("ab", "cd"), cut=True).agrees and Compared("", "ac", ("ab", "cd"), cut=True).agrees
    assert not Compared("", "bc", ("ab", "cd"), cut=True).agrees and not Compared("", "ab", ("ab", "cd")).agrees
    assert Compared("", "xabycdz", ("ab", "cd"), within=True, absent=("b",)).agrees
    assert not Compared("", "xabycdz", ("cd", "ab"), within=True).agrees
    assert not Compared("", "xabycdz", ("cd",), within=True, absent=("ab",)).agrees


def test_texts_that_repeat_in_training_may_repeat_in_validation(tmp_path):
    rows = [LABELLED[n % 5] for n in range(40)]
    outcome = found(run_of(tmp_path, "classes", rows=rows, validation=LABELLED[:3]))["train and validation"]
    assert outcome.passed and outcome.difference == 1 and outcome.notes[0].startswith("3 texts are in both")
