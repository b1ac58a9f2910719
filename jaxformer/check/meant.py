"""The tokens that a row trains beside those that its record or document means, read from the data by other code.

The texts are compared as a reader would: decoded, without case, accents, blanks and control characters, since a
tokenizer may change these by design. What was meant goes through the tokenizer alone, so that its unknown tokens are
lost on both sides.
"""

import logging
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from jaxformer.data.config import DataConfig
from jaxformer.data.corpus import Split, open_corpus
from jaxformer.data.formats import Document
from jaxformer.schema import UserError
from jaxformer.tokenizers import (
    PreTrainedTokenizer,
    Role,
    decode,
    encode,
    encode_with_offsets,
    find_special,
    sentinel_ids,
    special_ids,
)
from jaxformer.training.row_preview import Passage, passages
from jaxformer.training.run import Run

Row = dict[str, np.ndarray]
Record = Mapping[str, Any]  # its columns have been read, so that they hold what the objective asks for
ANSWER = "\n\nAssistant:"  # before the last answer of a dialogue in the format of HH-RLHF
# At most: characters of a document and of all documents that are read, and documents.
LONGEST, MOST, DOCUMENTS = 200_000, 1_000_000, 5_000
PAIRS = ("dpo", "reward")
POLICIES = ("ppo", "grpo", "rloo")


class Compared(NamedTuple):
    """One comparison: the texts joined are what was got; of a row that was cut, the beginnings of the texts.

    With ``within`` the texts are to be found in it in this order, and none of ``absent`` beside them.
    """

    place: str
    got: str
    meant: tuple[str, ...]
    cut: bool = False
    within: bool = False
    absent: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """True if the text that was got is the one that was meant."""
        if not self.within:
            return _beginnings(self.got, self.meant) if self.cut else self.got == "".join(self.meant)
        beside, start = [], 0
        for text in self.meant:
            place = self.got.find(text, start)
            if place < 0:
                break
            beside.append(self.got[start:place])
            start = place + len(text)
        if len(beside) < len(self.meant) and not self.cut:
            return False
        beside += [] if self.cut else [self.got[start:]]
        return not any(text in part for text in self.absent for part in beside)


def _beginnings(got: str, texts: Sequence[str]) -> bool:
    """Returns whether a text is the beginnings of the texts, one after the other."""
    if len(texts) < 2:
        return texts[0].startswith(got) if texts else not got
    longest = next(
        (n for n, (a, b) in enumerate(zip(got, texts[0], strict=False)) if a != b), min(len(got), len(texts[0]))
    )
    return any(_beginnings(got[size:], texts[1:]) for size in range(longest, -1, -1))


def fold(text: str) -> str:
    """A text without what tokenizers change by design: case, accents, blanks, control characters, composition.

    >>> fold("L\\u2019\\u00c9t\\u00e9 \\u2026")
    'l\\u2019ete...'
    """
    parts = unicodedata.normalize("NFKD", text.replace("\ufffd", "")).casefold()
    return "".join(c for c in unicodedata.normalize("NFKD", parts) if unicodedata.category(c)[0] not in "CMZ")


def through(tokenizer: PreTrainedTokenizer, text: str) -> str:
    """A text as it comes back from the tokenizer, folded."""
    return fold(decode(tokenizer, encode(tokenizer, text)))


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back the warnings on skipped rows, which have been given when the run was opened."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def config_of(run: Run) -> Any:
    """The settings of the objective; those of the inner one of a distillation."""
    return getattr(run.config.task, "of", run.config.task)


def rows_of_record(run: Run, record: Record) -> list[Row]:
    """The rows of one record alone, none of one that cannot be used."""
    try:
        with quiet():
            rows = run.task.rows([record])
    except UserError:  # none of the 1 rows can be used
        return []
    count = rows.num_rows
    batch = run.task.features(rows.take(np.arange(count)), [np.random.default_rng(0) for _ in range(count)], rows)
    return [{name: np.asarray(array[n]) for name, array in batch.items()} for n in range(count)]


