"""Cases of the contract of predictions; makes ``contract.json``: what PyTorch predicts with our exports.

    pip install -e ".[test,parity]" && python -m tests.golden.contract

A case is a family and a task. Its model is random, is evaluated on sixteen rows as ``train.py --evaluate`` does it, is
opened by ``jaxformer.pipeline`` as a run and as an export, and the export by PyTorch.
"""

import json
import sys
import tempfile
import warnings
from contextlib import closing
from pathlib import Path

import numpy as np

import jaxformer
from jaxformer.families import FAMILIES
from jaxformer.training.export import export
from jaxformer.training.loop import StopRequest, Trainer
from jaxformer.training.run_folder import open_folder
from tests.golden import tokenizers as golden
from tests.hub import tiny
from tests.training.helpers import make_run, quiet

GOLDEN = Path(__file__).parent / "contract.json"
LENGTH, NEW_TOKENS, LONGEST_ANSWER = 56, 12, 30

# The kind of tokenizer that each family is published with.
TOKENIZERS = {
    **dict.fromkeys(("bert", "distilbert", "electra", "modernbert"), "bert"),
    **dict.fromkeys(("gpt2", "gpt_neox", "bloom", "qwen2", "qwen3"), "gpt2"),
    **dict.fromkeys(("llama", "mistral", "gemma"), "llama"),
    **dict.fromkeys(("t5", "t5_v1_1", "flan_t5", "mt5", "pegasus"), "t5"),
    **dict.fromkeys(("roberta", "bart"), "roberta"),
    **{name: name for name in ("xlm_roberta", "albert", "opt", "mbart", "byt5")},
}
# Sizes that the formats of some families need.
KEYS = {"albert": {"embedding_size": 6}, "gpt_neox": {"rotary_fraction": 0.5}, "bloom": {"intermediate_size": 32}}
# The head of each task's model and its classes.
TASKS = {
    "single": ("sequence_classification", ("no", "perhaps", "yes")),
    "pair": ("sequence_classification", ("no", "perhaps", "yes")),
    "tags": ("token_classification", ("B-X", "I-X", "O")),
    "answers": ("question_answering", ()),
    "rewrites": ("seq2seq_lm", ()),
    "choices": ("multiple_choice", ("LABEL_0",)),
    "scores": ("sequence_classification", ("LABEL_0",)),
    "fills": ("masked_lm", ()),
    "continues": ("causal_lm", ()),
}
SETTINGS = {
    "single": {"type": "sequence_classification"},
    "pair": {"type": "sequence_classification", "text_pair_column": "pair"},
    "tags": {"type": "token_classification", "words_column": "words", "tags_column": "tags"},
    "answers": {"type": "question_answering", "stride": 2, "max_question_tokens": 24, "null_threshold": None},
    "rewrites": {"type": "seq2seq", "source_column": "text", "target_column": "pair", "target_length": NEW_TOKENS},
    "choices": {"type": "multiple_choice", "question_column": "text", "label_column": "choice"},
    "scores": {"type": "reward"},
    "fills": {"type": "masked_lm"},
    "continues": {"type": "instruction", "format": "completion", "columns": {"prompt": "text", "completion": "pair"}},
}
TEXTS = ["the cat sat", "on the mat, a cat", "the mat", "a b c d e f", "sat on the cat", "the </s> cat [SEP] mat"]


def has_task(family, task):
    """True if models of the family have the head; encoders give no rewards, and answers need offsets of tokens."""
    if task == "scores" and FAMILIES[family].defaults.get("architecture") == "encoder":
        return False
    if family == "byt5" and task in ("tags", "answers"):
        return False
    if family in ("roberta", "xlm_roberta") and task == "continues":
        return False  # generate of transformers numbers their positions from 0, their forward pass does not
    return TASKS[task][0] in FAMILIES[family].hub.heads


