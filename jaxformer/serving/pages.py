"""The demo's pages on a server: what a person types goes through the same slots as requests."""

import queue
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jaxformer.demo.page import build_page, launch_options, load_gradio
from jaxformer.generation import Piece
from jaxformer.generation.scheduler import Job
from jaxformer.generation.slots import NEUTRAL
from jaxformer.serving.served import Served
from jaxformer.serving.texts import Writing

# Options that the scheduler has; a text with others is written by the pipeline itself.
KNOWN = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
TOKENS = ("eos_token_id", "pad_token_id", "bos_token_id", "suppress_tokens")  # the model's, as the scheduler has them
HANDLED = (*KNOWN, *TOKENS, "do_sample", "max_new_tokens", "min_new_tokens", "stop_strings")


def scheduled(served: Served) -> Callable[..., Iterator[Piece]]:
    """``pieces`` of a pipeline by the model's scheduler."""
    pipe, scheduler, alone = served.pipe, served.scheduler, served.pipe.pieces
    assert scheduler is not None, "of a decoder"

    def pieces(item: Any, **options: Any) -> Iterator[Piece]:
        chosen = pipe.parse(options)
        row = pipe.encode([item], chosen)[0][0]
        config = pipe.config(row, chosen)
        fields = type(config).model_fields
        if any(getattr(config, name) != field.default for name, field in fields.items() if name not in HANDLED):
            yield from alone(item, **options)
            return
        numbers = {name: value for name in KNOWN if (value := getattr(config, name)) is not None}
        if not config.do_sample:
            numbers |= {"temperature": 0.0}
        limits = {"min_new_tokens": config.min_new_tokens, "max_new_tokens": config.max_new_tokens}
        settings = NEUTRAL._replace(**numbers, **limits)
        arrived: queue.Queue[Any] = queue.Queue()
        prompt, ends = list(row.inputs["input_ids"]), scheduler.rules.end_ids
        writing = Writing(0, prompt, pipe.tokenizer, ends, config.stop_strings, arrived.put, plain=True)
        job = Job(prompt, settings, writing.receive, seed=(chosen.seed, 0))
        scheduler.submit(job)
        try:
            while True:
                found = arrived.get()
                if isinstance(found, Exception):
                    raise found
                yield Piece(0, found.text, [token.id for token in found.tokens], found.reason)
                if found.reason is not None:
                    return
        finally:
            scheduler.cancel(job)

    return pieces


def add_pages(app: Any, served: Mapping[str, Served], host: str, port: int) -> list[str]:
    """Adds a page for each model under ``/demo/NAME``; returns the paths.

    Raises:
        UserError: gradio is not installed.
    """
    gradio, paths = load_gradio(), []
    options = launch_options(host, port)
    kept = ("footer_links", "ssr_mode", "pwa", "mcp_server", "enable_monitoring", "theme", "css")
    for name, one in served.items():
        if one.scheduler is not None:
            one.pipe.pieces = scheduled(one)
        path = f"/demo/{name}"
        gradio.mount_gradio_app(app, build_page(one.pipe), path, **{key: options[key] for key in kept})
        paths.append(path)
    return paths
