"""A model's files: a folder, or a repository of the Hub whose files are downloaded as they are asked for."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from jaxformer.schema import UserError

LARGEST_JSON = 200 << 20  # bytes; a tokenizer.json of the largest vocabularies has 35 million


def bare_name(file: str, said_by: str) -> str:
    """The name of a file as another file gives it, if it stays in its folder.

    Raises:
        UserError: if it is not a plain name: what an index says is not trusted to lead elsewhere.
    """
    if not file or file in (".", "..") or any(character in file for character in "/\\\0"):
        raise UserError(f"{said_by} names the file {file!r}, expected a plain file name; nothing was read from it")
    return file


@dataclass(frozen=True)
class Repository:
    """Where a model's files are.

    The cache, the endpoint, the token and offline mode are those of ``huggingface_hub``: ``HF_HOME``, ``HF_ENDPOINT``,
    ``HF_TOKEN``, ``HF_HUB_OFFLINE``.

    Attributes:
        name: a folder, or ``owner/name`` on the Hub.
        revision: branch, tag or commit on the Hub; default ``main``.
        token: access token, ``True`` for the stored one, ``False`` for none; default: the stored one if there is one.
        cache_dir: where downloads are kept; default ``HF_HOME``.
        local_files_only: use what the cache has, ask nobody.
    """

    name: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    @cached_property
    def folder(self) -> Path | None:
        """The folder, None if the name is one of the Hub.

        Raises:
            UserError: if it is neither a folder nor a name that the Hub could have.
        """
        path = Path(self.name).expanduser()
        if path.is_dir():
            return path
        try:
            validate_repo_id(self.name)
        except HFValidationError:
            raise UserError(
                f"{self.name!r} is no folder and no name on the Hub, expected a folder or owner/name"
            ) from None
        if path.exists():
            raise UserError(f"{self.name} is a file, expected the folder that holds config.json")
        return None

    def find(self, file: str) -> Path | None:
        """The file's path, downloaded if need be; None if the model has no such file.

        Raises:
            UserError: if the repository cannot be reached or read.
        """
        if self.folder is not None:
            path = self.folder / file
            return path if path.is_file() else None
        try:
            found = hf_hub_download(
                self.name,
                file,
                revision=self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
            )
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
            raise UserError(self._refusal(error)) from error
        except LocalEntryNotFoundError as error:
            if self._is_known_absent(file):
                return None
            raise UserError(
                f"{file} of {self.name} is not in the cache and the Hub was not asked or gave no answer; "
                "expected a network, or the file in the cache; check the connection and HF_HUB_OFFLINE"
            ) from error
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
            raise UserError(f"{file} of {self.name} could not be downloaded: {str(error).splitlines()[0]}") from error
        return Path(found)

    def _is_known_absent(self, file: str) -> bool:
        """Whether the cache, asked alone, has the repository but not this file: then it has none as far as we know."""
        from huggingface_hub import try_to_load_from_cache

        config = try_to_load_from_cache(self.name, "config.json", self.cache_dir, self.revision)
        wanted = try_to_load_from_cache(self.name, file, self.cache_dir, self.revision)
        return isinstance(config, str) and not isinstance(wanted, str)

    def _refusal(self, error: Exception) -> str:
        if isinstance(error, GatedRepoError):
            return f"{self.name} is gated, expected a token with access; accept its terms on the Hub, then set HF_TOKEN"
        if isinstance(error, RevisionNotFoundError):
            return f"{self.name} has no revision {self.revision!r}, expected a branch, tag or commit of it"
        return (
            f"{self.name} is no folder here and no repository on the Hub that this token can see; "
            "check the name, or set HF_TOKEN if it is private"
        )

    def get(self, file: str) -> Path:
        """The file's path.

        Raises:
            UserError: if the model has no such file, or it cannot be had.
        """
        path = self.find(file)
        if path is None:
            raise UserError(f"{self.name} has no {file}, expected one; check that it is a model's folder or repository")
        return path

    def find_json(self, file: str) -> dict[str, Any] | None:
        """What a JSON file holds; None if the model has no such file.

        Raises:
            UserError: if it is not a JSON object.
        """
        path = self.find(file)
        if path is None:
            return None
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, expected at most {LARGEST_JSON:,}")
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise UserError(f"{path} holds a {type(value).__name__}, expected a JSON object")
        return value

    def get_json(self, file: str) -> dict[str, Any]:
        """What a JSON file holds.

        Raises:
            UserError: if there is no such file or it is not a JSON object.
        """
        self.get(file)
        found = self.find_json(file)
        assert found is not None
        return found