CASES = [(family, task) for family in TOKENIZERS for task in TASKS if has_task(family, task)]
# Of these PyTorch's predictions are kept.
KEPT = [
    *(("bert", task) for task in ("single", "tags", "answers")),
    *(("gpt2", task) for task in ("tags", "scores")),
    *(("roberta", "pair"), ("llama", "single"), ("t5", "rewrites"), ("mbart", "rewrites")),
]


def rows():
    """Sixteen rows with the columns of every task."""
    found = []
    for number in range(16):
        text, pair = TEXTS[number % 6], TEXTS[(number * 5 + 1) % 6]
        words = text.split()
        found.append(
            {
                "id": str(number),
                "text": text,
                "pair": pair,
                "label": ["no", "yes", "perhaps"][number % 3],
                "words": words,
                "tags": [["O", "B-X", "I-X"][(number + i) % 3] for i in range(len(words))],
                "question": pair,
                "context": text,
                "answers": [{"text": words[0], "answer_start": 0}],
                "choices": [pair, "the mat", "a cat"],
                "choice": number % 3,
                "prompt": "the cat",
                "chosen": " sat on",
                "rejected": " mat " * (number % 3 + 1),
            }
        )
    return found


def evaluated(family, task, folder):
    """The folders of a run and of its export, and the predictions of its evaluation (none with a loss alone)."""
    tokenizer = jaxformer.AutoTokenizer.from_pretrained(golden.write(TOKENIZERS[family], folder / "tokenizer"))
    pad, end = tokenizer.pad_token_id, tokenizer.eos_token_id or tokenizer.sep_token_id
    ids = {"vocab_size": len(tokenizer) + 3, "pad_token_id": pad, "max_length": LENGTH + 4, "num_layers": 1}
    if task == "continues":  # of BERT and BART too, as decoders
        ids["architecture"] = "decoder"
    ids |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": end, "unroll": 1, **KEYS.get(family, {})}
    if FAMILIES[family].defaults.get("architecture") == "encoder_decoder" and family != "mbart":
        start = FAMILIES[family].defaults.get("decoder_start", "pad")
        ids["decoder_start_token_id"] = pad if start == "pad" else end
    head, labels = TASKS[task]
    if head in ("seq2seq_lm", "causal_lm"):  # else a random model may write nothing but special tokens
        suppressed = sorted({*tokenizer.all_special_ids} - {tokenizer.bos_token_id})  # BART's first token is forced
        ids["generation"] = {"suppress_tokens": suppressed, "min_new_tokens": 5}
    jaxformer.save_pretrained(folder / "base", *tiny.make(family, head, labels, **ids), tokenizer)
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()), encoding="utf-8")
    codes = {"source_language": "ko_KR", "target_language": "de_DE"}
    languages = codes if (family, task) == ("mbart", "rewrites") else {}
    keys = {
        "output_dir": str(folder / "run"),
        "model": {"pretrained": str(folder / "base")},
        "task": SETTINGS[task] | languages,
        "data": {"path": str(path), "validation_path": str(path), "cache_dir": str(folder / "cache")},
        "training": {"steps": 1, "batch_size": 8, "sequence_length": LENGTH},
        "logging": {"tensorboard": False, "report": False},
        "sample": {"max_new_tokens": 0},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = make_run(keys)
        with open_folder(run), closing(Trainer(run, quiet(), StopRequest())) as trainer:
            trainer.save(None)
            report = trainer.current_report()
        export(run.folder, folder / "export")
    return run.folder, folder / "export", None if report is None else _predictions(task, report.predictions)


def _predictions(task, predictions):
    if task in ("single", "pair"):
        return [row["probabilities"] for row in predictions]
    if task == "scores":
        return [[row["chosen_score"], row["rejected_score"]] for row in predictions]
    return [row["predicted"] for row in predictions]


def ours(folder, task):
    """The pipeline's probabilities, tags, answers, texts, scores or likeliest tokens; None without a pipeline."""
    data = rows()
    if task == "single":
        found = jaxformer.pipeline("text-classification", folder, top_k=None)([row["text"] for row in data])
        return [{x["label"]: x["score"] for x in some} for some in found]
    if task == "pair":
        pairs = [{"text": row["text"], "text_pair": row["pair"]} for row in data]
        found = jaxformer.pipeline("text-classification", folder, top_k=None)(pairs)
        return [{x["label"]: x["score"] for x in some} for some in found]
    if task == "tags":
        pipe = jaxformer.pipeline("token-classification", folder, ignore_labels=[])
        return [_first_tags(row, pipe([row["words"]], is_split_into_words=True)[0]) for row in data]
    if task == "answers":
        pipe = jaxformer.pipeline("question-answering", folder)
        return [pipe(question=row["question"], context=row["context"])["answer"] for row in data]
    if task == "rewrites":
        pipe = jaxformer.pipeline("text2text-generation", folder)
        return [found["generated_text"] for found in pipe([row["text"] for row in data])]
    if task == "scores":
        pipe = jaxformer.pipeline("text-classification", folder)
        two_sided = pipe.model.config.architecture == "encoder_decoder"
        return [[x["score"] for x in pipe(_answered(pipe.tokenizer, row, two_sided))] for row in data]
    if task == "fills":
        pipe = jaxformer.pipeline("fill-mask", folder, top_k=1)
        return [[x["token"] for x in pipe(_masked(pipe.tokenizer, row))] for row in data]
    if task == "continues":
        keys = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "return_full_text": False}
        found = jaxformer.pipeline("text-generation", folder, **keys)([row["text"] for row in data])
        return [some[0]["generated_text"] for some in found]
    return None


