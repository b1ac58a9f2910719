"""Every family and head against PyTorch ``transformers``, there and back, as a table.

    pip install -e ".[test,parity]" && python -m tests.parity.table --markdown > docs/parity.md

A tiny random PyTorch model is saved, opened here and compared (outputs, loss, gradients; rows padded on both sides),
then saved from here and opened strictly in PyTorch, whose outputs must not change.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NamedTuple

from tests.golden import experts, heads

OUTPUTS, GRADIENTS = 1e-4, 1e-3


class Row(NamedTuple):
    """Largest differences of one case.

    Attributes:
        case: ``family/kind``.
        outputs: absolute, of logits or hidden states.
        loss: absolute.
        gradients: relative to the largest.
        back: absolute, of PyTorch's outputs before and after the way through this library.
    """

    case: str
    outputs: float
    loss: float
    gradients: float
    back: float

    @property
    def passes(self):
        return max(self.outputs, self.loss, self.back) < OUTPUTS and (self.gradients or 0.0) < GRADIENTS


def compare(case, with_gradients=True, made=None):
    """The row of one case; ``made`` is what PyTorch makes of it, if that is known."""
    from tests.hub.compare import differences

    golden = json.loads(json.dumps(made or heads.make(case), default=str))
    return Row(case, *differences(case, golden, with_gradients), there_and_back(case, heads.torch_model(case)))


def there_and_back(case, model):
    """PyTorch's file, opened here, saved from here, opened in PyTorch: the largest difference of its outputs."""
    import torch

    import jaxformer.hub

    kind = case.split("/")[1]
    auto = getattr(jaxformer.hub, heads.KINDS[kind])
    opened = heads.opener_of(case)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        first, second = Path(folder) / "theirs", Path(folder) / "ours"
        model.save_pretrained(first)
        ours, params = auto.from_pretrained(first)
        jaxformer.hub.save_pretrained(second, ours, params)
        warnings.simplefilter("default")
        again, info = opened.from_pretrained(second, output_loading_info=True, attn_implementation="eager")
        # BigBird has a pooler under heads too that do not read it.
        problems = {
            name: unread for name, keys in info.items() if (unread := {k for k in keys if "bert.pooler" not in k})
        }
        assert not problems, problems
        written = json.loads((second / "config.json").read_text())
        assert written["architectures"] == [type(model).__name__], written["architectures"]
        worst = 0.0
        with torch.no_grad():
            for text, target in zip(heads.rows(kind), heads.targets(kind), strict=True):
                before, _ = heads.outputs_of(model, kind, text, target)
                after, _ = heads.outputs_of(experts.with_odd_experts(again.eval()), kind, text, target)
                worst = max(worst, *(float((before[name] - after[name]).abs().max()) for name in before))
    return worst


def main():
    """Prints the table; code 1 if a difference is too large."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--markdown", action="store_true", help="as a table for docs/parity.md")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    args = parser.parse_args()
    import transformers

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    rows = []
    form = "| {} | {} | {} | {} | {} |" if args.markdown else "{:40} {:>9} {:>9} {:>9} {:>9}"
    if args.markdown:
        print(f"# Parity with PyTorch\n\n{__doc__.partition(chr(10))[2].strip(chr(10))}\n")
        print(f"Limits: {OUTPUTS:g} for outputs, loss and round trip, {GRADIENTS:g} for gradients, relative.\n")
    print(form.format("family / head", "outputs", "loss", "gradients", "round trip"))
    if args.markdown:
        print("|---|---|---|---|---|")
    for case in heads.cases():
        if args.only in case:
            rows.append(row := compare(case))
            print(form.format(case, *(f"{value:.1e}" for value in row[1:])) + ("" if row.passes else "  FAILED"))
    return 0 if rows and all(row.passes for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
