"""Sums with answers of which many are wrong, and the reward that knows the right ones.

python examples/sums.py runs/sums.jsonl                      # writes the data
python train.py --config configs/sums/imitate.yaml           # learns from them, wrong answers and all
python train.py --config configs/sums/ppo.yaml               # learns from the reward alone
python train.py --config configs/sums/grpo.yaml
"""

import json
import random
import sys
from pathlib import Path


def right(prompts: list[str], completions: list[str], **_: object) -> list[float]:
    """1 for the right sum, else 0: what ``task.reward: examples/sums.py:right`` calls."""
    sums = (sum(map(int, prompt.rstrip("=").split("+"))) for prompt in prompts)
    return [float(completion == str(total)) for total, completion in zip(sums, completions, strict=True)]


def rows(count: int, share_wrong: float = 0.6, seed: int = 0) -> list[dict[str, str]]:
    """Sums of two numbers below 10 as prompt and completion; so many answers are some other number."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        a, b = draw.randrange(10), draw.randrange(10)
        answer = draw.randrange(19) if draw.random() < share_wrong else a + b
        found.append({"prompt": f"{a}+{b}=", "completion": str(answer)})
    return found


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(4000)), encoding="utf-8")
    print(f"written: {path}")
