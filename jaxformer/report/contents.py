"""The contents of a run's page beside its records and configuration: ``report.json``."""

from typing import Any, NamedTuple

from pydantic import Field

from jaxformer.schema import Schema

# Evaluations whose answers are kept; with more, every second one is dropped.
MOST_ANSWERS = 24


class Piece(Schema):
    """The shortest text that whole tokens make; a character may need several of them."""

    text: str
    trained: bool = False
    loss: float | None = Field(None, description="nats, summed over the tokens; None where nothing is predicted")


class Passage(Schema):
    """Consecutive text, and a note beside it."""

    title: str
    pieces: list[Piece]
    note: str = ""


class Row(Schema):
    """One row of the data as the model reads it."""

    passages: list[Passage]


class Answer(Schema):
    """A text that the model wrote, or its answer to one example, at one step."""

    step: int
    example: int = 0
    values: dict[str, Any]


class Change(Schema):
    """A key of the configuration that a resumed run changed at a step."""

    step: int
    key: str
    before: Any = None
    after: Any = None


class Reliability(Schema):
    """Confidence against accuracy, in bins of equal width (Guo et al. 2017, "On Calibration", section 2)."""

    confidence: list[float]
    accuracy: list[float]
    count: list[int]

    @property
    def error(self) -> float:
        """Expected calibration error, the mean of ``|accuracy - confidence|`` over examples (equation 3)."""
        gaps = zip(self.confidence, self.accuracy, self.count, strict=True)
        return sum(abs(c - a) * n for c, a, n in gaps) / max(sum(self.count), 1)


class Pictures(Schema):
    """What an objective has to show of its last evaluation."""

    step: int
    labels: list[str] = Field([], description="names of the classes")
    confusion: list[list[int]] | None = Field(None, description="examples, [true class][predicted class]")
    reliability: Reliability | None = None
    entities: dict[str, dict[str, int]] | None = Field(None, description="kind of entity: kind of error: count")
    scores: list[float] | None = Field(None, description="rewards of the responses of a policy")


class Contents(Schema):
    """All that a page shows beside records and configuration."""

    facts: dict[str, str] = Field({}, description="model, data, devices, versions, command")
    differing: dict[str, list[Any]] = Field({}, description="key: [value, default]")
    changes: list[Change] = Field([], description="keys that resumed runs changed")
    examples: list[Row] = Field([], description="rows of the training data")
    losses: list[Row] = Field([], description="rows of the validation data")
    losses_step: int | None = None
    answers: list[Answer] = Field([], description="what the model wrote at evaluations")
    pictures: Pictures | None = None

    def until(self, step: int) -> "Contents":
        """The contents without what belongs to steps after ``step``, which will be done again."""
        return self.model_copy(
            update={
                "changes": [change for change in self.changes if change.step <= step],
                "answers": [answer for answer in self.answers if answer.step <= step],
            }
        )

    def with_answers(self, new: list[Answer]) -> "Contents":
        """The contents with answers added, thinned to ``MOST_ANSWERS`` evaluations."""
        steps = {answer.step for answer in new}
        answers = [answer for answer in self.answers if answer.step not in steps] + new
        kept = sorted({answer.step for answer in answers})
        while len(kept) > MOST_ANSWERS:
            kept = [*kept[:-1:2], kept[-1]]
        return self.model_copy(update={"answers": [answer for answer in answers if answer.step in kept]})


class Score(NamedTuple):
    """A result of a model on a task.

    Attributes:
        model: its name.
        task: its name.
        metric: its name.
        value: of the metric.
        error: standard error of the value, None if it is not known.
        examples: evaluated.
        shots: examples in the prompt.
        higher_is_better: of the metric.
    """

    model: str
    task: str
    metric: str
    value: float
    error: float | None = None
    examples: int | None = None
    shots: int | None = None
    higher_is_better: bool = True

    @property
    def shown(self) -> str:
        """The value with its 95 % interval.

        >>> Score("m", "t", "acc", 0.5, 0.05).shown
        '0.500 ± 0.098'
        """
        return f"{self.value:.3f}" + ("" if self.error is None else f" ± {1.96 * self.error:.3f}")
