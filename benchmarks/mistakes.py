"""Ten mistakes that a user can make in data or settings, and what ``jaxformer check`` says of each.

python benchmarks/mistakes.py
"""

import copy
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from _check_configs import configs, write

Keys = dict[str, Any]


def _rows(folder: Path, change: Callable[[int, Keys], Keys]) -> str:
    """Writes the records with a change and returns the file."""
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [change(number, json.loads(line)) for number, line in enumerate(lines)]
    path = folder / "changed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _classes(number: int, row: Keys) -> Keys:
    return {"text": row["source"], "label": ["good", "bad"][number % 2]}


def _classifier(folder: Path, keys: Keys) -> Keys:
    """A classifier of the records in place of the objective."""
    keys["data"] = {**keys["data"], "path": _rows(folder, _classes)}
    keys["task"] = {"type": "sequence_classification"}
    return keys


def same_file(folder: Path, keys: Keys) -> Keys:
    """The validation file is the training file."""
    del keys["data"]["validation_fraction"]
    keys["data"]["validation_path"] = keys["data"]["path"]
    return keys


def pretty_labels(folder: Path, keys: Keys) -> Keys:
    """The validation file spells a class in another way."""
    keys = _classifier(folder, keys)
    other = [{"text": "the cat sat", "label": "Good"}, {"text": "a dog ran", "label": "bad"}]
    path = folder / "validation.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in other), encoding="utf-8")
    keys["data"] = {**keys["data"], "validation_path": str(path)}
    keys["data"].pop("validation_fraction", None)
    return keys


def empty_column(folder: Path, keys: Keys) -> Keys:
    """Half of the sources are empty."""
    keys["data"]["path"] = _rows(folder, lambda n, row: {**row, "source": "" if n % 2 else row["source"]})
    return keys


def long_prompts(folder: Path, keys: Keys) -> Keys:
    """Prompts are longer than a row."""
    keys["data"]["path"] = _rows(folder, lambda n, row: {**row, "prompt": row["prompt"] * (20 if n % 3 else 1)})
    return keys


def marked_ends(folder: Path, keys: Keys) -> Keys:
    """The texts end with the tokenizer's end token, as characters."""
    keys["data"]["path"] = _rows(folder, lambda n, row: {**row, "chosen": row["chosen"] + "<|endoftext|>"})
    return keys


def frozen(folder: Path, keys: Keys) -> Keys:
    """Everything is frozen but a name that is misspelt."""
    keys["optimizer"] = {"type": "adamw", "freeze": ["*"]}
    return keys


def decayed(folder: Path, keys: Keys) -> Keys:
    """A rate so high that a batch cannot be learned is no check's matter; a decay of everything is."""
    keys["optimizer"] = {"type": "adamw", "decay": ["weight"]}
    return keys


def uneven(folder: Path, keys: Keys) -> Keys:
    """The batch does not divide by the devices of the mesh."""
    keys["parallel"] = {"data": 3}
    return keys


def other_alphabet(folder: Path, keys: Keys) -> Keys:
    """The tokenizer is that of another language."""
    corpus = [json.loads(line)["text"] for line in (folder / "corpus.jsonl").read_text().splitlines()]
    greek = str.maketrans("abcdefghijklmnopqrstuvwxyz", "αβγδεζηθικλμνξοπρστυφχψωϊϋ")
    path = folder / "greek.jsonl"
    path.write_text("".join(json.dumps({"text": text.translate(greek)}) + "\n" for text in corpus), encoding="utf-8")
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(corpus, trainers.WordLevelTrainer(special_tokens=special))
    names = {f"{token.strip('[]').lower()}_token": token for token in special}
    PreTrainedTokenizerFast(tokenizer_object=made, **names).save_pretrained(folder / "words")
    keys["tokenizer"] = {"type": "pretrained", "path": str(folder / "words")}
    keys["data"]["path"] = str(path)
    return keys


def wrong_key(folder: Path, keys: Keys) -> Keys:
    """A key is misspelt."""
    keys["optimizer"] = {"type": "adamw", "learning_rat": 1e-3}
    return keys


MISTAKES: dict[str, tuple[str, Callable[[Path, Keys], Keys]]] = {
    "validation on the training file": ("causal", same_file),
    "a class spelt in another way in the validation file": ("masked", pretty_labels),
    "half of the sources empty": ("encoder_decoder", empty_column),
    "prompts longer than a row": ("dpo", long_prompts),
    "texts that end with the end token as characters": ("dpo", marked_ends),
    "everything frozen": ("causal", frozen),
    "`decay` names a parameter of PyTorch": ("masked", decayed),
    "three devices for eight rows": ("causal", uneven),
    "a tokenizer of another alphabet": ("masked", other_alphabet),
    "a misspelt key": ("causal", wrong_key),
}


def said_of(config: Path) -> tuple[int, list[str]]:
    """The exit code of a check, and its failures or its error."""
    program = "import sys; from jaxformer.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "check", "--config", str(config), "--json"]
    found = subprocess.run(command, capture_output=True, text=True)
    if found.returncode == 2:
        return 2, [found.stderr.strip().splitlines()[-1]]
    checks = json.loads(found.stdout)["checks"]
    failed = [c for c in checks if c["passed"] is False]
    return found.returncode, [
        f"{c['name']}: {c['compared']}: {float(c['difference']):.3g}; {c['place']}" for c in failed
    ]


def main() -> int:
    """Prints each mistake with the exit code and what was said; returns 1 if one passed."""
    silent = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder)
        for name, (base, change) in MISTAKES.items():
            keys = change(folder, copy.deepcopy(configs(folder)[base]))
            path = folder / "mistake.yaml"
            path.write_text(yaml.safe_dump(keys), encoding="utf-8")
            code, lines = said_of(path)
            silent += code == 0
            print(f"{name}: exit {code}", *(f"    {line[:300]}" for line in lines), sep="\n", flush=True)
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