def compared_record(run: Run, record: Record) -> Iterator[Compared]:
    """The comparisons of a record: its texts, and its answer, label or tags."""
    rows = rows_of_record(run, record)
    kind, place = config_of(run).type, str(getattr(record, "where", "a record"))
    if not rows:
        return
    if kind == "question_answering":
        yield from _answers(run, record, rows, place)
        return
    found = passages(run, rows[0])
    compare = {
        "sequence_classification": _classified,
        "token_classification": _tagged,
        "multiple_choice": _chosen,
        "embedding": _embedded,
        "ranking": _ranked,
        "seq2seq": _translated,
        "instruction": _answered,
        **dict.fromkeys(PAIRS, _preferred),
        **dict.fromkeys(POLICIES, _prompted),
    }[kind]
    yield from compare(run, record, rows[0], found, place)


def _text(run: Run, passage: Passage, trained: bool = False) -> str:
    """The folded text of a passage, or of its trained tokens."""
    pairs = zip(passage.ids, passage.trained, strict=True)
    return fold(decode(run.tokenizer, [i for i, is_trained in pairs if is_trained or not trained]))


def _full(run: Run, passage: Passage) -> bool:
    """A passage fills its row, so that its text may be cut."""
    return len(passage.ids) >= run.config.sequence_length


def _classified(run: Run, record: Record, row: Row, found: list[Passage], place: str) -> Iterator[Compared]:
    c, names = config_of(run), run.task.labels
    texts = [record[name] for name in (c.text_column, c.text_pair_column) if name is not None]
    meant = tuple(through(run.tokenizer, text) for text in texts)
    yield Compared(f"{place}: text", _text(run, found[0]), meant, _full(run, found[0]))
    value: Any = record[c.label_column]
    labels = row["labels"]
    if c.problem == "regression":
        number = float(getattr(value, "number", value))
        yield Compared(f"{place}: number", f"{float(labels):.6g}", (f"{np.float32(number):.6g}",))
    elif c.problem == "multi_label":
        got = sorted(name for name, yes in zip(names, labels, strict=True) if yes)
        yield Compared(f"{place}: labels", " ".join(got), (" ".join(sorted({*map(str, value)})),))
    else:
        yield Compared(f"{place}: label", names[int(labels)], (str(value),))


def _tagged(run: Run, record: Record, row: Row, found: list[Passage], place: str) -> Iterator[Compared]:
    c, tokenizer = config_of(run), run.tokenizer
    words, tags = [*map(str, record[c.words_column])], [*map(str, record[c.tags_column])]
    real = row["labels"][: len(found[0].ids)]
    asked = np.flatnonzero(real >= 0)
    given = [run.task.labels[int(number)] for number in real[asked]]
    starts, ends = asked.tolist(), [*asked[1:].tolist(), len(found[0].ids)]
    if c.joined:  # a token may be a part of a character: its characters are those that the tokenizer names
        spans = encode_with_offsets(tokenizer, ["".join(words)])[0][1]
        before, covered, chars = found[0].ids.index(encode(tokenizer, "".join(words))[0]), 0, []
        for token in asked.tolist():
            start, end = spans[token - before]
            chars.append(max(start, covered))
            covered = max(end, covered)
        got = [f"{words[n]}/{tag}" for n, tag in zip(chars, given, strict=True)]
        meant = [f"{words[n]}/{tags[n]}" for n in chars]
    else:
        special = special_ids(tokenizer)
        parts = [[i for i in found[0].ids[a:b] if i not in special] for a, b in zip(starts, ends, strict=True)]
        got = [f"{fold(decode(tokenizer, ids))}/{tag}" for ids, tag in zip(parts, given, strict=True)]
        real_words = [(word, tag) for word, tag in zip(words, tags, strict=True) if encode(tokenizer, word)]
        meant = [f"{through(tokenizer, word)}/{tag}" for word, tag in real_words]
        if _full(run, found[0]):  # the last word may be cut
            got, meant = got[:-1], meant[: max(len(got) - 1, 0)]
    yield Compared(f"{place}: tags", " ".join(got), (" ".join(meant),))


def _chosen(run: Run, record: Record, row: Row, found: list[Passage], place: str) -> Iterator[Compared]:
    c = config_of(run)
    label: Any = record[c.label_column]
    number = int(getattr(label, "number", label))
    texts = (record[c.question_column], record[c.choices_column][number])
    right = found[int(row["labels"])]
    meant = tuple(through(run.tokenizer, text) for text in texts)
    yield Compared(f"{place}: the right choice", _text(run, right, trained=True), meant, _full(run, right))


