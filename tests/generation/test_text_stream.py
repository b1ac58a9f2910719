import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from jaxformer.generation.text_stream import TextStream, find_stop, held_back, stopped_length
from tests.generation.letters import LETTERS, Letters


class Bytes:
    """Byte-level BPE without merges: a token is a byte."""

    def __init__(self):
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        self.backend = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
        self.backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.backend.decoder = decoders.ByteLevel()

    def encode(self, text):
        return self.backend.encode(text).ids

    def decode(self, ids, skip_special_tokens=False):
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)


class Pieces:
    """SentencePiece's blanks: the one before the first piece of a text is not shown."""

    def __init__(self):
        vocabulary = {"▁the": 0, "▁cat": 1, "s": 2, "▁": 3, "<unk>": 4}
        self.backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        self.backend.decoder = decoders.Metaspace()

    def decode(self, ids, skip_special_tokens=False):
        return self.backend.decode(ids)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_pieces_never_end_inside_a_character(size):
    tokenizer, text = Bytes(), "a한국어 😀é…z"
    ids = tokenizer.encode(text)
    assert len(ids) > len(text)
    stream, pieces = TextStream(tokenizer), []
    for i in range(0, len(ids), size):
        pieces.append(stream.put(ids[i : i + size]))
        assert "�" not in pieces[-1]
    pieces.append(stream.put([], end=True))
    assert "".join(pieces) == stream.text == text


def test_half_a_character_at_the_end_is_shown_as_such():
    tokenizer = Bytes()
    stream = TextStream(tokenizer)
    ids = tokenizer.encode("ok 한")[:-1]
    assert "".join(stream.put([i]) for i in ids) == "ok "
    assert stream.put([], end=True) == "�" and stream.text == tokenizer.decode(ids)


def test_blanks_between_pieces_are_kept():
    stream = TextStream(Pieces())
    pieces = [stream.put([i]) for i in (0, 1, 2, 1, 0, 0, 1, 1, 2, 0)]
    assert pieces[:4] == ["the", " cat", "s", " cat"]
    assert stream.text == Pieces().decode([0, 1, 2, 1, 0, 0, 1, 1, 2, 0])


@pytest.mark.parametrize(
    ("text", "stops", "place", "held"),
    [
        ("abcd", ["cd", "b"], 1, 0),
        ("abc", ["cd", "x"], None, 1),
        ("ab\n\nQ", ["\n\nQ:"], None, 3),
        ("aab", ["aabaa"], None, 3),
        ("abc", [], None, 0),
    ],
)
def test_where_a_stop_string_is_or_may_begin(text, stops, place, held):
    assert find_stop(text, stops) == place
    assert held_back(text, stops) == held


def test_how_many_tokens_complete_a_stop_string():
    ids = [LETTERS.index(c) for c in "abracadabra"]
    assert stopped_length(Letters(), ids, ["cad"]) == 7
    assert stopped_length(Letters(), ids, ["xyz"]) is None
    assert stopped_length(Letters(), ids, ["dab", "ra"]) == 4
