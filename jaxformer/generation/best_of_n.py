"""Best of n: of several texts sampled from a model, the one with the highest score is kept.

Nakano et al. 2021, "WebGPT", section 3; Touvron et al. 2023, "Llama 2", section 3.2.3 (rejection sampling).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxformer.generation import GenerationConfig, generate

DEVIATIONS = 1.959963984540054  # half of the 95 % interval of a normal distribution, in standard deviations


class Drawn(NamedTuple):
    """A sampled text."""

    ids: list[int]  # with the token that ends it
    text: str  # without special tokens
    ended: bool  # False if it was truncated
    log_prob: float  # sum over its tokens under the model, nats


def prompt_seed(seed: int, line: int) -> int:
    """The seed of the texts for one prompt, 31 bits; it depends only on the run's seed and the line of the prompt.

    >>> prompt_seed(0, 1) == prompt_seed(0, 1), prompt_seed(0, 1) == prompt_seed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence([seed, line]).generate_state(1)[0] >> 1)


def draw(
    model: Any,
    params: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    n: int,
    config: GenerationConfig,
    batch_size: int,
    cache_dtype: str | None = None,
) -> list[list[Drawn]]:
    """Samples ``n`` texts for each prompt, with ``batch_size`` prompts at once.

    A text depends only on its prompt, its prompt's seed and its number, up to rounding.
    """
    config = config.model_copy(update={"num_return_sequences": n})
    found: list[list[Drawn]] = [[] for _ in prompts]
    # Prompts of similar length share a batch.
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), batch_size):
        numbers = order[start : start + batch_size]
        # Filled up, so that few programs are compiled.
        filled = [*numbers, *[numbers[0]] * (batch_size - len(numbers))]
        output = generate(
            model,
            params,
            [list(prompts[number]) for number in filled],
            tokenizer=tokenizer,
            seed=[seeds[number] for number in filled],
            cache_dtype=cache_dtype,
            config=config,
        )
        assert output.text is not None
        for place, number in enumerate(numbers):
            for row in range(place * n, (place + 1) * n):
                ids = output.tokens[row, : output.lengths[row]].tolist()
                total = float(np.sum(output.log_probs[row], dtype=np.float64))
                found[number].append(Drawn(ids, output.text[row], output.finish_reasons[row] == "stop", total))
    return found


def choose(scores: Sequence[float], may_win: Sequence[bool]) -> int | None:
    """The number of the highest score among those that may win, the first of several; None if none may.

    >>> choose([1.0, 3.0, 2.0, 2.0], [True, False, True, True])
    2
    """
    able = [number for number, may in enumerate(may_win) if may]
    return max(able, key=lambda number: scores[number], default=None)


@dataclass
class Summary:
    """Statistics of an output file; means are over prompts."""

    lines: int = 0
    kept: int = 0  # lines with an answer
    prompts: int = 0  # lines whose texts have scores
    texts: int = 0
    truncated: int = 0  # texts that did not end
    first: float = float("nan")  # mean score of the first text for each prompt: the model's without best of n
    interval: float = float("nan")  # half of the 95 % interval of ``first``, by the normal distribution
    best: float = float("nan")  # mean score of the answers that were kept


def summarise(out: Path) -> Summary:
    """Computes the statistics of an output file."""
    found, sums = Summary(), np.zeros(3, np.float64)
    with out.open(encoding="utf-8") as stream:
        for line in stream:
            record = json.loads(line)
            found.lines += 1
            if "scores" in record:
                first = record["scores"][0]
                found.prompts, found.texts = found.prompts + 1, found.texts + len(record["scores"])
                found.truncated += record["truncated"]
                sums[:2] += first, first**2
            if "score" in record:
                found.kept += 1
                sums[2] += record["score"]
    if found.prompts:
        found.first = float(sums[0]) / found.prompts
    if found.prompts > 1:
        variance = max(float(sums[1]) - found.prompts * found.first**2, 0.0) / (found.prompts - 1)
        found.interval = DEVIATIONS * float(np.sqrt(variance / found.prompts))
    if found.kept:
        found.best = float(sums[2]) / found.kept
    return found