def _related(c: Any, record: Record) -> list[str]:
    """The two texts of a record, then its negatives."""
    negatives: Any = () if c.negatives_column is None else record[c.negatives_column] or ()
    return [
        record[c.text_column],
        record[c.text_pair_column],
        *([negatives] if isinstance(negatives, str) else negatives),
    ]


def _labelled(c: Any, record: Record, row: Row, place: str) -> Iterator[Compared]:
    if c.label_column is None:
        return
    value: Any = record[c.label_column]
    low, high = c.label_range
    number = np.float32((float(getattr(value, "number", value)) - low) / (high - low))
    yield Compared(f"{place}: label", f"{float(row['labels']):.5g}", (f"{number:.5g}",))


def _embedded(run: Run, record: Record, row: Row, found: list[Passage], place: str) -> Iterator[Compared]:
    c = config_of(run)
    query, *others = _related(c, record)
    texts = [c.query_prompt + query, *(c.document_prompt + text for text in others)]
    for number, (passage, text) in enumerate(zip(found, texts, strict=True), 1):
        meant = (through(run.tokenizer, text),)
        yield Compared(f"{place}: text {number}", _text(run, passage), meant, _full(run, passage))
    yield from _labelled(c, record, row, place)


def _ranked(run: Run, record: Record, row: Row, found: list[Passage], place: str) -> Iterator[Compared]:
    c = config_of(run)
    query, *others = _related(c, record)
    for number, (passage, text) in enumerate(zip(found, others, strict=True), 1):
        meant = tuple(through(run.tokenizer, part) for part in (query, text))
        yield Compared(f"{place}: pair {number}", _text(run, passage), meant, _full(run, passage))
    yield from _labelled(c, record, row, place)


def _answers(run: Run, record: Record, rows: list[Row], place: str) -> Iterator[Compared]:
    """The span of each window that is to be found, and one of them at least unless nothing is learned."""
    answers = [text for text, _ in run.config.task.answers_of(record)]  # type: ignore[union-attr]
    texts = tuple(through(run.tokenizer, text) for text in answers)
    learned = [row for row in rows if row["start_positions"] >= 0]
    spans = [_text(run, passages(run, row)[0], trained=True) for row in learned if row["start_positions"] > 0]
    for span in spans:
        # A token may reach beyond the answer, by less than a word.
        best = next((text for text in texts if text in span and len(span) < len(text) + 20), None)
        yield Compared(f"{place}: answer", span, (span if best is not None else " or ".join(texts),))
    if learned and not spans:
        yield Compared(f"{place}: answer", "", tuple(texts[:1]))


def _translated(run: Run, record: Record, row: Row, found: list[Passage], place: str) -> Iterator[Compared]:
    c, tokenizer = config_of(run), run.tokenizer
    source, target = c.prefix + record[c.source_column], record[c.target_column]
    yield Compared(f"{place}: source", _text(run, found[0]), (through(tokenizer, source),), _full(run, found[0]))
    cut = len(found[1].ids) >= c.target_length
    yield Compared(f"{place}: target", _text(run, found[1], trained=True), (through(tokenizer, target),), cut)
    yield _ended(run, found[1], place, cut)


def _ended(run: Run, passage: Passage, place: str, cut: bool) -> Compared:
    """The last trained token is a special one, the end."""
    trained = [i for i, is_trained in zip(passage.ids, passage.trained, strict=True) if is_trained]
    ended = cut or (bool(trained) and trained[-1] in special_ids(run.tokenizer))
    return Compared(f"{place}: end of the text", "an end token" if ended else "no end token", ("an end token",))


def _answered(run: Run, record: Record, row: Row, found: list[Passage], place: str) -> Iterator[Compared]:
    """Answers of the assistant, each with its end, and nothing else."""
    answers, others, is_dialogue = _turns(config_of(run), record)
    target = found[-1]
    cut = len(target.ids) >= _longest(run)
    if run.task.two_sided:
        others, answers = [*others, *answers[:-1]], answers[-1:]
    got = _text(run, target, trained=True)
    meant = tuple(through(run.tokenizer, text) for text in answers)
    if is_dialogue:
        # Short texts may be part of what the template writes.
        absent = tuple(text for text in (through(run.tokenizer, other) for other in others) if len(text) > 8)
        yield Compared(f"{place}: answers", got, meant, cut, within=True, absent=absent)
        return
    yield Compared(f"{place}: answer", got, meant, cut)
    yield _ended(run, target, place, cut)


