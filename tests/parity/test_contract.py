"""The same rows give the same predictions in training, in the pipeline, after an export, and in PyTorch on the export.

A fine-tuned model is evaluated by ``train.py --evaluate``, opened by ``jaxformer.pipeline`` as a run and as an export,
and the export by PyTorch.
"""

import json
import warnings

import numpy as np
import pytest

import jaxformer
from jaxformer.families import FAMILIES
from jaxformer.training.export import export
from tests.golden import tokenizers as golden
from tests.hub import tiny
from tests.training.helpers import run_training

pytestmark = pytest.mark.parity

# The kind of tokenizer that each family is published with.
TOKENIZERS = {
    **dict.fromkeys(("bert", "distilbert", "electra", "modernbert"), "bert"),
    **dict.fromkeys(("gpt2", "gpt_neox", "bloom", "qwen2", "qwen3"), "gpt2"),
    **dict.fromkeys(("llama", "mistral", "gemma"), "llama"),
    **dict.fromkeys(("t5", "t5_v1_1", "flan_t5", "mt5", "pegasus"), "t5"),
    **dict.fromkeys(("roberta", "bart"), "roberta"),
    **{name: name for name in ("xlm_roberta", "albert", "opt", "mbart", "byt5")},
}
TEXTS = ["the cat sat", "on the mat, a cat", "the mat", "a b c d e f", "sat on the cat", "the </s> cat [SEP] mat"]
TASKS = {
    "single": {"type": "sequence_classification"},
    "pair": {"type": "sequence_classification", "text_pair_column": "pair"},
    "tags": {"type": "token_classification", "words_column": "words", "tags_column": "tags"},
    "answers": {"type": "question_answering", "stride": 2, "max_question_tokens": 8, "null_threshold": None},
    "rewrites": {"type": "seq2seq", "source_column": "text", "target_column": "pair", "target_length": 12},
}
CASES = [(family, "single") for family in ("bert", "distilbert")]


def rows(what):
    """Sixteen rows."""
    found = []
    for number in range(16):
        text, pair = TEXTS[number % 6], TEXTS[(number * 5 + 1) % 6]
        row = {"text": text, "pair": pair, "label": ["no", "yes", "perhaps"][number % 3], "id": str(number)}
        words = text.split()
        row |= {"words": words, "tags": [["O", "B-X", "I-X"][(number + i) % 3] for i in range(len(words))]}
        row |= {"question": pair, "context": text, "answers": [{"text": words[0], "answer_start": 0}]}
        found.append(row)
    return found


