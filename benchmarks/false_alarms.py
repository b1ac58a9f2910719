"""``jaxformer check`` on every shipped configuration and every family: no line may fail, for nothing is wrong.

    python benchmarks/false_alarms.py                # all
    python benchmarks/false_alarms.py --only nano sums    # those whose name contains one of these

Data that a configuration names and that is not here is replaced by some rows with its columns, an earlier run by a
random model; all else is the configuration's own.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import yaml
from _check_configs import WORDS, write
from flax import linen as nn

from jaxformer import check
from jaxformer.check.model import stirred
from jaxformer.families import FAMILIES, build_model, model_config
from jaxformer.hub.kinds import build, init
from jaxformer.models.config import TransformerConfig
from jaxformer.parallel.compiler_flags import FAST_COMPILATION

os.environ["XLA_FLAGS"] = FAST_COMPILATION  # read when the first array is made
ROOT = Path(__file__).parents[1]
SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_layers": 2,
    "num_heads": 3,
    "head_size": 8,
    "max_length": 96,
    "unroll": 1,
}


def sentence(draw: random.Random, most: int = 12) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randrange(3, most)))


def row(draw: random.Random, number: int) -> dict[str, Any]:
    """A row with the columns of every configuration."""
    text = sentence(draw)
    words = text.split()
    chat = [{"role": "user", "content": sentence(draw)}]
    return {
        "text": text,
        "document": text,
        "sentence": text,
        "title": text,
        "label": str(number % 2),
        "chars": list(text),
        "tags": ["B-X" if i == 0 else "O" for i in range(len(text))],
        "en": text,
        "de": " ".join(reversed(words)),
        "id": str(number),
        "question": sentence(draw),
        "context": text,
        "answers": {"text": [words[0]], "answer_start": [0]},
        "instruction": sentence(draw),
        "input": "",
        "output": text,
        "prompt": chat,
        "chosen": [*chat, {"role": "assistant", "content": text}],
        "rejected": [*chat, {"role": "assistant", "content": sentence(draw)}],
        "messages": [*chat, {"role": "assistant", "content": text}],
    }


def stand_in(keys: dict[str, Any], folder: Path, name: str) -> dict[str, Any]:
    """The keys of a configuration with data and earlier models that are here."""
    draw = random.Random(name)
    data, task, model = dict(keys.get("data") or {}), dict(keys.get("task") or {}), dict(keys["model"])
    (folder / "data").mkdir(exist_ok=True)
    for key in ("path", "validation_path"):
        if data.get(key) is not None and not str(data[key]).startswith("runs/sums"):
            path = folder / "data" / f"{name}-{key}.jsonl.gz"
            # Texts fill rows of a thousand tokens, records are rows themselves.
            many = data.get("source") == "text" or data.get("validation_fraction", 1) < 0.05
            rows = [row(draw, number) for number in range(4000 if many else 80)]
            if labels := task.get("labels") or list(task.get("class_weights") or ()):
                rows = [
                    {**each, task.get("label_column", "label"): labels[n % len(labels)]} for n, each in enumerate(rows)
                ]
            if name.startswith("assistant-") and "instruction" not in str(data) and task.get("type") == "instruction":
                rows = [{k: each[k] for k in ("instruction", "input", "output")} for each in rows]
            if task.get("type") in ("dpo", "reward"):
                rows = [{k: each[k] for k in ("chosen", "rejected")} for each in rows]
            if task.get("type") in ("ppo", "grpo"):
                rows = [{"prompt": each["prompt"]} for each in rows]
            with gzip.open(path, "wt", encoding="utf-8") as file:
                file.writelines(json.dumps(each) + "\n" for each in rows)
            data[key] = str(path)
            data.pop("source", None)
    if data.get("path") == "runs/sums.jsonl":
        data["path"] = str(folder / "sums.jsonl")
    if name.startswith("gpt_shakespeare"):
        data |= {"path": str(folder / "corpus.txt")}
    if "pretrained" in model:
        encoder = model["pretrained"].startswith(("runs/korean", "sentence-transformers"))
        model["pretrained"] = str(folder / ("encoder" if encoder else "chat"))
    if "teacher" in task:
        task["teacher"] = str(folder / "chat")
    if task.get("type") in ("ppo", "grpo") and "reward" in str(task.get("reward")):
        task["reward"] = str(folder / "chat_reward")
    if str(task.get("reward", "")).startswith("examples/"):
        task["reward"] = str(ROOT / task["reward"])
    data["cache_dir"] = str(folder / "cache")
    return {**keys, "data": data, "task": task, "model": model, "output_dir": str(folder / "runs" / name)}


def write_models(folder: Path) -> None:
    """Writes a model for dialogues with its reward model, an encoder, texts and sums."""
    from jaxformer.hub.save import save_pretrained
    from jaxformer.hub.tokenizer import AutoTokenizer
    from jaxformer.models.heads import SequenceClassifier
    from jaxformer.tasks.chat_template import choose_template
    from jaxformer.tokenizers import train_tokenizer
    from jaxformer.tokenizers.config import TokenizerConfig

    write(folder)
    draw = random.Random(1)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    tokenizer.chat_template = choose_template("human_assistant", tokenizer)
    ids = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    decoder = TransformerConfig(**model_config({"type": "gpt2", **SIZES, "max_length": 256, **ids}))
    texts = [sentence(draw) for _ in range(200)]
    pieces = train_tokenizer(TokenizerConfig(type="wordpiece", vocab_size=600), texts)
    sizes = {**SIZES, "max_length": 256, "vocab_size": len(pieces)}
    encoder = TransformerConfig(**model_config({"type": "bert", **sizes}))
    made = {
        "chat": (build_model(decoder), tokenizer),
        "chat_reward": (SequenceClassifier(decoder, 1), tokenizer),
        "encoder": (build(encoder, "masked_lm"), pieces),
    }
    for name, (model, own) in made.items():
        save_pretrained(folder / name, model, stirred(nn.unbox(init(model, jax.random.key(0)))), own)
    (folder / "corpus.txt").write_text("\n".join(texts * 5), encoding="utf-8")
    script = [sys.executable, str(ROOT / "examples" / "sums.py"), str(folder / "sums.jsonl")]
    subprocess.run(script, check=True, capture_output=True)


def of_configuration(path: Path, folder: Path) -> tuple[int, str]:
    """The number of lines that failed, and what they said."""
    name = "-".join(path.relative_to(ROOT / "configs").with_suffix("").parts)
    keys = stand_in(yaml.safe_load(path.read_text(encoding="utf-8")), folder, name)
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(keys), encoding="utf-8")
    program = "import sys; from jaxformer.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "check", "--config", str(config), "--json"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if found.returncode == 2 or not found.stdout:
        return 1, found.stderr.strip().splitlines()[-1]
    checks = json.loads(found.stdout)["checks"]
    failed = [f"{c['name']}: {c['place'] or c['compared']}" for c in checks if c["passed"] is False]
    return len(failed), f"{sum(c['passed'] is True for c in checks)} passed {'; '.join(failed)[:400]}"


def of_family(name: str) -> tuple[int, str]:
    """The same for a tiny model of a family, as a model to be used."""
    more: dict[str, dict[str, Any]] = {
        "gpt_neox": {"rotary_fraction": 0.5},
        "albert": {"embedding_size": 12},
        "modernbert": {"pad_token_id": 0},  # its own is beyond the small vocabulary
    }
    keys = model_config({**SIZES, "type": name, **more.get(name, {})})
    if keys["architecture"] == "encoder_decoder":
        keys |= {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = TransformerConfig(**keys)
    kinds = {"decoder": "causal_lm", "encoder_decoder": "seq2seq_lm", "encoder": "masked_lm"}
    kind = kinds[config.architecture]
    if config.architecture == "encoder" and kind not in FAMILIES[name].hub.heads:
        kind = "pre_training"
    model = build(config, kind)
    params = stirred(nn.unbox(jax.jit(lambda key: init(model, key))(jax.random.key(0))))
    found = check.run(model, params, {"input_ids": np.random.default_rng(0).integers(2, 60, (4, 40))})
    failed = [f"{o.name}: {o.place}" for o in check.failures(found)]
    return len(failed), f"{sum(o.passed is True for o in found)} passed {'; '.join(failed)[:400]}"


def main() -> int:
    """Prints one line each; returns 1 if a line failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[""], help="configurations and families whose name contains one")
    only = parser.parse_args().only
    alarms = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder)
        for path in sorted((ROOT / "configs").rglob("*.yaml")):
            if any(part in str(path.relative_to(ROOT)) for part in only):
                start = time.perf_counter()
                count, said = of_configuration(path, folder)
                alarms += count
                print(
                    f"{path.relative_to(ROOT)}: {count} failed, {said}; {time.perf_counter() - start:.0f} s", flush=True
                )
        for name in FAMILIES:
            if any(part in name for part in only):
                start = time.perf_counter()
                count, said = of_family(name)
                alarms += count
                print(f"{name}: {count} failed, {said}; {time.perf_counter() - start:.0f} s", flush=True)
    print(f"{alarms} false alarms")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