def _longest(run: Run) -> int:
    """The most tokens of a response, with its prompt where they share a row."""
    return run.task.target_length or run.config.sequence_length  # type: ignore[attr-defined]


def _turns(c: Any, record: Record) -> tuple[list[str], list[str], bool]:
    """The texts of a record's answers, its other texts, and whether it becomes a dialogue."""
    values: dict[str, Any] = {
        name: record.get(c.columns.get(name, name)) for name in ("messages", "prompt", "completion", "output")
    }
    form = getattr(c, "format", "auto")
    if form == "messages" or (form == "auto" and values["messages"] is not None):
        turns, first = values["messages"], 0
    elif form == "completion" or (form == "auto" and None not in (values["prompt"], values["completion"])):
        if isinstance(values["completion"], str):
            return [values["completion"]], [values["prompt"]], False
        turns, first = [*values["prompt"], *values["completion"]], len(values["prompt"])
    else:
        return [values["output"]], [record[c.columns.get("instruction", "instruction")]], c.chat_template is not None
    contents = [(n >= first and turn["role"] == "assistant", turn.get("content") or "") for n, turn in enumerate(turns)]
    # Templates may leave out the reasoning of earlier turns.
    answers = [text.rpartition("</think>")[2] for is_answer, text in contents if is_answer]
    return answers, [text for is_answer, text in contents if not is_answer], True


def _preferred(run: Run, record: Record, row: Row, found: list[Passage], place: str) -> Iterator[Compared]:
    """The preferred response first, then the other one."""
    c, templated = config_of(run), run.task.encoder.writer is not None  # type: ignore[attr-defined]
    prompt, *sides = (record.get(c.columns.get(name, name)) for name in ("prompt", "chosen", "rejected"))
    texts = [_response(side, prompt is not None) for side in sides]
    folded = [through(run.tokenizer, text) for text in texts]
    whole = templated or c.type == "reward" or not isinstance(sides[0], str)
    targets = [passage for passage in found if passage.title in ("chosen", "rejected", "target")]
    for number, title in enumerate(("chosen", "rejected")):
        got, cut = _text(run, targets[number], trained=c.type != "reward"), len(targets[number].ids) >= _longest(run)
        yield Compared(f"{place}: {title}", got, (folded[number],), cut, within=whole)


def _response(side: Any, has_prompt: bool) -> str:
    """The text of a response: what is added to the prompt, or a dialogue's last message."""
    if isinstance(side, str):
        return side if has_prompt else side.rpartition(ANSWER)[2]
    return "".join(turn.get("content") or "" for turn in (side if has_prompt else side[-1:]))


def _prompted(run: Run, record: Record, row: Row, found: list[Passage], place: str) -> Iterator[Compared]:
    """The prompt that the model answers."""
    c, tokenizer = config_of(run), run.tokenizer
    names = ("messages", "prompt", "instruction", "chosen", "rejected")
    column = next(name for name in names if record.get(c.columns.get(name, name)) is not None)
    value = record[c.columns.get(column, column)]
    if column == "prompt" and isinstance(value, str):
        yield Compared(f"{place}: prompt", _text(run, found[0]), (through(tokenizer, value),))
        return
    if isinstance(value, str):
        texts = [value if column == "instruction" else value.rpartition(ANSWER)[0].rpartition("Human:")[2]]
    else:
        answered = column != "prompt" and value[-1]["role"] == "assistant"
        texts = [turn.get("content") or "" for turn in (value[:-1] if answered else value)]
    meant = tuple(through(tokenizer, text) for text in texts)
    yield Compared(f"{place}: prompt", _text(run, found[0]), meant, within=True)


def documents(run: Run, split: Split) -> tuple[Document, ...]:
    """The first documents of a split, a million characters of them and one at least."""
    return _first(run.config.data.model_dump_json(), run.splits.fingerprint, split)


@lru_cache(maxsize=4)
def _first(data: str, fingerprint: str, split: Split) -> tuple[Document, ...]:
    found, size = [], 0
    for document in open_corpus(DataConfig.model_validate_json(data)).documents(split):
        found.append(document)
        size += len(document.text)
        if size > MOST or len(found) == DOCUMENTS:
            break
    return tuple(found)


