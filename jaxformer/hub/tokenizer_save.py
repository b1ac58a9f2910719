"""Writes a tokenizer in the Hugging Face format."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers as hf

from jaxformer.hub.tokenizer_kinds import ANY
from jaxformer.hub.tokenizer_settings import CONFIG_FILE, SPECIAL_FILE, TEMPLATE_FILE
from jaxformer.schema import UserError

if TYPE_CHECKING:
    from jaxformer.hub.tokenizer import PretrainedTokenizer


def _config(tokenizer: "PretrainedTokenizer") -> dict[str, Any]:
    """The ``tokenizer_config.json``."""
    config = {
        name: value for name, value in tokenizer.settings.items() if name not in ("add_bos_token", "add_eos_token")
    }
    config |= tokenizer.special_tokens_map
    if tokenizer.extra_special_tokens:
        config["extra_special_tokens"] = tokenizer.extra_special_tokens
    if tokenizer.kind.languages:
        config |= {"src_lang": tokenizer.src_lang, "tgt_lang": tokenizer.tgt_lang}
    if not tokenizer.is_fast:  # no tokenizer.json has them
        config["added_tokens_decoder"] = {
            str(number): {"content": token.content, "special": token.special, **_flags(token)}
            for number, token in tokenizer.added_tokens_decoder.items()
        }
    return config | {
        # A class of no file here is opened from its tokenizer.json alone, by whichever library.
        "tokenizer_class": "PreTrainedTokenizerFast" if tokenizer.kind is ANY else tokenizer.kind.name,
        "model_max_length": tokenizer.model_max_length,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        "model_input_names": tokenizer.model_input_names,
    }


def _flags(token: hf.AddedToken) -> dict[str, bool]:
    """How a token is found in a text."""
    return {flag: getattr(token, flag) for flag in ("lstrip", "rstrip", "single_word", "normalized")}


def _special_map(tokenizer: "PretrainedTokenizer") -> dict[str, Any]:
    """The ``special_tokens_map.json``: each named token, with how it is found in a text where that is not the usual."""
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    named: dict[str, Any] = {}
    for name, content in tokenizer.special_tokens_map.items():
        token = added.get(content, hf.AddedToken(content, normalized=False))
        flags = _flags(token)
        named[name] = {"content": content, **flags} if any(flags.values()) else content
    if tokenizer.extra_special_tokens:
        named["additional_special_tokens"] = tokenizer.extra_special_tokens
    return named


def save_tokenizer(tokenizer: "PretrainedTokenizer", folder: Path) -> tuple[str, ...]:
    """Writes the files of a tokenizer, each whole or not at all, and returns their paths.

    Raises:
        UserError: the folder cannot be written.
    """
    files: dict[str, str | bytes] = {
        **tokenizer.files(),
        CONFIG_FILE: json.dumps(_config(tokenizer), indent=2, ensure_ascii=False, sort_keys=True) + "\n",
        SPECIAL_FILE: json.dumps(_special_map(tokenizer), indent=2, ensure_ascii=False) + "\n",
    }
    template = tokenizer.chat_template
    if isinstance(template, str):
        files[TEMPLATE_FILE] = template
    elif template:
        config = json.loads(files[CONFIG_FILE])
        config["chat_template"] = [{"name": name, "template": text} for name, text in template.items()]
        files[CONFIG_FILE] = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            temporary = folder / f".{name}.{os.getpid()}"
            temporary.write_bytes(text if isinstance(text, bytes) else text.encode())
            temporary.replace(folder / name)
    except OSError as error:
        raise UserError(f"the tokenizer cannot be written to {folder}: {error.strerror or error}") from error
    return tuple(str(folder / name) for name in files)
