"""
Builds cortex as one file: ``python -m cortex.zipapp slim``.

shiv.toml -> our wheel -> stage -> prune -> shiv -> budgets.  The rules: our wheel is taken by name
from the folder it was built in, never from an index; nothing of the building host is in the file,
so that two checkouts give the same bytes; a file over a budget is not kept.  Runs from a checkout,
with cortex's dependencies and the `build` group installed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import attrs

from cortex.config.load import environment
from cortex.config.strict import structure
from cortex.errors import ConfigError, CortexError
from cortex.registry import did_you_mean

PYTHON = sys.version_info[:2]
STARTABLE_BYTES = 2**31  # zipimport knows ZIP64 from Python 3.13 on
STARTABLE_ENTRIES = 2**16
FIXED_DATE = 1_580_601_600  # 2020-02-02, as hatchling's; for sources without a commit
STEP_LIMIT_S = 3600.0  # torch over a slow line
START_LIMIT_S = 300.0
WARM_RUNS = 10  # of which the fastest counts


class BuildFailed(CortexError):
    """A step of the build failed."""

    code = "build_failed"


@attrs.frozen(kw_only=True)
class BuildSection:
    """``[build]``: what all flavours share; *prune* and *strip* are patterns in site-packages."""

    entry_point: str
    python: str
    compile_pyc: bool
    reproducible: bool
    prune: tuple[str, ...] = ()
    strip: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Flavour:
    """``[flavours.NAME]``: which extras of pyproject.toml go in, and what the file may cost."""

    output: Path
    extras: tuple[str, ...] = ()
    max_bytes: int
    max_help_ms: int


@attrs.frozen(kw_only=True)
class ZipappConfig:
    """shiv.toml."""

    build: BuildSection
    flavours: Mapping[str, Flavour]


@attrs.frozen(kw_only=True)
class Figures:
    """
    What a built file is; times are 0 for a file that no Python <= 3.12 can start.

    The time of the processor counts, which other work on the building host changes least.
    """

    output: str
    python: str
    sha256: str
    size_bytes: int
    entries: int
    first_start_ms: float = 0.0
    help_ms: float = 0.0
    help_cpu_ms: float = 0.0
    packages: Mapping[str, str]

    def broken(self, flavour: Flavour) -> list[str]:
        """Return a sentence for each budget the file breaks."""
        budgets = (
            (self.size_bytes, flavour.max_bytes, "bytes, max_bytes is"),
            (self.size_bytes, STARTABLE_BYTES - 1, "bytes, Python 3.12 starts at most"),
            (self.entries, STARTABLE_ENTRIES - 1, "entries, Python 3.12 starts at most"),
        )
        return [f"{is_:,} {what} {most:,}" for is_, most, what in budgets if is_ > most]

    def slow(self, flavour: Flavour) -> list[str]:
        """Return a sentence if the file starts slowly; that may be the host's doing."""
        took_ms, most = round(self.help_cpu_ms), flavour.max_help_ms
        return [f"{took_ms:,} ms for --help, max_help_ms is {most}"] if took_ms > most else []


