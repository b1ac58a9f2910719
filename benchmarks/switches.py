"""What each switch of a model costs: the lines of the modules that name it, and the families that set it.

    python benchmarks/switches.py --markdown

A line counts for a switch if it names the switch or a property of the configuration that resolves it. Sizes and
what only training reads are left out: all models have them.
"""

import argparse
import inspect
import re
from pathlib import Path

import jaxformer.models
from jaxformer.families import FAMILIES
from jaxformer.models import TransformerConfig

MODULES = Path(jaxformer.models.__file__).parent
# Sizes, ids and what only training, files or other programs read.
LEFT_OUT = (
    *("type", "pretrained", "architecture", "vocab_size", "hidden_size", "num_layers", "num_heads", "max_length"),
    *("num_kv_heads", "head_size", "intermediate_size", "generation", "dropout", "attention_dropout", "initializer"),
    *("initializer_range", "dtype", "numerics", "remat", "unroll", "attention_implementation", "norm_epsilon"),
    *("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "decoder_start"),
)


# What hands on a whole configuration, or depends on most of one.
WHOLE = ("encoder_side", "decoder_side", "projects_context", "switched", "exact")


def names_of(switch: str) -> set[str]:
    """The switch and the properties of the configuration that read it, directly or through others."""
    found = {switch}
    bodies = {
        name: inspect.getsource(value.fget if isinstance(value, property) and value.fget else value)  # type: ignore[arg-type]
        for name, value in vars(TransformerConfig).items()
        if (isinstance(value, property) or inspect.isfunction(value)) and not name.startswith("_") and name not in WHOLE
    }
    while True:
        more = {n for n, body in bodies.items() if any(re.search(rf"self\.{name}\b", body) for name in found)}
        if more <= found:
            return found
        found |= more


def lines_of(switch: str) -> int:
    """Lines of the modules that name it."""
    pattern = re.compile(rf"\.({'|'.join(names_of(switch))})\b")
    files = [path for path in MODULES.glob("*.py") if path.name != "config.py"]
    return sum(bool(pattern.search(line)) for path in files for line in path.read_text().splitlines())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="as a table of Markdown")
    markdown = parser.parse_args().markdown
    form = "| `{}` | {} | {} |" if markdown else "{:28} {:>5}  {}"
    print(form.replace("`", "").format("switch", "lines", "families"))
    if markdown:
        print("|---|---:|---|")
    fields = TransformerConfig.model_fields
    for switch in (name for name in fields if name not in LEFT_OUT):
        families = [
            n for n, f in FAMILIES.items() if f.defaults.get(switch, fields[switch].default) != fields[switch].default
        ]
        shown = ", ".join(families[:5]) + (f" and {len(families) - 5} more" if len(families) > 5 else "")
        print(form.format(switch, lines_of(switch), shown))


if __name__ == "__main__":
    main()
