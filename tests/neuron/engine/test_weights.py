"""A checkpoint becomes a model, and says how far that is."""

from __future__ import annotations

import torch
import transformers

from cortex.neuron.engine import weights
from cortex.neuron.engine.jobs import Load
from cortex.neuron.engine.reading import STEPS, counted, shares, sizes_in

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
    before = transformers.modeling_gguf_pytorch_utils.tqdm
    loaded(tiny_llama.path)
    assert transformers.modeling_gguf_pytorch_utils.tqdm is before
    assert transformers.utils.logging.set_tqdm_hook(None) is None
