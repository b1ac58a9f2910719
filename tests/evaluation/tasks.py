"""Small tasks of the harness in a folder, of every kind of request."""

import json

import yaml

from tests.pipelines import tiny

WORDS = tiny.WORDS.split()
NAMES = ("tiny_choice", "tiny_letter", "tiny_text", "tiny_written")


def rows(count=12):
    """A row for each number, with texts of different lengths."""
    return [
        {
            "text": " ".join(WORDS[(number + place * 3) % len(WORDS)] for place in range(2 + number % 7)),
            "label": number % 3,
            "whole": " ".join(WORDS[(number * 5 + place * 7) % len(WORDS)] for place in range(5 + 9 * number)),
        }
        for number in range(count)
    ]


def write(folder):
    """Writes the tasks and their rows; returns the folder's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {split: str(folder / "rows.jsonl") for split in ("train", "test")}},
        "test_split": "test",
        "training_split": "train",
        "fewshot_split": "train",
        "fewshot_delimiter": "\n",
    }
    accuracy = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    choice = {
        "doc_to_text": "{{ text }}:",
        "doc_to_target": "label",
        "doc_to_choice": [" good", " bad work", " old river hills"],
        "output_type": "multiple_choice",
        "metric_list": accuracy,
    }
    measures = [{"metric": metric, "higher_is_better": False} for metric in ("word_perplexity", "bits_per_byte")]
    tasks = {
        "tiny_choice": choice,
        "tiny_letter": {**choice, "doc_to_choice": ["a", "b", "c"]},
        "tiny_text": {
            "doc_to_text": "",
            "doc_to_target": "whole",
            "output_type": "loglikelihood_rolling",
            "metric_list": measures,
        },
        "tiny_written": {
            "doc_to_text": "{{ text }}",
            "doc_to_target": "good",
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["ill"], "max_gen_toks": 9, "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        },
    }
    for name, task in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **common, **task}))
    return str(folder)
