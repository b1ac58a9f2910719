"""A language model as judge: pairs of answers in both orders, and preference data from what it says.

Zheng et al. 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena", section 3.4: a judge prefers a place, so
each pair is judged twice, with the answers exchanged, and only what holds in both orders counts.
"""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.data.formats import Row
from jaxformer.data.lines import Line
from jaxformer.external import need
from jaxformer.pipelines.resumable import Done, MissingColumnError, write_lines
from jaxformer.schema import UserError
from jaxformer.tasks.chat_template import Message
from jaxformer.tasks.records import BadRow
from jaxformer.tasks.row_readers import ANSWER, PromptReader

RUBRIC = "Which answer is more helpful, correct and harmless? Length alone is no merit."
WINDOW = 16  # lines
VERDICTS = ("A", "B", "tie")
FORM = {
    "type": "json_schema",
    "json_schema": {
        "name": "verdict",
        "schema": {
            "type": "object",
            "properties": {"verdict": {"enum": list(VERDICTS)}},
            "required": ["verdict"],
            "additionalProperties": False,
        },
    },
}


@dataclass(frozen=True)
class Settings:
    """Settings of judging.

    Attributes:
        url: of a server with OpenAI's interface.
        judge: the model that judges; None: the first of ``models`` is the stronger one.
        models: that write the answers; empty: the answers are in the file.
        n: answers of each model.
        rubric: what the judge is told to look at.
        prompt_column: of the file; None: the first known one.
        answers_column: of the file; without it the answers are those of ``chosen`` and ``rejected``.
        new_tokens: most tokens of an answer.
        temperature: of the answers; the judge's is 0.
        seed: of the answers.
    """

    url: str
    judge: str | None = None
    models: Sequence[str] = ()
    n: int = 1
    rubric: str = RUBRIC
    prompt_column: str | None = None
    answers_column: str = "completions"
    new_tokens: int = 256
    temperature: float = 0.7
    seed: int = 0


class Asked(NamedTuple):
    """A line: its number, its prompt as text or messages, and the answers that it brings."""

    line: int
    said: str | list[Message]
    answers: list[str]


@dataclass
class Counts:
    """What was judged so far; of two answers also who won."""

    first: int = 0
    second: int = 0
    ties: int = 0
    disagreed: int = 0  # of the ties, those where the orders disagree
    errors: int = 0
    models: list[str] = field(default_factory=list)


