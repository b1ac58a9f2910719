"""Checks of a run's data: what is trained is what was meant, and nothing of the texts is lost on the way."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice, pairwise
from typing import Any

import numpy as np
from rich.cells import set_cell_size

from jaxformer.check.meant import (
    LONGEST,
    Compared,
    Record,
    Row,
    compared_record,
    config_of,
    documents,
    first_documents,
    fold,
    frame_ids,
    hidden_share,
    pieces,
    quiet,
)
from jaxformer.check.outcome import Checks, DoesNotApplyError, Measured
from jaxformer.schema import UserError
from jaxformer.tasks.records import BadRow, where
from jaxformer.tokenizers import (
    decode,
    encode_batch,
    encode_with_offsets,
    frame_of,
    special_ids,
    special_tokens,
)
from jaxformer.training.row_preview import OPEN, passages, rows_of
from jaxformer.training.run import Run

CHECKS = Checks("data")
ROWS, RECORDS, TEXTS, MANY = 64, 200, 1000, 20_000  # read at most: rows, records with their rows, texts, hashes
MOST_LABELS = 200_000  # labels that are counted
WIDTH = 100  # cells of a line
Placed = list[tuple[str, str]]  # places and texts


@CHECKS.add(
    "trained tokens",
    cause="the objective's rows, the names of columns, the chat template or the order of labels",
    bug="TRL #4147 and nanochat #582 trained other tokens than those meant; the latter cost 0.04 of ChatCORE",
)
def _trained_tokens(run: Run) -> Measured:
    """Texts, labels and trained tokens of rows are those of the records or documents."""
    if run.config.task.reads == "text":
        return _text_in_order(run)
    records = run.splits.train[:RECORDS]
    found = [compared for record in records for compared in compared_record(run, record)]
    if not found:
        raise DoesNotApplyError(f"none of the first {len(records)} records can be used")
    wrong = [one for one in found if not one.agrees]
    place = (
        f"{wrong[0].place}: trained {_short(wrong[0].got)}, meant {_short(' '.join(wrong[0].meant))}" if wrong else ""
    )
    cut = sum(one.cut for one in found)
    said = f", {cut:,} of them as far as they fit" if cut else ""
    compared = f"texts and answers of {len(records):,} records, and of their rows ({len(found):,} comparisons{said})"
    return Measured(compared, len(wrong), 0, place, _shown(run))


def _text_in_order(run: Run) -> Measured:
    """The rows in order, inputs and labels put back together, are the text of the documents."""
    rows = list(_ordered(run))
    text = first_documents(run, sum(max(len(row["input_ids"]), sum(map(len, pieces(run, row)))) for row in rows) + 1)
    compare = _next_tokens if config_of(run).type == "causal_lm" else _pieces_in_order
    count, wrong = 0, list[Compared]()
    for one in compare(run, rows, text):
        count += 1
        wrong += [] if one.agrees else [one]
    place = f"{wrong[0].place}: trained {_short(wrong[0].got)}, meant {_short(wrong[0].meant[0])}" if wrong else ""
    compared = f"{len(rows)} rows with their labels, and the tokens of {len(text.names):,} documents ({count:,} pieces)"
    return Measured(compared, len(wrong), 0, place, _shown(run))


def _ordered(run: Run) -> Iterator[Row]:
    """The first rows of a split of text, in the order of the text."""
    rows, size = run.train_batches.rows, min(ROWS, run.train_batches.rows.num_rows)
    generators = [np.random.default_rng([run.config.seed, number]) for number in range(size)]
    batch = run.task.features(rows.take(np.arange(size)), generators, rows)
    for number in range(size):
        yield {name: np.asarray(array[number]) for name, array in batch.items()}


def _next_tokens(run: Run, rows: Sequence[Row], text: Any) -> Iterator[Compared]:
    """Each row's inputs and labels: the label of a token is the next one, none where a document begins."""
    place, begins = 0, {*text.starts} if run.config.data.layout == "packed" else set()
    for number, row in enumerate(rows, 1):
        ids = row["input_ids"]
        stop = min(place + len(ids), len(text.ids) - 1)
        at = np.arange(place, stop)
        if not len(at):  # the documents that were read end here
            return
        asked = np.array([i + 1 not in begins for i in at.tolist()], bool)
        meant = np.where(asked, text.ids[at + 1], -100)
        for what, got, expected in (("input", ids, text.ids[at]), ("label", row["labels"], meant)):
            differ = np.flatnonzero(got[: len(at)] != expected)
            first = int(differ[0]) if len(differ) else 0
            yield Compared(
                f"row {number}, token {first + 1} ({text.at(place + first)}): {what}",
                _token(run, got[first]) if len(differ) else "",
                (_token(run, expected[first]) if len(differ) else "",),
            )
        place += len(ids)


