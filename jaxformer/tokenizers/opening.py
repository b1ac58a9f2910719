"""Opens and saves the tokenizers of `transformers`, which is imported when the first one is opened.

`transformers` needs no PyTorch for them. Nothing of a repository is executed.
"""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers as hf

from jaxformer.external import import_transformers
from jaxformer.schema import UserError, local_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as PreTrainedTokenizer
else:
    PreTrainedTokenizer = Any

FILE_NAME, CONFIG_NAME = "tokenizer.json", "tokenizer_config.json"
# Names of the class that takes everything from a tokenizer.json: of version 4, and of version 5.
_FROM_FILE = ("PreTrainedTokenizerFast", "TokenizersBackend")
# The parts of a tokenizer.json that say what a text becomes.
_PARTS = ("normalizer", "pre_tokenizer", "model", "decoder")


def wrap_backend(backend: hf.Tokenizer, **settings: Any) -> PreTrainedTokenizer:
    """A `transformers.PreTrainedTokenizerFast` around a tokenizer of the `tokenizers` library."""
    backend.no_truncation()
    backend.no_padding()
    return import_transformers().PreTrainedTokenizerFast(tokenizer_object=backend, **settings)


def load_tokenizer(path: str | Path, **settings: Any) -> PreTrainedTokenizer:
    """Loads a `tokenizer.json`, or a folder that holds one, exactly as the file says but for `settings`.

    A `tokenizer_config.json` or `special_tokens_map.json` beside it names the padding, the end of text and so on, and
    a `chat_template.jinja` the chat template.

    Raises:
        UserError: There is no such file, or it is not a tokenizer of the `tokenizers` library.
    """
    file = local_path(path)
    if file.is_dir():
        file = file / FILE_NAME
    if not file.is_file():
        raise UserError(f"no tokenizer at {file}: give a {FILE_NAME} file or a folder that holds one")
    backend = _read_backend(file)
    if file.name != FILE_NAME:
        return wrap_backend(backend, **settings)
    return _open(import_transformers().PreTrainedTokenizerFast, file.parent, str(file.parent), **settings)


def open_tokenizer(folder: Path, name: str, **settings: Any) -> PreTrainedTokenizer:
    """Opens the tokenizer of a folder in the Hugging Face format with `transformers.AutoTokenizer`.

    Version 5 builds the tokenizers of the classes that it knows anew and ignores parts of a `tokenizer.json`, its
    normalizer above all. Where the folder has a `tokenizer.json`, what it says of normalizer, pre-tokenizer, model and
    decoder is used. `token_type_ids` are returned only for models with more than one type.

    Args:
        folder: Holds the files.
        name: Of the tokenizer, for error messages.
        **settings: Keys of `tokenizer_config.json` that override the file's: `padding_side="left"` ...

    Raises:
        UserError: There is no tokenizer, it is broken, or a setting contradicts the `tokenizer.json`.
    """
    transformers = import_transformers()
    file = folder / FILE_NAME
    backend = _read_backend(file) if file.is_file() else None
    if backend is not None and _class_name(folder) in _FROM_FILE and "tokenizer_class" not in settings:
        # What any tokenizer.json is opened with; the table of all classes and models takes long to import.
        tokenizer = _open(transformers.PreTrainedTokenizerFast, folder, name, **settings)
    else:
        tokenizer = _open_class(transformers, backend, folder, name, settings)
    if "model_input_names" not in {**tokenizer.init_kwargs, **settings} and not _has_types(folder, tokenizer):
        tokenizer.model_input_names = [n for n in tokenizer.model_input_names if n != "token_type_ids"]
    return tokenizer


