"""What the published tokenizer classes are: which files they read, their special tokens and their defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxformer.schema import UserError, nearest

# In the order in which `all_special_tokens` lists them.
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

Files = Literal["wordpiece", "byte_bpe", "word_bpe", "sentencepiece", "marian", "bytes", "none"]


@dataclass(frozen=True)
class Kind:
    """One tokenizer class.

    Attributes:
        name: the class's name, without ``Fast``.
        files: what it is built from where there is no ``tokenizer.json``; ``none``: from nothing else.
        special: the names of its special tokens where no file says otherwise.
        settings: its other defaults, under the keys of ``tokenizer_config.json``.
        type_ids: whether its models tell a pair's two texts apart by ``token_type_ids``.
        padding_side: where it pads.
        mask_lstrip: whether the mask token takes the blanks before it with it.
        languages: where it puts the code of the language, if it has one.
    """

    name: str
    files: Files
    special: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    type_ids: bool = False
    padding_side: Literal["left", "right"] = "right"
    mask_lstrip: bool = False
    languages: Literal["prefix", "suffix"] | None = None


def _names(text: str) -> dict[str, str]:
    """Special tokens from ``"pad <pad> eos </s>"``."""
    words = text.split()
    return {f"{name}_token": token for name, token in zip(words[::2], words[1::2], strict=True)}


_BERT = _names("unk [UNK] sep [SEP] pad [PAD] cls [CLS] mask [MASK]")
_ROBERTA = _names("bos <s> eos </s> unk <unk> sep </s> pad <pad> cls <s> mask <mask>")
_GPT2 = _names("bos <|endoftext|> eos <|endoftext|> unk <|endoftext|>")
_T5 = _names("eos </s> unk <unk> pad <pad>")
_LLAMA = _names("bos <s> eos </s> unk <unk>")
_LOWER = {"do_lower_case": True}
_BOS = {"add_bos_token": True}

_LIKE_BERT = "Bert Electra ConvBert MobileBert SqueezeBert Lxmert LayoutLM RetriBert MegatronBert"
_LIKE_BERT_WITHOUT_TYPES = "DistilBert DPRContextEncoder DPRQuestionEncoder DPRReader"
_LIKE_ROBERTA = "Roberta Bart Longformer LED Mvp"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in [
        *(Kind(f"{n}Tokenizer", "wordpiece", _BERT, _LOWER, type_ids=True) for n in _LIKE_BERT.split()),
        *(Kind(f"{n}Tokenizer", "wordpiece", _BERT, _LOWER) for n in _LIKE_BERT_WITHOUT_TYPES.split()),
        *(Kind(f"{n}Tokenizer", "byte_bpe", _ROBERTA, mask_lstrip=True) for n in _LIKE_ROBERTA.split()),
        Kind("GPT2Tokenizer", "byte_bpe", _GPT2),
        Kind("CodeGenTokenizer", "byte_bpe", _GPT2),
        Kind("Qwen2Tokenizer", "byte_bpe", _names("eos <|endoftext|> unk <|endoftext|> pad <|endoftext|>")),
        Kind("OpenAIGPTTokenizer", "word_bpe", _names("unk <unk>")),
        Kind(
            "CLIPTokenizer",
            "word_bpe",
            _names("bos <|startoftext|> eos <|endoftext|> unk <|endoftext|> pad <|endoftext|>"),
        ),
        Kind("T5Tokenizer", "sentencepiece", _T5, {"extra_ids": 100}),
        Kind(
            "AlbertTokenizer",
            "sentencepiece",
            _names("bos [CLS] eos [SEP] unk <unk> sep [SEP] pad <pad> cls [CLS] mask [MASK]"),
            _LOWER,
            type_ids=True,
            mask_lstrip=True,
        ),
        Kind("XLMRobertaTokenizer", "sentencepiece", _ROBERTA, mask_lstrip=True),
        Kind("MBartTokenizer", "sentencepiece", _ROBERTA, mask_lstrip=True, languages="suffix"),
        Kind("PegasusTokenizer", "sentencepiece", {**_T5, "mask_token": "<mask_2>"}, {"offset": 103}),
        Kind("MarianTokenizer", "marian", _T5, {"model_max_length": 512}),
        Kind("LlamaTokenizer", "sentencepiece", _LLAMA, _BOS, padding_side="left"),
        Kind(
            "GemmaTokenizer",
            "sentencepiece",
            _names("bos <bos> eos <eos> unk <unk> pad <pad> mask <mask>"),
            _BOS,
            padding_side="left",
        ),
        Kind("ByT5Tokenizer", "bytes", _T5, {"extra_ids": 125}),
        Kind("GPTNeoXTokenizer", "none", _GPT2),
        Kind("BloomTokenizer", "none", _names("bos <s> eos </s> unk <unk> pad <pad>"), padding_side="left"),
        Kind("MBart50Tokenizer", "none", _ROBERTA, languages="prefix"),
        Kind("NllbTokenizer", "none", _ROBERTA, languages="prefix"),
    ]
}
# Any class at all, once its tokenizer.json is there.
ANY = Kind("PreTrainedTokenizer", "none")

# The class of each `model_type` of config.json; a repository that names none is an old one.
_MODEL_TYPES = {
    "bert": "Bert",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "convbert": "ConvBert",
    "mobilebert": "MobileBert",
    "squeezebert": "SqueezeBert",
    "lxmert": "Lxmert",
    "layoutlm": "LayoutLM",
    "megatron-bert": "MegatronBert",
    "roberta": "Roberta",
    "bart": "Bart",
    "longformer": "Longformer",
    "led": "LED",
    "mvp": "Mvp",
    "gpt2": "GPT2",
    "gpt_neo": "GPT2",
    "gptj": "GPT2",
    "opt": "GPT2",
    "codegen": "CodeGen",
    "qwen2": "Qwen2",
    "qwen3": "Qwen2",
    "openai-gpt": "OpenAIGPT",
    "clip": "CLIP",
    "t5": "T5",
    "mt5": "T5",
    "umt5": "T5",
    "albert": "Albert",
    "xlm-roberta": "XLMRoberta",
    "mbart": "MBart",
    "pegasus": "Pegasus",
    "marian": "Marian",
    "llama": "Llama",
    "mistral": "Llama",
    "gemma": "Gemma",
    "gemma2": "Gemma",
    "gemma3": "Gemma",
    "gemma3_text": "Gemma",
    "byt5": "ByT5",
    "gpt_neox": "GPTNeoX",
    "bloom": "Bloom",
    "nllb": "Nllb",
}


def bare_class(name: str) -> str:
    """A class's name without the ``Fast`` that older releases gave the classes over the ``tokenizers`` library."""
    return name.removesuffix("Fast")


def kind_of_class(name: str) -> Kind | None:
    """The kind of that class, None if it is not one of ours."""
    return KINDS.get(bare_class(name))


def kind_of_model(model_type: str) -> Kind | None:
    """The kind that a model's ``model_type`` implies, None if it is not one of ours."""
    name = _MODEL_TYPES.get(model_type)
    return None if name is None else KINDS[f"{name}Tokenizer"]


def require_buildable(kind: Kind | None, name: str, where: str) -> Kind:
    """The kind, if it can be built from files other than ``tokenizer.json``.

    Raises:
        UserError: it cannot.
    """
    if kind is None or kind.files == "none":
        known = sorted(k.name for k in KINDS.values() if k.files != "none")
        raise UserError(
            f"{where} has no tokenizer.json and its tokenizer is a {name or 'class that no file names'}, expected one "
            f"of {', '.join(known)}{nearest(name, known)}; add its tokenizer.json (PyTorch transformers writes it "
            "with save_pretrained), or name the class with tokenizer_class="
        )
    return kind