class Judge:
    """Compares answers by asking a server.

    Args:
        settings: of judging.
        client: of the ``openai`` package; default: one for the settings' address, with its key from the environment.

    Raises:
        UserError: the settings do not fit together, or the package is missing.
    """

    def __init__(self, settings: Settings, client: Any = None) -> None:
        if settings.judge is None and (len(settings.models) != 2 or settings.n != 1):
            raise UserError("no judge is given, expected --judge, or a strong and a weak model: --answers-by twice")
        if settings.models and settings.n * len(settings.models) < 2:
            raise UserError("one answer for each prompt is asked for, expected several: --n, or --answers-by twice")
        self.settings = settings
        openai = need("openai", "eval")
        self._failures = openai.OpenAIError
        # The package tries again, with pauses, where a server is busy.
        self.client = client or openai.OpenAI(base_url=settings.url, api_key=_key(), max_retries=5, timeout=600.0)
        self._reader = PromptReader({}, as_messages=True)

    def describe(self) -> dict[str, Any]:
        """The settings that must be the same when an output is resumed."""
        return {"command": "judge", **asdict(self.settings), "models": list(self.settings.models)}

    def read(self, line: Line, file: Path) -> Asked:
        """The prompt and the answers of a line.

        Raises:
            UserError: it has none.
        """
        name = self.settings.prompt_column
        record = {name or "prompt": line.value} if isinstance(line.value, str) else line.value
        assert isinstance(record, dict)
        row = Row(record, f"{file.name}:{line.row}", f"{file}, line {line.number}")
        try:
            said = self._reader.read(row if name is None else {"prompt": record[name]})
        except KeyError:
            raise MissingColumnError(f"there is no column {name!r}, only {', '.join(record)}") from None
        except BadRow as reason:
            raise UserError(str(reason)) from None
        if self.settings.models:
            return Asked(line.number, said, [])
        column = self.settings.answers_column
        if column not in record and {"chosen", "rejected"} <= record.keys():
            return Asked(line.number, said, [_answer(record["chosen"]), _answer(record["rejected"])])
        if column not in record:
            raise MissingColumnError(f"there is no column {column!r}, only {', '.join(record)}; see --answers-column")
        answers = record[column]
        if not isinstance(answers, list) or len(answers) < 2 or not all(isinstance(one, str) for one in answers):
            raise UserError(f"{column} is {json.dumps(answers, ensure_ascii=False)[:60]}, expected two or more texts")
        return Asked(line.number, said, answers)

    def answer(self, lines: Sequence[Asked]) -> list[dict[str, Any] | UserError]:
        """A row of preferences for each line, an error where nothing is preferred."""
        with ThreadPoolExecutor(WINDOW) as pool:
            return list(pool.map(self._row, lines))

    def _row(self, asked: Asked) -> dict[str, Any] | UserError:
        try:
            answers = asked.answers or self._written(asked)
            if self.settings.judge is None:
                points, agreed = [2.0 * len(answers), 0.0], True
            else:
                points, agreed = self._points(asked.said, answers)
        except self._failures as error:
            return UserError(f"the server did not answer: {' '.join(str(error).split())[:200]}")
        order = sorted(range(len(answers)), key=lambda number: -points[number])
        best, worst = order[0], order[-1]
        facts = {"points": points, "best": best, "worst": worst}
        if points[best] == points[worst] or answers[best] == answers[worst]:
            why = "the orders disagree" if not agreed else "no answer is better"
            return {"error": f"line {asked.line}: {why}", **facts, "completions": answers}
        return {
            "prompt": asked.said,
            "chosen": _as(asked.said, answers[best]),
            "rejected": _as(asked.said, answers[worst]),
            **facts,
            "completions": answers,
        }

    def _written(self, asked: Asked) -> list[str]:
        """The answers of the models, one model after the other."""
        s, found = self.settings, []
        for model in s.models:
            options = {"model": model, "temperature": s.temperature, "seed": s.seed + asked.line, "n": s.n}
            if isinstance(asked.said, str):
                made = self.client.completions.create(prompt=asked.said, max_tokens=s.new_tokens, **options)
                found += [choice.text for choice in made.choices]
            else:
                made = self.client.chat.completions.create(messages=asked.said, max_tokens=s.new_tokens, **options)
                found += [choice.message.content or "" for choice in made.choices]
        return [text.strip() for text in found]

    def _points(self, said: Any, answers: Sequence[str]) -> tuple[list[float], bool]:
        """The points of each answer, 1 for a win and 1/2 for a tie in each order, and whether all orders agree."""
        points, agreed = [0.0] * len(answers), True
        for one, other in combinations(range(len(answers)), 2):
            first = self.verdict(said, answers[one], answers[other])
            second = self.verdict(said, answers[other], answers[one])
            turned = {"A": "B", "B": "A", "tie": "tie"}[second]
            agreed &= first == turned
            for verdict in (first, turned):
                points[one] += {"A": 1.0, "B": 0.0, "tie": 0.5}[verdict]
                points[other] += {"A": 0.0, "B": 1.0, "tie": 0.5}[verdict]
        return points, agreed

    def verdict(self, said: Any, first: str, second: str) -> str:
        """The judge's verdict on two answers in this order: ``A``, ``B`` or ``tie``."""
        made = self.client.chat.completions.create(
            model=self.settings.judge,
            messages=[{"role": "user", "content": question(said, first, second, self.settings.rubric)}],
            temperature=0,
            max_tokens=24,
            response_format=FORM,
        )
        try:
            found = json.loads(made.choices[0].message.content or "")["verdict"]
        except (ValueError, KeyError, TypeError):
            return "tie"
        return found if found in VERDICTS else "tie"


def _answer(side: Any) -> str:
    """The last answer of a side of a pair, as text or as messages."""
    if not isinstance(side, str):
        return str(side[-1]["content"])
    return side.rpartition(ANSWER)[2].strip()


def _key() -> str:
    return os.environ.get("OPENAI_API_KEY") or os.environ.get("JAXFORMER_API_KEY") or "none"


def question(said: Any, first: str, second: str, rubric: str) -> str:
    """The question that the judge is asked."""
    dialogue = said if isinstance(said, str) else "\n".join(f"{one['role']}: {one['content']}" for one in said)
    return (
        f"{rubric}\n\n[The request]\n{dialogue}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"
        'Reply with {"verdict": "A"}, {"verdict": "B"} or {"verdict": "tie"}.'
    )


def _as(said: Any, answer: str) -> Any:
    """An answer as the prompt is: a text, or a message."""
    return answer if isinstance(said, str) else [{"role": "assistant", "content": answer}]


def judge(judge: Judge, file: Path, out: Path, progress: Any = lambda lines, size: None) -> Done:
    """Writes a row of preferences for each line of a file by ``resumable.write_lines``, resumed to the same bytes."""
    return write_lines(file, out, judge.describe(), partial(judge.read, file=file), judge.answer, WINDOW, progress)


def count(out: Path) -> Counts:
    """Who won in an output whose lines have two answers each."""
    found = Counts()
    with out.open(encoding="utf-8") as lines:
        for line in lines:
            row: Mapping[str, Any] = json.loads(line)
            if len(row.get("completions", ())) != 2:
                found.errors += "error" in row and "points" not in row
            elif "error" in row:
                found.ties += 1
                found.disagreed += "disagree" in row["error"]
            else:
                found.first += row["best"] == 0
                found.second += row["best"] == 1
    return found
