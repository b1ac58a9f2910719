"""Trains a tokenizer on lines of text, of the kind that a family of models has.

    python examples/flax/tokenizer.py --model_type t5 --train_file texts.txt --vocab_size 32000 --output_dir FOLDER

Unigram (Kudo 2018) for T5, BPE on bytes (Radford et al. 2019) for GPT-2, RoBERTa and BART, WordPiece for BERT. The
folder opens with ``AutoTokenizer``; a ``config.json`` beside it is what the other examples begin with.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

ROBERTA = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "mask": "<mask>"}
# Special tokens in the order of their ids, and where they stand around one text and around two.
SPECIAL: dict[str, dict[str, str]] = {
    "bert": {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"},
    "roberta": ROBERTA,
    "bart": ROBERTA,
    "gpt2": {"eos": "<|endoftext|>"},
    "t5": {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"},
}
AROUND = {
    "bert": ("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"),
    "roberta": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "bart": ("<s> $A </s>", "<s> $A </s> </s> $B </s>"),
    "t5": ("$A </s>", "$A </s> $B </s>"),
}


def lines(file: Path) -> Iterator[str]:
    """The lines of a file without their ends."""
    with file.open(encoding="utf-8") as opened:
        for line in opened:
            yield line.rstrip("\n")


def build(model_type: str, vocab_size: int, special: list[str]) -> tuple[Tokenizer, Any]:
    """An untrained tokenizer of this kind and what trains it."""
    common: dict[str, Any] = {"vocab_size": vocab_size, "special_tokens": special, "show_progress": False}
    if model_type == "bert":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
        return tokenizer, trainers.WordPieceTrainer(**common)
    if model_type == "t5":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        return tokenizer, trainers.UnigramTrainer(unk_token="<unk>", **common)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **common)


def main(arguments: Sequence[str] | None = None) -> PreTrainedTokenizerFast:
    """The command line; the tokenizer."""
    parser = argparse.ArgumentParser(description="Trains a tokenizer.")
    parser.add_argument("--model_type", choices=sorted(SPECIAL), default="t5")
    parser.add_argument("--train_file", type=Path, required=True, help="lines of text")
    parser.add_argument("--vocab_size", type=int, default=32_000, help="tokens, T5's sentinels not among them")
    parser.add_argument("--extra_ids", type=int, default=100, help="of T5: sentinels that stand for hidden spans")
    parser.add_argument("--max_length", type=int, default=512, help="longest row of the model")
    parser.add_argument("--output_dir", required=True)
    options = parser.parse_args(arguments)
    special = SPECIAL[options.model_type]
    tokenizer, trainer = build(options.model_type, options.vocab_size, list(special.values()))
    tokenizer.train_from_iterator(lines(options.train_file), trainer)
    if options.model_type in AROUND:
        single, pair = AROUND[options.model_type]
        used = [(token, tokenizer.token_to_id(token)) for token in special.values()]
        tokenizer.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=used)
    names = {f"{name}_token": token for name, token in special.items()}
    if options.model_type in ("roberta", "bart"):
        names |= {"cls_token": "<s>", "sep_token": "</s>"}
    inputs = ["input_ids", *(["token_type_ids"] if options.model_type == "bert" else []), "attention_mask"]
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=options.max_length, model_input_names=inputs, **names
    )
    if options.model_type == "t5":
        saved.add_tokens([f"<extra_id_{i}>" for i in reversed(range(options.extra_ids))], special_tokens=True)
    saved.save_pretrained(options.output_dir)
    return saved


if __name__ == "__main__":
    main(sys.argv[1:])
