from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import huggingface_hub
import pytest

from cortex.errors import EmptyRepo, QuantNotFound, RepoFetchFailed, UnsupportedArchitecture
from cortex.fleet.model import ModelSpec
from cortex.sources import hf_cache
from cortex.sources.hf import HfOptions, HfSource
from tests.sources.conftest import Cancelled, Reports
from tests.sources.hub import COMMIT, Hub

MIB = 1 << 20
BIG = random.Random(1).randbytes(6 * MIB)
PLAIN = {
    ".gitattributes": b"*",
    "README.md": b"# x",
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": BIG,
    "consolidated.safetensors": BIG,
    "pytorch_model.bin": BIG,
    "onnx/model.onnx": BIG,
}
WANTED = {"config.json", "tokenizer.json", "model.safetensors"}
TOTAL = sum(len(PLAIN[name]) for name in WANTED)
QUANTS = {
    "x-Q4_K_M.gguf": BIG[:MIB],
    "x-Q8_0-00001-of-00002.gguf": BIG[: 2 * MIB],
    "x-Q8_0-00002-of-00002.gguf": BIG[2 * MIB : 5 * MIB],
}


@pytest.fixture
def hub(hub: Hub) -> Hub:
    hub.repos = {"o/plain": PLAIN, "o/quants": QUANTS, "o/readme": {"README.md": b"#"}}
    return hub


@pytest.fixture
def options(hub: Hub, tmp_path: Path) -> HfOptions:
    return HfOptions(endpoint=hub.endpoint, cache_dir=str(tmp_path / "hf"))


@pytest.fixture
def source(options: HfOptions, tmp_path: Path) -> HfSource:
    return HfSource(options, tmp_path)


def spec(repo: str = "o/plain", **more: str) -> ModelSpec:
    return ModelSpec(id=repo, **more)


@pytest.mark.parametrize(
    ("model_id", "known"),
    [("Qwen/Qwen3-8B", True), ("smollm2-135m", False), ("a/b/c", False), ("../b", False)],
)
def test_ids_of_the_shape_owner_and_name_are_known(source, model_id, known):
    assert source.knows(model_id) is known


def test_safetensors_come_with_config_and_tokenizer_and_nothing_else(hub, source, reports):
    checkpoint = source.fetch(spec(), reports)
    assert checkpoint.format == "safetensors"
    assert checkpoint.size_bytes == len(BIG)
    assert {path.name for path in checkpoint.path.iterdir()} == WANTED
    assert (checkpoint.path / "model.safetensors").read_bytes() == BIG
    assert {name for name, _ in hub.ranges} == WANTED


def test_the_text_side_is_told_before_the_weights_are_asked_for(hub, source):
    seen = []

    def report(progress):
        if progress.text is not None:
            seen.append((progress.text, {name for name, _ in hub.ranges}))

    whole = source.fetch(spec(), report)
    ((text, asked),) = seen
    assert text == attrs.evolve(whole, size_bytes=0)
    assert asked == WANTED - {"model.safetensors"}
    source.fetch(spec(), report)
    source.fetch(spec("o/quants", quant="Q4_K_M"), report)
    assert len(seen) == 1


def test_a_model_that_is_refused_leaves_the_whole_copy_there_is(hub, source):
    def refuse(progress):
        if progress.text is not None:
            raise UnsupportedArchitecture("no")

    whole = source.fetch(spec(), lambda _: None)
    hub.commit = "f00d" * 10
    hub.repos["o/plain"] = {**PLAIN, "model.safetensors": BIG[::-1]}
    with pytest.raises(UnsupportedArchitecture):
        source.fetch(spec(), refuse)
    hub.stop()
    assert source.fetch(spec(), refuse) == whole


def test_for_the_text_side_everything_but_the_weights_is_fetched(hub, source, reports):
    checkpoint = source.fetch(spec(), reports, text_only=True)
    assert {path.name for path in checkpoint.path.iterdir()} == WANTED - {"model.safetensors"}
    assert (checkpoint.format, checkpoint.size_bytes) == ("safetensors", 0)
    hub.stop()
    assert source.fetch(spec(), reports, text_only=True) == checkpoint
    with pytest.raises(RepoFetchFailed, match="no whole copy"):
        source.fetch(spec(), reports)


def test_for_the_text_side_of_a_gguf_its_file_is_fetched(source, reports):
    checkpoint = source.fetch(spec("o/quants", quant="Q4_K_M"), reports, text_only=True)
    assert checkpoint.path.read_bytes() == BIG[:MIB]


def test_a_newer_text_side_leaves_the_whole_copy_there_is(hub, source, reports):
    whole = source.fetch(spec(), reports)
    hub.commit = "f00d" * 10
    assert source.fetch(spec(), reports, text_only=True).path.name == hub.commit
    hub.stop()
    assert source.fetch(spec(), reports) == whole


def test_progress_only_grows_and_ends_at_the_total_of_all_files(source, reports):
    source.fetch(spec(), reports)
    done = [report.done for report in reports]
    assert done == sorted(done)
    assert len(set(done)) > len(BIG) // MIB
    assert done[-1] == TOTAL
    assert {(report.stage, report.total) for report in reports} == {("fetching", TOTAL)}