def theirs(folder, task):
    """The same of PyTorch."""
    import torch
    import transformers

    opener = {
        "tags": transformers.AutoModelForTokenClassification,
        "answers": transformers.AutoModelForQuestionAnswering,
        "rewrites": transformers.AutoModelForSeq2SeqLM,
        "choices": transformers.AutoModelForMultipleChoice,
        "fills": transformers.AutoModelForMaskedLM,
        "continues": transformers.AutoModelForCausalLM,
    }.get(task, transformers.AutoModelForSequenceClassification)
    model, tokenizer = opener.from_pretrained(folder).eval(), transformers.AutoTokenizer.from_pretrained(folder)
    predict = {
        "tags": _their_tags,
        "answers": _their_answer,
        "rewrites": _their_text,
        "choices": _their_choice,
        "scores": _their_scores,
        "fills": _their_tokens,
        "continues": _their_text,
    }.get(task, _their_probabilities)
    with torch.no_grad():
        return [predict(model, tokenizer, row, task) for row in rows()]


def _their_probabilities(model, tokenizer, row, task):
    batch = tokenizer(row["text"], row["pair"] if task == "pair" else None, return_tensors="pt")
    scores = model(**batch).logits[0].softmax(-1).tolist()
    return {model.config.id2label[number]: score for number, score in enumerate(scores)}


def _their_tags(model, tokenizer, row, task):
    batch = tokenizer(" ".join(row["words"]), return_offsets_mapping=True, return_tensors="pt")
    places = batch.pop("offset_mapping")[0].tolist()
    best = model(**batch).logits[0].argmax(-1).tolist()
    tokens = zip(places, best, strict=True)
    return _first_tags(row, [{"start": a, "end": b, "entity": model.config.id2label[tag]} for (a, b), tag in tokens])