def main(argv: Sequence[str] | None = None) -> int:
    """
    Build one flavour.

    Returns:
        0 built, 1 failed or over a budget, 2 bad usage, configuration or environment.
    """
    shiv_toml = Path(__file__).parents[1] / "shiv.toml"
    parser = argparse.ArgumentParser(prog="cortex.zipapp", description="Build cortex as one file.")
    add = parser.add_argument
    add("flavour", help="a table under [flavours] in shiv.toml")
    add("--output", type=Path, help="write this file instead of the flavour's")
    add("--constraint", type=Path, action="append", default=[], help="for pip; repeatable")
    add("--config", type=Path, default=shiv_toml, help="shiv.toml; its folder has the sources")
    add("--strict", action="store_true", help="do not keep a file that starts too slowly")
    add("--json", action="store_true", help="print the figures as the last line")
    args = parser.parse_args(argv)
    try:
        config = load(args.config)
        if (flavour := config.flavours.get(args.flavour)) is None:
            hint = did_you_mean(args.flavour, config.flavours)
            raise ConfigError(f"{args.config.name}: flavours: no {args.flavour!r}", hint=hint)
        _check_tools(config.build)
        output = (args.output or args.config.parent / flavour.output).absolute()
        with TemporaryDirectory(prefix="cortex-zipapp-") as scratch:
            builder = Builder(
                root=args.config.parent.absolute(),
                scratch=Path(scratch),
                settings=config.build,
                flavour=flavour,
                constraints=tuple(path.absolute() for path in args.constraint),
            )
            output.unlink(missing_ok=True)  # what lies there is of the last build, or nothing
            figures = builder.build(output)
            slow = figures.slow(flavour)
            broken = figures.broken(flavour) + (slow if args.strict else [])
            if not broken:
                output.parent.mkdir(parents=True, exist_ok=True)
                shutil.move(builder.scratch / output.name, output)
    except CortexError as error:
        print(f"cortex.zipapp: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(
        f"{output}: {figures.size_bytes:,} bytes, {figures.entries:,} entries, first start "
        f"{figures.first_start_ms:.0f} ms, --help {figures.help_ms:.0f} ms "
        f"({figures.help_cpu_ms:.0f} ms of processor), sha256 {figures.sha256}"
    )
    for sentence in broken:
        print(f"cortex.zipapp: {output} is not kept: {sentence}", file=sys.stderr)
    for sentence in () if args.strict else slow:
        print(f"cortex.zipapp: it starts slowly, or this host does: {sentence}", file=sys.stderr)
    if args.json:
        print(json.dumps({"ok": not broken, "broken": broken, **attrs.asdict(figures)}))
    return 1 if broken else 0