def test_what_is_here_is_not_fetched_again(hub, source, reports):
    first = source.fetch(spec(), reports)
    served = hub.served
    again = Reports()
    assert source.fetch(spec(), again) == first
    assert hub.served == served
    assert again[-1].done == again[-1].total == TOTAL


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_connection_that_breaks_is_resumed_where_it_broke(hub, source, reports, how):
    hub.cut = (how, 4 * MIB + 7, 1)
    checkpoint = source.fetch(spec(), reports)
    assert (checkpoint.path / "model.safetensors").read_bytes() == BIG
    starts = [start for name, start in hub.ranges if name == "model.safetensors"]
    assert len(starts) == 2
    assert starts[1] > 0 or how == "rst"  # a reset may lose what was on its way
    assert hub.served < 2 * TOTAL


def test_a_download_ended_by_its_caller_is_resumed_by_the_next(hub, source, options, tmp_path):
    stopped = Reports()
    stopped.stop_at = 3 * MIB
    with pytest.raises(Cancelled):
        source.fetch(spec(), stopped)
    assert stopped[-1].done < TOTAL
    resumed = Reports()
    checkpoint = HfSource(options, tmp_path).fetch(spec(), resumed)
    assert (checkpoint.path / "model.safetensors").read_bytes() == BIG
    assert hub.ranges[-1] == ("model.safetensors", stopped[-1].done - TOTAL + len(BIG))


def test_a_hub_that_breaks_off_again_and_again_is_given_up_and_what_came_is_kept(
    hub, source, reports, monkeypatch
):
    monkeypatch.setattr(hf_cache, "TRIES", 2)
    hub.cut = ("fin", 0, 1000)
    with pytest.raises(RepoFetchFailed, match=r"'config\.json' broke off: .*kept; try again"):
        source.fetch(spec(), reports)


def test_bytes_that_are_not_what_was_promised_are_refused_and_deleted(hub, source, reports):
    hub.damaged = True
    with pytest.raises(RepoFetchFailed, match=r"'model\.safetensors' arrived damaged"):
        source.fetch(spec(), reports)
    hub.damaged = False
    source.fetch(spec(), reports)


def test_two_at_once_fetch_each_file_once(hub, options, tmp_path):
    def fetch(_: int) -> Path:
        return HfSource(options, tmp_path).fetch(spec(), Reports()).path

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(fetch, range(2))
    assert first == second
    assert hub.served == TOTAL


def test_a_mirror_that_lists_no_sizes_is_asked_for_each(hub, source, reports):
    hub.bare = True
    checkpoint = source.fetch(spec(), reports)
    assert (checkpoint.path / "model.safetensors").read_bytes() == BIG
    assert reports[-1].done == reports[-1].total == TOTAL


def test_huggingface_hub_finds_what_we_fetched(source, options, reports):
    checkpoint = source.fetch(spec(), reports)
    found = huggingface_hub.snapshot_download(
        "o/plain", cache_dir=options.cache_dir, local_files_only=True
    )
    assert Path(found) == checkpoint.path


def test_what_huggingface_hub_fetched_is_not_fetched_again(hub, source, options, reports):
    for name in WANTED:
        huggingface_hub.hf_hub_download(
            "o/plain", name, endpoint=hub.endpoint, cache_dir=options.cache_dir
        )
    served = hub.served
    source.fetch(spec(), reports)
    assert hub.served == served


@pytest.mark.parametrize("repo", ["o/plain", "o/quants"])
def test_a_whole_copy_is_used_when_the_hub_is_gone(hub, source, reports, repo):
    quant = "Q8_0" if repo == "o/quants" else None
    wanted = ModelSpec(id=repo, quant=quant)
    online = source.fetch(wanted, reports)
    hub.stop()
    offline = Reports()
    assert source.fetch(wanted, offline) == online
    assert offline[-1].done == offline[-1].total == online.size_bytes


def test_a_whole_copy_is_used_when_the_hub_is_ill(hub, source, reports):
    online = source.fetch(spec(), reports)
    hub.status = 503
    assert source.fetch(spec(), reports) == online


def test_without_hub_and_copy_the_error_says_both(hub, source, reports):
    hub.stop()
    with pytest.raises(RepoFetchFailed) as caught:
        source.fetch(spec(), reports)
    assert f"the hub at {hub.endpoint} cannot be reached" in caught.value.message
    assert "has no whole copy of repository 'o/plain'" in caught.value.message


def test_half_a_copy_is_no_copy(hub, source, reports):
    source.fetch(spec("o/quants", quant="Q4_K_M"), reports)
    hub.stop()
    with pytest.raises(RepoFetchFailed, match=r"no whole copy .*no gguf of quant 'Q8_0'"):
        source.fetch(spec("o/quants", quant="Q8_0"), reports)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (ModelSpec(id="o/none"), "there is no repository 'o/none'"),
        (ModelSpec(id="o/plain", source="hf:o/plain@v9"), "has no revision 'v9'"),
        (ModelSpec(id="plain", source="hf"), "'plain' is not a repository of the form owner/name"),
    ],
)
def test_what_the_hub_does_not_have_is_named(source, reports, model, says):
    with pytest.raises(RepoFetchFailed, match=says) as caught:
        source.fetch(model, reports)
    assert caught.value.status == 422


