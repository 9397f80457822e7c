"""The packages and the install script: what they hold, installed below a root of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cortex
from tests.zipapp.builds import Built

pytestmark = [pytest.mark.zipapp, pytest.mark.timeout(600), pytest.mark.xdist_group("zipapp")]

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "packaging").glob("*.sh"))
SETTINGS = {
    "/etc/cortex/cortex.toml",
    "/etc/cortex/gateway.env",
    "/etc/cortex/models.toml",
    "/etc/cortex/neuron.env",
    "/etc/cortex/neuron.toml",
}
FILES = SETTINGS | {
    "/usr/bin/cortex",
    "/usr/lib/cortex/cortex.pyz",
    "/usr/lib/firewalld/services/cortex-gateway-metrics.xml",
    "/usr/lib/firewalld/services/cortex-gateway.xml",
    "/usr/lib/firewalld/services/cortex-neuron.xml",
    "/usr/lib/systemd/system/cortex-gateway.service",
    "/usr/lib/systemd/system/cortex-neuron.service",
    "/usr/lib/sysusers.d/cortex.conf",
    "/usr/share/doc/cortex-fleet/README.md",
    "/usr/share/doc/cortex-fleet/copyright",
    "/usr/share/doc/cortex-fleet/examples/alerts.yml",
    "/usr/share/doc/cortex-fleet/examples/grafana.json",
    "/usr/share/doc/cortex-fleet/examples/prometheus.yml",
}
SECRET = ("etc/cortex/gateway.env", "etc/cortex/neuron.env")
PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"


def run(*command: object, **env: str) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files_in(root: Path) -> set[str]:
    return {f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()}


def check_program(root: Path, tmp_path: Path) -> None:
    """Start the unpacked command; its wrapper names the place it has once it is installed."""
    text = (root / "usr/bin/cortex").read_text()
    assert f"${{CORTEX_PYTHON:-/usr/bin/{PYTHON}}}" in text
    wrapper = tmp_path / "cortex"
    wrapper.write_text(text.replace(" /usr/lib/cortex", f" {root}/usr/lib/cortex"))
    assert os.access(root / "usr/bin/cortex", os.X_OK)
    said = run("sh", wrapper, "--version", CORTEX_PYTHON=sys.executable)
    assert said.startswith(f"cortex {cortex.__version__} ")


def packages(built: Built, output: Path, *kinds: str) -> list[Path]:
    run(
        *("bash", ROOT / "packaging/build.sh", "--pyz", built.pyz, "--python", sys.executable),
        *("--output", output, *kinds),
    )
    return sorted(output.iterdir())


@pytest.fixture(scope="module", autouse=True)
def unpacked(shared: Path) -> Iterator[None]:
    """Have the single file unpack itself once, for all that start it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHIV_ROOT", str(shared / "cache"))
        patch.setenv("CORTEX_PLUGINS", "")
        yield


