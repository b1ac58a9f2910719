import copy

import numpy as np
import pytest

from jaxformer.data import TrainBatches, evaluation_batches
from jaxformer.families import FAMILIES, model_config
from jaxformer.models import TransformerConfig
from jaxformer.schema import UserError
from jaxformer.tasks import TASKS, build_task, check_fit, task_config
from jaxformer.tokenizers import (
    TokenizerConfig,
    add_special_tokens,
    encode,
    find_special,
    sentinel_ids,
    special_id,
    special_ids,
    train_tokenizer,
    vocabulary_size,
)
from tests.tasks.tiny import WITH_MASK, cache_of, config_of

FAMILIES_OF = {
    "masked_lm": [
        *(
            "bert",
            "big_bird",
            "roberta",
            "xlm_roberta",
            "roberta_prelayernorm",
            "distilbert",
            "albert",
            "mpnet",
            "roformer",
            "deberta_v3",
        ),
        *("modernbert", "embedding_gemma"),
    ],
    "replaced_token_detection": ["electra"],
    "span_corruption": [
        *("t5", "t5_v1_1", "flan_t5", "mt5", "umt5", "longt5", "byt5", "marian", "pegasus", "m2m100", "transformer"),
        *("t5gemma", "encoder_decoder"),
    ],
    "denoising": ["bart", "mbart", "blenderbot", "blenderbot_small"],
}
OBJECTIVES = {family: objective for objective, families in FAMILIES_OF.items() for family in families}
CORPUS = ["the quick brown fox. jumps over? the lazy dog!"]


def test_the_default_objective_of_every_family():
    assert {name: task_config({}, {"type": name})["type"] for name in FAMILIES} == {
        name: OBJECTIVES.get(name, "causal_lm") for name in FAMILIES
    }
    assert set(OBJECTIVES) <= set(FAMILIES)
    given = task_config({"type": "seq2seq", "target_length": 4}, {"type": "t5"})
    assert given == {"type": "seq2seq", "target_length": 4}
    assert task_config({"rate": 0.2}, {"type": "bert"}) == {"type": "masked_lm", "rate": 0.2}


def test_the_default_objective_fits_its_family():
    for name in FAMILIES:
        model = TransformerConfig(**model_config({"type": name}))
        check_fit(TASKS[task_config({}, {"type": name})["type"]](), model)


@pytest.mark.parametrize(
    ("task", "model", "expected"),
    [
        (
            "masked_lm",
            "gpt2",
            r"^task.type masked_lm does not go with model.type gpt2 \(decoder\), expected encoder: "
            r"set model.type to one of (?=.*\bbert\b)(?=.*\bmodernbert\b)(?!.*\bgpt2\b)(?!.*\bt5\b).*, "
            r"or task.type to one of (?=.*\bcausal_lm\b)(?=.*\bprefix_lm\b)(?!.*masked_lm)(?!.*seq2seq).*$",
        ),
        (
            "seq2seq",
            "bert",
            r"^task.type seq2seq does not go with model.type bert \(encoder\), expected encoder-decoder: "
            r"set model.type to one of (?=.*\bt5\b)(?=.*\bbart\b)(?!.*\bbert\b)(?!.*\bgpt2\b).*, "
            r"or task.type to one of (?=.*\bmasked_lm\b)(?!.*causal_lm)(?!.*seq2seq).*$",
        ),
        ("prefix_lm", "bert", r"expected decoder or encoder-decoder: "),
    ],
)
def test_an_objective_that_does_not_fit_names_those_that_do(task, model, expected):
    with pytest.raises(UserError, match=expected):
        check_fit(TASKS[task](), TransformerConfig(**model_config({"type": model})))


# What an objective cannot do without.
NEEDED = {"teacher": "runs/teacher", "reward": "rewards.py:score"}


def smallest(name):
    """The objective's configuration with nothing given that has a default."""
    fields = TASKS[name].model_fields
    return TASKS[name](**{key: value for key, value in NEEDED.items() if key in fields and fields[key].is_required()})


KINDS = ("byte", "character", "word", "jamo", "bpe", "wordpiece", "unigram")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", TASKS)
def test_the_tokenizer_gets_what_the_objective_needs(tokenizers, name, kind):
    task, before = smallest(name), tokenizers[kind]
    tokenizer = add_special_tokens(copy.deepcopy(before), task.special_tokens, task.sentinels)
    ids = [special_id(tokenizer, role) for role in task.special_tokens]
    assert len(set(ids)) == len(ids) and set(ids) <= special_ids(tokenizer)
    assert len(sentinel_ids(tokenizer)) == task.sentinels
    # The ids of a text stay; nothing is added that nobody asked for.
    added = vocabulary_size(tokenizer) - vocabulary_size(before)
    assert added == task.sentinels + sum(find_special(before, role) is None for role in task.special_tokens)
    assert encode(tokenizer, CORPUS[0]) == encode(before, CORPUS[0])


