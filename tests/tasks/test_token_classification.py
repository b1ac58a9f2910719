import copy
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers as hf
from tokenizers import models, normalizers, pre_tokenizers

from jaxformer.schema import UserError
from jaxformer.tasks import TokenClassification, TokenClassificationConfig
from jaxformer.tokenizers import add_special_tokens, wrap_backend
from tests.tasks.tiny import CLS, FRAMED, PAD, SEP, Scores, bytes_of

WORDS = [{"words": ["Jo", "is", "in", "Rome"], "tags": ["B-P", "O", "O", "B-L"]}, {"words": ["no"], "tags": ["O"]}]
# 이순신 is a person; a blank within and a blank behind an entity.
CHARACTERS = [{"words": list("이 순신 왔다"), "tags": ["B-P", "I-P", "I-P", "I-P", "O", "O", "O"]}]


def make(data, length, tokenizer=FRAMED, **settings):
    return TokenClassification(TokenClassificationConfig(**settings), tokenizer, length, train_records=data)


def right_outputs(task, data):
    """What a model that makes no mistake predicts."""
    labels = task.rows(data).take(np.arange(len(data)))["labels"]
    padded = np.full((len(data), task.sequence_length), -100)
    padded[:, : labels.shape[1]] = labels
    return {"predicted": np.where(padded < 0, 0, padded)}


def test_the_first_token_of_a_word_has_its_tag():
    task = make(WORDS, 32)
    assert task.labels == ("B-L", "B-P", "O")
    batch = task.rows(WORDS).take(np.arange(3))
    assert batch["input_ids"][0, :15].tolist() == [CLS, *bytes_of("Jo is in Rome"), SEP]
    # The blank before a word is a token of its own here and has no label.
    x = -100
    assert batch["labels"][0, :15].tolist() == [x, 1, x, x, 2, x, x, 2, x, x, 0, x, x, x, x]
    assert batch["labels"][1, :5].tolist() == [x, 2, x, x, x]
    assert batch["input_ids"][1, :5].tolist() == [CLS, *bytes_of("no"), SEP, PAD]
    assert (batch["labels"][2] == x).all()
    assert not batch["attention_mask"][2].any()
    assert task.config.texts(WORDS[0]) == ["Jo is in Rome"]


def test_words_cut_off_count_as_outside():
    task = make(WORDS, 10)  # eight bytes: "Jo is in"
    report = task.report(WORDS, right_outputs(task, WORDS))
    assert report.predictions[0]["predicted"] == ["B-P", "O", "O", "O"]
    assert report.metrics == {"accuracy": 4 / 5, "entity_precision": 1.0, "entity_recall": 0.5, "entity_f1": 2 / 3}
    assert report.confusion.tolist() == [[0, 0, 1], [0, 1, 0], [0, 0, 3]]


def test_characters_of_several_bytes():
    task = make(CHARACTERS, 40, joined=True)
    assert task.config.texts(CHARACTERS[0]) == ["이 순신 왔다"]
    [sentence] = task.align(CHARACTERS)
    # Three bytes a syllable, of which the first speaks for it; the blanks are tokens too.
    assert sentence.spans == [(0, 0, 1), (3, 1, 2), (4, 2, 3), (7, 3, 4), (10, 4, 5), (11, 5, 6), (14, 6, 7)]
    report = task.report(CHARACTERS, right_outputs(task, CHARACTERS))
    assert report.predictions[0]["predicted"] == CHARACTERS[0]["tags"]
    assert report.metrics["entity_f1"] == 1


def word_tokenizer(*words):
    vocabulary = {word: i for i, word in enumerate([*words, "[UNK]"])}
    backend = hf.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return add_special_tokens(wrap_backend(backend), ("pad", "cls", "sep"))


def test_tags_of_tokens_that_are_longer_than_characters():
    task = make(CHARACTERS, 9, word_tokenizer("이", "순신", "왔다"), joined=True)
    [sentence] = task.align(CHARACTERS)
    assert sentence.spans == [(0, 0, 1), (1, 2, 4), (2, 5, 7)]
    # The blank inside the entity is no token: it goes on with the entity around it; the one behind it does not.
    assert task.report(CHARACTERS, right_outputs(task, CHARACTERS)).predictions[0]["predicted"] == (
        ["B-P", "I-P", "I-P", "I-P", "O", "O", "O"]
    )
    b, i, o = (task.labels.index(name) for name in ("B-P", "I-P", "O"))
    words = CHARACTERS[0]["words"]
    assert task.tags_from(sentence, np.array([b, b, o]), words) == ["B-P", "O", "B-P", "I-P", "O", "O", "O"]
    assert task.tags_from(sentence, np.array([o, i, i]), words) == ["O", "O", "I-P", "I-P", "I-P", "I-P", "I-P"]