def _open_class(
    transformers: Any, backend: hf.Tokenizer | None, folder: Path, name: str, settings: dict[str, Any]
) -> PreTrainedTokenizer:
    """Opens a tokenizer with the class that its files name, and puts in what the `tokenizer.json` says."""
    auto, class_name = transformers.AutoTokenizer, settings.pop("tokenizer_class", None)
    if class_name is not None:
        auto = getattr(transformers, class_name, None)
        if not hasattr(auto, "vocab_files_names"):
            raise UserError(f"tokenizer_class is {class_name!r}, expected the name of a class of transformers")
    tokenizer = _open(auto, folder, name, trust_remote_code=False, **settings)
    files = sorted({*type(tokenizer).vocab_files_names.values(), FILE_NAME})
    if len(files) > 1 and not any((folder / file).is_file() for file in files):
        # Without any of them the library makes up a vocabulary of special tokens.
        raise UserError(f"{name} has none of {', '.join(files)}, expected the files of a {type(tokenizer).__name__}")
    if backend is not None and getattr(tokenizer, "backend_tokenizer", None) is not None:
        plain = _open(auto, folder, name, trust_remote_code=False) if settings else tokenizer
        for part in _PARTS:
            said, built, ours = (
                _state(getattr(t, part)) for t in (backend, plain.backend_tokenizer, tokenizer.backend_tokenizer)
            )
            if said == built:
                continue
            if ours != built:
                raise UserError(
                    f"{', '.join(settings)} would change the {part} of {name}, which its {FILE_NAME} states; leave the "
                    f"setting out, or remove {FILE_NAME} to build the tokenizer from its other files"
                )
            setattr(tokenizer.backend_tokenizer, part, getattr(backend, part))
    return tokenizer


def _class_name(folder: Path) -> Any:
    """The class that the `tokenizer_config.json` of a folder names, if it can be read."""
    try:
        return json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _open(opener: Any, folder: Path, name: str, **settings: Any) -> PreTrainedTokenizer:
    """Calls `from_pretrained`, whose errors become one line."""
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(f"{name} has no tokenizer, expected {FILE_NAME} or the files of its class")
    logging = import_transformers().utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what it says of models is no concern of a tokenizer's
    try:
        return opener.from_pretrained(str(folder), **settings)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the tokenizers library is a BaseException
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the tokenizer of {name} cannot be opened: {reason[:300]}") from error
    finally:
        logging.set_verbosity(verbosity)


def _read_backend(file: Path) -> hf.Tokenizer:
    try:
        return hf.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{file} is not a valid {FILE_NAME} of the `tokenizers` library: {error}") from error


def _state(part: Any) -> bytes | None:
    return None if part is None else part.__getstate__()


def _has_types(folder: Path, tokenizer: PreTrainedTokenizer) -> bool:
    """True if the folder's model tells the two texts of a pair apart by `token_type_ids`."""
    transformers = import_transformers()
    if (folder / "config.json").is_file():
        try:
            return int(getattr(transformers.AutoConfig.from_pretrained(str(folder)), "type_vocab_size", 0) or 0) > 1
        except (ValueError, OSError):  # a model that transformers does not know
            pass
    # The class of any tokenizer.json says nothing of a model.
    return type(tokenizer) is not transformers.PreTrainedTokenizerFast


def save_tokenizer(tokenizer: PreTrainedTokenizer, folder: str | Path) -> None:
    """Writes a tokenizer in the Hugging Face format, each file whole or not at all.

    Raises:
        UserError: The folder cannot be written.
    """
    target = local_path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".tokenizer", dir=target) as partial:
            tokenizer.save_pretrained(partial)
            config = Path(partial) / CONFIG_NAME
            keys = json.loads(config.read_text(encoding="utf-8"))
            keys = {key: value for key, value in keys.items() if key not in ("is_local", "local_files_only")}
            # Stated, since the class of any tokenizer.json returns token_type_ids by default.
            keys["model_input_names"] = tokenizer.model_input_names
            if keys.get("tokenizer_class") in _FROM_FILE:
                keys["tokenizer_class"] = _FROM_FILE[0]  # version 4 knows this name alone
            config.write_text(json.dumps(keys, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            # The configuration last: where it is, the other files are too.
            for file in sorted(Path(partial).iterdir(), key=lambda file: file.name == CONFIG_NAME):
                file.replace(target / file.name)
    except OSError as error:
        raise UserError(f"the tokenizer cannot be written to {target}: {error.strerror or error}") from error
