"""A model split over ranks answers as it does whole, whatever the schedule and the sampling."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch

from cortex.errors import UnsupportedArchitecture
from cortex.neuron.engine import plan, probe, splitting, weights
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.jobs import Load
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.layers import LARGEST
from cortex.neuron.engine.leading import Follower
from cortex.neuron.engine.model import build
from cortex.neuron.engine.modules import record, recurrences
from cortex.neuron.engine.poison import GroupBroken, is_poison
from cortex.neuron.engine.shards import FAMILIES, Shards
from cortex.neuron.engine.stack import Stack
from tests.neuron.engine.engines import (
    DEVICE,
    HYBRIDS,
    Oracle,
    ask,
    check_schedule,
    engine_of,
    greedy,
    model_of,
    prompts,
    run,
    stepped,
)
from tests.neuron.engine.engines import FAMILIES as TRIED
from tests.neuron.engine.ranks import Rank, Together, share_of, split_engine
from tests.neuron.engine.seeing import FAMILIES as SEEING
from tests.neuron.engine.seeing import config_of
from tests.neuron.engine.tiny import save_tiny

pytestmark = [
    pytest.mark.usefixtures("one_thread", "without_gradients"),
    pytest.mark.skipif(DEVICE.type == "cuda", reason="a graph has no say of other threads"),
]
CPU = torch.device("cpu")
ODD = {"num_key_value_heads": 3, "hidden_size": 48}
WIDE = {"linear_num_key_heads": 4}  # as many as the most ranks here


def family_of(family):
    return model_of(family, **(WIDE if family in HYBRIDS else {}))


def test_every_family_that_may_be_split_is_tried():
    assert {*FAMILIES} <= {*TRIED, *(f"{name}_text" for name in SEEING)}  # those in their own file


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family in TRIED])
def test_logits_are_those_of_the_whole_models_own_forward(family, ranks):
    module = family_of(family)
    tried = probe.sequences(300, DEVICE)
    wanted = probe.truth(module, tried)

    def off(rank):
        share, shards = share_of(module, rank)
        own = probe.distance(probe.truth(share, tried), wanted)
        heads, recurrent = record(share, tried[0]), recurrences(share)
        cache = Cache(heads, probe.BLOCKS, torch.float32, DEVICE, recurrent=recurrent, slots=3)
        body = Stack(share, kernels_for(DEVICE), shards)
        size = sum(parameter.numel() for parameter in share.parameters())
        return own, probe.error(body, cache, tried, wanted), size

    whole = sum(parameter.numel() for parameter in module.parameters())
    for own, ours, size in Together(ranks).run(off):
        assert own < 1e-5
        assert ours < 1e-5
        assert size < whole * (1 / ranks + 0.04)  # norms, routers, and heads of keys where few


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_that_is_no_multiple_is_split_as_well(ranks, tied):
    module = model_of("llama", vocab_size=301, tie_word_embeddings=tied)
    prompt = [300, 5, 299, 7]
    with split_engine(module, ranks) as engine:
        job = ask("r", prompt, 6, logit_bias={300: 3.0})
        said, _ = run(engine, [ask("plain", prompt, 8), job])

    assert said["plain"] == greedy(module, prompt, 8)
    assert said["r"] == run(engine_of(module), [job])[0]["r"]
    shares = Together(ranks).run(lambda rank: share_of(module, rank)[0])
    assert all(weight.is_contiguous() for share in shares for weight in share.parameters())


ASKED = prompts(6, shared=50)


@pytest.fixture(scope="module", params=["llama", "qwen3", "qwen3_moe", "qwen3_5_text"])
def model(request):
    return family_of(request.param)


@pytest.fixture(scope="module")
def wanted(model):
    with torch.inference_mode():
        said, _ = run(
            engine_of(model, body=Stack(model, kernels_for(DEVICE))),
            [ask(str(n), prompt, 40) for n, prompt in enumerate(ASKED)],
        )
    return [said[str(n)] for n in range(len(ASKED))]


@pytest.mark.parametrize(
    ("ranks", "limits"),
    [
        (2, {"blocks": 40, "budget_tokens": 5, "rows": 3, "snapshots": 1}),
        (2, {"blocks": 12, "budget_tokens": 64, "rows": 16, "runs_ahead": True}),
        (4, {"blocks": 22, "budget_tokens": 24, "rows": 6, "runs_ahead": True}),
    ],
    ids=str,
)
@pytest.mark.parametrize("guesses", [False, True], ids=["", "guesses"])
def test_no_schedule_changes_an_answer(model, wanted, ranks, limits, guesses):
    made = random.Random(ranks)
    arrivals = [  # which prompt, tokens of its answer, when it comes, when its client leaves
        (made.randrange(len(ASKED)), made.randrange(8, 40), made.randrange(4), leaves)
        for leaves in (None, 3, None, 9, None, 1, None)
    ]
    guesser = partial(Oracle, list(zip(ASKED, wanted, strict=True)), made) if guesses else None
    with split_engine(model, ranks, guesser=guesser, **limits) as engine:
        check_schedule(engine, arrivals, ASKED, wanted, 8)
        assert engine.scheduler.preemptions or limits["blocks"] > 12
        assert engine.scheduler.hit_tokens
        assert bool(engine.scheduler.accepted_tokens) == guesses


@pytest.mark.parametrize("ranks", [2, 4])
def test_every_kind_of_sampling_draws_what_one_rank_draws(ranks):
    class Even:
        """A grammar that allows even tokens."""

        def allowed(self):
            return torch.arange(300) % 2 == 0

        def accept(self, token):
            assert token % 2 == 0
            return False

    module = model_of("llama")
    knobs = [
        {"temperature": 1.0, "seed": 1},
        {"temperature": 0.8, "seed": 2, "top_k": 9},
        {"temperature": 1.2, "seed": 3, "top_p": 0.7},
        {"temperature": 1.2, "seed": 4, "min_p": 0.1},
        {"repetition_penalty": 1.7},
        {"temperature": 0.9, "seed": 5, "frequency_penalty": 0.5, "presence_penalty": 0.4},
        {"logit_bias": {9: 100.0}},
        {"temperature": 0.7, "seed": 6, "logprobs": 3},
        {"temperature": 1.0, "seed": 1 << 40},
    ]
    asked = [
        ask(str(n), prompt, 12, **more)
        for n, (prompt, more) in enumerate(zip(prompts(len(knobs)), knobs, strict=True))
    ]

    def answers(engine):
        for job in asked[1:]:
            engine.add(job)
        engine.add(asked[0], Even())
        said = {}
        while engine.has_work:
            for token in stepped(engine)[0]:
                said.setdefault(token.request, []).append(token)
        return said

    alone = answers(engine_of(module, blocks=40, runs_ahead=True))
    with split_engine(module, ranks, blocks=40, runs_ahead=True) as engine:
        together = answers(engine)

    assert len(alone) == len(knobs)
    for name, tokens in alone.items():
        assert [token.id for token in together[name]] == [token.id for token in tokens]
    for ours, theirs in zip(together["7"], alone["7"], strict=True):
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
        assert [i for i, _ in ours.top] == [i for i, _ in theirs.top]


def test_prompts_that_begin_alike_share_their_blocks_on_every_rank(model):
    first, second = prompts(2, shared=100)
    with split_engine(model, 2) as engine:
        run(engine, [ask("first", first, 4)])
        run(engine, [ask("again", first, 4)])
        said, ends = run(engine, [ask("second", second, 4)])

    assert said["second"] == run(engine_of(model), [ask("second", second, 4)])[0]["second"]
    assert ends["second"].cached_tokens >= (96 if not recurrences(model) else 0)


def test_a_step_that_is_not_the_next_one_is_none():
    follower = Follower(None, None)
    late = plan.Plan(model="m", number=1, changes=[], layout=plan.Layout(rows=[1]))
    with pytest.raises(GroupBroken, match="step 1 came where 0 was next") as caught:
        follower.follow(plan.decode(plan.encode(late)))
    assert is_poison(caught.value)


def test_what_goes_wrong_in_a_step_of_several_ranks_ends_the_worker(monkeypatch):
    with split_engine(model_of("llama"), 2) as engine:
        engine.add(ask("r", [5, 6, 7], 4))

        def fails(*_):
            raise torch.OutOfMemoryError("no room")

        monkeypatch.setattr(engine._runner, "_mixed", fails)
        monkeypatch.setattr(engine._runner._peers, "tell", lambda _: None)
        with pytest.raises(GroupBroken, match="no room"):
            engine.step()


@pytest.mark.parametrize(
    ("family", "sizes", "ranks", "why"),
    [
        ("gpt_oss", {}, 2, "'gpt_oss' cannot be split over devices; run it on one device, or with"),
        ("gemma2", {}, 2, "'gemma2' cannot be split"),
        ("olmo2", {}, 2, "'olmo2' cannot be split"),
        ("llama", {}, 3, "heads, 4, is no multiple of 3; it can be over 2, 4; else run it on"),
        ("llama", {**ODD, "num_attention_heads": 6}, 2, "3 heads of keys; it can be over 3, 6"),
        ("qwen3_5_text", {}, 4, "linear_num_key_heads, 2, is no multiple of 4; it can be over 2;"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_numbers(family, sizes, ranks, why):
    config = model_of(family, **sizes).config
    with pytest.raises(UnsupportedArchitecture, match=why) as caught:
        Shards(config, Rank(0, Together(ranks)))
    assert caught.value.status == 422
    with pytest.raises(UnsupportedArchitecture, match=why):
        splitting.check(config, ranks, embeds=False, sees=False)


LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("family", "more", "why"),
    [
        ("llama", {"hidden_act": "gelu"}, "its activation is not silu; run it on one device"),
        ("phi3", {"rope_parameters": LONG}, "embedding is of type longrope"),
    ],
)
def test_what_our_body_does_not_know_is_found_without_weights(family, more, why):
    config = model_of(family).config
    for name, value in more.items():
        setattr(config, name, value)
    with pytest.raises(UnsupportedArchitecture, match=why):
        splitting.check(config, 2, embeds=False, sees=False)


@pytest.mark.parametrize("family", [*FAMILIES])
def test_what_can_be_split_is_not_refused_before_and_no_weights_are_made(family, monkeypatch):
    made = []
    real = splitting.Stack
    monkeypatch.setattr(splitting, "Stack", lambda *told: made.append(real(*told)))
    name = family.removesuffix("_text")
    sees = family not in TRIED
    config = config_of(name, num_hidden_layers=24) if sees else family_of(family).config
    if not sees and family not in HYBRIDS:
        config.num_hidden_layers = 24
    splitting.check(config, 2, embeds=False, sees=sees)

    [body] = made
    assert len(body._layers) <= 2
    assert all(layer.first.out.weight.is_meta for layer in body._layers)


class Watched:
    """A slice of safetensors that counts what is read of it."""

    def __init__(self, weight):
        self.weight, self.read = weight, 0

    def get_shape(self):
        return list(self.weight.shape)

    def __getitem__(self, which):
        piece = self.weight[which]
        self.read += piece.numel()
        return piece


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_text"])
def test_a_rank_reads_no_more_than_its_share(family):
    module = family_of(family)
    shards = Shards(module.config, Rank(1, Together(2)))
    watched = {name: Watched(weight) for name, weight in module.state_dict().items()}
    share, _ = shards.model({n: shards.cut(n, w) for n, w in watched.items()}, dtype=torch.float32)

    assert sum(w.read for w in watched.values()) == sum(p.numel() for p in share.parameters())


def loaded(checkpoint, ranks, **more):
    """Return what each rank has of a checkpoint."""
    job = Load(model="m", path=str(checkpoint), max_sequences=4, **more)
    together = Together(ranks)
    found = [weights.load(job, CPU, lambda *_: None, Rank(rank, together)) for rank in range(ranks)]
    return together.run(lambda rank: build(job, found[rank.rank], CPU))


@pytest.mark.parametrize("quant", ["int8", "fp8"])
def test_each_rank_keeps_its_share_in_eight_bits(quant, tiny_llama):
    wholes, eights = loaded(tiny_llama.path, 2), loaded(tiny_llama.path, 2, quant=quant)
    for whole, eight in zip(wholes, eights, strict=True):
        assert eight.used_bytes < whole.used_bytes
        linear = eight.engine._runner._body._layers[0].first.qkv
        assert linear.weight.dtype in LARGEST
        assert eight.body.startswith("fused")
    assert wholes[0].context == 2048


def test_what_runs_by_its_own_modules_alone_is_not_split(tmp_path):
    checkpoint = save_tiny("llama", tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"silu"', '"gelu"'))
    with pytest.raises(UnsupportedArchitecture, match="its activation is not silu"):
        loaded(checkpoint.path, 2)


def test_a_gguf_file_is_split_as_well(tiny_llama, tmp_path):
    import shutil

    import gguf

    from tests.neuron.engine.test_gguf import write

    folder = tmp_path / "gguf"
    shutil.copytree(tiny_llama.path, folder)
    file = write(folder, "llama", gguf.GGMLQuantizationType.F32)
    job = Load(model="m", path=str(file))
    whole = weights.load(job, CPU, lambda *_: None)
    tried = probe.sequences(whole.vocabulary, CPU)
    together = Together(2)
    shares = [weights.load(job, CPU, lambda *_: None, Rank(rank, together)) for rank in (0, 1)]
    got = together.run(lambda rank: probe.truth(shares[rank.rank].module, tried))

    assert probe.distance(got[1], probe.truth(whole.module, tried)) < 1e-5
    assert shares[0].end_tokens == whole.end_tokens
