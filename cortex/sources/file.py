"""Find weights on this host's disk: ``source = "file:/srv/x.gguf"``, or an id under a folder."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path, PurePath

import attrs

from cortex import hookimpl
from cortex.api import Register, Report, Source
from cortex.errors import EmptyRepo, RepoFetchFailed
from cortex.fleet.model import Checkpoint, ModelSpec, Progress
from cortex.sources.weights import Listing, Selection, stem_of, tag_of


@attrs.frozen(kw_only=True)
class FileOptions:
    """
    ``[sources.file]``.

    Attributes:
        paths: Folders in which a model id is looked up, as it is and with ``.gguf``.
    """

    paths: tuple[str, ...] = ()


class FileSource:
    """A ``.gguf``, or a folder with such files or with config.json and safetensors."""

    def __init__(self, options: FileOptions, cache: Path) -> None:  # noqa: ARG002
        self._paths = [Path(path).expanduser() for path in options.paths]

    def knows(self, model_id: str) -> bool:
        return any(place.exists() for place in self._under_paths(model_id))

    def fetch(
        self,
        spec: ModelSpec,
        report: Report,
        *,
        text_only: bool = False,  # noqa: ARG002
    ) -> Checkpoint:
        places = list(self._under_paths(spec.location))
        if spec.location != spec.id or PurePath(spec.location).is_absolute():
            places.insert(0, Path(spec.location).expanduser())
        place = next((place for place in places if place.exists()), None)
        if place is None:
            raise self._not_found(spec.location, places)
        try:
            selection = _listed(place, spec.file_quant)
            checkpoint = selection.checkpoint(place if place.is_dir() else place.parent)
        except OSError as error:
            raise RepoFetchFailed(f"cannot read {place}: {error.strerror}") from error
        size = checkpoint.size_bytes
        report(Progress(stage="fetching", done=size, total=size))
        return checkpoint

    def _under_paths(self, name: str) -> Iterator[Path]:
        relative = PurePath(name)
        if relative.is_absolute() or ".." in relative.parts:
            return
        for path in self._paths:
            yield path / name
            yield path / f"{name}.gguf"

    def _not_found(self, name: str, places: list[Path]) -> RepoFetchFailed:
        if not places:
            return RepoFetchFailed(
                f"no file {name!r}", hint="set sources.file.paths, or source = 'file:/path'"
            )
        entries = [entry for place in places for entry in _entries(place.parent)]
        seen = {name: entry for entry in entries for name in (entry.name, entry.stem)}
        near = get_close_matches(places[0].name, seen, n=1)
        looked = ", ".join(map(str, places))
        hint = f"did you mean {seen[near[0]]}?" if near else ""
        return RepoFetchFailed(f"no file {name!r}; looked for {looked}", hint=hint)


def _listed(place: Path, quant: str | None) -> Selection:
    if place.is_dir():
        names = [entry.name for entry in place.iterdir() if entry.is_file()]
        return Listing.of(names).choose(quant, str(place))
    if not _is_gguf(place):
        raise EmptyRepo(f"{place} is neither a folder nor a .gguf file")
    stem = stem_of(place.name)
    ggufs = [entry.name for entry in place.parent.iterdir() if _is_gguf(entry)]
    parts = [name for name in ggufs if stem_of(name) == stem]
    return Listing.of(parts).choose(quant if tag_of(stem) else None, str(place))


def _is_gguf(path: Path) -> bool:
    return path.suffix.lower() == ".gguf" and path.is_file()


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


@hookimpl
def cortex_register_sources(register: Register[Source]) -> None:
    register(
        "file", FileSource, options=FileOptions, summary="a .gguf or a folder on this host's disk"
    )