@pytest.fixture(scope="module")
def made(built: Built, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    output = tmp_path_factory.mktemp("packages")
    return {path.suffix: path for path in packages(built, output)}


def test_there_is_a_package_of_each_kind_named_after_its_version(made):
    assert made.keys() == {".deb", ".rpm"}
    assert made[".deb"].name.startswith(f"cortex-fleet_{cortex.__version__}_")
    assert made[".rpm"].name.startswith(f"cortex-fleet-{cortex.__version__}-1.")


def test_the_deb_holds_its_files_and_no_other_and_they_run(made, tmp_path):
    root = tmp_path / "root"
    run("dpkg-deb", "-x", made[".deb"], root)
    assert files_in(root) == FILES
    assert {name for name in SECRET if (root / name).stat().st_mode & 0o077} == set()
    check_program(root, tmp_path)


def test_the_deb_says_what_it_needs_and_what_are_settings(made):
    def field(name):
        return run("dpkg-deb", "-f", made[".deb"], name).strip()

    assert (field("Package"), field("Version")) == ("cortex-fleet", cortex.__version__)
    assert field("Depends") == PYTHON
    listed = run("dpkg-deb", "-I", made[".deb"], "conffiles").split()
    assert set(listed) == SETTINGS
    owners = {line.split()[1] for line in run("dpkg-deb", "-c", made[".deb"]).splitlines()}
    assert owners == {"root/root"}


def test_the_same_sources_make_the_same_deb(made, built, tmp_path):
    again = packages(built, tmp_path, "deb")
    assert [path.read_bytes() == made[".deb"].read_bytes() for path in again] == [True]


def dpkg(root: Path, *arguments: object) -> str:
    forced = ("--force-script-chrootless", "--force-depends", "--force-not-root", "--no-triggers")
    return run("dpkg", f"--root={root}", f"--log={root}/log", *forced, *arguments)


def test_the_deb_installs_makes_its_users_keeps_settings_and_goes(made, tmp_path):
    root = tmp_path / "root"
    for folder in ("etc", "var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/dpkg/triggers"):
        (root / folder).mkdir(parents=True)
    (root / "var/lib/dpkg/status").touch()
    dpkg(root, "--install", made[".deb"])
    assert {name for name in FILES if not Path(f"{root}{name}").is_file()} == set()
    users = dict(line.split(":", 1) for line in (root / "etc/passwd").read_text().splitlines())
    assert {"cortex-gateway", "cortex-neuron"} <= users.keys()
    assert all("nologin" in users[name] for name in ("cortex-gateway", "cortex-neuron"))
    groups = (root / "etc/group").read_text()
    assert re.search(r"^video:.*:cortex-neuron$", groups, re.MULTILINE)
    if os.geteuid() == 0:  # nobody else can give a file away
        setting = (root / "etc/cortex/cortex.toml").stat()
        assert setting.st_mode & 0o777 == 0o640
        assert f"cortex-gateway:x:{setting.st_gid}:" in groups
    assert not [*root.glob("etc/systemd/system/*.wants/*")]

    mine = root / "etc/cortex/models.toml"
    mine.write_text('aliases = { mine = "x" }\n')
    dpkg(root, "--install", made[".deb"])
    assert mine.read_text() == 'aliases = { mine = "x" }\n'

    (root / "var/lib/cortex-gateway").mkdir()
    dpkg(root, "--remove", "cortex-fleet")
    assert mine.exists()
    assert not (root / "usr/lib/cortex").exists()
    dpkg(root, "--purge", "cortex-fleet")
    assert not mine.exists()
    assert not (root / "var/lib/cortex-gateway").exists()


def test_the_rpm_holds_the_same_and_it_runs(made, tmp_path):
    def asked(*arguments: str) -> set[str]:
        return set(run("rpm", "-qp", *arguments, made[".rpm"]).split("\n")) - {""}

    folders = {"/etc/cortex", "/usr/lib/cortex", "/usr/share/doc/cortex-fleet"}
    assert asked("--list") - folders == FILES
    assert asked("--configfiles") == SETTINGS
    assert f"/usr/bin/{PYTHON}" in asked("--requires")
    assert asked("--queryformat", "%{VERSION}-%{RELEASE}") == {f"{cortex.__version__}-1"}
    assert "systemd-sysusers" in run("rpm", "-qp", "--scripts", made[".rpm"])
    root = tmp_path / "root"
    root.mkdir()
    archive = subprocess.run(["rpm2cpio", made[".rpm"]], capture_output=True, check=True).stdout
    subprocess.run(["cpio", "-idm", "--quiet"], cwd=root, input=archive, check=True)
    assert files_in(root) == FILES
    check_program(root, tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="rpm changes its root")
def test_the_rpm_installs_and_goes(made, tmp_path):
    """Its scripts are not run: a root without a shell has nobody to run them."""

    def rpm(*arguments: object) -> str:
        return run("rpm", f"--root={tmp_path}", "--dbpath=/var/lib/rpm", *arguments)

    rpm("--initdb")
    rpm("--install", "--nodeps", "--noscripts", made[".rpm"])
    assert {name for name in FILES if not Path(f"{tmp_path}{name}").is_file()} == set()
    changed = [
        line
        for line in rpm("--verify", "--nodeps", "--noscripts", "cortex-fleet").split("\n")
        if line
    ]
    assert all(line.startswith("......G..") for line in changed)  # there are no groups here
    rpm("--erase", "--noscripts", "cortex-fleet")
    assert not FILES & files_in(tmp_path)


def test_the_scripts_are_clean():
    assert run("shellcheck", *SCRIPTS) == ""


def test_no_script_of_a_package_starts_anything():
    for name in ("after-install.sh", "before-remove.sh", "after-remove.sh"):
        text = (ROOT / "packaging" / name).read_text()
        assert not re.search(r"systemctl.*\b(start|restart|enable)\b", text)


def install(root: Path, built: Built, *more: str) -> str:
    return run(
        *("bash", ROOT / "packaging/install.sh", "--root", root, "--prefix", "/opt/cortex"),
        *("--pyz", built.pyz, "--python", sys.executable, *more),
    )


def test_the_install_script_can_run_twice_and_be_undone(built, tmp_path):
    root = tmp_path / "root"
    install(root, built)
    once = files_in(root)
    unit = root / "etc/systemd/system/cortex-gateway.service"
    assert "ExecStart=/opt/cortex/bin/cortex serve " in unit.read_text()
    assert (
        f'"${{CORTEX_PYTHON:-{sys.executable}}}" /opt/cortex/lib/cortex/cortex.pyz "$@"'
        in (root / "opt/cortex/bin/cortex").read_text()
    )
    assert len(once) == len(FILES)

    mine = root / "etc/cortex/neuron.toml"
    mine.write_text('harnesses = ["echo"]\n')
    install(root, built)
    assert files_in(root) == once
    assert mine.read_text() == 'harnesses = ["echo"]\n'

    install(root, built, "--uninstall")
    assert files_in(root) == SETTINGS
    install(root, built, "--uninstall")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pyz", "/nowhere"), "install.sh: no file /nowhere; "),
        (("--python", "/nowhere"), "install.sh: --python: no program /nowhere"),
        (("--prefix", "here"), "install.sh: --prefix: expected an absolute path, got here"),
        (("--upside-down",), "install.sh: no option --upside-down; --help lists them"),
        (("--root",), "install.sh: --root needs a value"),
    ],
)
def test_the_install_script_says_what_is_wrong_and_does_nothing(built, tmp_path, arguments, said):
    base = ("--root", str(tmp_path / "root"), "--pyz", str(built.pyz), "--python", sys.executable)
    done = subprocess.run(
        ["bash", ROOT / "packaging/install.sh", *base, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert not (tmp_path / "root").exists()
