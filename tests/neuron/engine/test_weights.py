"""A checkpoint becomes a model, and says how far that is."""

from __future__ import annotations

import shutil
import socket
from types import SimpleNamespace

import torch
import transformers

from cortex.neuron.engine import frames, jobs, weights
from cortex.neuron.engine.jobs import Generate, Load
from cortex.neuron.engine.model import build
from cortex.neuron.engine.reading import STEPS, counted, shares, sizes_in
from cortex.neuron.engine.worker import Worker

CPU = torch.device("cpu")


def loaded(path):
    told = []
    found = weights.load(
        Load(model="m", path=str(path)), CPU, lambda *progress: told.append(progress)
    )
    return found, told


def test_reading_tells_the_bytes_of_the_weights(tiny_llama):
    found, told = loaded(tiny_llama.path)

    assert list(dict.fromkeys(stage for stage, _, _ in told)) == list(weights.STAGES)
    read = [(done, total) for stage, done, total in told if stage == "reading weights" and total]
    size = sum(sizes_in(tiny_llama.path).values())
    assert size == sum(p.nbytes for p in found.module.parameters())
    assert [total for _, total in read] == [size] * len(read)
    assert [done for done, _ in read] == sorted(done for done, _ in read)
    assert (read[0][0], read[-1][0]) == (0, size)
    assert len(read) > 10


def test_what_shards_call_otherwise_has_like_shares_of_the_rest():
    assert shares(["a", "b", "c"], {"a": 5, "x": 6, "y": 4}) == [5, 5, 5]
    assert shares(["a"], {"a": 5}) == [5]
    assert shares([], {}) == []


def test_what_is_no_safetensors_has_no_sizes(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"not weights")
    (tmp_path / "b.safetensors").write_bytes(b"")
    assert sizes_in(tmp_path) == {}


def test_many_small_weights_are_not_many_reports():
    told = []
    assert list(counted(range(5000), [3] * 5000, lambda *at: told.append(at))) == [*range(5000)]
    assert len(told) <= STEPS + 1
    assert told[-1] == (15000, 15000)


def test_the_bars_of_others_are_as_they_were_afterwards(tiny_llama):
    def mine(make, args, kwargs):
        return make(*args, **kwargs)

    before = transformers.modeling_gguf_pytorch_utils.tqdm
    others = transformers.utils.logging.set_tqdm_hook(mine)
    loaded(tiny_llama.path)
    assert transformers.modeling_gguf_pytorch_utils.tqdm is before
    assert transformers.utils.logging.set_tqdm_hook(others) is mine


def test_a_tokenizer_may_have_more_tokens_than_the_model(tiny_llama, tmp_path):
    shutil.copytree(tiny_llama.path, tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    tokenizer.add_tokens([f"<{number}>" for number in range(2000)])
    tokenizer.save_pretrained(tmp_path / "m")
    found, _ = loaded(tmp_path / "m")

    assert found.known == found.module.config.vocab_size < len(tokenizer) == found.vocabulary
    with torch.inference_mode():
        assert build(Load(model="m", path="", max_sequences=2), found, CPU).body.startswith("fused")


def test_a_token_the_model_does_not_have_ends_its_request_alone():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker = Worker(ours, CPU)
        worker._models["m"] = SimpleNamespace(weights=SimpleNamespace(pooling=None, known=300))
        worker._begin(Generate(id="r", model="m", prompt=[5, 300, 7], max_tokens=1), None)
        lost = jobs.decode_event(frames.receive(theirs))

    assert lost == jobs.Lost(id="r", message="the model has no token 300")
