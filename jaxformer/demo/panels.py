"""The inputs and outputs of each task's page, and the function between them."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxformer.demo import answers
from jaxformer.pipelines import Pipeline

# Most labels shown.
MOST_LABELS = 10
# Default of the slider for new tokens, less for a short model.
NEW_TOKENS = 256


class Panel(NamedTuple):
    """A task's page.

    ``answer`` makes the outputs' values from the pipeline and the inputs' values; a generator streams them.
    """

    asks: Callable[[Any, Any], list[Any]]  # makes the inputs, from ``gradio`` and the pipeline
    shows: Callable[[Any, Any], list[Any]]  # makes the outputs
    answer: Callable[..., Any]
    sets: Callable[[Any, Any], list[Any]] | None = None  # makes the inputs under "Options", which have defaults
    verb: str = "Run"  # label of the button


def panel_of(pipe: Pipeline) -> Panel:
    """The page of a pipeline's task."""
    if pipe.task == "text-classification" and getattr(pipe, "default_function", None) == "none":
        return Panel(_text, _table("label", "value"), answers.measured, _second, "Measure")
    return PANELS[pipe.task]


def _boxes(*boxes: tuple[str, str, int]) -> Callable[[Any, Any], list[Any]]:
    """Makes text boxes from a label, a hint, in which ``{mask}`` is the mask token, and a number of lines."""
    return lambda gr, pipe: [
        gr.Textbox(label=label, placeholder=hint.format(mask=pipe.tokenizer.mask_token), lines=lines, max_lines=20)
        for label, hint, lines in boxes
    ]


_text = _boxes(("Text", "Type or paste a text", 4))
_second = _boxes(("Second text", "Only for models that read pairs of texts", 2))
_masked = _boxes(("Text", "A text with {mask} in place of a word", 4))
_question = _boxes(("Text", "The text that holds the answer", 8), ("Question", "A question about the text", 1))
_sentences = _boxes(("Sentence", "A sentence", 2), ("Compared with", "Other sentences, one a line", 6))


def _labels(gr: Any, pipe: Any) -> list[Any]:
    return [gr.Label(label="Probabilities", num_top_classes=MOST_LABELS, show_heading=False)]


def _table(*columns: str) -> Callable[[Any, Any], list[Any]]:
    """Makes a table of the answer."""
    numbers = {"score", "cosine", "value"}
    types = ["number" if column in numbers else "str" for column in columns]
    # Numbers keep their width beside long texts.
    room = 100 - 25 * (len(columns) - 1)
    widths = [f"{room if number == 0 else 25}%" for number in range(len(columns))]
    return lambda gr, pipe: [
        gr.Dataframe(
            label="Answers",
            headers=list(columns),
            datatype=types,
            column_widths=widths,
            interactive=False,
            wrap=True,
            buttons=[],
        )
    ]


def _marked(*columns: str) -> Callable[[Any, Any], list[Any]]:
    """Makes a text with marks, and a table under it."""
    table = _table(*columns)
    return lambda gr, pipe: [gr.HighlightedText(label="Found", show_legend=False), *table(gr, pipe)]


def _classes(gr: Any, pipe: Any) -> list[Any]:
    given = ", ".join(pipe.options.candidate_labels)
    return [
        *_text(gr, pipe),
        gr.Textbox(label="Labels", placeholder="sport, politics, science", value=given),
        gr.Checkbox(label="Several labels may be right", value=pipe.options.multi_label),
    ]


def _written(gr: Any, pipe: Any) -> list[Any]:
    return [gr.Textbox(label="Answer", lines=8, max_lines=30, interactive=False, buttons=["copy"])]


def _most_tokens(gr: Any, pipe: Any) -> Any:
    """The slider of ``max_new_tokens``."""
    longest = int(pipe.model.config.max_length)
    value = pipe.given.get("max_new_tokens", min(NEW_TOKENS, max(longest // 2, 1)))
    return gr.Slider(1, longest, value=value, step=1, label="Most new tokens")


def _beams(gr: Any, pipe: Any) -> list[Any]:
    return [gr.Slider(1, 8, value=pipe.options.num_beams, step=1, label="Beams"), _most_tokens(gr, pipe)]


def drawing(gr: Any, pipe: Any) -> list[Any]:
    """Temperature, top-p, length and seed, as ``answers.drawing`` takes them."""
    o = pipe.options
    temperature = o.temperature if o.do_sample else 0
    greedy, same = "0 takes the likeliest token each time", "the same seed draws the same text"
    return [
        gr.Slider(0, 2, value=temperature, step=0.05, label="Temperature", info=greedy),
        gr.Slider(0.05, 1, value=o.top_p or 1, step=0.05, label="Top-p"),
        _most_tokens(gr, pipe),
        gr.Number(value=o.seed, precision=0, minimum=0, label="Seed", info=same),
    ]


PANELS = {
    "text-classification": Panel(_text, _labels, answers.classified, _second, "Classify"),
    "token-classification": Panel(_text, _marked("text", "entity", "score"), answers.entities, verb="Find entities"),
    "question-answering": Panel(_question, _marked("answer", "score"), answers.answered, verb="Answer"),
    "fill-mask": Panel(_masked, _labels, answers.unmasked, verb="Fill"),
    "zero-shot-classification": Panel(_classes, _labels, answers.judged, verb="Classify"),
    "feature-extraction": Panel(_sentences, _table("sentence", "cosine"), answers.compared, verb="Compare"),
    "sentence-similarity": Panel(_sentences, _table("sentence", "cosine"), answers.compared, verb="Compare"),
    "text-ranking": Panel(_sentences, _table("text", "score"), answers.ranked, verb="Rank"),
    "text-generation": Panel(_text, _written, answers.written, drawing, "Write"),
    "text2text-generation": Panel(_text, _written, answers.rewritten, _beams, "Write"),
    "summarization": Panel(_text, _written, answers.rewritten, _beams, "Summarize"),
    "translation": Panel(_text, _written, answers.rewritten, _beams, "Translate"),
}