class Documents(NamedTuple):
    """The tokens of the first documents one after the other, each with the end of text, where each begins, its name."""

    ids: np.ndarray
    starts: list[int]
    names: list[str]

    def at(self, token: int) -> str:
        """The document of a token."""
        number = int(np.searchsorted(self.starts, token, side="right")) - 1
        return f"{self.names[number]}, token {token - self.starts[number]}"


def first_documents(run: Run, tokens: int) -> Documents:
    """The training documents from the first on, until there are as many tokens."""
    end, found, starts, names, total = find_special(run.tokenizer, "eos"), [], [], [], 0
    for document in documents(run, "train"):
        ids = encode(run.tokenizer, document.text[:LONGEST])
        if len(document.text) > LONGEST:
            ids = ids[:-64]  # the last tokens may be others where the text goes on
        elif ids and document.complete and end is not None:
            ids = [*ids, end]
        if ids:
            starts.append(total)
            names.append(document.name)
        found.append(ids)
        total += len(ids)
        if total >= tokens or len(document.text) > LONGEST:
            break
    return Documents(np.fromiter(chain(*found), np.int32), starts, names)


def pieces(run: Run, row: Row) -> list[np.ndarray]:
    """The tokens of text that a row was made of, put back into their order from inputs and labels, without frames."""
    c, found = config_of(run), passages(run, row)
    ids = [np.array(passage.ids, np.int32) for passage in found]
    if "masked_positions" in row:
        if "pair_labels" in row:
            return _pair(run, row, ids[0])
        real = row["segment_ids"][row["segment_ids"] > 0]
        return [ids[0][real == number][1:-1] for number in range(1, int(real.max(initial=0)) + 1)]
    if "decoder_input_ids" not in row:
        return [text[:-1] if c.type == "prefix_lm" else text for text in ids]
    if c.type == "denoising":
        return [text[1:-1] for passage, text in zip(found, ids, strict=True) if passage.title == "target"]
    targets = [text[:-1] for passage, text in zip(found, ids, strict=True) if passage.title == "target"]
    real = row["segment_ids"]
    sources = [row["input_ids"][real == number][:-1] for number in range(1, int(real.max(initial=0)) + 1)]
    if c.type == "prefix_lm":
        return [np.concatenate(pair) for pair in zip(sources, targets, strict=True)]
    return [_filled(run, source, target) for source, target in zip(sources, targets, strict=True)]


def _pair(run: Run, row: Row, ids: np.ndarray) -> list[np.ndarray]:
    """The two parts of a pair in the order of the text; nothing of parts of two documents."""
    types = row["token_type_ids"][: len(ids)]
    first, second = ids[types == 0][1:-1], ids[types == 1][:-1]
    if row["pair_labels"] == 0:
        return [np.concatenate([first, second])]
    return [np.concatenate([second, first])] if config_of(run).sentence_pairs == "sentence_order" else []


def _filled(run: Run, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """A text with the spans of the target in the place of their sentinels."""
    sentinels = {*sentinel_ids(run.tokenizer)}
    spans: dict[int, list[int]] = {}
    for token in target.tolist():
        if token in sentinels:
            spans[token] = []
        elif spans:
            spans[next(reversed(spans))].append(token)
    return np.array([*chain(*(spans.get(i, []) if i in sentinels else [i] for i in source.tolist()))], np.int32)


def hidden_share(run: Run, row: Row) -> tuple[int, int]:
    """The numbers of hidden tokens and of all tokens of text in a row."""
    total = sum(map(len, pieces(run, row)))
    if "masked_positions" in row:
        if row.get("pair_labels", 0) == 1:  # a part of another document is masked too
            total = int((row["attention_mask"] > 0).sum()) - 3
        return int((row["labels"] >= 0).sum()), total
    written = frame_ids(run.tokenizer)
    kept = sum(i not in written for i in row["input_ids"][row["segment_ids"] > 0].tolist())
    return total - kept, total


def frame_ids(tokenizer: PreTrainedTokenizer) -> set[int]:
    """The tokens that objectives put around and into a text: its ends, masks and sentinels."""
    roles: tuple[Role, ...] = ("cls", "sep", "mask", "pad")
    return {i for role in roles if (i := find_special(tokenizer, role)) is not None} | {*sentinel_ids(tokenizer)}