@attrs.frozen(kw_only=True)
class Builder:
    """One build: *root* holds the sources, *scratch* is an empty folder for everything else."""

    root: Path
    scratch: Path
    settings: BuildSection
    flavour: Flavour
    constraints: tuple[Path, ...]

    @property
    def stage(self) -> Path:
        return self.scratch / "site-packages"

    def build(self, output: Path) -> Figures:
        """Leave a file with the name of *output* in the scratch folder, whatever it costs."""
        project = _read(self.root / "pyproject.toml")["project"]
        requirements = self._requirements(project)
        date = source_date(self.root)
        with _step("wheel"):
            version = self._build_wheel(date)
        with _step(f"stage {project['name']} {version}"):
            ours = ["--isolated", "--no-index", "--no-deps", f"--find-links={self.scratch}"]
            self._install([*ours, f"{project['name']}=={version}"])
            built_for = f'"""The Python this file is for."""\n\nPYTHON = {tuple(PYTHON)}\n'
            (self.stage / "cortex" / "_built_for.py").write_text(built_for, "utf-8")
        with _step("stage dependencies"):
            pins = [f"--constraint={path}" for path in self.constraints]
            self._install(["--only-binary=:all:", *pins, *requirements])
        with _step("prune"):
            self._prune()
        pyz = self.scratch / output.name
        with _step("shiv"):
            self._pack(pyz, date)
        figures = self._measure(pyz, output)
        if figures.size_bytes < STARTABLE_BYTES and figures.entries < STARTABLE_ENTRIES:
            with _step("start"):
                first_ms, _ = self._time_help(pyz)
                runs = [self._time_help(pyz) for _ in range(WARM_RUNS)]
            figures = attrs.evolve(
                figures,
                first_start_ms=first_ms,
                help_ms=min(passed_ms for passed_ms, _ in runs),
                help_cpu_ms=min(used_ms for _, used_ms in runs),
            )
        return figures

    def _requirements(self, project: Mapping[str, Any]) -> list[str]:
        extras = {"": project["dependencies"], **project.get("optional-dependencies", {})}
        for extra in self.flavour.extras:
            if extra not in extras:
                hint = did_you_mean(extra, extras)
                raise ConfigError(f"pyproject.toml: no extra is called {extra!r}", hint=hint)
        return [need for extra in ("", *self.flavour.extras) for need in extras[extra]]

    def _build_wheel(self, date: int) -> str:
        options = ["--isolated", "--no-index", "--no-deps", "--no-build-isolation"]
        into = [f"--wheel-dir={self.scratch}", str(self.root)]
        _python("pip", "wheel", *options, *into, SOURCE_DATE_EPOCH=str(date))
        (wheel,) = self.scratch.glob("*.whl")
        return wheel.name.split("-")[1]

    def _install(self, arguments: list[str]) -> None:
        _python("pip", "install", "--no-compile", f"--target={self.stage}", *arguments)

    def _prune(self) -> None:
        for pattern in self.settings.prune:
            for path in sorted(self.stage.glob(pattern), reverse=True):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        for pattern in self.settings.strip:
            for path in sorted(self.stage.glob(pattern)):
                _call(["strip", "--strip-debug", str(path)], limit_s=START_LIMIT_S)
        for record in self.stage.glob("*.dist-info/RECORD"):
            lines = record.read_text("utf-8").splitlines(keepends=True)
            record.write_text("".join(line for line in lines if self._is_staged(line)), "utf-8")
        for path in self.stage.rglob("*"):
            if path.is_file():  # whatever the umask is here
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)

    def _is_staged(self, line: str) -> bool:
        name = next(csv.reader([line]))[0]
        return not name.startswith(("/", "..")) and (self.stage / name).is_file()

    def _pack(self, pyz: Path, date: int) -> None:
        options = ["--compile-pyc"] if self.settings.compile_pyc else []
        env = {}
        if self.settings.reproducible:
            options.append("--reproducible")
            env = {"SOURCE_DATE_EPOCH": str(date)}
        options += ["--entry-point", self.settings.entry_point, "--python", self.settings.python]
        options += ["--site-packages", str(self.stage), "--output-file", str(pyz)]
        _python("shiv", *options, **env)

    def _measure(self, pyz: Path, output: Path) -> Figures:
        with zipfile.ZipFile(pyz) as archive:
            entries = len(archive.infolist())
        with pyz.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        found = metadata.distributions(path=[str(self.stage)])
        return Figures(
            output=str(output),
            python=".".join(map(str, PYTHON)),
            sha256=sha256,
            size_bytes=pyz.stat().st_size,
            entries=entries,
            packages=dict(sorted((package.name, package.version) for package in found)),
        )

    def _time_help(self, pyz: Path) -> tuple[float, float]:
        """Return the milliseconds that passed, and those of the processor."""
        env = {"SHIV_ROOT": str(self.scratch / "cache"), "CORTEX_PLUGINS": ""}
        start, before = perf_counter(), getrusage(RUSAGE_CHILDREN)
        _call([sys.executable, str(pyz), "--help"], limit_s=START_LIMIT_S, env=env)
        passed, after = perf_counter() - start, getrusage(RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return passed * 1000, used * 1000


def load(path: Path) -> ZipappConfig:
    """Read shiv.toml; a ConfigError names the file and the key."""
    return structure(_read(path), ZipappConfig, path.name)


def source_date(root: Path) -> int:
    """Return when the sources were last committed, in Unix seconds; a fixed date without git."""
    if not (root / ".git").exists() or shutil.which("git") is None:
        return FIXED_DATE
    return int(_call(["git", "-C", str(root), "log", "-1", "--format=%ct"], limit_s=60))


def _check_tools(settings: BuildSection) -> None:
    missing = [module for module in ("pip", "shiv", "hatchling") if find_spec(module) is None]
    if missing:
        raise ConfigError(
            f"{sys.executable} has no module {', '.join(missing)}",
            hint="`pip install --group build` in the checkout installs what building needs",
        )
    if settings.strip and shutil.which("strip") is None:
        raise ConfigError("build.strip: no program strip on PATH", hint="install binutils")


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None


@contextmanager
def _step(what: str) -> Iterator[None]:
    start = perf_counter()
    yield
    print(f"{what:<30} {perf_counter() - start:7.1f} s", flush=True)


def _python(module: str, *arguments: str, **env: str) -> None:
    _call([sys.executable, "-m", module, *arguments], limit_s=STEP_LIMIT_S, env=env)


def _call(command: list[str], *, limit_s: float, env: Mapping[str, str] | None = None) -> str:
    """Run a program and return what it printed; an error ends with its last words."""
    what = " ".join(command[:4])
    kept = {k: v for k, v in environment().items() if not k.startswith(("PYTHON", "SHIV_"))}
    try:
        done = subprocess.run(  # noqa: S603 - an argument vector of ours
            command,
            env={**kept, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildFailed(f"{what}: not done after {limit_s:g} s") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-20:]
        raise BuildFailed("\n  ".join([f"{what}: exit status {done.returncode}", *words]))
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
