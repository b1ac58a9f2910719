"""The tokenizer of Marian (Junczys-Dowmunt et al. 2018): two SentencePiece models, one a language, and one vocabulary.

    tokenizer = AutoTokenizer.from_pretrained("Helsinki-NLP/opus-mt-en-de")
    batch = tokenizer(["I am a small frog."], text_target=["Ich bin ein kleiner Frosch."], padding=True)

``source.spm`` or ``target.spm`` cuts a text into pieces, and ``vocab.json`` numbers the pieces of both; a piece that is
not in it is ``<unk>``. A text may begin with the language to translate into, ``>>de<<``, one token of the vocabulary.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import tokenizers as hf

from jaxformer.hub.tokenizer import PretrainedTokenizer
from jaxformer.hub.tokenizer_encode import Inputs, Plan, guarded
from jaxformer.hub.tokenizer_files import TokenizerParts
from jaxformer.hub.tokenizer_pieces import SOURCE, TARGET, VOCABULARY, Pieces
from jaxformer.hub.tokenizer_sentencepiece import BLANK
from jaxformer.schema import UserError
from jaxformer.tokenizers import Tokenizer

_CODE = re.compile(r">>.*?<<", re.DOTALL)


def _found_in_text(token: hf.AddedToken) -> str:
    """The pattern of an added token, with the blanks that it takes with it."""
    pattern = re.escape(token.content)
    if token.single_word:
        pattern = rf"(?<!\S){pattern}(?!\S)"
    return (r"\s*" if token.lstrip else "") + f"({pattern})" + (r"\s*" if token.rstrip else "")


class MarianTokenizer(PretrainedTokenizer):
    """A tokenizer of ``source.spm``, ``target.spm`` and ``vocab.json``.

    ``backend`` numbers pieces that are there already. Tokens know nothing of their places in the text: there are no
    offsets, and what a batch calls words are the pieces.
    """

    def __init__(self, parts: TokenizerParts, name_or_path: str = "") -> None:
        """Takes over what ``open_tokenizer`` read."""
        super().__init__(parts, name_or_path)
        assert parts.sides is not None
        self._source, self._target = parts.sides
        self._added: re.Pattern[str] | None = None

    @property
    def is_fast(self) -> bool:
        """False: its pieces are not cut by the ``tokenizers`` library alone."""
        return False

    @property
    def supported_language_codes(self) -> list[str]:
        """The languages that a text may begin with: ``>>de<<`` ..., none where the model has one alone."""
        ordered = sorted(self.get_vocab().items(), key=lambda item: item[1])
        return [token for token, _ in ordered if token.startswith(">>") and token.endswith("<<")]

    def _changed(self) -> None:
        super()._changed()
        self._added = None

    def _encode(
        self, inputs: Inputs, plan: Plan, add_special_tokens: bool, target: bool
    ) -> tuple[list[list[hf.Encoding]], int | None]:
        side = self._target if target else self._source
        rows = [*inputs.first, *(inputs.second or [])]
        pieces = guarded(lambda: self._pieces([row if inputs.split else [row] for row in rows], side), "encoding")
        first = len(inputs.first)
        second = None if inputs.second is None else pieces[first:]
        cut = replace(inputs, first=pieces[:first], second=second, split=True)
        return super()._encode(cut, plan, add_special_tokens, target)

    def _pieces(self, rows: Sequence[Sequence[str]], side: Pieces) -> list[list[str]]:
        """The pieces of each row of texts, all texts cut at once."""
        found: list[list[str | int]] = []
        texts: list[str] = []
        for row in rows:
            places: list[str | int] = []
            for text in row:
                for part, is_token in self._parts(text):
                    if is_token:
                        places.append(part)
                    else:
                        places.append(len(texts))
                        texts.append(part)
            found.append(places)
        cut = side.cut(texts)
        return [[p for place in row for p in ([place] if isinstance(place, str) else cut[place])] for row in found]

    def _parts(self, text: str) -> Iterator[tuple[str, bool]]:
        """Added tokens and languages that stand in a text, and what is between them."""
        if self._added is None:
            added = sorted(self.added_tokens_decoder.values(), key=lambda token: -len(token.content))
            self._added = re.compile("|".join(map(_found_in_text, added)) or r"\b\B")
        place = 0
        matches = () if self.backend.encode_special_tokens else self._added.finditer(text)
        for match in matches:
            yield from self._plain(text[place : match.start()])
            yield next(group for group in match.groups() if group is not None), True
            place = match.end()
        yield from self._plain(text[place:])

    def _plain(self, text: str) -> Iterator[tuple[str, bool]]:
        code = _CODE.match(text)
        if code:
            yield code[0], True
            text = text[code.end() :]
        if text:
            yield text, False

    def _text(self, ids: list[int], skip_special_tokens: bool, use_source_tokenizer: bool = True) -> str:
        tokens = self.convert_ids_to_tokens(ids, skip_special_tokens)
        side = self._source if use_source_tokenizer else self._target
        return str(guarded(partial(self._joined, [token for token in tokens if token is not None], side), "decoding"))

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text of tokens."""
        return self._joined(tokens, self._source)

    def _joined(self, tokens: Sequence[str], side: Pieces) -> str:
        special = set(self.all_special_tokens)
        text, pieces = "", list[str]()
        for token in tokens:
            if token in special:
                text, pieces = f"{text}{side.join(pieces)}{token} ", []
            else:
                pieces.append(token)
        return (text + side.join(pieces)).replace(BLANK, " ").strip()

    def files(self) -> dict[str, str | bytes]:
        """The files that hold its vocabulary, by name."""
        model = json.loads(self.backend.to_str())["model"]["vocab"]
        vocabulary = dict(sorted(model.items(), key=lambda item: item[1]))
        return {
            SOURCE: self._source.data,
            TARGET: self._target.data,
            VOCABULARY: json.dumps(vocabulary, indent=2) + "\n",
        }

    def for_training(self) -> Tokenizer:
        """Not there.

        Raises:
            UserError: always; the trainer's tokenizer is one ``tokenizer.json`` for all texts.
        """
        raise UserError(
            "a MarianTokenizer cuts source and target with two models, expected one tokenizer.json for all texts; "
            "make the rows with the tokenizer itself, or train with another tokenizer"
        )