@pytest.fixture
def trained(request, tmp_path):
    """The folder of a run of two steps on a random model of the family."""
    family, what = request.param
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(golden.write(TOKENIZERS[family], tmp_path / "tokenizer"))
    pad = tokenizer.pad_token_id
    ids = {"vocab_size": len(tokenizer) + 3, "pad_token_id": pad, "max_length": 40, "num_layers": 1, "unroll": 1}
    ids |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id or tokenizer.sep_token_id}
    if FAMILIES[family].defaults.get("architecture") == "encoder_decoder" and family != "mbart":
        start = pad if FAMILIES[family].defaults.get("decoder_start", "pad") == "pad" else ids["eos_token_id"]
        ids["decoder_start_token_id"] = start
    if family == "albert":
        ids["embedding_size"] = 6
    kind = "seq2seq_lm" if what == "rewrites" else "body"
    jaxformer.save_pretrained(tmp_path / "base", *tiny.make(family, kind, **ids), tokenizer)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(what)), encoding="utf-8")
    task = dict(TASKS[what])
    if family == "mbart" and what == "rewrites":
        task |= {"source_language": "ko_KR", "target_language": "de_DE"}
    keys = {
        "output_dir": str(tmp_path / "run"),
        "model": {"pretrained": str(tmp_path / "base"), "dropout": 0.0, "attention_dropout": 0.0},
        "task": task,
        "data": {"path": str(path), "validation_path": str(path), "cache_dir": str(tmp_path / "cache")},
        "optimizer": {"learning_rate": 1e-2},
        "training": {"steps": 2, "batch_size": 8, "sequence_length": 36},
        "logging": {"tensorboard": False},
        "sample": {"max_new_tokens": 0},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = run_training(keys).folder
        export(run, tmp_path / "export")
    predictions = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    return what, run, tmp_path / "export", predictions


def ours(folder, what, data):
    """The pipeline's scores of each class, tags of the first token of each word, answers, or texts."""
    if what in ("single", "pair"):
        pipe = jaxformer.pipeline("text-classification", folder, top_k=None)
        items = [{"text": r["text"], "text_pair": r["pair"]} if what == "pair" else r["text"] for r in data]
        return [{x["label"]: x["score"] for x in found} for found in pipe(items)]
    if what == "tags":
        pipe = jaxformer.pipeline("token-classification", folder, ignore_labels=[])
        return [_first_tags(row, pipe([row["words"]], is_split_into_words=True)[0]) for row in data]
    if what == "answers":
        pipe = jaxformer.pipeline("question-answering", folder, max_answer_len=30)
        return [pipe(question=row["question"], context=row["context"])["answer"] for row in data]
    pipe = jaxformer.pipeline("text2text-generation", folder, max_new_tokens=12, do_sample=False)
    return [found["generated_text"] for found in pipe([row["text"] for row in data])]


def _first_tags(row, entities):
    """The tag of the first token of each word."""
    starts = np.cumsum([0, *(len(word) + 1 for word in row["words"])])[:-1]
    tags = {}
    for entity in entities:
        word = int(np.searchsorted(starts, entity["start"], side="right")) - 1
        tags.setdefault(word, entity["entity"])
    return [tags.get(number, "O") for number in range(len(row["words"]))]


def theirs(folder, what, data):
    """The same of PyTorch."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    opener = {
        "tags": transformers.AutoModelForTokenClassification,
        "answers": transformers.AutoModelForQuestionAnswering,
        "rewrites": transformers.AutoModelForSeq2SeqLM,
    }.get(what, transformers.AutoModelForSequenceClassification)
    model = opener.from_pretrained(folder).eval()
    found = []
    for row in data:
        if what == "tags":
            batch = tokenizer(row["words"], is_split_into_words=True, return_tensors="pt")
        elif what == "answers":
            batch = tokenizer(row["question"], row["context"], return_tensors="pt")
        else:
            batch = tokenizer(row["text"], row["pair"] if what == "pair" else None, return_tensors="pt")
        with torch.no_grad():
            if what == "rewrites":
                tokens = model.generate(**batch, max_new_tokens=12, do_sample=False)
                found.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
                continue
            output = model(**batch)
        if what == "tags":
            words = batch.word_ids()
            best = output.logits[0].argmax(-1).tolist()
            first = {word: place for place, word in reversed(list(enumerate(words))) if word is not None}
            found.append(
                [model.config.id2label[best[first[w]]] if w in first else "O" for w in range(len(row["words"]))]
            )
        elif what == "answers":
            found.append((output.start_logits[0].numpy(), output.end_logits[0].numpy()))
        else:
            scores = output.logits[0].softmax(-1).tolist()
            found.append({model.config.id2label[number]: score for number, score in enumerate(scores)})
    return found


@pytest.mark.parametrize("trained", CASES, indirect=True, ids=lambda case: "-".join(case))
def test_predictions_are_the_same_everywhere(trained):
    what, run, exported, predictions = trained
    data = rows(what)
    of_run, of_export = ours(run, what, data), ours(exported, what, data)
    if what in ("single", "pair"):
        evaluated = [row["probabilities"] for row in predictions]
        for others in (of_run, of_export, theirs(exported, what, data)):
            for mine, other in zip(evaluated, others, strict=True):
                assert other == pytest.approx(mine, abs=2e-5)
        return
    evaluated = [row["predicted"] for row in predictions]
    assert of_run == evaluated and of_export == evaluated
    if what != "answers":  # the best span is searched for there in a way of its own
        assert theirs(exported, what, data) == evaluated
