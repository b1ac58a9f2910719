"""A model's files: a folder, or a repository of the Hub whose files are downloaded when they are needed."""

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import huggingface_hub
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from jaxformer.schema import UserError, check_local, local_path

# What tells the files of a model, or of a run, from those of another.
MODEL_FILES = ("config.json", "config.yaml", "tokenizer*.json", "*.safetensors", "*.msgpack", "*.bin", "checkpoints/*")
LARGEST_JSON = 200 << 20  # bytes; a tokenizer.json of the largest vocabularies has 35 million


def bare_name(file: str, said_by: str) -> str:
    """Checks the name of a file that another file gives: it must stay in its folder.

    Raises:
        UserError: if it is not a plain name: what an index says is not trusted to lead elsewhere.
    """
    if not file or file in (".", "..") or any(character in file for character in "/\\\0"):
        raise UserError(f"{said_by} names the file {file!r}, expected a plain file name; nothing was read from it")
    return file


def model_files(name: str) -> str | None:
    """A hash of the names, sizes and times of a model's files; None for a name on the Hub."""
    folder = local_path(name)
    if not folder.is_dir():
        return None
    found = sorted(path for pattern in MODEL_FILES for path in folder.glob(pattern))
    facts = [
        [str(path.relative_to(folder)), *((path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else ())]
        for path in found
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, or its kind."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@dataclass(frozen=True)
class Repository:
    """The location of a model's files.

    The cache, the endpoint, the token and offline mode are those of ``huggingface_hub``: ``HF_HOME``, ``HF_ENDPOINT``,
    ``HF_TOKEN``, ``HF_HUB_OFFLINE``. All files are those of one commit: the one that the first of them came from.

    Attributes:
        name: a folder, or ``owner/name`` on the Hub.
        revision: branch, tag or commit on the Hub; default ``main``.
        token: access token, ``True`` for the stored one, ``False`` for none; default: the stored one if there is one.
        cache_dir: where downloads are kept; default ``HF_HOME``.
        local_files_only: use what the cache has, ask nobody.
        subfolder: folder inside of it that holds the model, as ``text_encoder`` in a repository of diffusers.
    """

    name: str
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    subfolder: str = ""
    # Found with the first file: a branch that moves between two files must not mix two models.
    _commit: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.subfolder).parts
        if ".." in parts or "/" in parts or "\\" in self.subfolder:
            raise UserError(f"subfolder is {self.subfolder!r}, expected a folder inside of {self.name}")

    @cached_property
    def folder(self) -> Path | None:
        """The folder, None if the name is one of the Hub.

        Raises:
            UserError: if it is neither a folder nor a name that the Hub could have.
        """
        path = local_path(self.name)
        if self.cache_dir is not None:
            check_local(self.cache_dir)
        if path.is_dir():
            return path
        try:
            validate_repo_id(self.name)
        except HFValidationError:
            raise UserError(
                f"{self.name!r} is neither a folder nor a name on the Hub, expected a folder or owner/name"
            ) from None
        if path.exists():
            raise UserError(f"{self.name} is a file, expected the folder that holds config.json")
        return None

    def find(self, file: str) -> Path | None:
        """The file's path, downloaded if need be; None if the model has no such file.

        Raises:
            UserError: if the repository cannot be reached or read.
        """
        file = str(PurePosixPath(self.subfolder) / file)
        if self.folder is not None:
            path = self.folder / file
            return path if path.is_file() else None
        revision = self._commit[0] if self._commit else self.revision
        if self._commit and self._is_known_absent(file, revision):
            return None
        try:
            found = hf_hub_download(
                self.name,
                file,
                revision=revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
            )
        except (RemoteEntryNotFoundError, LocalEntryNotFoundError) as error:
            if isinstance(error, RemoteEntryNotFoundError) or self._is_known_absent(file, revision):
                return None
            raise UserError(self._refusal(file, error.__cause__ or OfflineModeIsEnabled())) from error
        except (HTTPError, OSError) as error:
            raise UserError(self._refusal(file, error)) from error
        path = Path(found)
        if not self._commit:
            self._commit.append(path.parents[file.count("/")].name)
        return path

    def _is_known_absent(self, file: str, revision: str | None) -> bool:
        """True if the cache knows that there is no such file: the Hub said so once, or listed all files."""
        # A path, None where nothing is known, or else the library's sign that there is none.
        if not isinstance(try_to_load_from_cache(self.name, file, self.cache_dir, revision), str | None):
            return True
        # Downloads of whole repositories keep the list since version 2 of the library.
        listing = getattr(huggingface_hub, "get_cached_repo_tree", None)
        if listing is None:
            return False
        try:
            listed = listing(self.name, revision=revision, cache_dir=self.cache_dir)
        except Exception:  # there is none, or it is damaged: nothing is known
            return False
        return file not in {entry.path for entry in listed}

    def _refusal(self, file: str, error: BaseException) -> str:
        """The reason why a file cannot be had and what to do, in one line."""
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if isinstance(error, GatedRepoError):
            return f"{self.name} is gated, expected a token with access; accept its terms on the Hub, then set HF_TOKEN"
        if isinstance(error, RevisionNotFoundError):
            return f"{self.name} has no revision {self.revision!r}, expected a branch, tag or commit of it"
        if isinstance(error, RepositoryNotFoundError):
            return (
                f"{self.name} is neither a folder nor a repository on the Hub that this token can see; "
                "check the name, or set HF_TOKEN if it is private"
            )
        if isinstance(error, OfflineModeIsEnabled):
            return (
                f"{file} of {self.name} is not in the local cache, and HF_HUB_OFFLINE or local_files_only is set: open "
                "the model once online"
            )
        if status == 401:
            return f"the Hub refuses the token given for {self.name}, expected a valid one; set HF_TOKEN anew"
        if status is None and not isinstance(error, OSError):
            return f"{file} of {self.name} is not in the local cache and the Hub cannot be reached: " + (
                f"{first_line(error)}; check the connection and HF_ENDPOINT"
            )
        return f"{file} of {self.name} could not be downloaded: {first_line(error)}; try again later"

    def get(self, file: str) -> Path:
        """The file's path.

        Raises:
            UserError: if the model has no such file, or it cannot be had.
        """
        path = self.find(file)
        return self._absent(file) if path is None else path

    def find_json(self, file: str) -> dict[str, Any] | None:
        """The content of a JSON file; None if the model has no such file.

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
        """The content of a JSON file.

        Raises:
            UserError: if there is no such file or it is not a JSON object.
        """
        found = self.find_json(file)
        return self._absent(file) if found is None else found

    def _absent(self, file: str) -> NoReturn:
        place = f"{self.name}/{self.subfolder}" if self.subfolder else self.name
        raise UserError(f"{place} has no {file}, expected one; check that it is a model's folder or repository")
