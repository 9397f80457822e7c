"""Models some of whose layers keep a state: what is copied when, and what of a prompt is found."""

from __future__ import annotations

import pytest
import torch
import transformers

from cortex.neuron.engine import model, probe, weights
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.jobs import Done, Load, Lost
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.modules import Modules, record, recurrences
from cortex.neuron.engine.snapshots import Snapshots, opening_of
from cortex.neuron.engine.stack import Stack
from tests.neuron.engine.engines import (
    DEVICE,
    HYBRIDS,
    LINEAR,
    ask,
    engine_of,
    greedy,
    model_of,
    prompts,
    run,
)
from tests.neuron.engine.tiny import SIZES, byte_tokenizer

CPU = torch.device("cpu")
ONLY_LINEAR = ["linear_attention"] * 3
pytestmark = pytest.mark.usefixtures("one_thread", "without_gradients")


@pytest.fixture(scope="module")
def hybrid():
    return model_of("qwen3_5_text")


@pytest.mark.parametrize("family", HYBRIDS)
@pytest.mark.parametrize("tier", ["modules", "fused"])
def test_logits_are_those_of_the_models_own_forward(family, tier):
    module = model_of(family)
    tried = probe.sequences(300, DEVICE)
    wanted = probe.truth(module, tried)
    heads, recurrent = record(module, tried[0]), recurrences(module)
    cache = Cache(
        heads, probe.BLOCKS, torch.float32, DEVICE, recurrent=recurrent, slots=probe.SLOTS
    )
    body = Modules(module) if tier == "modules" else Stack(module, kernels_for(DEVICE))

    limit = 1e-5 if DEVICE.type == "cpu" else 3e-5
    assert probe.error(body, cache, tried, wanted) < limit
    assert probe.error(body, cache, tried, wanted) < limit, "it does not begin anew"


def test_the_models_own_forward_stays_as_it_was(hybrid):
    (prompt,) = prompts(1)
    wanted = greedy(hybrid, prompt, 4)
    Modules(hybrid)
    Stack(hybrid, kernels_for(DEVICE))
    assert greedy(hybrid, prompt, 4) == wanted


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
@pytest.mark.parametrize(
    ("length", "more", "found"),
    [(16, 5, 16), (17, 0, 16), (31, 3, 16), (32, 0, 16), (32, 1, 32), (100, 0, 96), (100, 60, 96)],
)
def test_a_prompt_goes_on_from_the_end_of_one_before(hybrid, length, more, found, runs_ahead):
    whole = [3 + (7 * n) % 290 for n in range(length + more)]
    engine = engine_of(hybrid, runs_ahead=runs_ahead)

    _, before = run(engine, [ask("first", whole[:length], 4)])
    said, ends = run(engine, [ask("second", whole, 4)])

    assert before["first"].cached_tokens == 0
    assert ends["second"].cached_tokens == found
    assert said["second"] == greedy(hybrid, whole, 4)
    engine.scheduler.check()


def test_where_prompts_part_is_found_by_the_third(hybrid):
    asked = [[*range(5, 105), 200 + n, *range(10, 30)] for n in range(3)]
    engine = engine_of(hybrid)

    said, ends = {}, {}
    for number, prompt in enumerate(asked):
        told, ended = run(engine, [ask(str(number), prompt, 4)])
        said |= told
        ends |= ended

    assert [ends[str(n)].cached_tokens for n in range(3)] == [0, 0, 96]
    assert said == {str(n): greedy(hybrid, prompt, 4) for n, prompt in enumerate(asked)}


END = 2


@pytest.mark.parametrize(
    ("opening", "found"),
    [
        ([*range(5, 290), END], 272),  # the second of one system prompt goes on from its end
        ([*range(5, 105), END], 0),  # of a short one it would save no step
        (list(range(5, 290)), 0),  # nothing tells where it ends
    ],
)
@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
def test_the_end_of_a_first_message_is_found_by_the_second(hybrid, opening, found, runs_ahead):
    asked = [[*opening, 200 + n, *range(10, 30), END, 7] for n in range(2)]
    engine = engine_of(hybrid, end_tokens=[END], runs_ahead=runs_ahead)
    more = {"ignore_eos": True}

    first, before = run(engine, [ask("0", asked[0], 4, **more)])
    second, ends = run(engine, [ask("1", asked[1], 4, **more)])

    assert (before["0"].cached_tokens, ends["1"].cached_tokens) == (0, found)
    assert first["0"] == greedy(hybrid, asked[0], 4)
    assert second["1"] == greedy(hybrid, asked[1], 4)
    engine.scheduler.check()


def test_one_message_alone_has_no_end_that_others_share():
    message = [*range(10, 400), END]
    assert opening_of([*message, 5, 6], {END}) == 0
    assert opening_of([*message, *message], {END}) == 384
    assert opening_of([*message, *message], ()) == 0
    assert opening_of([], {END}) == 0