def _their_answer(model, tokenizer, row, task):
    """The span of greatest probability of all windows, by trying every one."""
    import torch

    cut = {"truncation": "only_second", "max_length": LENGTH, "stride": 2, "return_overflowing_tokens": True}
    windows = tokenizer(row["question"], row["context"], **cut, return_offsets_mapping=True)
    text, found = row["context"], []
    for number, ids in enumerate(windows["input_ids"]):
        inputs = {name: torch.tensor([windows[name][number]]) for name in ("input_ids", "attention_mask")}
        if "token_type_ids" in windows:
            inputs["token_type_ids"] = torch.tensor([windows["token_type_ids"][number]])
        output, owners, places = model(**inputs), windows.sequence_ids(number), windows["offset_mapping"][number]
        words = [owner == 1 and text[a:b].strip() != "" for owner, (a, b) in zip(owners, places, strict=True)]
        allowed = torch.tensor([place == 0 or owner == 1 for place, owner in enumerate(owners)])
        first, last = (
            logits[0].double().masked_fill(~allowed, -1e9).log_softmax(-1).tolist()
            for logits in (output.start_logits, output.end_logits)
        )
        for s in range(len(ids)):
            for e in range(s, min(s + LONGEST_ANSWER, len(ids))):
                if words[s] and words[e]:
                    found.append((first[s] + last[e], text[places[s][0] : places[e][1]].strip()))
    return max(found)[1]


def _their_text(model, tokenizer, row, task):
    batch = tokenizer(row["text"], return_tensors="pt")
    batch.pop("token_type_ids", None)

    def text(tokens):  # ByT5's tokenizer refuses ids of spare rows
        return tokenizer.decode([i for i in tokens.tolist() if i < len(tokenizer)], skip_special_tokens=True)

    if task == "rewrites":  # as generation_config.json says
        return text(model.generate(**batch)[0])
    tokens = model.generate(**batch, do_sample=False, max_new_tokens=NEW_TOKENS)[0]
    # As the pipeline of transformers cuts the prompt: a piece of a word stands differently at the start of a text.
    return text(tokens)[len(text(batch["input_ids"][0])) :]


def _their_choice(model, tokenizer, row, task):
    pairs = tokenizer([row["text"]] * 3, row["choices"], padding=True, return_tensors="pt")
    return int(model(**{name: array[None] for name, array in pairs.items()}).logits[0].argmax())


def _their_scores(model, tokenizer, row, task):
    texts = _answered(tokenizer, row, model.config.is_encoder_decoder)
    return [float(model(**tokenizer(text, return_tensors="pt")).logits) for text in texts]


def _their_tokens(model, tokenizer, row, task):
    batch = tokenizer(_masked(tokenizer, row), return_tensors="pt")
    places = batch["input_ids"][0] == tokenizer.mask_token_id
    return model(**batch).logits[0][places].argmax(-1).tolist()


def _first_tags(row, entities):
    """The tag of the first token of each word, in whose characters may be the blank before the word."""
    text, starts = " ".join(row["words"]), np.cumsum([0, *(len(word) + 1 for word in row["words"])])[:-1]
    tags = {}
    for entity in entities:
        start, end = entity["start"], entity["end"]
        start = end - len(text[start:end].lstrip())
        if start < end:
            tags.setdefault(int(np.searchsorted(starts, start, side="right")) - 1, entity["entity"])
    return [tags.get(number, "O") for number in range(len(row["words"]))]


def _answered(tokenizer, row, two_sided):
    """The prompt with each response as one text, ended as a response ends; an encoder-decoder's tokenizer ends it."""
    end = "" if two_sided else tokenizer.eos_token
    return [row["prompt"] + row[side] + end for side in ("chosen", "rejected")]


def _masked(tokenizer, row):
    """The text with a mask in place of its last word."""
    return " ".join([*row["words"][:-1], tokenizer.mask_token])


def check(task, found, expected):
    """Fails if predictions differ, numbers by more than 2e-5."""
    if task == "scores":
        np.testing.assert_allclose(found, expected, atol=2e-5)
    elif task in ("single", "pair"):
        names = sorted(expected[0])
        np.testing.assert_allclose(
            *([[row[n] for n in names] for row in some] for some in (found, expected)), atol=2e-5
        )
    else:
        assert found == expected


def main():
    """Writes the file."""
    found = {}
    for family, task in KEPT:
        with tempfile.TemporaryDirectory() as folder:
            _, exported, _ = evaluated(family, task, Path(folder))
            found[f"{family}-{task}"] = _rounded(theirs(exported, task))
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return round(value, 7) if isinstance(value, float) else value


if __name__ == "__main__":
    sys.exit(main())
