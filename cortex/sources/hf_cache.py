"""
Writes files into huggingface_hub's cache, and goes on where a download was cut off.

huggingface_hub 2 throws a partial file away when its process ends; here it stays until the last
byte is there and the checksum is right.  The layout is the documented one, shared with every other
program: ``blobs/<etag>``, ``snapshots/<commit>/<name>`` pointing there, ``refs/<revision>``.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs

from cortex.errors import RepoFetchFailed

CHUNK_BYTES = 1 << 20
TRIES = 5  # in a row without a new byte
TIMEOUT_S = 30.0
BEAT_S = 0.2  # how often a lock is tried
PARTIAL_CONTENT = 206
SERVER_ERROR = 500


@attrs.frozen(kw_only=True)
class RemoteFile:
    """
    A file of a repository.

    Attributes:
        etag: The name of its blob: SHA-256 of a large file, git's hash of a small one.
        sha256: What to check it against, if the hub tells.
    """

    name: str
    url: str
    size: int
    etag: str
    sha256: str | None = None


class RepoCache:
    """The cache of one repository."""

    def __init__(self, root: Path, repo: str) -> None:
        self.folder = root / f"models--{repo.replace('/', '--')}"
        self._locks = root / ".locks" / self.folder.name

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def last_snapshot(self, revision: str) -> Path | None:
        """Return the folder a revision stood for when it was last seen."""
        ref = self.folder / "refs" / revision
        folder = self.snapshot(ref.read_text() if ref.is_file() else revision)
        return folder if folder.is_dir() else None

    def missing_bytes(self, files: list[RemoteFile]) -> int:
        return sum(file.size for file in files if not self._blob(file).exists())

    def bring(self, file: RemoteFile, headers: Mapping[str, str]) -> Iterator[int]:
        """
        Fetch *file* unless it is here; yield often how many of its bytes are.

        Closing the iterator stops; what has arrived is kept.

        Raises:
            OSError: The disk, or a `HfHubHTTPError`.
            HTTPError: httpx's; the hub could not be reached, again and again.
            RepoFetchFailed: What arrived is not what was promised.
        """
        blob = self._blob(file)
        if not blob.exists():
            blob.parent.mkdir(parents=True, exist_ok=True)
            self._locks.mkdir(parents=True, exist_ok=True)
            part = blob.with_name(f"{file.etag}.incomplete")
            with (self._locks / f"{file.etag}.lock").open("w") as lock:
                while not _locked(lock.fileno()):
                    yield _size(part)
                    time.sleep(BEAT_S)
                if not blob.exists():
                    yield from _download(file, headers, part)
                    yield from _verify(file, part)
                    part.replace(blob)
        yield file.size

    def publish(self, files: list[RemoteFile], commit: str, revision: str) -> None:
        """Make the snapshot of *files*, all of which are here."""
        for file in files:
            pointer = self.snapshot(commit) / file.name
            if pointer.exists():
                continue
            pointer.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(self._blob(file), pointer.parent)
            temporary = pointer.with_name(f".{pointer.name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target)
            temporary.replace(pointer)
        ref = self.folder / "refs" / revision
        if revision != commit and not (ref.is_file() and ref.read_text() == commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            temporary = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
            temporary.write_text(commit)
            temporary.replace(ref)

    def _blob(self, file: RemoteFile) -> Path:
        return self.folder / "blobs" / file.etag


def _download(file: RemoteFile, headers: Mapping[str, str], part: Path) -> Iterator[int]:
    from huggingface_hub import get_session, hf_raise_for_status
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    part.touch()
    failures = 0
    while (have := _size(part)) < file.size:
        resume = {**headers, "Range": f"bytes={have}-", "Accept-Encoding": "identity"}
        try:
            with get_session().stream(
                "GET", file.url, headers=resume, timeout=TIMEOUT_S, follow_redirects=True
            ) as response:
                hf_raise_for_status(response)
                mode = "ab" if response.status_code == PARTIAL_CONTENT else "wb"
                with part.open(mode) as out:
                    for chunk in response.iter_bytes(CHUNK_BYTES):
                        out.write(chunk)
                        failures = 0
                        yield out.tell()
            failures += 1
            if failures >= TRIES:
                break
        except HTTPError as error:
            failures += 1
            if failures >= TRIES or _refused(error):
                raise
            time.sleep(failures - 1)


def _refused(error: Exception) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", SERVER_ERROR)
    return bool(status < SERVER_ERROR)


def _verify(file: RemoteFile, part: Path) -> Iterator[int]:
    digest = hashlib.sha256()
    if file.sha256:
        with part.open("rb") as arrived:
            while chunk := arrived.read(CHUNK_BYTES):
                digest.update(chunk)
                yield file.size
    if _size(part) != file.size or file.sha256 not in (None, digest.hexdigest()):
        said = f"{file.name!r} arrived damaged: {_size(part)} bytes of {file.size}, or a wrong sum"
        part.unlink()
        raise RepoFetchFailed(said, hint="what arrived is deleted; try again")


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