def test_loss_and_predictions():
    task = make(WORDS, 70)
    batch = jax.tree.map(jnp.asarray, task.rows(WORDS).take(np.arange(3)))
    model = Scores(3, False)
    params = model.init(jax.random.key(0), *(batch[n] for n in ("input_ids", "attention_mask", "token_type_ids")))
    logits = model.apply(params, *(batch[n] for n in ("input_ids", "attention_mask", "token_type_ids"))).logits
    sums = jax.jit(lambda b: task.loss(model, params["params"], b, None))(batch)
    kept = batch["labels"] != -100
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(kept, batch["labels"], 0))
    np.testing.assert_allclose(sums.objective, jnp.sum(nll * kept), rtol=1e-5)
    assert sums.weight == 5
    predicted = task.predict(model, params["params"], batch)["predicted"]
    assert predicted.shape == (3, 70), "as long in every batch"
    np.testing.assert_array_equal(predicted[:, :64], jnp.argmax(logits, -1))


def test_what_is_refused():
    with pytest.raises(UserError, match="has 1 tags for 2 words, expected one per word"):
        make([{"words": ["a", "b"], "tags": ["O"]}], 8).rows([{"words": ["a", "b"], "tags": ["O"]}])
    with pytest.raises(UserError, match=r"task.joined takes single characters, got 'Jo': set it to false"):
        make(WORDS, 8, joined=True).rows(WORDS)
    with pytest.raises(UserError, match=r"label 'B-X' is not one of B-L, B-P, O"):
        make(WORDS, 8).rows([{"words": ["a"], "tags": ["B-X"]}])


def test_a_sentence_with_a_missing_tag_is_left_out():
    tags = (["B-A", "O"], ["O", None], ["O", ""], ["nan", "O"], None)
    data = [{"words": ["a", "b"], "tags": found} for found in tags]
    task = make(data, 8)
    rows = task.rows(data)
    assert task.labels == ("B-A", "O") and rows.records == data[:1] and len(rows.left_out) == 4


@pytest.mark.parametrize("letters", ["BIES", "BILU"])
def test_characters_of_a_token_end_their_entity(letters):
    # Tokens of several characters: 홍길동 | 이 | 갑니 | 다
    b, i, e, s = (f"{letter}-P" for letter in letters)
    vocabulary = {"[UNK]": 0, "홍길동": 1, "이": 2, "갑니": 3, "다": 4, "[PAD]": 5, "[CLS]": 6, "[SEP]": 7}
    backend = hf.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=""))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    tokenizer = wrap_backend(backend, **names)
    data = [
        {"words": list("홍길동이갑니다"), "tags": [b, i, e, "O", "O", "O", "O"]},  # one token, one entity
        {"words": list("홍길동이갑니다"), "tags": [b, i, i, i, e, "O", "O"]},  # ends within a token, which loses it
        {"words": list("홍길동이갑니다"), "tags": ["O", "O", "O", s, "O", "O", "O"]},
    ]
    task = make(data, 12, tokenizer, joined=True)
    rows = task.rows(data).take(np.arange(3))["labels"]
    outputs = {"predicted": np.where(rows >= 0, rows, 0)}
    found = [prediction["predicted"] for prediction in task.report(data, outputs).predictions]
    assert found == [data[0]["tags"], [b, i, i, i, e, "O", "O"], data[2]["tags"]]
    assert task.report(data, outputs).metrics["entity_f1"] == 1


def test_tags_of_decomposed_text_reach_the_last_character():
    tokenizer = copy.deepcopy(FRAMED)
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    words = list(unicodedata.normalize("NFD", "홍각이 é"))
    tags = ["B-P", *["I-P"] * 5, "O", "O", "O", "B-L", "I-L"]
    task = make([{"words": words, "tags": tags}], 40, tokenizer, joined=True)
    labels = task.rows(task.train_records).take(np.arange(1))["labels"]
    report = task.report(task.train_records, {"predicted": np.where(labels < 0, 0, labels)})
    assert report.predictions[0]["predicted"] == tags
