"""Writes what a judge learns from: pairs that people compared, as questions of `jaxformer judge` with their verdicts.

    python examples/judge_data.py --pairs pairs.jsonl.gz --out judge.jsonl --held-out held_out.jsonl
    python train.py --config configs/assistant/judge.yaml data.path=judge.jsonl
    jaxformer serve --model judge=runs/judge
    jaxformer judge --server http://127.0.0.1:8000/v1 --judge judge --file held_out.jsonl --out judged.jsonl

Each pair is asked in both orders, so that no place is better. The last tenth of the pairs is held out, as it is:
`jaxformer judge` then says how often the judge prefers what people preferred, which is the first answer.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

from jaxformer.evaluation.judge import RUBRIC, question
from jaxformer.tasks.row_readers import ANSWER, split_dialogue

HELD_OUT = 10  # one of so many


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path, required=True, help="chosen and rejected in the format of HH-RLHF")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True)
    parser.add_argument("--rubric", default=RUBRIC, help="what the judge is told to look at")
    parser.add_argument("--longest", type=int, default=1200, help="characters of a pair, at most (default: 1200)")
    options = parser.parse_args()
    opened: Any = gzip.open if options.pairs.suffix == ".gz" else open
    with opened(options.pairs, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if len(row["chosen"]) + len(row["rejected"]) <= options.longest]
    count = len(rows) - len(rows) // HELD_OUT
    with options.out.open("w", encoding="utf-8") as file:
        for row in rows[:count]:
            before, _, good = row["chosen"].rpartition(ANSWER)
            bad = row["rejected"].rpartition(ANSWER)[2]
            for first, second, verdict in ((good, bad, "A"), (bad, good, "B")):
                asked = question(split_dialogue(before), first.strip(), second.strip(), options.rubric)
                said = json.dumps({"verdict": verdict})
                messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
                file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    with options.held_out.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[count:])
    print(f"written: {options.out}, {2 * count:,} questions; {options.held_out}, {len(rows) - count:,} pairs")


if __name__ == "__main__":
    main()
