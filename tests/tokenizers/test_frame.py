"""The frame that a tokenizer puts around a text, a pair or a target, against the tokenizer's own calls."""

import pytest

from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.tokenizers import TokenizerConfig, encode, frame_of, give_frame, train_tokenizer
from jaxformer.tokenizers.frame import pair_lengths
from tests.golden import tokenizers as golden

NAMES = sorted(golden.files().keys() - {"marian"})  # which cuts source and target with two models


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: AutoTokenizer.from_pretrained(golden.write(name, root / name)) for name in NAMES}


def types_of(batch):
    return batch.get("token_type_ids", [0] * len(batch["input_ids"]))


@pytest.mark.parametrize("name", NAMES)
def test_texts_and_pairs_are_framed_as_the_tokenizer_frames_them(opened, name):
    tokenizer = opened[name]
    single, pair = frame_of(tokenizer), frame_of(tokenizer, pair=True)
    for text in golden.TEXTS:
        ids, called = encode(tokenizer, text), tokenizer(text)
        framed = single.join(ids)
        assert (framed.ids, framed.types) == (called["input_ids"], types_of(called))
        assert framed.ids[framed.first : framed.second] == ids
    for first, second in golden.PAIRS:
        ids, called = [encode(tokenizer, text) for text in (first, second)], tokenizer(first, second)
        framed = pair.join(*ids)
        assert (framed.ids, framed.types) == (called["input_ids"], types_of(called))
        assert framed.ids[framed.second :][: len(ids[1])] == ids[1]


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_framed_as_the_tokenizer_frames_them(opened, name):
    tokenizer = opened[name]
    frame = frame_of(tokenizer, target=True)
    for text in golden.TEXTS:
        ids = tokenizer(text_target=text, add_special_tokens=False)["input_ids"]
        assert frame.join(ids).ids == tokenizer(text_target=text)["input_ids"]


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"gpt2"}))  # which cuts the beginning
def test_long_texts_are_truncated_as_the_tokenizer_truncates_them(opened, name):
    tokenizer = opened[name]
    for pair in golden.PAIRS:
        frame = frame_of(tokenizer, pair=True)
        for length in range(frame.size + 1, 14):
            called = tokenizer(*pair, truncation="longest_first", max_length=length)["input_ids"]
            assert frame.join(*(encode(tokenizer, text) for text in pair), length).ids == called, (pair, length)


def test_language_codes_of_mbart(opened):
    tokenizer = opened["mbart"]
    code = tokenizer.convert_tokens_to_ids
    assert frame_of(tokenizer).after == [tokenizer.eos_token_id, code("ko_KR")]
    assert frame_of(tokenizer, target=True).after == [tokenizer.eos_token_id, code("de_DE")]


def test_a_tokenizer_that_adds_nothing_is_given_a_frame():
    tokenizer = train_tokenizer(TokenizerConfig(type="wordpiece", vocab_size=600), ["a cat sat"] * 9)
    assert frame_of(tokenizer).size == 0
    give_frame(tokenizer, "[CLS]", "[SEP]")
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert frame_of(tokenizer, pair=True).join([7, 8], [9])[:2] == ([cls, 7, 8, sep, 9, sep], [0, 0, 0, 0, 1, 1])
    give_frame(tokenizer, None, "[SEP]")
    assert frame_of(tokenizer).join([7]).ids == [7, sep]


def test_pairs_lose_their_longer_text_first():
    lengths = [pair_lengths(a, b, 9) for a, b in ((4, 5), (9, 4), (4, 9), (9, 9), (9, 8), (20, 1))]
    assert lengths == [(4, 5), (5, 4), (4, 5), (4, 5), (5, 4), (8, 1)]


def test_special_tokens_in_a_text_are_split_where_that_is_asked_for(opened, tmp_path):
    tokenizer = opened["bert"]
    assert tokenizer.sep_token_id in encode(tokenizer, "the [SEP] cat")
    split = AutoTokenizer.from_pretrained(golden.write("bert", tmp_path / "bert"), split_special_tokens=True)
    ids = encode(split, "the [SEP] cat")
    assert split.sep_token_id not in ids and split("the [SEP] cat", add_special_tokens=False)["input_ids"] == ids
    split.save_pretrained(tmp_path / "again")
    again = AutoTokenizer.from_pretrained(tmp_path / "again")
    assert encode(again, "the [SEP] cat") == ids


def test_a_trained_tokenizer_splits_special_tokens_in_training_and_in_a_call():
    for split in (None, False):
        config = TokenizerConfig(type="wordpiece", vocab_size=600, split_special_tokens=split)
        tokenizer = train_tokenizer(config, ["a cat sat"] * 9)
        ids = encode(tokenizer, "a [SEP]")
        assert ids == tokenizer("a [SEP]", add_special_tokens=False)["input_ids"]
        assert (tokenizer.sep_token_id in ids) is (split is False)
