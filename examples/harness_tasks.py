"""Writes tasks of the lm-evaluation-harness for files on this machine, and texts to train a model on them.

    python examples/harness_tasks.py --data DATA --out tasks
    jaxformer evaluate --model runs/mine --include-path tasks/ --tasks nli_ko,topics_ko,sentiment_en --num-fewshot 2

``DATA`` has a folder for each dataset (the table below says which, and which files), each file JSON lines. A prompt and
its answer are one text, so that a language model learns a task from ``tasks/train.jsonl``.
"""

import argparse
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Template


class Task(NamedTuple):
    """A task.

    Attributes:
        files: of training rows and of those to evaluate, in the folder of data.
        prompt: in Jinja, of a row's keys.
        target: in Jinja, the answer; of a choice its number.
        choices: the answers; None: the answer is written.
    """

    files: tuple[str, str]
    prompt: str
    target: str
    choices: tuple[str, ...] | None = None


LABELS = "{{ %s.index(label) }}"
NLI = "전제: {{ premise }}\n가설: {{ hypothesis }}\n관계:"
RELATIONS = LABELS % ["entailment", "neutral", "contradiction"]
TOPICS = ["IT과학", "경제", "사회", "생활문화", "세계", "스포츠", "정치"]
QUESTION = "Passage: {{ context }}\nQuestion: {{ question }}\nAnswer:"
TASKS = {
    "nli_ko": Task(("klue_nli/train.jsonl.gz", "klue_nli/dev.jsonl.gz"), NLI, RELATIONS, (" 함의", " 중립", " 모순")),
    "xnli_ko": Task(
        ("kornli_xnli/train.jsonl.gz", "kornli_xnli/dev.jsonl.gz"), NLI, RELATIONS, (" 함의", " 중립", " 모순")
    ),
    "sentiment_ko": Task(
        ("nsmc/train.jsonl.gz", "nsmc/dev.jsonl.gz"), "영화평: {{ document }}\n감정:", "{{ label }}", (" 부정", " 긍정")
    ),
    "sentiment_en": Task(
        ("sst2/train.jsonl.gz", "sst2/dev.jsonl.gz"),
        "Review: {{ sentence }}\nSentiment:",
        "{{ label }}",
        (" negative", " positive"),
    ),
    "topics_ko": Task(
        ("klue_ynat/train.jsonl.gz", "klue_ynat/validation.jsonl.gz"),
        "제목: {{ title }}\n분야:",
        LABELS % TOPICS,
        tuple(f" {topic}" for topic in TOPICS),
    ),
    "questions_en": Task(("xquad_en/train.jsonl.gz", "xquad_en/dev.jsonl.gz"), QUESTION, "{{ answers.text[0] }}"),
}


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file."""
    opened: Any = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def settings_of(name: str, task: Task, data: Path) -> dict[str, Any]:
    """The task as the harness reads it."""
    files = {"train": str(data / task.files[0]), "test": str(data / task.files[1])}
    settings: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "training_split": "train",
        "fewshot_split": "train",
        "test_split": "test",
        "doc_to_text": task.prompt,
        "doc_to_target": task.target,
        "target_delimiter": "",
        "fewshot_delimiter": "\n\n",
        "metadata": {"version": 1.0},
    }
    if task.choices is not None:
        metrics = [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")
        ]
        return {
            **settings,
            "output_type": "multiple_choice",
            "doc_to_choice": list(task.choices),
            "metric_list": metrics,
        }
    exact = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    exact |= {"ignore_case": True, "ignore_punctuation": True}
    written = {"until": ["\n"], "max_gen_toks": 24, "do_sample": False}
    # The answer is written after a space.
    return {
        **settings,
        "target_delimiter": " ",
        "output_type": "generate_until",
        "generation_kwargs": written,
        "metric_list": [exact],
        "filter_list": [
            {"name": "stripped", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]}
        ],
    }


def text_of(row: dict[str, Any], task: Task) -> str:
    """A row's prompt with its answer, as the harness would join them."""
    target = Template(task.target).render(**row)
    answer = f" {target}" if task.choices is None else task.choices[int(target)]
    return Template(task.prompt).render(**row) + answer


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each dataset")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--rows", type=int, default=5000, help="training rows of each task in train.jsonl")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    count = 0
    with (options.out / "train.jsonl").open("w", encoding="utf-8") as train:
        for name, task in TASKS.items():
            if not (options.data / task.files[1]).exists():
                print(f"{name}: there is no {options.data / task.files[1]}, left out")
                continue
            settings = settings_of(name, task, options.data.resolve())
            text = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
            (options.out / f"{name}.yaml").write_text(text, encoding="utf-8")
            for _, row in zip(range(options.rows), rows_of(options.data / task.files[0]), strict=False):
                train.write(json.dumps({"text": text_of(row, task)}, ensure_ascii=False) + "\n")
                count += 1
    print(f"written: {options.out}, {count:,} texts in train.jsonl")


if __name__ == "__main__":
    main()
