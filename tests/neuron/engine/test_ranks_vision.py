"""A split model that sees answers as it does whole, whatever the pictures and the schedule."""

from __future__ import annotations

import threading

import msgspec
import pytest
import torch
import transformers

from cortex.neuron.engine import model, probe, weights
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.jobs import Done, Load, Lost
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.modules import record, recurrences
from cortex.neuron.engine.stack import Stack
from cortex.neuron.engine.tower import Tower
from tests.neuron.engine.engines import DEVICE, ask, run
from tests.neuron.engine.ranks import Together, share_of, split_engine
from tests.neuron.engine.seeing import (
    FAMILIES,
    LIMIT,
    TOKEN,
    asking,
    engine_seeing,
    picture,
    prompts_with_pictures,
    seeing,
    tower_of,
    words,
)
from tests.neuron.engine.tiny import byte_tokenizer, save_tiny_seeing

pytestmark = [
    pytest.mark.usefixtures("one_thread", "without_gradients"),
    pytest.mark.skipif(DEVICE.type == "cuda", reason="a graph has no say of other threads"),
]


def split_seeing(family):
    """Return a model that four ranks can run."""
    told = FAMILIES[family][0]
    return seeing(family, **({"linear_num_key_heads": 4} if "layer_types" in told else {}))


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_with_pictures_are_those_of_the_whole_models_own_forward(family, ranks):
    module = split_seeing(family)
    tried = probe.sequences(300, DEVICE)
    shown = probe.exhibit(tried, tower_of(module))
    wanted = probe.truth(module, tried, shown)
    whole = sum(parameter.numel() for parameter in module.model.language_model.parameters())

    def off(rank):
        share, shards = share_of(module, rank)
        again = [ids.clone() for ids in tried]
        seen = probe.exhibit(again, tower_of(share))
        own = probe.distance(probe.truth(share, again, seen), wanted)
        heads, recurrent = record(share, again[0]), recurrences(share)
        cache = Cache(heads, probe.BLOCKS, torch.float32, DEVICE, recurrent=recurrent, slots=3)
        body = Stack(share, kernels_for(DEVICE), shards)
        visual = share.model.visual.state_dict()
        for name, weight in module.model.visual.state_dict().items():
            assert torch.equal(weight, visual[name]), "each rank has the tower"
        text = sum(parameter.numel() for parameter in share.model.language_model.parameters())
        return own, probe.error(body, cache, again, wanted, seen), text

    for own, ours, text in Together(ranks).run(off):
        assert own < LIMIT
        assert ours < LIMIT
        assert text < whole * (1 / ranks + 0.06)


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_vl", "qwen2_5_vl"])
def module(request):
    return split_seeing(request.param)


@pytest.fixture(scope="module")
def asked(module):
    """Requests of every kind, some of which want to know how likely what was said is."""
    jobs = [
        msgspec.structs.replace(job, max_tokens=12, logprobs=2 if number % 3 == 0 else None)
        for number, job in enumerate(prompts_with_pictures())
        if job.id != "placeholders"  # which only the truth of Qwen3.5 knows
    ]
    jobs.append(msgspec.structs.replace(jobs[1], id="drawn", temperature=0.9, seed=3, top_p=0.8))
    return [*jobs, msgspec.structs.replace(jobs[2], id="bent", logit_bias={9: 30.0})]


def answers(engine, jobs):
    """Return each answer's tokens, after all requests have ended well."""
    for job in jobs:
        engine.add(job)
    said = {job.id: [] for job in jobs}
    while engine.has_work:
        tokens, ends = engine.step()
        for token in tokens:
            said[token.request].append(token)
        assert all(isinstance(end, Done) for end in ends), ends
    engine.scheduler.check()
    return said


@pytest.fixture(scope="module")
def wanted(module, asked):
    with torch.inference_mode():
        return answers(engine_seeing(module, budget_tokens=512)[0], asked)


def assert_same(said, wanted):
    assert said.keys() == wanted.keys()
    for name, tokens in wanted.items():
        assert [token.id for token in said[name]] == [token.id for token in tokens], name
        for ours, theirs in zip(said[name], tokens, strict=True):
            if theirs.logprob is not None:
                assert ours.logprob == pytest.approx(theirs.logprob, abs=2e-4)


