"""Repositories of the Hugging Face Hub: one pinned commit, whose files are downloaded when they are asked for."""

import contextlib
import os
import re
import uuid
from pathlib import Path
from typing import Any

from jaxpipe.checkpoint.index import is_plain_relative
from jaxpipe.common.errors import CheckpointError
from jaxpipe.common.logging import logger

COMMIT = re.compile(r"[0-9a-f]{40}")


class HubFiles:
    """The files of a model repository at one commit.

    The commit is looked up once; every file comes from it, even if the branch moves in between. Where the Hub cannot be
    reached, the commit that the cache holds for the revision is used, and a warning says so.

    Args:
        repo_id: ``"user/repo"`` or ``"repo"``.
        revision: a branch, tag or commit; None for the default branch.
        token: a Hub token, True for the stored one, or None for the stored one where there is one.
        cache_dir: the Hub's cache; None for the usual place.
        local_files_only: use the cache and no network.
        force_download: download again what the cache holds.

    Raises:
        CheckpointError: the repository, the revision or the access to it is missing, or nothing can be reached.
    """

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> None:
        from huggingface_hub import HfApi, constants

        if revision is not None and not is_plain_relative(revision):
            raise CheckpointError(f"{repo_id}: revision {revision!r} is not the name of a branch, a tag or a commit.")
        if local_files_only and force_download:
            raise ValueError("force_download=True and local_files_only=True exclude each other; give one of them.")
        self.repo_id = repo_id
        self._asked = revision or constants.DEFAULT_REVISION
        self.where = f"the Hub repository {repo_id!r}"
        self._force = force_download
        self._cache = Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
        self._folder = self._cache / f"models--{repo_id.replace('/', '--')}"
        self._api = HfApi(token=token)
        # None while only the cache is used.
        self._listing: set[str] | None = None
        if local_files_only or constants.HF_HUB_OFFLINE:
            reason = "local_files_only=True" if local_files_only else "HF_HUB_OFFLINE=1"
            self._commit = self._use_cache(self._cached_commit() or self._raise_uncached(reason))
        else:
            self._commit = self._pin(revision)
        self.revision: str | None = self._commit

    def _pin(self, revision: str | None) -> str:
        """Asks the Hub for the commit and its list of files; falls back on the cache where the Hub is out of reach."""
        from huggingface_hub.errors import HFValidationError

        try:
            info = self._api.model_info(self.repo_id, revision=revision)
        except HFValidationError as error:
            raise CheckpointError(
                f"{self.repo_id!r} is neither an existing local path nor a valid Hub id ('user/repo'): {error}"
            ) from error
        # The HTTP library differs with the Hub client's version, and so do the exceptions of a missing network.
        except Exception as error:
            if refusal := self._refusal(error, revision):
                raise refusal from error
            commit = None if self._force else self._cached_commit()
            if commit is None:
                raise self._unreachable(error, f"revision {self._asked!r}") from error
            logger.warning(
                "%s: the Hub cannot be reached (%s); using commit %s from the cache.", self.repo_id, error, commit
            )
            return self._use_cache(commit)
        if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
            raise CheckpointError(f"{self.where}: the Hub named no commit for revision {self._asked!r}.")
        self._listing = {file.rfilename for file in info.siblings or []}
        return info.sha

    def _refusal(self, error: Exception, revision: str | None = None) -> CheckpointError | None:
        """Returns the error for an answer of the Hub that no network or retry would change, else None."""
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            return CheckpointError(
                f"{self.where} is gated: accept its terms on https://huggingface.co/{self.repo_id} and pass token=, "
                "or log in with `hf auth login`."
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return CheckpointError(
                f"{self.repo_id!r} was found neither as a local path nor as a Hub repository. Check the spelling; "
                "for a private repository pass token= or log in with `hf auth login`; for a local model, "
                f"{self.repo_id!r} must be an existing directory or .gguf file."
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return CheckpointError(f"{self.where} has no branch, tag or commit {revision or self._asked!r}.")
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.HfHubHTTPError) and status in (401, 403):
            return CheckpointError(f"{self.where}: the Hub refused access ({status}); check token= or `hf auth login`.")
        return None

    def _unreachable(self, error: Exception, sought: str) -> CheckpointError:
        return CheckpointError(
            f"{self.repo_id!r} is no local path, and the Hub at {self._api.endpoint} could not be reached for {sought} "
            f"({type(error).__name__}: {error}). Without a network, pass local_files_only=True where the model is in "
            f"the cache ({self._cache}), or the path of a directory or .gguf file that holds it."
        )

    def _use_cache(self, commit: str) -> str:
        self.where = f"the cached commit {commit} of {self.repo_id!r} ({self._cache})"
        return commit

    def _raise_uncached(self, reason: str) -> str:
        raise CheckpointError(
            f"{self.repo_id!r} is no local path, and revision {self._asked!r} of it is not in the cache "
            f"({self._cache}), which alone is used because of {reason}. Download it once with a network (then "
            "local_files_only=True finds it), or pass the path of a directory or .gguf file that holds it."
        )

    def _cached_commit(self) -> str | None:
        commit = self._asked
        if not COMMIT.fullmatch(commit):
            try:
                commit = (self._folder / "refs" / self._asked).read_text(encoding="ascii").strip()
            except (OSError, ValueError):
                return None
        known = COMMIT.fullmatch(commit) and (self._folder / "snapshots" / commit).is_dir()
        return commit if known else None

    def _remember_commit(self) -> None:
        """Notes which commit the revision meant, so that ``local_files_only=True`` finds it later."""
        reference = self._folder / "refs" / self._asked
        if self._asked == self._commit:
            return
        # A cache that cannot be written is still of use.
        with contextlib.suppress(OSError):
            if reference.is_file() and reference.read_text(encoding="ascii") == self._commit:
                return
            reference.parent.mkdir(parents=True, exist_ok=True)
            partial = reference.with_name(f"{reference.name}.{uuid.uuid4().hex[:8]}.tmp")
            partial.write_text(self._commit, encoding="ascii")
            os.replace(partial, reference)

    def listing(self) -> list[str]:
        """Names of the commit's files; those in the cache, where only the cache is used."""
        if self._listing is not None:
            return sorted(self._listing)
        snapshot = self._folder / "snapshots" / self._commit
        return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())

    def get(self, filename: str) -> Path | None:
        """Returns the local path of a file, downloaded where needed, or None where the commit lacks it.

        Raises:
            CheckpointError: the file exists, but cannot be downloaded.
        """
        if self._listing is None:
            path = self._folder / "snapshots" / self._commit / filename
            return path if path.is_file() else None
        if filename not in self._listing:
            return None
        options: dict[str, Any] = {"revision": self._commit, "cache_dir": self._cache, "force_download": self._force}
        try:
            path = Path(self._api.hf_hub_download(self.repo_id, filename, **options))
        except Exception as error:
            raise self._refusal(error) or self._unreachable(error, f"file {filename!r}") from error
        self._remember_commit()
        return path
