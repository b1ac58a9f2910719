"""``jaxformer generate``: text that appears while it is generated."""

import argparse
import sys
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxformer.commands.options import EXIT_SIGNAL, add_model, add_options, add_quoting, parse_options, start_display
from jaxformer.schema import UserError, local_path

SUMMARY = "Continue a prompt or a file of prompts, or hold a conversation."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_model(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="text to continue; default: read from the terminal")
    parser.add_argument("--file", metavar="FILE", help="prompts, one a line: .txt, .jsonl, .csv or .tsv")
    parser.add_argument(
        "--text-column", default="text", metavar="NAME", help="column of FILE with the prompt (default: text)"
    )
    add_quoting(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--chat", action="store_true", help="prompts are messages, put into the chat template")
    form.add_argument("--plain", action="store_true", help="prompts are plain text, even with a chat template")
    parser.add_argument("--system", metavar="TEXT", help="system message of the conversation")
    add_options(parser, "generation", "max_new_tokens=200 temperature=0.8 weights=int8 seed=1")


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit code."""
    from jaxformer.pipelines import pipeline
    from jaxformer.pipelines.resumable import check_file

    start_display(options.debug)
    if options.prompt is not None and options.file is not None:
        raise UserError("--prompt and --file are both given, expected one of them")
    prompts = None
    if options.file is not None:
        path = local_path(options.file)
        prompts = _read_prompts(path, check_file(path), options.text_column, options.quoting)
    pipe: Any = pipeline(
        None, options.model, dtype=options.dtype, numerics=options.numerics, **parse_options(options.options)
    )
    if not hasattr(pipe, "pieces"):
        raise UserError(
            f"{options.model} is a model for {pipe.task} and generates no text, expected a language model; use "
            "jaxformer predict"
        )
    writer = _Writer(pipe, _is_chat(pipe, options), options.system)
    try:
        if prompts is not None:
            return _several(writer, prompts)
        if options.prompt is not None or not sys.stdin.isatty():
            writer.answer(options.prompt if options.prompt is not None else sys.stdin.read())
            return 0
        return _conversation(writer)
    except KeyboardInterrupt:
        print(flush=True)
        return EXIT_SIGNAL["SIGINT"]


def _is_chat(pipe: Any, options: argparse.Namespace) -> bool:
    """Returns whether prompts are messages: as given, else if the tokenizer has a chat template."""
    able = pipe.task == "text-generation" and pipe.tokenizer.chat_template is not None
    if options.chat and not able:
        raise UserError(f"--chat is given and {options.model} has no chat template, expected --plain")
    if options.system is not None and (options.plain or not able):
        raise UserError("--system is given without a chat template to put it into; leave it out")
    return bool(able and not options.plain)


def _read_prompts(path: Path, kind: str, column: str, quoting: Any = "auto") -> Iterator[Any]:
    """The prompts of a file; a bad line is an error that names it."""
    from jaxformer.data.lines import read_lines
    from jaxformer.pipelines.text_generation import with_variables

    for line in read_lines(path, kind, quoting):
        found = line.value
        if isinstance(found, dict):
            found = line.value.get(column, line.value.get("messages"))
            if not isinstance(found, str | list):
                found = UserError(f"there is no text {column!r}, only {', '.join(line.value)}; see --text-column")
            else:
                try:
                    found = with_variables(found, line.value)
                except UserError as error:
                    found = error
        yield UserError(f"line {line.number}: {found}") if isinstance(found, UserError) else found


def _several(writer: "_Writer", prompts: Iterator[Any]) -> int:
    """Continues each prompt; returns 1 if some failed."""
    failed = 0
    for number, prompt in enumerate(prompts):
        if number:
            print(flush=True)
        try:
            if isinstance(prompt, UserError):
                raise prompt
            writer.answer(prompt, show_prompt=True)
        except UserError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0


def _conversation(writer: "_Writer") -> int:
    """Reads prompts from the terminal until it ends; in a chat the model sees the earlier messages."""
    what = "message" if writer.chat else "prompt"
    print(f"{writer.pipe.name}: a {what} and Enter; Ctrl-C stops a text, Ctrl-D exits", file=sys.stderr)
    while True:
        try:
            prompt = input("> ")
        except EOFError:
            print()
            return 0
        if not prompt.strip():
            continue
        try:
            writer.answer(prompt)
        except KeyboardInterrupt:
            print(" ...")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)


def harmless(text: str) -> str:
    """The text with control characters other than newline and tab replaced, which could steer a terminal."""
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


class _Writer:
    """Prints texts while they are generated; in a chat it remembers the messages."""

    def __init__(self, pipe: Any, chat: bool, system: str | None) -> None:
        self.pipe, self.chat = pipe, chat
        self.said: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        self.live = sys.stdout.isatty()

    def answer(self, prompt: Any, *, show_prompt: bool = False) -> None:
        """Continues a prompt; with ``show_prompt`` prompts are independent of each other and printed."""
        item: Any = prompt
        if self.chat and isinstance(prompt, str):
            item = [*self.said, {"role": "user", "content": prompt}]
        if self.live and (show_prompt or not self.chat) and isinstance(prompt, str):
            self._dim(prompt, end="\n" if self.chat or self.pipe.encoder_decoder else "")
        start, count, text, reason = time.perf_counter(), 0, "", None
        for piece in self._pieces(item):
            count, text, reason = count + len(piece.tokens), text + piece.text, piece.finish_reason
            sys.stdout.write(harmless(piece.text) if self.live else piece.text)
            sys.stdout.flush()
        print(flush=True)
        if self.live:
            seconds = time.perf_counter() - start
            ended = "the end of the text" if reason == "stop" else "max_new_tokens"
            self._dim(f"{count} tokens in {seconds:.1f} s, up to {ended}", file=sys.stderr)
        if self.chat and not show_prompt and isinstance(item, list):
            self.said = [*item, {"role": "assistant", "content": text}]

    def _pieces(self, item: Any) -> Iterator[Any]:
        """The pieces of a text; beam search gives the whole text."""
        from jaxformer.generation import Piece

        if self.pipe.options.num_beams == 1:
            yield from self.pipe.pieces(item)
            return
        full = {"return_full_text": False} if self.pipe.task == "text-generation" else {}
        for answer in self.pipe(item, **full):
            (text,) = answer.values()
            yield Piece(0, text, self.pipe.tokenizer(text)["input_ids"], "stop")

    def _dim(self, text: str, end: str = "\n", file: Any = None) -> None:
        print(f"\x1b[2m{text}\x1b[0m", end=end, file=file or sys.stdout, flush=True)
