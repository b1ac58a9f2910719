"""How long each family's file of ``jaxformer export --one-file`` is, and whether it has the library's bits.

    python benchmarks/one_file_lengths.py

The lines are those of the family's own sizes; the bits are compared at small sizes, with padding and without. A family
with a switch that the templates do not have gets a "no".
"""

import argparse
import ast
import io
import tokenize
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxformer.families import FAMILIES
from jaxformer.hub.kinds import abstract_params
from jaxformer.one_file import read_source, render
from jaxformer.schema import UserError

SMALL = ("hidden_size=64", "num_layers=3", "num_heads=4", "intermediate_size=96", "max_length=64", "vocab_size=101")
ROWS, LENGTH = 3, 40


def code_lines(text: str) -> int:
    """Lines that hold code: no blank line, comment or docstring."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    held = {line for t in tokens if t.type not in skipped for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node):
            held -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return len(held)


def equal_bits(model: Any) -> bool:
    """True if the file's logits are those of the library, bit for bit, jitted, without and with padding."""
    file = types.ModuleType("file")
    exec(render(model, "the benchmark"), file.__dict__)
    draw = np.random.default_rng(0)
    shapes = flatten_dict(dict(abstract_params(model)), sep="/")
    flat = {n: draw.normal(n.endswith("/scale"), 0.2, s.value.shape).astype(np.float32) for n, s in shapes.items()}
    params = unflatten_dict(flat, sep="/")
    ids = jnp.asarray(draw.integers(0, model.config.vocab_size, (ROWS, LENGTH)))
    others = {"decoder_input_ids": ids[:, ::-1]} if model.config.architecture == "encoder_decoder" else {}

    def library(params: Any, mask: Any) -> Any:
        return model.apply({"params": params}, ids, mask, **others).logits

    def plain(params: Any, mask: Any) -> Any:
        return file.forward(params, ids, attention_mask=mask, **others)

    padded = jnp.arange(LENGTH) >= 5 * jnp.arange(ROWS)[:, None]
    pairs = ((jax.jit(library)(params, mask), jax.jit(plain)(params, mask)) for mask in (None, padded))
    return all(np.asarray(ours).tobytes() == np.asarray(theirs).tobytes() for ours, theirs in pairs)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES], help="default: all")
    chosen = parser.parse_args().families
    columns = ("family", "architecture", "lines", "lines of code", "of them the model", "equal bits")
    print(f"| {' | '.join(columns)} |\n|---|---|---:|---:|---:|---|")
    for name in chosen:
        own = read_source(name).model
        try:
            text = render(own, name)
        except UserError:  # the templates have no piece for one of its switches
            print(f"| {name} | {own.config.architecture.replace('_', '-')} | | | | no |", flush=True)
            continue
        model = read_source(name, tuple(f"model.{size}" for size in SMALL)).model
        architecture, equal = model.config.architecture.replace("_", "-"), "yes" if equal_bits(model) else "no"
        counts = (len(text.splitlines()), code_lines(text), code_lines(text[: text.index("PARAMETERS = {")]))
        print(f"| {name} | {architecture} | {' | '.join(map(str, counts))} | {equal} |", flush=True)


if __name__ == "__main__":
    main()
