"""
Fetch weights from the Hugging Face hub: ``source = "hf"``, ``"hf:owner/name@revision"``.

``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` mean what they mean to every user
of huggingface_hub, and the cache is the one it keeps.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator
from contextlib import closing
from pathlib import Path, PurePosixPath

import attrs

from cortex import hookimpl
from cortex.api import Register, Report, Source
from cortex.errors import CortexError, RepoFetchFailed
from cortex.fleet.model import Checkpoint, ModelSpec, Progress
from cortex.sources.hf_cache import RemoteFile, RepoCache
from cortex.sources.hf_hub import HubUnreachableError, Repo, explained, model_info, remote_file
from cortex.sources.weights import Listing

_REPO = re.compile(r"(?!.*(?:--|\.\.))(\w[\w.-]*/\w[\w.-]*)(?:@(\w[\w./-]*))?")


@attrs.frozen(kw_only=True)
class HfOptions:
    """
    ``[sources.hf]``.

    Attributes:
        endpoint: URL of the hub, instead of ``HF_ENDPOINT``.
        token_file: A file with the access token, instead of ``HF_TOKEN``.
        cache_dir: Where files are kept, instead of huggingface_hub's own cache.
    """

    endpoint: str | None = None
    token_file: str | None = None
    cache_dir: str | None = None


class HfSource:
    """Repositories of a hub, one file after the other, into huggingface_hub's cache."""

    def __init__(self, options: HfOptions, cache: Path) -> None:  # noqa: ARG002
        self._options = options

    def knows(self, model_id: str) -> bool:
        return _REPO.fullmatch(model_id) is not None

    def fetch(self, spec: ModelSpec, report: Report, *, text_only: bool = False) -> Checkpoint:
        repo = self._repo(spec.location)
        try:
            info = model_info(repo)
        except HubUnreachableError as error:
            checkpoint = _cached(repo, spec.file_quant, error, text_only=text_only)
            size = checkpoint.size_bytes
            report(Progress(stage="fetching", done=size, total=size))
            return checkpoint
        listed = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        names = [name for name in listed if ".." not in PurePosixPath(name).parts]
        selection = Listing.of(names).choose(spec.file_quant, repo.name)
        selection = selection.text if text_only else selection
        commit = info.sha or repo.revision
        files = [remote_file(repo, commit, listed[name]) for name in selection.files]
        _check_disk(repo, files)
        total = sum(file.size for file in files)
        keeps_old = text_only and repo.cache.last_snapshot(repo.revision) is not None
        revision = commit if keeps_old else repo.revision  # the old one may be whole
        folder, texts = repo.cache.snapshot(commit), len(selection.beside)
        text, weights = files[:texts], files[texts:]

        def bring(part: list[RemoteFile], before: int, revision: str) -> None:
            with closing(_bring(repo, part, before, commit, revision)) as arriving:
                for done in arriving:
                    report(Progress(stage="fetching", done=done, total=total))

        bring(text, 0, commit)  # no name yet: it is not whole
        done = sum(file.size for file in text)
        if text and repo.cache.missing_bytes(weights):
            here = selection.text.checkpoint(folder)
            report(Progress(stage="fetching", done=done, total=total, text=here))
        bring(weights, done, revision)
        return selection.checkpoint(folder)

    def _repo(self, location: str) -> Repo:
        match = _REPO.fullmatch(location)
        if match is None:
            raise RepoFetchFailed(f"{location!r} is not a repository of the form owner/name")
        try:
            from huggingface_hub import HfApi, constants
        except ImportError as error:
            raise RepoFetchFailed(
                f"cannot fetch {location!r}: huggingface_hub is not installed",
                hint="install cortex-fleet[torch], or huggingface_hub itself",
            ) from error
        root = Path(self._options.cache_dir or constants.HF_HUB_CACHE).expanduser()
        api = HfApi(
            endpoint=(self._options.endpoint or constants.ENDPOINT).rstrip("/"),
            token=self._token(),
            library_name="cortex",
        )
        revision = match[2] or constants.DEFAULT_REVISION
        return Repo(id=match[1], revision=revision, api=api, cache=RepoCache(root, match[1]))

    def _token(self) -> str | None:
        if self._options.token_file is None:
            return None
        try:
            return Path(self._options.token_file).expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RepoFetchFailed(f"sources.hf.token_file: {error}") from error


def _check_disk(repo: Repo, files: list[RemoteFile]) -> None:
    try:
        repo.cache.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(repo.cache.folder).free
    except OSError as error:
        raise RepoFetchFailed(f"cannot write to {repo.cache.folder}: {error.strerror}") from error
    if (need := repo.cache.missing_bytes(files)) > free:
        raise RepoFetchFailed(
            f"{repo.name} needs {need >> 20} MiB and {repo.cache.folder} has {free >> 20} MiB free"
        )


def _bring(
    repo: Repo, files: list[RemoteFile], before: int, commit: str, revision: str
) -> Generator[int, None, None]:
    """Yield the bytes that are here, those *before* these files too, never fewer than before."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    headers = build_hf_headers(token=repo.api.token, library_name="cortex")
    best = before
    name = ""
    try:
        for file in files:
            name = file.name
            for here in repo.cache.bring(file, headers):
                best = max(best, before + here)
                yield best
            before += file.size
        repo.cache.publish(files, commit, revision)
    except HfHubHTTPError as error:
        raise explained(error, repo) from error
    except HTTPError as error:
        cause = str(error) or type(error).__name__
        raise RepoFetchFailed(
            f"{repo.name}: the download of {name!r} broke off: {cause}",
            hint="what has arrived is kept; try again",
        ) from error
    except OSError as error:
        raise RepoFetchFailed(f"{repo.name}: cannot keep {name!r}: {error}") from error


def _cached(
    repo: Repo, quant: str | None, cause: HubUnreachableError, *, text_only: bool
) -> Checkpoint:
    """Return the checkpoint of the last snapshot, if it is whole."""
    folder = repo.cache.last_snapshot(repo.revision)
    if text_only and quant is None and folder is not None and (folder / "config.json").is_file():
        return Checkpoint(path=folder, format="safetensors", size_bytes=0)
    try:
        if folder is not None:
            found = [path for path in folder.rglob("*") if path.is_file()]
            names = [path.relative_to(folder).as_posix() for path in found]
            return Listing.of(names).choose(quant, repo.name).checkpoint(folder)
        lacks = "nothing of it"
    except CortexError as error:
        lacks = str(error)
    raise RepoFetchFailed(
        f"the hub at {repo.api.endpoint} cannot be reached ({cause}), "
        f"and {repo.cache.folder} has no whole copy of {repo.name} ({lacks})"
    )


@hookimpl
def cortex_register_sources(register: Register[Source]) -> None:
    register("hf", HfSource, options=HfOptions, summary="repositories of the Hugging Face hub")