@pytest.fixture(scope="module")
def tokenizers():
    return {kind: train_tokenizer(TokenizerConfig(type=kind, vocab_size=560), CORPUS) for kind in KINDS}


def family_of(config):
    """A family that the objective can train."""
    kind = {"encoder": "bert", "decoder": "gpt2", "encoder_decoder": "t5"}
    return config_of(kind[config.architectures[0]])


# Distillation's is its inner objective's affair, here causal_lm.
@pytest.mark.parametrize("name", sorted(set(TASKS) - {"causal_lm", "distillation"}))
def test_a_stream_is_for_causal_language_models_only(name):
    config = smallest(name)
    with pytest.raises(UserError, match=rf"data.layout is 'stream', expected packed for {name}; leave it out"):
        build_task(config, WITH_MASK, family_of(config), 16, "stream")
    for fits in ("causal_lm", "distillation"):
        build_task(smallest(fits), WITH_MASK, config_of("gpt2"), 16, "stream")


TEXTS = [f"{letter} text of. some letters! {letter * n}" for n, letter in enumerate("abcdefghijklmno", 1)]
# Every objective that reads text, in every way it can be asked to.
VARIANTS = {
    "causal_lm": ("gpt2", {}),
    "prefix_lm of a decoder": ("gpt2", {}),
    "prefix_lm": ("t5", {}),
    "masked_lm": ("bert", {}),
    "masked_lm of words": ("bert", {"whole_words": True}),
    "masked_lm and next sentence": ("bert", {"sentence_pairs": "next_sentence"}),
    "masked_lm and sentence order": ("bert", {"sentence_pairs": "sentence_order"}),
    "replaced_token_detection": ("electra", {}),
    "span_corruption": ("t5", {"rate": 0.3}),
    "denoising": ("bart", {}),
}


def task_of(variant):
    kind, settings = VARIANTS[variant]
    return build_task(TASKS[variant.split()[0]](**settings), WITH_MASK, config_of(kind), 40)


def test_every_objective_on_text_is_here():
    assert {name.split()[0] for name in VARIANTS} == {name for name, task in TASKS.items() if task.reads == "text"}


def joined(batches, count):
    """The first rows of batches, one behind the other."""
    batches = list(batches)
    assert len({tuple((name, array.shape[1:], array.dtype) for name, array in batch.items()) for batch in batches}) == 1
    return {name: np.concatenate([batch[name] for batch in batches])[:count] for name in batches[0]}


def assert_equal(batch, other):
    assert batch.keys() == other.keys()
    for name in batch:
        np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("variant", VARIANTS)
def test_training_batches_are_a_function_of_seed_and_number(variant):
    task = task_of(variant)
    rows = task.rows(cache_of(*TEXTS))
    assert rows.num_rows > 6

    def batches(size, count, seed=0):
        made = TrainBatches(rows, size, seed, task.features)
        return joined((made[step] for step in range(count)), 24)

    one = batches(6, 4)
    assert_equal(one, batches(6, 4))
    for size, count in ((1, 24), (4, 6), (24, 1)):
        assert_equal(one, batches(size, count))
    assert any((one[name] != batches(6, 4, seed=1)[name]).any() for name in one)
    # In any order: a batch does not depend on those made before it.
    made = TrainBatches(rows, 6, 0, task.features)
    later = made[3]
    assert_equal(later, {name: array[18:24] for name, array in one.items()})


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_evaluation_is_the_same_every_time(variant):
    task = task_of(variant)
    rows = task.rows(cache_of(*TEXTS))

    def batches(size, seed=0):
        return joined(evaluation_batches(rows, size, seed, task.features), rows.num_rows)

    one = batches(4)
    assert_equal(one, batches(4))
    for size in (1, 5, rows.num_rows + 3):
        assert_equal(one, batches(size))
    last = list(evaluation_batches(rows, rows.num_rows + 3, 0, task.features))[-1]
    assert (last["labels"][-3:] == -100).all(), "rows that fill up the batch are not counted"
    if variant != "causal_lm":
        assert any((one[name] != batches(4, seed=1)[name]).any() for name in one)
    if "pair_labels" in last:
        assert (last["pair_labels"][-3:] == -100).all()


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - {"causal_lm"}))
def test_every_epoch_changes_a_text_in_another_way(variant):
    # All documents are alike, so that it does not matter which comes first.
    task = task_of(variant)
    rows = task.rows(cache_of(*["Some text. Not long? Long enough! Yes."] * 2))
    batches = [TrainBatches(rows, rows.num_rows, 0, task.features)[epoch] for epoch in range(6)]
    seen = {b"".join(np.sort(array, axis=0).tobytes() for array in batch.values()) for batch in batches}
    assert len(seen) > 3
