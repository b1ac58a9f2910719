"""``AutoTokenizer``: the tokenizer of a folder or a repository of the Hub, an object of ``transformers``."""

from pathlib import Path
from typing import Any

from jaxformer.hub.repository import Repository
from jaxformer.schema import UserError
from jaxformer.tokenizers import PreTrainedTokenizer, open_tokenizer

# What describes a tokenizer, and the files that hold its vocabulary, which one with a tokenizer.json does not need.
_DESCRIPTIONS = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("tokenizer.json", "source.spm", "target.spm"),
)
_VOCABULARIES = (
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model"),
    "spm.model",
)


class AutoTokenizer:
    """Opens tokenizers."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        **settings: Any,
    ) -> PreTrainedTokenizer:
        """Opens the tokenizer of a folder or of a repository of the Hub with ``transformers.AutoTokenizer``.

        Where there is a ``tokenizer.json``, what it says is used, which ``transformers`` by itself does not always do;
        ``token_type_ids`` are returned only if the model has several types. No code of a repository is executed.

        Args:
            name_or_path: a folder, or ``owner/name`` on the Hub.
            revision: branch, tag or commit on the Hub.
            token: access token of the Hub.
            cache_dir: folder of the downloads.
            local_files_only: use only what the cache holds.
            subfolder: folder inside of the repository that holds the tokenizer.
            **settings: keys that override those of ``tokenizer_config.json``: ``padding_side="left"``,
                ``do_lower_case=False``, ``pad_token="<pad>"`` ...

        Returns:
            A ``transformers.PreTrainedTokenizerBase``; call it with ``return_tensors="np"`` for a model's arrays.

        Raises:
            UserError: there is no tokenizer, it is broken, or ``trust_remote_code`` is asked for.
        """
        if settings.pop("trust_remote_code", None):
            raise UserError("trust_remote_code is true, but no code of a repository is executed here; leave it out")
        repository = Repository(str(name_or_path), revision, token, cache_dir, local_files_only, subfolder)
        folder = None if repository.folder is None else repository.folder / subfolder
        if folder is None:
            found = {name: repository.find(name) for name in _DESCRIPTIONS}
            if found["tokenizer.json"] is None or found["source.spm"] is not None:
                found |= {name: repository.find(name) for name in _VOCABULARIES}
            folder = next((path.parent for path in found.values() if path is not None), None)
            if folder is None:
                raise UserError(f"{name_or_path} has no tokenizer, expected a tokenizer.json or its class's files")
        return open_tokenizer(folder, str(name_or_path), **settings)
