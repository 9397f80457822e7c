"""
Asks a Hugging Face hub about a repository, and says in our words what it answers.

huggingface_hub is imported where it is needed: a gateway has no use for it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import attrs

from cortex.errors import RepoFetchFailed
from cortex.sources.hf_cache import RemoteFile, RepoCache

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

LISTING_TIMEOUT_S = 10.0
_BUSY = frozenset({408, 429, 500, 502, 503, 504})
_NO_ACCESS = frozenset({401, 403})
_NOT_FOUND = 404


class HubUnreachableError(Exception):
    """The hub does not answer, or not like one."""


@attrs.frozen(kw_only=True)
class Repo:
    """What one fetch is about."""

    id: str
    revision: str
    api: HfApi
    cache: RepoCache

    @property
    def name(self) -> str:
        return f"repository {self.id!r}"


def model_info(repo: Repo) -> ModelInfo:
    """
    Return what the hub knows of *repo*, its files first of all.

    Raises:
        HubUnreachableError: It does not answer, is busy, or is no hub.
        RepoFetchFailed: It answers that we cannot have it.
    """
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    try:
        return repo.api.model_info(
            repo.id, revision=repo.revision, files_metadata=True, timeout=LISTING_TIMEOUT_S
        )
    except HfHubHTTPError as error:
        if error.response.status_code in _BUSY:
            raise HubUnreachableError(f"status {error.response.status_code}") from error
        raise explained(error, repo) from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachableError("HF_HUB_OFFLINE is set") from error
    except (HTTPError, ValueError, KeyError, TypeError) as error:
        raise HubUnreachableError(str(error) or type(error).__name__) from error


def remote_file(repo: Repo, commit: str, listed: RepoSibling) -> RemoteFile:
    """Complete what the listing says; a mirror that leaves out sizes is asked for each file."""
    from huggingface_hub import hf_hub_url

    endpoint = repo.api.endpoint
    url = hf_hub_url(repo.id, listed.rfilename, revision=commit, endpoint=endpoint)
    sha256 = listed.lfs.sha256 if listed.lfs else None
    etag = sha256 or listed.blob_id
    size = listed.lfs.size if listed.lfs else listed.size
    if size is None or etag is None:
        size, etag = _asked(repo, url)
    return RemoteFile(name=listed.rfilename, url=url, size=size, etag=etag, sha256=sha256)


def _asked(repo: Repo, url: str) -> tuple[int, str]:
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    try:
        metadata = repo.api.get_hf_file_metadata(url=url, timeout=LISTING_TIMEOUT_S)
    except HfHubHTTPError as error:
        raise explained(error, repo) from error
    except HTTPError as error:
        raise RepoFetchFailed(f"{repo.name}: cannot ask for {url}: {error}") from error
    if metadata.size is None or metadata.etag is None:
        raise RepoFetchFailed(f"{repo.name}: the hub tells no size or no etag of {url}")
    return metadata.size, re.sub(r"\W", "_", metadata.etag)


def explained(error: HfHubHTTPError, repo: Repo) -> RepoFetchFailed:
    """Return what a refusal of the hub means."""
    from huggingface_hub.errors import RevisionNotFoundError

    status = error.response.status_code
    if isinstance(error, RevisionNotFoundError):
        return RepoFetchFailed(f"{repo.name} has no revision {repo.revision!r}")
    if status in _NO_ACCESS:
        return RepoFetchFailed(
            f"the hub refuses {repo.name} ({status}): it is gated, private, or does not exist",
            hint="set HF_TOKEN or sources.hf.token_file to a token that may read it",
        )
    if status == _NOT_FOUND:
        return RepoFetchFailed(f"there is no {repo.name} at {repo.api.endpoint}")
    said = error.server_message or f"status {status}"
    return RepoFetchFailed(f"the hub at {repo.api.endpoint} refuses {repo.name}: {said}")
