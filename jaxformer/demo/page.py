"""The web page: a heading and the panel of the task."""

import contextlib
import html
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

from flax.linen import unbox

from jaxformer.demo import answers
from jaxformer.demo.panels import drawing, panel_of
from jaxformer.hub.kinds import abstract_params
from jaxformer.pipelines import Pipeline
from jaxformer.schema import UserError, local_path

CSS = """
.gradio-container { width: 100%; max-width: 1040px !important; margin: 0 auto; }
.heading h1 { margin-bottom: 0; }
.heading p { color: var(--body-text-color-subdued); }
.confidence-set *, .table-container * { font-family: var(--font) !important; }
footer { display: none !important; }
"""


def load_gradio() -> Any:
    """Imports gradio with its analytics and its history of runs switched off."""
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
    """The model's name; of a folder, the last part of its path."""
    folder = local_path(pipe.name)
    return folder.resolve().name if folder.is_dir() else pipe.name


def facts(pipe: Pipeline) -> str:
    """The line under the heading: task, family, size, and maximum length."""
    from jaxformer.training.state import count_parameters

    config = pipe.model.config
    size = count_parameters(unbox(abstract_params(pipe.model)))
    return f"{pipe.task} · {config.type} · {size:,} parameters · {config.dtype} · up to {pipe.longest:,} tokens"


def _handler(function: Callable[..., Any], pipe: Pipeline, gr: Any) -> Callable[..., Any]:
    """The function of the page's values alone; a ``UserError`` becomes one line on the page."""

    @contextlib.contextmanager
    def one_line() -> Iterator[None]:
        try:
            yield
        except UserError as error:
            raise gr.Error(html.escape(str(error), quote=False), print_exception=False) from None

    def plain(*values: Any) -> Any:
        with one_line():
            return function(pipe, *values)

    def stream(*values: Any) -> Iterator[Any]:
        with one_line():
            yield from function(pipe, *values)

    return stream if inspect.isgeneratorfunction(function) else plain


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
    """Inputs on the left, the answer on the right."""
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
    answer = _handler(panel.answer, pipe, gr)
    # Enter in a box of one line also submits; in larger boxes it is a new line.
    events = [button.click, *[box.submit for box in given if isinstance(box, gr.Textbox)]]
    event = gr.on(events, answer, [*given, *settings], found, api_name="answer", concurrency_limit=1)
    if stop is not None:
        stop.click(None, cancels=[event], api_visibility="private")


def _chat(gr: Any, pipe: Pipeline) -> None:
    """A conversation, for a model whose tokenizer has a chat template."""
    # The additional inputs of ChatInterface must be on the page before it.
    with gr.Accordion("Options", open=False):
        settings = drawing(gr, pipe)
    gr.ChatInterface(
        _handler(answers.replied, pipe, gr),
        chatbot=gr.Chatbot(label="Conversation", height=480, render_markdown=False, buttons=["copy"]),
        textbox=gr.Textbox(placeholder="Type a message", show_label=False, container=False),
        additional_inputs=settings,
        analytics_enabled=False,
        api_name="answer",
    )


def launch_options(host: str, port: int | None) -> dict[str, Any]:
    """The arguments of ``launch``: no sharing, no external resources; without a port, 7860 or the next free one."""
    gr = load_gradio()
    # Served by gradio itself, in the weights that are complete: its semibold lacks letters.
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
