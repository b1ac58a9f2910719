"""The programs of ``examples/flax``, from a tokenizer trained on made-up lines to a folder that predicts."""

import importlib
import itertools
import json
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from flax.jax_utils import replicate, unreplicate
from flax.training.common_utils import shard
from flax.training.train_state import TrainState

import jaxformer
from jaxformer import pipeline
from jaxformer.flax_names import (
    FlaxAutoModelForMaskedLM,
    FlaxAutoModelForSeq2SeqLM,
    FlaxAutoModelForTokenClassification,
)
from jaxformer.schema import UserError

FOLDER = Path(__file__).parents[2] / "examples" / "flax"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
WHO, DOES, WHAT = (
    ("the cat", "a dog", "the old man", "my sister"),
    ("sees", "likes", "finds"),
    ("the sea", "a red ball"),
)
SIZES = {
    "bert": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    | {"max_position_embeddings": 64, "pad_token_id": 0},
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0},
    "t5": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64, "d_kv": 16}
    | {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    "bart": {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    | {"decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64}
    | {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2},
}


@pytest.fixture(scope="module")
def scripts():
    """The programs by name, imported as Python finds them when one of them is started."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in SCRIPTS}
    sys.path.remove(str(FOLDER))
    for name in SCRIPTS:
        del sys.modules[name]


def sentences(count):
    """Who, does and what of so many sentences."""
    draw = random.Random(0)
    return [tuple(draw.choice(words) for words in (WHO, DOES, WHAT)) for _ in range(count)]


@pytest.fixture(scope="module")
def base(scripts, tmp_path_factory):
    """The folder of a family's tokenizer and configuration, made when it is asked for."""
    root = tmp_path_factory.mktemp("base")
    (root / "texts.txt").write_text("".join(" ".join(parts) + ". it rains.\n" for parts in sentences(100)))

    def make(family, **keys):
        from transformers import AutoConfig

        folder = root / "-".join([family, *keys])
        if not folder.exists():
            arguments = ["--model_type", family, "--train_file", root / "texts.txt", "--output_dir", folder]
            size = {"--vocab_size": 150 if family == "t5" else 280, "--extra_ids": 20, "--max_length": 64}
            tokenizer = scripts["tokenizer"].main(
                [*map(str, arguments), *(str(x) for pair in size.items() for x in pair)]
            )
            AutoConfig.for_model(family, **SIZES[family], vocab_size=len(tokenizer), **keys).save_pretrained(folder)
        return folder

    make.texts = root / "texts.txt"
    return make


@pytest.fixture
def run(scripts, tmp_path):
    """Runs a program on 8 devices and returns what its ``all_results.json`` says; ``run.folder`` is the model's."""

    def program(name, config, data, *more, **options):
        defaults = {"learning_rate": 5e-3, "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1}
        named = {**defaults, **options, "train_file": data, "cache_dir": tmp_path / "cache", "output_dir": run_folder}
        named |= {} if "model_name_or_path" in options else {"config_name": config}
        given = [text for key, value in named.items() for text in (f"--{key}", str(value))]
        found = scripts[name].main([*given, *more])
        assert json.loads((run_folder / "all_results.json").read_text()) == found
        losses = found["losses"]
        assert np.isfinite(losses).all() and np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
        return found

    program.folder = run_folder = tmp_path / "out"
    return program


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_classifier_of_texts(run, base, tmp_path):
    rows = [{"text": " ".join(parts), "label": "animal" if parts[0] in WHO[:2] else "human"} for parts in sentences(90)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    found = run("text_classification", base("bert"), file, max_seq_length=8, num_train_epochs=5)
    assert found["accuracy"] == 1.0
    classify = pipeline("text-classification", str(run.folder))
    answers = classify([f"{who} likes the sea" for who in WHO])
    assert [answer["label"] for answer in answers] == ["animal"] * 2 + ["human"] * 2


@pytest.mark.slow
def test_a_number_of_two_texts(run, base, tmp_path):
    rows = [
        {"sentence1": one, "sentence2": other, "label": float((one in WHO[:2]) + (other in WHO[:2]))}
        for one in WHO
        for other in WHO
    ]
    file = write_rows(tmp_path / "rows.json", rows * 8)
    found = run("text_classification", base("bert"), file, max_seq_length=12, num_train_epochs=8)
    assert found["pearson"] > 0.95


@pytest.mark.slow
def test_a_masked_language_model(run, base, tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("".join(f"{who} {does} a red ball\n" for who, does, _ in sentences(200) if len(who.split()) == 2))
    more = {"max_seq_length": 8, "num_train_epochs": 20, "learning_rate": 0.01}  # a line is a row
    found = run("masked_lm", base("bert"), file, "--gradient_checkpointing", **more)
    assert found["perplexity"] < 3 and np.isclose(found["perplexity"], np.exp(found["eval_loss"]))
    assert pipeline("fill-mask", str(run.folder))("a dog sees a red [MASK]")[0]["token_str"] == "ball"


@pytest.mark.slow
def test_a_causal_language_model_in_half_precision_with_adafactor(run, base):
    more = {"block_size": 24, "num_train_epochs": 25, "warmup_steps": 5, "dtype": "bfloat16", "learning_rate": 0.02}
    found = run("causal_lm", base("gpt2"), base.texts, "--adafactor", **more)
    assert found["perplexity"] < 4
    written = pipeline("text-generation", str(run.folder))("my sister finds a red", max_new_tokens=1)
    assert "ball" in json.dumps(written)


@pytest.mark.slow
def test_t5_from_spans(run, base):
    found = run("t5_pretraining", base("t5"), base.texts, max_seq_length=24, num_train_epochs=20)
    assert found["eval_loss"] < 0.6 * found["losses"][0]
    _check_writes(run.folder, "the cat sees a <extra_id_0> ball.", "<pad><extra_id_0>")


@pytest.mark.slow
def test_bart_from_noise(run, base):
    found = run("bart_pretraining", base("bart"), base.texts, max_seq_length=32, num_train_epochs=25)
    assert found["eval_loss"] < 0.2 * found["losses"][0]
    _check_writes(run.folder, "the cat sees a<mask> ball. it rains.", "red ball")


def _check_writes(folder, text, expected):
    """What the folder's model writes for a text has the words that are expected."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), FlaxAutoModelForSeq2SeqLM.from_pretrained(folder)
    written = model.generate(**tokenizer([text], return_tensors="np"), max_length=24).sequences
    assert expected in tokenizer.batch_decode(written)[0]


@pytest.mark.slow
def test_a_tagger_of_words_from_weights(run, base, tmp_path):
    from transformers import AutoConfig

    tags = {"cat": "B-ANIMAL", "dog": "B-ANIMAL", "sister": "B-HUMAN", "old": "B-HUMAN", "man": "I-HUMAN"}
    rows = [" ".join(parts).split() for parts in sentences(100)]
    rows = [{"tokens": words, "ner_tags": [tags.get(word, "O") for word in words]} for words in rows]
    file = write_rows(tmp_path / "rows.json", rows)
    weights = FlaxAutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(base("bert")), seed=1)
    weights.save_pretrained(tmp_path / "weights")
    before = {"model_name_or_path": tmp_path / "weights", "tokenizer_name": base("bert")}
    with pytest.warns(UserWarning, match="has no classifier/.*newly initialised"):
        found = run("token_classification", None, file, **before, max_seq_length=12, num_train_epochs=5)
    assert found["entity_f1"] == 1.0
    # What was never trained on, the row of the last position, is still that of the weights.
    place = weights.params["embeddings"]["position"]["embedding"][-1]
    tagger = FlaxAutoModelForTokenClassification.from_pretrained(run.folder)
    np.testing.assert_array_equal(tagger.params["embeddings"]["position"]["embedding"][-1], place)
    find = pipeline("token-classification", str(run.folder), aggregation_strategy="simple")
    found = [[(entity["entity_group"], entity["word"]) for entity in find(f"{who} likes a red ball")] for who in WHO]
    assert found == [[("ANIMAL", "cat")], [("ANIMAL", "dog")], [("HUMAN", "old man")], [("HUMAN", "sister")]]


@pytest.mark.slow
def test_a_reader_that_answers(run, base, tmp_path):
    rows = []
    for number, (who, does, what) in enumerate(sentences(160)):
        is_asked = number % 4 != 0
        answers = {"text": [who] if is_asked else [], "answer_start": [10] if is_asked else []}
        question = f"who {does}" if is_asked else "it rains"
        rows.append({"question": question, "context": f"it rains. {who} {does} {what}.", "answers": answers})
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"data": rows}))
    lengths = {"max_seq_length": 20, "doc_stride": 4, "num_train_epochs": 20}
    found = run("question_answering", base("bert"), file, "--version_2_with_negative", **lengths)
    assert found["exact_match"] == 1.0 and found["no_answer_accuracy"] == 1.0
    read = pipeline("question-answering", str(run.folder))
    assert read(question="who finds", context="it rains. my sister finds the sea.")["answer"] == "my sister"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["bart", "t5"])
def test_summaries(run, base, tmp_path, family):
    rows = [{"document": " ".join(parts), "summary": f"{parts[0]} {parts[1]}"} for parts in sentences(120)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    lengths = {"max_source_length": 24, "max_target_length": 16, "num_beams": 2, "num_train_epochs": 30}
    found = run("summarization", base(family), file, **lengths)
    assert found["rouge1"] > 0.95 and found["rougeL"] > 0.95
    _check_writes(run.folder, "my sister finds the sea", "my sister finds")


def test_spans_and_their_targets_make_up_the_text(scripts):
    script = scripts["t5_pretraining"]

    def places(length):
        hidden, spans = script.span_counts(length, 0.15, 3.0)
        return length - hidden + spans + 1

    for room in range(3, 60):
        length = script.raw_length(room, 0.15, 3.0)
        assert places(length) <= room < places(length + 1)
    parts = [script.cut(np.random.default_rng(seed), 5, 3) for seed in range(200)]
    assert {tuple(part) for part in parts} == {(1, 1, 3), (1, 3, 1), (3, 1, 1), (1, 2, 2), (2, 1, 2), (2, 2, 1)}
    corruption = script.SpanCorruption.__new__(script.SpanCorruption)
    vars(corruption).update(density=0.3, mean_span=2.0, random=np.random.default_rng(0), end=1, sentinels=[99, 98, 97])
    text = list(range(10, 30))
    shown, target = corruption.pair(text)
    assert shown[-1] == target[-1] == 1 and [i for i in target if i > 90] == [i for i in shown if i > 90] == [
        99,
        98,
        97,
    ]
    spans, last = {}, None
    for token in target[:-1]:
        last = token if token > 90 else last
        spans.setdefault(last, []).extend([] if token > 90 else [token])
    assert [token for i in shown[:-1] for token in (spans[i] if i > 90 else [i])] == text
    with pytest.raises(SystemExit, match="the tokenizer has 3 sentinels"):
        corruption.pair(list(range(40)))


def test_noise_hides_as_much_as_it_should(scripts):
    script = scripts["bart_pretraining"]
    options = type(
        "Options", (), {"mlm_probability": 0.3, "permute_sentence_ratio": 1.0, "poisson_lambda": 3.0, "seed": 0}
    )
    mask = type("Tokenizer", (), {"mask_token_id": 99})
    noise = script.Denoising(mask, type("Config", (), {"decoder_start_token_id": 2}), options)
    row = [[1, 2, 3, 4, 5], [11, 12, 13, 14, 15], [21, 22, 23, 24, 25], [31, 32, 33, 34, 35]]
    orders = set()
    for _ in range(50):
        noisy = noise.noisy(row)
        kept = [token for token in noisy if token != 99]
        assert len(kept) == 14 and 99 in noisy and len(set(kept)) == 14
        orders.add(tuple(dict.fromkeys(token // 10 for token in kept)))
        assert all(kept.index(a) < kept.index(b) for s in row for a, b in itertools.pairwise(s) if {a, b} <= {*kept})
    assert len(orders) > 10


def test_only_the_first_token_of_a_word_has_its_tag(scripts):
    words, tags = [None, 0, 0, 1, 2, 2, None], [5, 6, 7]
    assert scripts["token_classification"].aligned(words, tags, False) == [-100, 5, -100, 6, 7, -100, -100]
    assert scripts["token_classification"].aligned(words, tags, True) == [-100, 5, 5, 6, 7, 7, -100]


def test_labels_weigh_the_same_on_every_device(scripts):
    """Devices with many labels, few and none: the step is that of one mean over all of them."""
    shared = scripts["shared"]
    labels = np.where(np.arange(5) < np.arange(8)[:, None] % 6, np.arange(40).reshape(8, 5), -100)

    def call(ids, params, dropout_rng, train):
        assert train
        return params["slope"] * ids

    def loss(call, batch):
        counted = batch["labels"] != -100
        return ((call(batch["ids"]) - batch["labels"]) ** 2 * counted).sum(), counted.sum()

    state = TrainState.create(apply_fn=call, params={"slope": np.float32(2)}, tx=optax.sgd(1e-3))
    step = jax.pmap(lambda *given: shared.train_step(*given, loss=loss), "batch")
    keys = jax.random.split(jax.random.PRNGKey(0), 8)
    after, metric, next_keys = step(replicate(state), {"ids": np.ones((8, 5)), "labels": labels}, keys)
    errors = 2 - labels[labels != -100]
    np.testing.assert_allclose(metric["loss"], np.full(8, np.mean(errors**2)), rtol=1e-6)
    np.testing.assert_allclose(after.params["slope"], np.full(8, 2 - 1e-3 * np.mean(2 * errors)), rtol=1e-6)
    assert not np.any(next_keys == keys)


def test_the_last_batch_is_filled_with_rows_that_count_nothing(scripts):
    shared = scripts["shared"]
    rows = {"input_ids": np.arange(10).reshape(5, 2), "labels": np.arange(5)}
    table = type(
        "Table", (), {"__len__": lambda _: 5, "__getitem__": lambda _, i: {k: v[i] for k, v in rows.items()}}
    )()
    found = list(shared.batches(table, 4, dict))
    assert [count for _, count in found] == [4, 1] and found[1][0]["labels"].tolist() == [4, -100, -100, -100]
    assert [len(list(shared.batches(table, size, dict, np.arange(5)))) for size in (2, 5, 6)] == [2, 1, 0]


@pytest.mark.slow
def test_a_program_starts_by_itself():
    for name in ("tokenizer", "summarization"):
        said = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True)
        assert said.returncode == 0 and "--train_file" in said.stdout and "--output_dir" in said.stdout, said.stderr


def test_bad_input_is_said_in_a_line(scripts, base, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", [{"text": "the cat", "label": 0}] * 4)
    given = {"config_name": base("bert"), "train_file": file, "output_dir": tmp_path / "out", "cache_dir": tmp_path}
    arguments = [text for key, value in given.items() for text in (f"--{key}", str(value))]
    with pytest.raises(SystemExit, match="there are 3 rows to train on, expected a batch of 64 at least"):
        scripts["text_classification"].main(arguments)
    with pytest.raises(UserError, match="a bert model has the architecture encoder"):
        scripts["summarization"].main([*arguments, "--text_column", "text", "--summary_column", "text"])


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "family"),
    [("masked_lm", "bert"), ("text_classification", "bert"), ("summarization", "bart"), ("t5_pretraining", "t5")],
)
def test_a_step_is_that_of_pytorch(scripts, base, tmp_path, name, family):
    """Loss and change of every parameter of a step of gradient descent, from the same weights and batch."""
    import torch
    import transformers
    from transformers import AutoTokenizer

    shared, script = scripts["shared"], scripts[name]
    still = {
        "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
        "bart": {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0},
        "t5": {"dropout_rate": 0.0},
    }[family]
    folder = base(family, **still)
    kind = {"masked_lm": "MaskedLM", "text_classification": "SequenceClassification"}.get(name, "Seq2SeqLM")
    opener = getattr(jaxformer.flax_names, f"FlaxAutoModelFor{kind}")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    texts = [" ".join(parts) for parts in sentences(16)]
    encoded = tokenizer(texts)
    if name == "masked_lm":
        rows = {"input_ids": [(row * 2)[:10] for row in encoded["input_ids"]]}
        collate = script.Masking(tokenizer, 0.3, 0)
    elif name == "text_classification":
        rows = {**encoded, "labels": [number % 2 for number in range(16)]}
        collate = lambda rows: script.collate(tokenizer, 12, rows)  # noqa: E731
    elif name == "summarization":
        rows = {"input_ids": encoded["input_ids"], "labels": tokenizer([text[:12] for text in texts])["input_ids"]}
        collate = lambda rows: script.collate(tokenizer, config, (40, 20), rows)  # noqa: E731
    else:
        rows = {"input_ids": [(row * 3)[:20] for row in encoded["input_ids"]]}
        collate = script.SpanCorruption(tokenizer, config, 0.15, 3.0, 0)
    batch = collate(rows)
    model = opener.from_config(config, seed=3)
    model.save_pretrained(tmp_path / "before")
    state = TrainState.create(apply_fn=model.__call__, params=model.params, tx=optax.sgd(0.5))
    kinds = {"is_regression": False} if name == "text_classification" else {}

    def loss(call, batch):
        return script.loss(call, batch, **kinds)

    step = jax.pmap(lambda *given: shared.train_step(*given, loss=loss), "batch")
    after, metric, _ = step(replicate(state), shard(dict(batch)), jax.random.split(jax.random.PRNGKey(0), 8))

    theirs = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(tmp_path / "before").train()
    inputs = {key: torch.tensor(np.asarray(value)).long() for key, value in batch.items()}
    output = theirs(**inputs)
    output.loss.backward()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.grad is not None:
                parameter -= 0.5 * parameter.grad
    theirs.save_pretrained(tmp_path / "after")
    np.testing.assert_allclose(metric["loss"][0], output.loss.item(), rtol=1e-5)
    expected, moved = opener.from_pretrained(tmp_path / "after").params, unreplicate(after.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), moved, expected)
    changes = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), moved, model.params)
    assert max(jax.tree.leaves(changes)) > 1e-3