def test_a_long_prompt_is_found_by_one_that_shares_some_of_it(hybrid):
    shared = [3 + n % 290 for n in range(2100)]
    engine = engine_of(hybrid, blocks=400, budget_tokens=512)

    run(engine, [ask("first", [*shared, *range(5, 105)], 2)])
    said, ends = run(engine, [ask("second", [*shared, 7], 2)])

    assert ends["second"].cached_tokens == 2048
    assert said["second"] == greedy(hybrid, [*shared, 7], 2)


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
def test_whoever_comes_to_a_row_finds_nothing_of_who_left_it(hybrid, runs_ahead):
    first, second = prompts(2, seed=4)
    engine = engine_of(hybrid, rows=1, runs_ahead=runs_ahead)

    run(engine, [ask("first", first, 30)], until=lambda said: len(said.get("first", ())) == 5)
    engine.cancel("first")
    said, _ = run(engine, [ask("second", second, 8)])

    assert said["second"] == greedy(hybrid, second, 8)


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
def test_who_gave_its_place_back_goes_on_as_if_it_had_not(hybrid, runs_ahead):
    asked = prompts(8, seed=2, shared=30)
    wanted = {str(n): greedy(hybrid, prompt, 25) for n, prompt in enumerate(asked)}
    engine = engine_of(hybrid, blocks=20, budget_tokens=48, runs_ahead=runs_ahead, snapshots=3)

    said, _ = run(engine, [ask(str(n), prompt, 25) for n, prompt in enumerate(asked)])

    assert engine.scheduler.preemptions
    assert said == wanted
    engine.scheduler.check()


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
def test_a_step_that_breaks_off_half_way_leaves_states_as_they_were(
    hybrid, monkeypatch, runs_ahead
):
    engine = engine_of(hybrid, budget_tokens=512, runs_ahead=runs_ahead)
    short, long = prompts(1, seed=1)[0], [5] * 300
    body, real = engine._runner._body, engine._runner._body.logits

    def logits(step, cache):
        out = real(step, cache)
        if len(step.ids) > 200:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return out

    monkeypatch.setattr(body, "logits", logits)
    begun, _ = run(
        engine, [ask("short", short, 12)], until=lambda said: len(said.get("short", ())) == 3
    )
    said, ends = run(engine, [ask("long", long, 5)], losing=["long"])

    assert isinstance(ends["long"], Lost)
    assert isinstance(ends["short"], Done)
    assert begun["short"] + said["short"] == greedy(hybrid, short, 12)
    engine.scheduler.check()


def test_the_snapshot_that_was_used_last_stays():
    snapshots = Snapshots(5, 2)
    assert [snapshots.keep(name) for name in (b"a", b"b")] == [5, 6]
    assert snapshots.find(b"a") == 5
    assert snapshots.keep(b"c") == 6
    assert b"b" not in snapshots
    assert snapshots.keep(b"a") is None
    assert snapshots.keep(b"d") == 6
    snapshots.check()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole Qwen3.5, which can see, as they are published."""
    folder, tokens = tmp_path_factory.mktemp("qwen3_5"), byte_tokenizer()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<|end|>"
    ).save_pretrained(folder)
    sizes = {**SIZES, **LINEAR, "num_hidden_layers": 4, "vocab_size": tokens.get_vocab_size()}
    sight = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32}
    sight |= {"out_hidden_size": 64, "patch_size": 4}
    config = transformers.AutoConfig.for_model("qwen3_5", text_config=sizes, vision_config=sight)
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return folder


def built(checkpoint, **more):
    job = Load(model="m", path=str(checkpoint), max_sequences=4, **more)
    return model.build(job, weights.load(job, CPU, lambda *_: None), CPU)


@pytest.mark.timeout(60)
def test_a_checkpoint_that_can_see_as_well_is_run_for_its_text(checkpoint):
    made = built(checkpoint)

    assert made.body.startswith("fused: ")
    first, ends = run(made.engine, [ask("first", range(5, 45), 4)])
    second, found = run(made.engine, [ask("second", range(5, 45), 4)])
    assert (ends["first"].cached_tokens, found["second"].cached_tokens) == (0, 32)
    assert first["first"] == second["second"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("memory_bytes", [None, 8 << 20])
def test_a_model_none_of_whose_layers_attends_is_run_as_fast(tmp_path, memory_bytes):
    tokens, module = byte_tokenizer(), model_of("qwen3_5_text", layer_types=ONLY_LINEAR)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<|end|>"
    ).save_pretrained(tmp_path)
    module.save_pretrained(tmp_path)

    made = built(tmp_path, memory_bytes=memory_bytes)

    assert made.body.startswith("fused: its logits are off by")
    assert made.context == 1024
    shared = prompts(6, seed=3, shared=40)
    wanted = {str(n): greedy(module, prompt, 8) for n, prompt in enumerate(shared)}
    jobs = [ask(str(n), prompt, 8, ignore_eos=True) for n, prompt in enumerate(shared)]
    assert run(made.engine, jobs)[0] == wanted
    again, ends = run(made.engine, [ask("again", shared[0], 8, ignore_eos=True)])
    assert again["again"] == wanted["0"]
    assert ends["again"].cached_tokens > 0
    made.engine.scheduler.check()


@pytest.mark.timeout(60)
def test_its_layers_are_kept_in_eight_bits(checkpoint):
    whole, small = built(checkpoint), built(checkpoint, quant="int8")

    assert small.used_bytes < whole.used_bytes
    said, _ = run(small.engine, [ask("r", range(5, 45), 4)])
    assert len(said["r"]) == 4


@pytest.mark.timeout(60)
def test_states_leave_room_for_keys_and_values(checkpoint):
    whole = built(checkpoint)
    room = whole.weights.used_bytes + (1 << 21)
    made = built(checkpoint, memory_bytes=int(room / (1 - model.HEADROOM)), context=512)

    assert made.used_bytes <= room
    assert made.context == 512
    said, _ = run(made.engine, [ask(str(n), range(5, 45 + n), 4) for n in range(6)])
    assert {len(tokens) for tokens in said.values()} == {4}
