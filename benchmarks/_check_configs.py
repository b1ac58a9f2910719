"""Five small runs with data made here, one for each kind of model and objective, to be checked and to be broken."""

import json
import random
from pathlib import Path
from typing import Any

import jax
from flax import linen as nn

from jaxformer.check.model import stirred
from jaxformer.families import build_model, model_config
from jaxformer.hub.kinds import init
from jaxformer.hub.save import save_pretrained
from jaxformer.models.config import TransformerConfig
from jaxformer.models.heads import SequenceClassifier
from jaxformer.tokenizers import train_tokenizer
from jaxformer.tokenizers.config import TokenizerConfig

WORDS = """the cat sat on a mat and then it ran far away from every dog
while we read many old books at home""".split()  # noqa: SIM905
SIZES = {"hidden_size": 24, "num_layers": 2, "num_heads": 4, "max_length": 96, "unroll": 1}
LENGTHS = """def score(completions, prompts, **kwargs):
    return [len(text) / 10 + 0.1 * len(prompt) for text, prompt in zip(completions, prompts)]
"""


def _sentence(draw: random.Random, least: int, most: int) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randrange(least, most)))


def write_data(folder: Path) -> None:
    """Writes documents, records with the columns of several objectives, and a reward function."""
    draw = random.Random(0)
    documents = [{"text": _sentence(draw, 20, 60) + "."} for _ in range(60)]
    records = [
        {
            "source": (source := _sentence(draw, 3, 8)),
            "target": " ".join(reversed(source.split())),
            "prompt": _sentence(draw, 2, 7),
            "chosen": " " + _sentence(draw, 2, 8),
            "rejected": " " + _sentence(draw, 2, 8),
        }
        for _ in range(48)
    ]
    for name, rows in (("corpus", documents), ("records", records)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (folder / "reward.py").write_text(LENGTHS, encoding="utf-8")


def write_models(folder: Path) -> None:
    """Writes a language model to start from and a reward model, random ones, with one tokenizer."""
    corpus = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
    tokenizer = train_tokenizer(TokenizerConfig(type="bpe", vocab_size=300), corpus)
    sizes = {**SIZES, "type": "gpt2", "vocab_size": len(tokenizer), "pad_token_id": tokenizer.eos_token_id}
    config = TransformerConfig(**model_config({**sizes, "eos_token_id": tokenizer.eos_token_id}))
    # Without a padding token of its own the reward model knows padding by the mask alone.
    scores = SequenceClassifier(config.model_copy(update={"pad_token_id": None}), 1)
    for name, model in (("base", build_model(config)), ("reward", scores)):
        params = stirred(nn.unbox(init(model, jax.random.key(0))))
        save_pretrained(folder / name, model, params, tokenizer)


def configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The keys of the five runs, by name: causal, masked, encoder-decoder, DPO and PPO."""
    text = {"path": str(folder / "corpus.jsonl"), "validation_fraction": 0.2}
    records = {"path": str(folder / "records.jsonl")}
    base = {"pretrained": str(folder / "base"), "unroll": 1}
    bpe = {"type": "bpe", "vocab_size": 300}
    ema = {"ema_decay": 0.9}
    found: dict[str, dict[str, Any]] = {
        "causal": {
            "model": {
                "type": "mistral",
                "num_kv_heads": 2,
                "head_size": 6,
                "tie_embeddings": True,
                "window": 5,
                **SIZES,
            },
            "tokenizer": bpe,
            "data": text,
            "optimizer": {"type": "adamw", "freeze": ["layers/0/feed_forward/*"]},
            "schedule": {"type": "wsd", "warmup_steps": 5},
            "training": ema,
        },
        "masked": {
            "model": {"type": "bert", "norm_epsilon": 1e-3, **SIZES},
            "tokenizer": {"type": "wordpiece", "vocab_size": 600},
            "data": text,
            "task": {"type": "masked_lm"},
            "optimizer": {"type": "adamw", "layer_decay": 0.8},
            "schedule": {"type": "linear", "warmup_steps": 3, "final_learning_rate": 1e-4},
        },
        "encoder_decoder": {
            "model": {"type": "t5", "head_size": 6, "relative_max_distance": 20, **SIZES},
            "tokenizer": bpe,
            "data": records,
            "task": {"type": "seq2seq", "target_length": 48},
            "schedule": {"type": "cosine", "warmup_steps": 4},
        },
        "dpo": {
            "model": base,
            "data": records,
            "task": {"type": "dpo"},
            "lora": {"rank": 2, "alpha": 8},
            "schedule": {"type": "constant"},
        },
        "ppo": {
            "model": base,
            "data": records,
            "task": {
                "type": "ppo",
                "reward": str(folder / "reward"),
                "max_new_tokens": 6,
                "epochs": 1,
                "minibatches": 1,
                "missing_eos_penalty": 0.5,
            },
            "schedule": {"type": "inverse_sqrt", "warmup_steps": 4},
        },
    }
    for name, keys in found.items():
        keys["data"] = {**keys["data"], "cache_dir": str(folder / "cache")}
        keys["training"] = {"steps": 40, "batch_size": 8, "sequence_length": 48, **keys.get("training", {})}
        keys["logging"] = {"tensorboard": False}
        keys["output_dir"] = str(folder / "runs" / name)
    return found


def write(folder: Path) -> dict[str, Path]:
    """Writes data, models and a YAML file for each run; returns the files by name."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    write_data(folder)
    write_models(folder)
    files = {}
    for name, keys in configs(folder).items():
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(keys), encoding="utf-8")
    return files