def _token(run: Run, number: Any) -> str:
    """A token as text, with its number; -100 is none."""
    return "nothing" if number < 0 else f"{decode(run.tokenizer, [number], skip_special_tokens=False)} ({number})"


def _pieces_in_order(run: Run, rows: Sequence[Row], text: Any) -> Iterator[Compared]:
    """The pieces of each row follow those before them in the text, but for ends and documents of one token."""
    place, special, skipped = 0, special_ids(run.tokenizer), 0
    for number, row in enumerate(rows, 1):
        for piece in pieces(run, row):
            if place + len(piece) > len(text.ids):
                return
            found = _find(piece, text.ids, place)
            left = [i for i in text.ids[place:found].tolist() if i not in special] if found >= 0 else []
            if found < 0 or len(left) > max((found - place) // 2, skipped):
                meant = text.ids[place : place + len(piece)]
                texts = [decode(run.tokenizer, ids, skip_special_tokens=False) for ids in (piece, meant)]
                yield Compared(f"row {number} ({text.at(place)})", texts[0], (f"{texts[1]} ",))
                place += len(piece)
            else:
                yield Compared("", "", ("",))
                place, skipped = found + len(piece), 0
        # The text goes on behind what a part of another document has taken the place of.
        skipped += len(row["input_ids"]) * (row.get("pair_labels") == 1)


def _find(piece: np.ndarray, ids: np.ndarray, start: int) -> int:
    """The place of a piece in the ids from ``start`` on, -1 if there is none."""
    text, part, found = ids.astype(np.int32).tobytes(), piece.astype(np.int32).tobytes(), 4 * start - 1
    while (found := text.find(part, found + 1)) >= 0:
        if found % 4 == 0:
            return found // 4
    return -1


def _shown(run: Run) -> tuple[str, ...]:
    """The first rows, trained tokens in brackets, as wide as a terminal."""
    lines = []
    for number, row in enumerate(rows_of(run, min(3, run.train_batches.batch_size)), 1):
        for passage in passages(run, row)[:3]:
            text = passage.text(run.tokenizer, coloured=False).plain
            begin = max(text.find(OPEN) - WIDTH // 3, 0)
            text = f"{passage.note} | " * bool(passage.note) + "..." * bool(begin) + text[begin:]
            lines.append(_line(f"row {number}, {passage.title}: {text}"))
    return tuple(lines)


def _line(text: str) -> str:
    return set_cell_size(" ".join(text.split()), WIDTH).rstrip()


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


@CHECKS.add(
    "trained share",
    cause="rows too short for prompt and answer, or a mask that hides the answers",
    bug="TRL #4147 and nanochat #582 trained other tokens than those meant; the latter cost 0.04 of ChatCORE",
)
def _trained_share(run: Run) -> Measured:
    """Rows of training have trained tokens."""
    if run.config.task.generates:
        raise DoesNotApplyError("the model writes what it learns from: rows are prompts")
    shares, first = [], ""
    for number, row in enumerate(rows_of(run, ROWS), 1):
        labels = row["labels"] if "labels" in row else row.get("start_positions")
        found = passages(run, row)
        if labels is None or labels.ndim == 0:
            trained, size = int(labels is None or labels != -100), 1
        elif run.config.task.unit == "tokens" and labels.ndim == 1:
            trained, size = int((labels >= 0).sum()), sum(len(passage.ids) for passage in found)
        else:
            trained, size = int((labels >= 0).sum()), sum(map(len, labels)) if labels.ndim == 2 else len(labels)
        shares.append(trained / max(size, 1))
        if not trained and not first:
            first = f"row {number}: {_short(found[0].text(run.tokenizer, False).plain if found else '')}"
    none = sum(share == 0 for share in shares) / len(shares)
    low, middle, high = min(shares), float(np.median(shares)), max(shares)
    notes = (f"share of trained tokens: {low:.1%} least, {middle:.1%} median, {high:.1%} most",)
    # A row in ten that teaches nothing is waste, and what a long question in a short row leaves; more is a mistake.
    return Measured(f"share of {len(shares)} rows without a trained token", none, 0.1, first, notes)


@CHECKS.add(
    "shifted labels",
    cause="labels that are not the next tokens, or a decoder that reads its own target",
    bug="MaxText #4476: documents of a packed row were read as one, with no error",
)
def _shifted_labels(run: Run) -> Measured:
    """A label is the next token of its own text; a decoder beside an encoder reads the label before."""
    c, first, wrong, count = config_of(run), "", 0, 0
    if c.reads == "records" and c.type not in ("seq2seq", "instruction", "dpo"):
        raise DoesNotApplyError("labels are no tokens of a text that is read on")
    for number, row in enumerate(rows_of(run, ROWS), 1):
        ids = row["input_ids"]
        for side in range(len(ids)) if ids.ndim == 2 else (None,):
            one = row if side is None else {name: array[side] for name, array in row.items() if array.ndim == 2}
            places, asked, told = _asked(run, one)
            differ = np.flatnonzero(asked != told)
            count, wrong = count + len(asked), wrong + len(differ)
            if len(differ) and not first:
                at = int(differ[0])
                pair = _short(_token(run, asked[at])), _short(_token(run, told[at]))
                first = f"row {number}, token {int(places[at]) + 1}: trained {pair[0]}, expected {pair[1]}"
    return Measured(f"{count:,} labels and the tokens that follow in the same text", wrong, 0, first)


def _asked(run: Run, row: Row) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places, the labels asked for there, and what they should be."""
    labels = row["labels"]
    if "masked_positions" in row:
        asked = labels >= 0
        places = row["masked_positions"][asked]
        real = row.get("segment_ids", row.get("attention_mask"))[places] > 0  # type: ignore[index]
        good = (
            real
            & np.append(True, np.diff(places) > 0)[: len(places)]
            & ~np.isin(labels[asked], [*frame_ids(run.tokenizer)])
        )
        return places, labels[asked], np.where(good, labels[asked], -1)
    if "decoder_input_ids" in row:
        segments = row.get("decoder_segment_ids", (labels >= 0).astype(int))
        places = np.flatnonzero((labels >= 0) & (segments > 0))
        begins = np.append(True, np.diff(segments) != 0)[places]
        start = np.full(len(places), run.task.start_id)
        return places, row["decoder_input_ids"][places], np.where(begins, start, labels[places - 1])
    ids, size = row["input_ids"], len(labels)
    segments = row.get("segment_ids", row.get("attention_mask", np.ones(size, int)))
    same = np.append((segments[1:] == segments[:-1]) & (segments[1:] > 0), False)
    places = np.flatnonzero(same & (labels >= 0))
    last = np.flatnonzero(~same[:-1] & (labels[:-1] >= 0)) if run.config.task.reads == "text" else places[:0]
    asked = np.append(labels[places], labels[last])
    return np.append(places, last), asked, np.append(ids[places + 1], np.full(len(last), -1))


@CHECKS.add("hidden share", cause="task.rate, or a mask that counts special tokens or padding")
def _hidden_share(run: Run) -> Measured:
    """The share of tokens that are hidden from the model is the configured one."""
    c = config_of(run)
    if not hasattr(c, "rate"):
        raise DoesNotApplyError("nothing is hidden from the model")
    rows = list(_ordered(run))
    counts = [hidden_share(run, row) for row in rows]
    hidden, total = (sum(column) for column in zip(*counts, strict=True))
    number = sum(len(pieces(run, row)) for row in rows)
    # Counts are rounded for each text, to one token at least, and of whole words there are seldom exactly as many.
    tolerance = 1.5 * number / max(total, 1) + (c.rate / 2 if getattr(c, "whole_words", False) else 0)
    share = hidden / max(total, 1)
    compared = f"share of hidden tokens in {len(rows)} rows, {share:.2%}, and task.rate {c.rate:.2%}"
    return Measured(compared, abs(share - c.rate), tolerance, "", ())


def _record_texts(run: Run, records: Sequence[Record]) -> Iterator[tuple[Record, list[str]]]:
    """The texts of the records that can be used."""
    for record in records:
        try:
            texts = run.config.task.texts(record)
        except (BadRow, UserError):
            continue
        yield record, texts


def _texts(run: Run, count: int = TEXTS) -> Placed:
    """The first texts of training, each with its place."""
    if run.config.task.reads == "text":
        return [(document.name, document.text[: LONGEST // 4]) for document in documents(run, "train")[:count]]
    with quiet():
        return [(where(r), text) for r, texts in _record_texts(run, run.splits.train[:count]) for text in texts]


@CHECKS.add("round trip", cause="a tokenizer of another language or with another normalization")
def _round_trip(run: Run) -> Measured:
    """Texts come back from their ids, but for case, accents, blanks and unknown tokens."""
    placed, tokenizer = _texts(run), run.tokenizer
    ids, exact, lossy, first = encode_batch(tokenizer, [text for _, text in placed]), 0, 0, ""
    for (place, text), row in zip(placed, ids, strict=True):
        # Special tokens are text where they are read as text.
        back = decode(tokenizer, row, skip_special_tokens=False)
        exact += back == text
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in row:
            continue
        if fold(back) != fold(text):
            lossy += 1
            first = first or f"{place}: {_difference(fold(back), fold(text))}"
    survives = "exactly" if exact == len(placed) else f"{exact:,} exactly, others but for case, accents and blanks"
    # One text in a hundred may hold a sign that a normalizer drops on purpose.
    return Measured(
        f"{len(placed):,} texts, and what is read back from their ids ({survives})", lossy / len(placed), 0.01, first
    )


def _difference(got: str, meant: str) -> str:
    """The first place where two texts differ, with some of the text before it."""
    at = next((n for n, (a, b) in enumerate(zip(got, meant, strict=False)) if a != b), min(len(got), len(meant)))
    part = slice(max(at - 10, 0), at + 20)
    return f"{got[part]!r}, expected {meant[part]!r}"


@CHECKS.add("unknown tokens", cause="a tokenizer that was made for other texts, or a vocabulary without an alphabet")
def _unknown(run: Run) -> Measured:
    """The share of tokens that stand for text which the tokenizer does not know."""
    unknown = run.tokenizer.unk_token_id
    if unknown is None:
        raise DoesNotApplyError("the tokenizer has no unknown token")
    placed, first = _texts(run), ""
    rows = encode_batch(run.tokenizer, [text for _, text in placed])
    count, total = sum(row.count(unknown) for row in rows), sum(map(len, rows))
    number = next((n for n, row in enumerate(rows) if unknown in row), None)
    if number is not None:
        ids, spans = encode_with_offsets(run.tokenizer, [placed[number][1]])[0]
        start, end = spans[ids.index(unknown)]
        first = f"{placed[number][0]}: {placed[number][1][start:end][:40]!r}"
    notes = (f"first: {first}",) if first else ()
    # A published Korean tokenizer leaves 5 % of headlines with their signs; with the wrong one it is most of a text.
    return Measured(f"share of unknown tokens among {total:,}", count / max(total, 1), 0.15, first, notes)


@CHECKS.add(
    "special tokens",
    cause="texts contain the tokenizer's special tokens: the model reads them as an end or a mask, or, where they are "
    "split, learns to write them letter by letter",
)
def _special_in_texts(run: Run) -> Measured:
    """The share of texts whose characters are read as special tokens."""
    placed, unknown = _texts(run, MANY), run.tokenizer.unk_token
    tokens = [token for token in special_tokens(run.tokenizer) if token != unknown]
    hits = [(place, found) for place, text in placed if (found := next((t for t in tokens if t in text), None))]
    read = {*chain(*encode_batch(run.tokenizer, [token for _, token in hits[:1]]))} & special_ids(run.tokenizer)
    first = f"{hits[0][0]}: {hits[0][1]!r}" if hits else ""
    share = len(hits) / len(placed)
    notes = (f"{len(hits):,} texts contain one, read as {'such' if read else 'text'}, the first {first}",) * bool(hits)
    compared = f"share of {len(placed):,} texts with special tokens that are read as {'such' if read else 'text'}"
    # A few texts speak of such tokens, and where nearly all have one that is read it was put there on purpose.
    return Measured(compared, 0.0 if read and share >= 0.9 else share, 0.05 if read else 0.2, first, notes)


@CHECKS.add("cut or left out", cause="training.sequence_length or task.target_length, unusable rows")
def _cut(run: Run) -> Measured:
    """The share of records that are left out, or whose text is longer than a row."""
    if run.config.task.reads == "text":
        raise DoesNotApplyError("documents are divided into rows, nothing is cut")
    records = run.splits.train
    left = list(run.train_batches.rows.left_out)
    usable = list(islice(_record_texts(run, records), TEXTS))
    sizes, long = _sizes(run, [texts for _, texts in usable]), list[str]()
    for (record, _), size in zip(usable, sizes, strict=True):
        if any(tokens > limit for tokens, limit in size):
            long.append(f"{where(record)}: {max(tokens for tokens, _ in size):,} tokens")
    share = max(len(left) / len(records), len(long) / max(len(usable), 1))
    place = long[0] if long else f"{left[0][0]}: {left[0][1]}" if left else ""
    notes = (f"first: {place}",) if place else ()
    of = f"{len(left):,} of {len(records):,}", f"{len(long):,} of the first {len(usable):,}"
    compared = f"share of records left out ({of[0]}) or cut ({of[1]})"
    # The end of some long texts is lost on purpose; where most lose theirs the length is wrong.
    return Measured(compared, share, 0.5, place, notes)


def _sizes(run: Run, texts: Sequence[Sequence[str]]) -> Iterator[list[tuple[int, int]]]:
    """Tokens of each record's texts, and the most that fit."""
    c, length = config_of(run), run.config.sequence_length
    ids = iter(encode_batch(run.tokenizer, [text for row in texts for text in row]))
    for row in texts:
        n = [len(next(ids)) for _ in row]
        frame = frame_of(run.tokenizer, pair=len(n) > 1).size
        if c.type == "seq2seq":
            yield [(n[0], length - frame_of(run.tokenizer).size), (n[1] + 1, c.target_length)]
        elif c.type == "embedding":
            yield [(tokens, length - frame_of(run.tokenizer).size) for tokens in n]
        elif c.type in ("multiple_choice", "ranking"):
            yield [(n[0] + choice + frame, length) for choice in n[1:]]
        elif c.type == "question_answering":  # contexts are read in windows
            yield [(n[0], c.max_question_tokens)]
        elif c.type in ("dpo", "reward"):
            yield [(sum(n) - min(n[-2:], default=0), length)]
        elif c.type == "instruction" and run.task.two_sided:
            yield [(sum(n[:-1]), length), (n[-1] + 1, c.longest_target(length))] if n else []
        elif hasattr(c, "chat_template"):
            yield [(sum(n) + 1, length + 1)]
        else:
            yield [(sum(n) + frame, length)]


@CHECKS.add("empty texts", cause="a column that is empty, or the wrong column")
def _empty(run: Run) -> Measured:
    """The share of texts without a character."""
    placed = _texts(run, MANY)
    empty = [place for place, text in placed if not text.strip()]
    # A sentence that is missing here and there is a fact of the data.
    return Measured(
        f"share of {len(placed):,} texts that are empty", len(empty) / len(placed), 0.01, empty[0] if empty else ""
    )


@CHECKS.add("train and validation", cause="the same texts are in both, so that an evaluation overstates the model")
def _duplicates(run: Run) -> Measured:
    """The share of validation texts that are also training texts."""
    if run.splits.validation is None:
        raise DoesNotApplyError("there is no validation set")
    parts = _both(run)
    train, validation = ({text: place for place, text in reversed(part)} for part in parts)
    both = [(validation[text], train[text], text) for text in validation if text in train]
    shown = both[-1][2] if both else ""
    if run.config.task.reads == "text":
        shown = decode(run.tokenizer, map(int, shown.split()))
    first = f"{both[-1][0]} is {both[-1][1]}: {_short(shown)}" if both else ""
    counts = Counter(text for _, text in parts[0])
    repeated = sum(count for count in counts.values() if count > 1) / len(parts[0])
    compared = f"share of {len(validation):,} different validation texts that are among {len(train):,} training texts"
    notes = (f"{len(both):,} texts are in both, the first {first}",) if both else ()
    # Short texts repeat by chance, a title, a greeting or a sum: as many of validation as of training itself.
    return Measured(compared, len(both) / len(validation), min(0.05 + repeated, 1.0), first, notes)


def _both(run: Run) -> tuple[Placed, Placed]:
    """The texts of both splits, those of a record together, without case and blanks; documents as their tokens."""
    if run.config.task.reads == "text":
        caches = (run.splits.train, run.splits.validation)
        train, validation = ([*_documents(cache)] for cache in caches)
        return train, validation
    with quiet():
        parts = (
            _record_texts(run, list(islice(data or (), MANY))) for data in (run.splits.train, run.splits.validation)
        )
        train, validation = ([(where(record), _normal("\n".join(texts))) for record, texts in part] for part in parts)
    return train, validation


def _documents(cache: Any) -> Iterator[tuple[str, str]]:
    """The tokens of documents as they are kept, which are read faster than the texts."""
    for number, (start, stop) in enumerate(pairwise(cache.offsets[: MANY + 1].tolist()), 1):
        yield f"document {number}", " ".join(map(str, cache.tokens[start:stop][:MANY].tolist()))


def _normal(text: str) -> str:
    return " ".join(text.casefold().split())


@CHECKS.add("labels", cause="a spelling of its own in one split, another order of labels, or a split by class")
def _labels(run: Run) -> Measured:
    """Classes without a training example, labels that are no class, and how examples are spread over the classes."""
    c = config_of(run)
    read: Callable[[Record], Any] | None = getattr(c, "labels_of", None) or getattr(c, "tags_of", None)
    names: Sequence[str] = run.task.labels
    if c.type == "multiple_choice":
        read, names = (lambda record: [str(c.label_of(record))]), ()
    if read is None or (not names and c.type != "multiple_choice"):
        raise DoesNotApplyError("the objective has no classes")
    # Of a very large split every n-th record is read, so that a rare class may be missed.
    nth = max(1, len(run.splits.train) // MOST_LABELS)
    train = Counter(chain(*_usable(read, run.splits.train[::nth])))
    validation = Counter(chain(*_usable(read, (run.splits.validation or ())[:MOST_LABELS])))
    missing = [name for name in names if not train[name]] if nth == 1 else []
    # Training ends with an error at the first evaluation, or at its first row with such a label.
    unknown = [name for name in [*train, *validation] if names and name not in names]
    total, (most, many) = sum(train.values()), train.most_common(1)[0]
    counted = ", ".join(f"{name} {number / total:.1%}" for name, number in train.most_common(8))
    notes = [_line(f"classes: {counted}")]
    if many > 0.95 * total and not run.config.task.labels_tokens:  # most words have the tag of no entity
        notes.append(f"warning: {many / total:.1%} are {most}: a model that always says so is as often right")
    splits = {name: "training" if train[name] else "validation" for name in unknown}
    places = [
        f"label {n!r} of {train[n] or validation[n]:,} {split} records is no class" for n, split in splits.items()
    ]
    places += [f"{name!r} ({validation[name]:,} times in validation)" for name in missing]
    compared = f"number of the {len(names or train)} classes without an example among {total:,} labels of training"
    return Measured(compared, len(missing) + len(unknown), 0, ", ".join(places[:3]), tuple(notes))


def _usable(read: Callable[[Record], Any], records: Sequence[Record]) -> Iterator[Any]:
    for record in records:
        try:
            yield read(record)
        except BadRow:
            continue
