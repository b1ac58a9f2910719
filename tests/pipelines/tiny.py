"""Tiny models with tiny tokenizers, in the Hugging Face format: what both libraries open."""

import json

import jax
import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxformer.hub import save_pretrained
from tests.hub import tiny

WORDS = "the old mill stood by a river ran past hills Ann said it rain fell over in for six years nobody work good bad"
LETTERS = "abcdefghijklmnopqrstuvwxyzA"
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", *LETTERS]
VOCABULARY += [f"##{letter}" for letter in LETTERS] + ["##ed", "##ing"]
VOCABULARY += [word for word in WORDS.split() if word not in VOCABULARY]
SPECIAL = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
LENGTH, LENGTH_OF_BYTES, SHARPER = 32, 128, 4.0

LABELS = {
    "classes": ("bad", "fair", "good"),
    "number": ("LABEL_0",),
    "nli": ("contradiction", "neutral", "entailment"),
    "tags": ("O", "B-PER", "I-PER", "B-LOC", "I-LOC"),
}
KINDS = {
    "classes": "sequence_classification",
    "number": "sequence_classification",
    "nli": "sequence_classification",
    "tags": "token_classification",
    "spans": "question_answering",
    "words": "masked_lm",
    "states": "body",
    "writes": "causal_lm",
    "rewrites": "seq2seq_lm",
}
CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def save_word_pieces(folder, side="right"):
    """BERT's kind of tokenizer."""
    ids = {token: number for number, token in enumerate(VOCABULARY)}
    tokenizer = hf.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    ends = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=ends
    )
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": False, **SPECIAL}
    settings["model_max_length"] = LENGTH
    _write(folder, tokenizer, {**settings, "padding_side": side})


def save_bytes(folder, side="right", name="RobertaTokenizer"):
    """RoBERTa's kind of tokenizer, with a few merges; with another name GPT-2's, which puts nothing around a text."""
    trainer = hf.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer = hf.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    if name == "RobertaTokenizer":
        special |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
        tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    _write(
        folder,
        tokenizer,
        {
            "tokenizer_class": name,
            "chat_template": CHAT,
            "padding_side": side,
            "model_max_length": LENGTH_OF_BYTES,
            **special,
        },
    )
    return tokenizer.get_vocab_size()


def _write(folder, tokenizer, settings):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def save(folder, what, family="bert", side="right", **config):
    """The folder of a model for ``what``, one of ``KINDS``; those that write are of the families that do."""
    if family == "bert":
        family = {"writes": "gpt2", "rewrites": "bart"}.get(what, family)
    if family in ("bert", "bart", "t5"):
        save_word_pieces(folder, side)
        size, pad, length = len(VOCABULARY), 0, LENGTH
    else:
        size = save_bytes(folder, side, "RobertaTokenizer" if family == "roberta" else "GPT2Tokenizer")
        pad, length = 1, LENGTH_OF_BYTES
    labels = LABELS.get(what, ())
    keys = {"vocab_size": size, "max_length": length, "pad_token_id": pad}
    if what in ("writes", "rewrites"):
        keys |= (
            {"eos_token_id": 2, "bos_token_id": 0}
            if what == "writes"
            else {"eos_token_id": 3, "bos_token_id": 2, "decoder_start_token_id": 2}
        )
    model, params = tiny.make(family, KINDS[what], labels, **keys)

    def sharper(path, x):
        """Or every text would get nearly the same scores; and every token, which see all others, the same tag."""
        names = [part.key for part in path]
        if what == "tags" and names[0] != "classifier":
            return x * {"bias": 0.0, "kernel": 0.3}.get(names[-1], 1.0) * (0.2 if "position" in names else 1.0)
        by = 2.5 if what == "rewrites" else SHARPER
        return x * (by if names[-1] == "kernel" else 1.0)

    params = jax.tree_util.tree_map_with_path(sharper, params)
    save_pretrained(folder, model, params)
    tiny.edit(folder, **config)
    return folder
