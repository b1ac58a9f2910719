"""A run small enough to train in a second, on a text made here."""

import io
import random
from pathlib import Path

from rich.console import Console

from jaxformer.training.config import RunConfig
from jaxformer.training.console import Display
from jaxformer.training.loop import Result, train
from jaxformer.training.run import Run, prepare
from jaxformer.training.sources import resolve_config

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran", "far", "away", "from", "every", "dog"]


def write_corpus(folder: Path, documents: int = 40) -> Path:
    """JSON lines of random sentences, the same every time."""
    draw = random.Random(0)
    path = folder / "corpus.jsonl"
    lines = (" ".join(draw.choices(WORDS, k=draw.randrange(5, 60))) for _ in range(documents))
    path.write_text("".join(f'{{"text": "{line}."}}\n' for line in lines), encoding="utf-8")
    return path


def tiny_keys(folder: Path, **training: object) -> dict[str, object]:
    """Keys of a run of a few thousand parameters."""
    corpus = folder / "corpus.jsonl"
    return {
        "output_dir": str(folder / "run"),
        "model": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_length": 16, "dropout": 0.1, "unroll": 1},
        "tokenizer": {"type": "byte"},
        "data": {
            "path": str(corpus if corpus.exists() else write_corpus(folder)),
            "cache_dir": str(folder / "cache"),
            "validation_fraction": 0.2,
        },
        "optimizer": {"learning_rate": 1e-2},
        "training": {"steps": 6, "batch_size": 8, "log_every": 1, **training},
        "logging": {"tensorboard": False, "report": False},
        "sample": {"max_new_tokens": 0},
    }


def make_run(keys: dict[str, object] | RunConfig) -> Run:
    """A prepared run."""
    config = keys if isinstance(keys, RunConfig) else resolve_config(keys, "the test")
    return prepare(config, quiet())


def quiet() -> Display:
    """A display that nobody sees; ``display.console.file.getvalue()`` is what it printed."""
    return Display(Console(file=io.StringIO(), width=200, highlight=False, soft_wrap=True))


def run_training(keys: dict[str, object] | RunConfig, display: Display | None = None) -> Result:
    """Trains a run in this process."""
    return train(make_run(keys), display or quiet())
