# %% [markdown]
# title

# %%
import numpy as np

tokens = np.array(["the", "cat", "sat", "on", "the", "mat", "and", "the", "dog", "ran", "after", "the", "cat", "again"])
draw = np.random.default_rng(0)

# %% [markdown]
# gpt

# %%
inputs, labels = tokens[:-1], tokens[1:]
for seen, asked in list(zip(inputs, labels))[:4]:
    print(f"... {seen:4} -> {asked}")

# %% [markdown]
# bert

# %%
hidden = draw.random(len(tokens)) < 0.15
kind = draw.random(len(tokens))
read = np.where(hidden & (kind < 0.8), "[MASK]", tokens)  # 8 of 10 are masked,
read = np.where(hidden & (kind >= 0.9), draw.choice(tokens, len(tokens)), read)  # 1 is replaced, 1 stays
print("reads:  ", *read)
print("answers:", *(f"{token} at place {place}" for place, token in enumerate(tokens) if hidden[place]))

# %% [markdown]
# t5

# %%
spans = [(2, 4), (9, 11)]
source, target, end = [], [], 0
for number, (start, stop) in enumerate(spans):
    source += [*tokens[end:start], f"<{number}>"]
    target += [f"<{number}>", *tokens[start:stop]]
    end = stop
print("encoder reads: ", *source, *tokens[end:])
print("decoder writes:", *target)

# %% [markdown]
# library

# %%
import argparse
import json
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from jaxformer.training.console import Display
from jaxformer.training.row_preview import passages, pieces, rows_of
from jaxformer.training.run import prepare
from jaxformer.training.sources import resolve_config

folder = Path(tempfile.mkdtemp())
(folder / "text").mkdir()
modules = [Path(argparse.__file__), *Path(json.__file__).parent.glob("*.py")]
for module in modules:
    shutil.copy(module, folder / "text" / f"{module.stem}.txt")


def run_of(family, name=None, **training):
    sizes = {"hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_length": 64, "dropout": 0.0}
    keys = {
        "output_dir": str(folder / (name or family)),
        "model": {"type": family, **sizes},
        "tokenizer": {"type": "bpe", "vocab_size": 600},
        "data": {"path": str(folder / "text"), "validation_fraction": 0.1, "cache_dir": str(folder / "cache")},
        "optimizer": {"learning_rate": 3e-3},
        "training": {"steps": 300, "batch_size": 16, "log_every": 5, "eval_every": 50, **training},
        "logging": {"report": False, "tensorboard": False},
        "sample": {"max_new_tokens": 0},
    }
    return prepare(resolve_config(keys, "this chapter"), Display(Console(quiet=True)))


for family in ("gpt2", "bert", "t5"):
    run = run_of(family)
    print(f"-- {family}: {run.config.task.type}")
    for passage in passages(run, next(rows_of(run, 1)))[:2]:
        text = "".join(f"[[{text}]]" if trained else text for text, trained, _ in pieces(passage, run.tokenizer))
        print(f"{passage.title}: {text[:160]!r}")

# %% [markdown]
# train

# %%
from jaxformer import plot
from jaxformer.training.loop import train
from jaxformer.training.metrics import read_records

curves = {}
for family in ("gpt2", "bert", "t5"):
    result = train(run_of(family), Display(Console(quiet=True)))
    curves[family] = read_records(folder / family / "metrics.jsonl")
    print(f"{family}: validation loss {result.loss:.2f} nats a predicted token")
validation = {
    family: ([r["step"] for r in records if r["split"] == "eval"], [r["loss"] for r in records if r["split"] == "eval"])
    for family, records in curves.items()
}
plot.learning_curves(validation)

# %% [markdown]
# overfitting

# %%
result = train(run_of("gpt2", "longer", steps=900), Display(Console(quiet=True)))
records = read_records(folder / "longer" / "metrics.jsonl")
both = {
    name: ([r["step"] for r in records if r["split"] == split], [r["loss"] for r in records if r["split"] == split])
    for name, split in {"the text it trains on": "train", "text it has not seen": "eval"}.items()
}
steps, losses = both["text it has not seen"]
print(
    f"unseen text: lowest loss {min(losses):.2f} at step {steps[int(np.argmin(losses))]}, {losses[-1]:.2f} at the end"
)
print(f"training text: {both['the text it trains on'][1][-1]:.2f} at the end")
plot.learning_curves(both)

# %% [markdown]
# summary