@pytest.mark.parametrize(
    ("ranks", "limits"),
    [
        (2, {"budget_tokens": 7}),  # every picture is cut, and every chunk of linear attention
        (2, {"budget_tokens": 64, "blocks": 26, "runs_ahead": True}),  # and some give way
        (4, {"budget_tokens": 24, "blocks": 16, "rows": 6, "runs_ahead": True}),
        (4, {"budget_tokens": 512}),
    ],
    ids=str,
)
def test_no_schedule_changes_an_answer(module, asked, wanted, ranks, limits):
    with split_engine(module, ranks, **limits) as engine:
        said = answers(engine, asked)
        assert bool(engine.scheduler.preemptions) == ("blocks" in limits)
    assert_same(said, wanted)


def test_a_prompt_goes_on_from_anothers_only_if_the_pictures_are_the_same(module):
    before, after = words(40, 1), words(50, 2)
    jobs = [
        asking(name, [before, shown, after], 8)
        for name, shown in (
            ("first", picture(1, 4, 4)),
            ("same", picture(1, 4, 4)),
            ("other", picture(2, 4, 4)),
        )
    ]
    jobs.append(ask("text", words(60, 3), 8))
    alone, _ = engine_seeing(module)
    with split_engine(module, 2) as engine:
        for job in jobs:
            (said, ends), (theirs, found) = run(engine, [job]), run(alone, [job])
            assert said == theirs
            assert ends[job.id].cached_tokens == found[job.id].cached_tokens
            if job.id == "same":
                assert ends["same"].cached_tokens == 96


def test_rank_0_looks_once_and_what_it_cannot_look_at_costs_its_own_request_alone(monkeypatch):
    module = split_seeing("qwen3_5")
    text = asking("text", [words(30, 1)], 8)
    good = asking("good", [words(3, 2), picture(1, 2, 2)], 8)
    bad = asking("bad", [words(3, 2), picture(1, 5, 5)], 8)
    alone = answers(engine_seeing(module)[0], [text, good])
    looked, kind = [], type(module.model)
    real = kind.get_image_features

    def noted(model, patches, grid, **more):
        looked.append((threading.current_thread(), len(patches)))
        if len(patches) == 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, patches, grid, **more)

    monkeypatch.setattr(kind, "get_image_features", noted)
    with split_engine(module, 2, budget_tokens=9) as engine:
        said, ends = run(engine, [text, bad, good], losing=["bad"])
        run(engine, [msgspec.structs.replace(good, id="again")])

    assert isinstance(ends["bad"], Lost)
    assert "too little memory" in ends["bad"].message
    assert said == {name: [token.id for token in tokens] for name, tokens in alone.items()}
    assert looked == [(threading.main_thread(), 100), (threading.main_thread(), 16)]


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_vl_moe", "qwen2_5_vl"])
def test_a_checkpoint_that_sees_is_read_in_shares_and_its_tower_whole(family, tmp_path):
    """Qwen3-VL's checkpoints have the columns of experts first."""
    told = {"moe_intermediate_size": 48} if family == "qwen3_vl_moe" else {}
    module = seeing(family, **told)
    module.save_pretrained(tmp_path)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<|end|>"
    ).save_pretrained(tmp_path)
    job = Load(model="m", path=str(tmp_path), dtype="float32", context=512, max_sequences=4)
    tried = probe.sequences(300, DEVICE)
    wanted = probe.truth(module, tried, probe.exhibit(tried, tower_of(module)))

    def made(rank):
        share = weights.load(job, DEVICE, lambda *_: None, rank)
        again = [ids.clone() for ids in tried]
        seen = probe.exhibit(again, share.tower)
        off = probe.distance(probe.truth(share.module, again, seen), wanted)
        return off, model.build(job, share, DEVICE)

    (off, first), (other, second) = Together(2).run(made)
    assert max(off, other) < LIMIT
    for each in (first, second):
        assert each.body.startswith("fused: its logits are off by")
        assert each.weights.text.sight.token == TOKEN
        assert each.context == 512
    assert first.weights.tower.most_bytes > 0 == second.weights.tower.most_bytes
    assert first.used_bytes > second.used_bytes, "rank 0 alone looks, and keeps what it saw"


def test_a_tower_that_is_wrong_on_one_rank_is_used_on_none(tmp_path, monkeypatch):
    save_tiny_seeing(tmp_path)
    job = Load(model="m", path=str(tmp_path), context=256, max_sequences=4)
    real = Tower.features

    def bent(tower, shown):
        share = 1.1 if tower.most_bytes else 1.0
        return share * real(tower, shown)

    monkeypatch.setattr(Tower, "features", bent)

    def made(rank):
        share = weights.load(job, DEVICE, lambda *_: None, rank)
        share.tower.most_bytes = rank.rank  # which the second is known by
        return model.build(job, share, DEVICE)

    for each in Together(2).run(made):
        assert each.weights.text.sight is None
        assert each.weights.tower is None
        assert "no pictures" in each.body
