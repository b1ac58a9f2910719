"""The tokenizer of a run: trained, loaded or opened, with the objective's special tokens and the frame of a text."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import tokenizers

from jaxformer.data import Corpus, Records
from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.schema import UserError
from jaxformer.tasks.chat_template import choose_template
from jaxformer.tokenizers import (
    PreTrainedTokenizer,
    Role,
    add_special_tokens,
    find_special,
    give_frame,
    load_tokenizer,
    open_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from jaxformer.training.config import RunConfig
from jaxformer.training.console import Display
from jaxformer.training.sources import CHECKPOINTS, TOKENIZER_FILE


def open_run_tokenizer(
    config: RunConfig, data: Corpus | Records, texts: Iterable[str], folder: Path, display: Display
) -> PreTrainedTokenizer:
    """The tokenizer of the run's folder if the run has begun, else that of the configuration.

    One that is trained is kept in the data cache for other runs on the same data.
    """
    if (folder / CHECKPOINTS).exists() and (folder / TOKENIZER_FILE).exists():
        return open_tokenizer(folder, str(folder))
    c = config.tokenizer
    settings: dict[str, Any] = {}
    if c.split_special_tokens is not None:
        settings["split_special_tokens"] = c.split_special_tokens
    if c.type == "pretrained":
        tokenizer = AutoTokenizer.from_pretrained(str(c.path), **settings)
    elif c.type == "file":
        tokenizer = load_tokenizer(str(c.path), **settings)
    else:
        described = (section.model_dump_json() for section in (c, config.data, config.task))
        made_of = [data.fingerprint, tokenizers.__version__, *described]
        kept = config.data.cache_folder / "tokenizers" / hashlib.sha256(json.dumps(made_of).encode()).hexdigest()[:40]
        if not (kept / TOKENIZER_FILE).exists():
            with display.counting(f"training a {c.type} tokenizer on {data.name}", "texts") as counter:
                save_tokenizer(train_tokenizer(c, counter.counted(texts)), kept)
        tokenizer = open_tokenizer(kept, str(kept))
    return with_objective(tokenizer, config)


def with_objective(tokenizer: PreTrainedTokenizer, config: RunConfig) -> PreTrainedTokenizer:
    """The tokenizer as training, pipelines and other programs use it: saved with the run, exported with the model.

    It has the objective's special tokens under their names, its chat template, the model's length and number of token
    types, and puts the objective's frame around a text where it puts nothing there by itself.
    """
    task, model = config.task, config.model
    adds_nothing = not tokenizer.num_special_tokens_to_add()
    roles = (*task.special_tokens, *(task.frame_tokens if adds_nothing else ()))
    starts: list[Role] = []
    if model.architecture == "encoder_decoder" and model.decoder_start != "last":
        starts.append(model.decoder_start)
    add_special_tokens(tokenizer, (*roles, *starts), task.sentinels)
    if task.languages is not None:
        set_languages(tokenizer, *task.languages)
    if task.dialogue_template is not None:
        tokenizer.chat_template = choose_template(task.dialogue_template, tokenizer)
    for role in get_args(Role):
        found = find_special(tokenizer, role)
        if found is not None and getattr(tokenizer, f"{role}_token") is None:
            setattr(tokenizer, f"{role}_token", tokenizer.convert_ids_to_tokens(found))
    tokenizer.model_max_length = model.max_length
    types = ["token_type_ids"] if model.encoder_side.token_types > 1 else []
    tokenizer.model_input_names = ["input_ids", *types, "attention_mask"]
    last = tokenizer.sep_token or tokenizer.eos_token
    if adds_nothing and "cls" in roles:
        give_frame(tokenizer, tokenizer.cls_token or tokenizer.bos_token, last)
    elif adds_nothing and "sep" in roles and model.architecture == "encoder_decoder":
        give_frame(tokenizer, None, last)
    return tokenizer


def set_languages(tokenizer: PreTrainedTokenizer, source: str | None, target: str | None) -> None:
    """Sets the languages whose codes a tokenizer writes around sources and targets.

    Raises:
        UserError: if it writes codes and none is given, has no such code, or writes none.
    """
    name = type(tokenizer).__name__
    codes = list(getattr(tokenizer, "lang_code_to_id", None) or ()) if hasattr(tokenizer, "src_lang") else []
    for key, code in (("source_language", source), ("target_language", target)):
        if codes and code not in codes:
            some = ", ".join(codes[:4])
            raise UserError(f"task.{key} is {code!r}, expected a language code of the {name}: {some} ... {codes[-1]}")
        if not codes and code is not None:
            raise UserError(f"task.{key} is {code!r}, but a {name} writes no language codes: leave it out")
    if codes:
        tokenizer.src_lang, tokenizer.tgt_lang = source, target
