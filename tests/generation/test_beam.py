"""Beam search against a slow one over lists, groups included; the parity tests compare the scores with PyTorch's."""

import functools

import jax
import numpy as np
import pytest

from jaxformer.generation import generate
from tests.models.tiny import tiny, tokens

PROMPT, NEW, END = 4, 6, 22


@functools.cache
def forward(model):
    return jax.jit(lambda params, ids: jax.nn.log_softmax(model.apply({"params": params}, ids).logits))


def next_log_probs(model, params, row):
    """Log-probabilities behind a row, always computed in the same shape."""
    ids = np.zeros((1, PROMPT + NEW), int)
    ids[0, : len(row)] = row
    return np.asarray(forward(model)(params, ids), np.float64)[0, len(row) - 1]


def slow_search(model, params, prompt, beams, groups=1, diversity=0.0, length_penalty=1.0, early_stopping=False):
    """Hypotheses and scores, the best first: each group a list of running (score, tokens) and one of finished ones."""
    size = beams // groups
    running = [[(0.0, [])] for _ in range(groups)]
    finished = [[] for _ in range(groups)]
    open_ = [True] * groups
    for step in range(NEW):
        taken = np.zeros(29)
        stuck = []
        for g in range(groups):
            scored = []
            for score, text in running[g]:
                log_probs = next_log_probs(model, params, [*prompt, *text]) - diversity * taken
                scored += [(score + log_probs[token], [*text, token]) for token in range(29)]
            scored = sorted(scored, reverse=True)[: 2 * size]
            ended = [text[-1] == END or step == NEW - 1 for _, text in scored]
            stuck.append(all(ended))
            full = early_stopping is True and len(finished[g]) >= size
            for (score, text), end in list(zip(scored, ended, strict=True))[:size]:
                if end and open_[g] and not full:
                    finished[g].append((score / (step + 1) ** length_penalty, text))
            finished[g] = sorted(finished[g], reverse=True)[:size]
            running[g] = [(score, text) for score, text in scored if text[-1] != END][:size]
            for _, text in running[g]:
                taken[text[-1]] += 1
            if running[g] and len(finished[g]) == size:
                length = NEW if early_stopping == "never" and length_penalty > 0 else step + 1
                open_[g] = open_[g] and running[g][0][0] / length**length_penalty > finished[g][-1][0]
        if all(stuck) or not any(open_) or (early_stopping is True and all(len(f) == size for f in finished)):
            break
    return sorted((pair for group in finished for pair in group), reverse=True)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3},
        {"num_beams": 3, "length_penalty": 0.0, "early_stopping": True},
        {"num_beams": 3, "length_penalty": 1.5, "early_stopping": "never"},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 1.5},
        {"num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 30.0, "early_stopping": True},
    ],
    ids=lambda options: ", ".join(map(str, options.values())),
)
def test_hypotheses_and_scores(options):
    model, params = tiny("gpt2")
    prompts = np.asarray(tokens(2, PROMPT, seed=3))
    beams = options["num_beams"]
    out = generate(model, params, prompts, max_new_tokens=NEW, eos_token_id=END, num_return_sequences=beams, **options)
    assert out.tokens.shape == (2 * beams, NEW)
    found = 0
    for b, prompt in enumerate(prompts):
        slow = slow_search(
            model,
            params,
            prompt.tolist(),
            beams,
            options.get("num_beam_groups", 1),
            options.get("diversity_penalty", 0.0),
            options.get("length_penalty", 1.0),
            options.get("early_stopping", False),
        )
        rows = slice(b * beams, (b + 1) * beams)
        texts = [row[:length].tolist() for row, length in zip(out.tokens[rows], out.lengths[rows], strict=True)]
        assert texts[: len(slow)] == [text for _, text in slow]
        np.testing.assert_allclose(out.scores[rows][: len(slow)], [score for score, _ in slow], atol=1e-4)
        found += len(slow)
        for row, log_probs, length in zip(out.tokens[rows], out.log_probs[rows], out.lengths[rows], strict=True):
            for i in range(length):
                expected = next_log_probs(model, params, [*prompt, *row[:i]])[row[i]]
                np.testing.assert_allclose(log_probs[i], expected, atol=1e-5)
    assert found > beams and "stop" in out.finish_reasons


def test_beams_keep_the_rules():
    model, params = tiny("gpt2")
    prompts = np.asarray(tokens(2, PROMPT, seed=3))
    out = generate(model, params, prompts, max_new_tokens=NEW, eos_token_id=(), num_beams=3, no_repeat_ngram_size=1)
    for prompt, row in zip(prompts, out.tokens, strict=True):
        assert len(set(row.tolist()) - set(prompt.tolist())) == NEW