def test_a_revision_may_be_asked_for(source, reports):
    model = ModelSpec(id="m", source=f"hf:o/plain@{COMMIT}")
    assert source.fetch(model, reports).path.name == COMMIT


def test_a_gated_repository_says_which_token_to_set(hub, source, reports):
    hub.gated.add("o/plain")
    with pytest.raises(RepoFetchFailed, match=r"refuses .*\(403\).*HF_TOKEN"):
        source.fetch(spec(), reports)


def test_the_token_of_a_file_is_sent(hub, options, reports, tmp_path):
    hub.gated.add("o/plain")
    (tmp_path / "token").write_text("letmein\n")
    with_token = attrs.evolve(options, token_file=str(tmp_path / "token"))
    assert HfSource(with_token, tmp_path).fetch(spec(), reports).size_bytes == len(BIG)


def test_the_token_does_not_follow_a_file_to_another_host(hub, options, reports, tmp_path):
    hub.cdn = True
    hub.cut = ("fin", 4 * MIB, 1)
    (tmp_path / "token").write_text("letmein")
    with_token = attrs.evolve(options, token_file=str(tmp_path / "token"))
    checkpoint = HfSource(with_token, tmp_path).fetch(spec(), reports)
    assert (checkpoint.path / "model.safetensors").read_bytes() == BIG
    assert hub.keys == [None] * 4
    assert hub.ranges[-1][1] > 0


def test_a_quant_of_many_parts_is_fetched_whole_and_opened_at_the_first(hub, source, reports):
    checkpoint = source.fetch(spec("o/quants", quant="q8_0"), reports)
    assert checkpoint.format == "gguf"
    assert checkpoint.path.name == "x-Q8_0-00001-of-00002.gguf"
    assert (
        checkpoint.path.with_name("x-Q8_0-00002-of-00002.gguf").read_bytes()
        == BIG[2 * MIB : 5 * MIB]
    )
    assert checkpoint.size_bytes == 5 * MIB
    assert "x-Q4_K_M.gguf" not in {name for name, _ in hub.ranges}


def test_a_quant_that_is_not_there_names_the_nearest(hub, source, reports):
    with pytest.raises(QuantNotFound) as caught:
        source.fetch(spec("o/quants", quant="Q4_K_S"), reports)
    assert caught.value.details == {
        "requested": "Q4_K_S",
        "available": ["Q4_K_M", "Q8_0"],
        "nearest": "Q4_K_M",
    }
    assert hub.served == 0


def test_a_repository_without_weights_is_empty(source, reports):
    with pytest.raises(EmptyRepo, match="'o/readme' holds no weights"):
        source.fetch(spec("o/readme"), reports)


def test_without_huggingface_hub_the_error_says_what_to_install(source, reports, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(RepoFetchFailed, match="huggingface_hub is not installed"):
        source.fetch(spec(), reports)


def test_a_cache_that_cannot_be_written_is_named(hub, reports, tmp_path):
    (tmp_path / "file").touch()
    options = HfOptions(endpoint=hub.endpoint, cache_dir=str(tmp_path / "file"))
    with pytest.raises(RepoFetchFailed, match=f"cannot write to {tmp_path}/file/models--o--plain"):
        HfSource(options, tmp_path).fetch(spec(), reports)


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "", **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=25,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_hf_endpoint_and_hf_home_are_honoured(hub, tmp_path):
    code = """
from pathlib import Path
from cortex.fleet.model import ModelSpec
from cortex.sources.hf import HfOptions, HfSource
source = HfSource(HfOptions(), Path("unused"))
print(source.fetch(ModelSpec(id="o/quants", quant="Q4_K_M"), lambda progress: None).path)
"""
    path = python(code, HF_ENDPOINT=hub.endpoint, HF_HOME=str(tmp_path / "home"))
    assert path.startswith(f"{tmp_path}/home/hub/models--o--quants/snapshots/")
    assert Path(path).read_bytes() == QUANTS["x-Q4_K_M.gguf"]


def test_offline_mode_uses_the_copy_and_asks_nobody(hub, source, options, reports):
    online = source.fetch(spec(), reports)
    listings = hub.listings
    code = f"""
from pathlib import Path
from cortex.fleet.model import ModelSpec
from cortex.sources.hf import HfOptions, HfSource
options = HfOptions(endpoint={options.endpoint!r}, cache_dir={options.cache_dir!r})
print(HfSource(options, Path()).fetch(ModelSpec(id="o/plain"), lambda progress: None).path)
"""
    assert python(code, HF_HUB_OFFLINE="1") == str(online.path)
    assert hub.listings == listings


def test_the_sources_import_without_what_they_fetch_with():
    code = """
import sys
import cortex.sources.file, cortex.sources.hf, cortex.sources.package
print(sorted({"huggingface_hub", "torch", "transformers", "aiohttp", "pip"} & sys.modules.keys()))
"""
    assert python(code) == "[]"
