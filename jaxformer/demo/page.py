"""The page itself: a heading, the task's panel, and one line where something is amiss."""

import functools
import html
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flax.linen import unbox

from jaxformer.demo import answers
from jaxformer.demo.panels import drawing, panel_of
from jaxformer.hub.kinds import abstract_params
from jaxformer.pipelines import Pipeline
from jaxformer.schema import UserError

CSS = """
.gradio-container { width: 100%; max-width: 1040px !important; margin: 0 auto; }
.heading h1 { margin-bottom: 0; }
.heading p { color: var(--body-text-color-subdued); }
.confidence-set *, .table-container * { font-family: var(--font) !important; }
footer { display: none !important; }
"""


def load_gradio() -> Any:
    """Gradio, told beforehand to send nothing to its makers and to keep no record of what is typed.

    Raises:
        UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"
    try:
        import gradio
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UserError('gradio is not installed, which draws the page; pip install "jaxformer[demo]"') from None
    return gradio


def name_of(pipe: Pipeline) -> str:
    """The model's name, of a folder its last part."""
    folder = Path(pipe.name).expanduser()
    return folder.resolve().name if folder.is_dir() else pipe.name


def facts(pipe: Pipeline) -> str:
    """What stands under the heading: task, family, size, and how much the model reads."""
    from jaxformer.training.state import count_parameters

    config = pipe.model.config
    size = count_parameters(unbox(abstract_params(pipe.model)))
    return f"{pipe.task} · {config.type} · {size:,} parameters · {config.dtype} · up to {pipe.longest:,} tokens"


def shown(function: Callable[..., Any], gr: Any) -> Callable[..., Any]:
    """The function, with a user's mistake as one line on the page."""

    def line(error: UserError) -> Exception:
        found: Exception = gr.Error(html.escape(str(error), quote=False), print_exception=False)
        return found

    @functools.wraps(function)
    def plain(*values: Any) -> Any:
        try:
            return function(*values)
        except UserError as error:
            raise line(error) from None

    @functools.wraps(function)
    def stream(*values: Any) -> Iterator[Any]:
        try:
            yield from function(*values)
        except UserError as error:
            raise line(error) from None

    return stream if inspect.isgeneratorfunction(function) else plain


def _bound(function: Callable[..., Any], pipe: Pipeline) -> Callable[..., Any]:
    """The function of the values alone."""
    if not inspect.isgeneratorfunction(function):
        return lambda *values: function(pipe, *values)

    def stream(*values: Any) -> Iterator[Any]:
        yield from function(pipe, *values)

    return stream


def build_page(pipe: Pipeline) -> Any:
    """The page of a pipeline's task, a ``gradio.Blocks``; ``launch_options()`` are for its ``launch``.

    Raises:
        UserError: gradio is not installed.
    """
    gr = load_gradio()
    with gr.Blocks(title=f"{name_of(pipe)} · {pipe.task}", analytics_enabled=False) as page:
        gr.Markdown(f"# {html.escape(name_of(pipe))}\n{facts(pipe)}", elem_classes="heading")
        if pipe.task == "text-generation" and pipe.tokenizer.chat_template:
            _chat(gr, pipe)
        else:
            _panel(gr, answers.as_similarity(pipe) if pipe.task == "feature-extraction" else pipe)
    return page


def _panel(gr: Any, pipe: Pipeline) -> None:
    """What is filled in to the left, the answer to the right."""
    panel = panel_of(pipe)
    streams = inspect.isgeneratorfunction(panel.answer)
    with gr.Row():
        with gr.Column():
            given = panel.asks(gr, pipe)
            with gr.Row():
                button = gr.Button(panel.verb, variant="primary")
                stop = gr.Button("Stop") if streams else None
            settings = []
            if panel.sets is not None:
                with gr.Accordion("Options", open=False):
                    settings = panel.sets(gr, pipe)
        with gr.Column():
            found = panel.shows(gr, pipe)
    answer = shown(_bound(panel.answer, pipe), gr)
    # Enter in the last box of one line is the button too; in larger ones it is a new line.
    events = [button.click, *[box.submit for box in given if isinstance(box, gr.Textbox)]]
    event = gr.on(events, answer, [*given, *settings], found, api_name="answer", concurrency_limit=1)
    if stop is not None:
        stop.click(None, cancels=[event], api_visibility="private")


def _chat(gr: Any, pipe: Pipeline) -> None:
    """A conversation, for a model whose tokenizer has a chat template."""
    # What ChatInterface calls must be on the page before it.
    with gr.Accordion("Options", open=False):
        settings = drawing(gr, pipe)
    gr.ChatInterface(
        shown(_bound(answers.replied, pipe), gr),
        chatbot=gr.Chatbot(label="Conversation", height=480, render_markdown=False, buttons=["copy"]),
        textbox=gr.Textbox(placeholder="Type a message", show_label=False, container=False),
        additional_inputs=settings,
        analytics_enabled=False,
        api_name="answer",
    )


def launch_options(host: str, port: int | None) -> dict[str, Any]:
    """How the page is served: here alone, quietly, with nothing from elsewhere; without a port 7860 or the next."""
    gr = load_gradio()
    # A font that gradio itself serves, in the weights that it has whole: of the semibold letters are missing.
    sans = gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700))
    hues = {"primary_hue": "indigo", "secondary_hue": "indigo", "neutral_hue": "slate"}
    return {
        "server_name": host,
        "server_port": port,
        "share": False,
        "quiet": True,
        "prevent_thread_lock": True,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "footer_links": [],
        "theme": gr.themes.Default(**hues, font=(sans, "system-ui", "sans-serif")),
        "css": CSS,
    }
