"""Pictures in prompts: answers are what a model's own forward gives, whatever the schedule."""

from __future__ import annotations

import json
import random

import msgspec
import pytest
import torch
import transformers

from cortex.errors import UnsupportedArchitecture
from cortex.neuron.engine import architecture, model, probe, sight, text_files, weights
from cortex.neuron.engine.blocks import BLOCK_TOKENS
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.jobs import Done, Load, Lost
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.layers import rotary_of
from cortex.neuron.engine.modules import Modules, record, recurrences
from cortex.neuron.engine.pictures import Sight
from cortex.neuron.engine.places import flaw, places_of
from cortex.neuron.engine.stack import Stack
from cortex.neuron.engine.tower import Tower
from tests.neuron.engine.engines import DEVICE, ask, run
from tests.neuron.engine.seeing import (
    FAMILIES,
    HYBRIDS,
    LIMIT,
    SIDE,
    SIGHT,
    TOKEN,
    asking,
    assert_right,
    config_of,
    engine_seeing,
    index_of,
    picture,
    prompts_with_pictures,
    seeing,
    tower_of,
    words,
)
from tests.neuron.engine.tiny import byte_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread", "without_gradients")


@pytest.fixture(scope="module", params=HYBRIDS)
def module(request):
    return seeing(request.param)


@pytest.fixture(scope="module")
def dense():
    return seeing("qwen3_5")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tier", ["modules", "fused"])
def test_logits_with_pictures_are_those_of_the_models_own_forward(family, tier):
    module = seeing(family)
    tried = probe.sequences(300, DEVICE)
    shown = probe.exhibit(tried, tower_of(module))
    wanted = probe.truth(module, tried, shown)
    heads, recurrent = record(module, tried[0]), recurrences(module)
    slots = probe.SLOTS
    cache = Cache(heads, probe.BLOCKS, torch.float32, DEVICE, recurrent=recurrent, slots=slots)
    body = Modules(module) if tier == "modules" else Stack(module, kernels_for(DEVICE))

    assert probe.error(body, cache, tried, wanted, shown) < LIMIT
    blind, _ = probe.prove(lambda: body, cache, tried, wanted)
    assert blind is None, "it has to see the picture"


def test_places_are_those_of_transformers(dense):
    made = random.Random(0)
    jobs = prompts_with_pictures()
    for number in range(30):
        parts = []
        for seed in range(made.randrange(1, 4)):
            parts += [words(made.randrange(1, 30), seed)]
            parts += [picture(seed, made.randrange(1, 7), made.randrange(1, 7))]
        jobs.append(asking(str(number), [*parts, words(made.randrange(0, 9), 9)], 5))
    for job in jobs:
        index, delta = index_of(dense, job)
        if (places := places_of(job, SIGHT)) is None:
            assert (job.pictures, delta) == ([], 0)
            continue
        assert torch.equal(places.index, index)
        assert places.offset == delta
        end = len(job.prompt)
        whole = places.between(0, end + 4)
        assert torch.equal(whole[:, end:], torch.arange(end, end + 4).expand(3, -1) + delta)
        assert torch.equal(places.between(end + 1, end + 3), whole[:, end + 1 : end + 3])


@pytest.mark.parametrize(
    ("tier", "budget_tokens", "blocks", "runs_ahead"),
    [
        ("fused", 7, 200, False),  # every picture is cut, and every chunk of linear attention
        ("fused", 64, 26, True),  # and somebody has to give its place back
        ("modules", 64, 26, False),
        ("fused", 512, 200, True),
    ],
)
def test_no_schedule_changes_an_answer(module, tier, budget_tokens, blocks, runs_ahead):
    jobs = prompts_with_pictures()
    engine, recorded = engine_seeing(
        module, tier, budget_tokens=budget_tokens, blocks=blocks, runs_ahead=runs_ahead
    )

    said, ends = run(engine, jobs)

    assert all(isinstance(end, Done) for end in ends.values())
    assert bool(engine.scheduler.preemptions) == (blocks == 26)
    assert_right(module, jobs, said, recorded)
    engine.scheduler.check()


def test_layers_that_are_told_of_pictures_again_are_cut_in_pieces_as_well():
    module = seeing("qwen3_vl")
    jobs = [job for job in prompts_with_pictures() if job.id != "placeholders"]
    engine, recorded = engine_seeing(module, budget_tokens=7, blocks=40)

    said, _ = run(engine, jobs)

    assert_right(module, jobs, said, recorded)


@pytest.mark.parametrize("runs_ahead", [False, True], ids=["in step", "ahead"])
def test_a_prompt_is_found_with_the_same_picture_and_never_with_another(module, runs_ahead):
    before, after = words(40, 1), words(50, 2)
    first, same, other = (
        asking(name, [before, shown, after], 20)
        for name, shown in (
            ("first", picture(1, 4, 4)),
            ("same", picture(1, 4, 4)),
            ("other", picture(2, 4, 4)),
        )
    )
    longer = asking("longer", [before, picture(1, 4, 4), after, words(30, 3)], 20)
    wide = asking("wide", [before, picture(1, 2, 8), after], 20)
    engine, recorded = engine_seeing(module, runs_ahead=runs_ahead)

    said, ends = {}, {}
    for job in (first, same, other, longer, wide):
        told, ended = run(engine, [job])
        said |= told
        ends |= ended

    whole = (len(first.prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
    assert {name: end.cached_tokens for name, end in ends.items()} == {
        "first": 0,
        "same": whole,
        "longer": len(first.prompt) // BLOCK_TOKENS * BLOCK_TOKENS,
        "other": 0,  # what they share has blocks, but no state was kept there
        "wide": 40 // BLOCK_TOKENS * BLOCK_TOKENS,  # now one was
    }
    assert_right(module, [first, same, other, longer, wide], said, recorded)


def test_the_same_ids_with_a_picture_elsewhere_are_not_found(dense):
    dot = picture(1, 1, 1)
    here = asking("here", [words(10, 1), dot, [TOKEN], words(40, 2)], 4)
    there = asking("there", [words(10, 1), [TOKEN], dot, words(40, 2)], 4)
    text = asking("text", [words(10, 1), [TOKEN] * 2, words(40, 2)], 4)
    assert here.prompt == there.prompt == text.prompt
    engine, recorded = engine_seeing(dense)

    said, ends = {}, {}
    for job in (here, there, text):
        told, ended = run(engine, [job])
        said |= told
        ends |= ended

    assert {end.cached_tokens for end in ends.values()} == {0}
    assert_right(dense, [here, there], said, recorded)


def test_who_comes_to_the_row_of_a_picture_is_not_offset_by_it(dense):
    shown = asking("shown", [words(5, 1), picture(1, 6, 6), words(5, 2)], 8)
    text = asking("text", [words(60, 3)], 8)
    used, recorded = engine_seeing(dense, rows=1)
    run(used, [shown])
    said, _ = run(used, [text])
    fresh, alone = engine_seeing(dense, rows=1)
    wanted, _ = run(fresh, [text])

    assert said == wanted
    assert recorded.kept["text"].keys() == alone.kept["text"].keys()
    for length, logits in alone.kept["text"].items():
        assert torch.equal(recorded.kept["text"][length], logits)


def test_places_that_are_equal_on_all_axes_turn_as_positions_do(dense):
    rotary = rotary_of(dense.model.language_model.rotary_emb)
    positions = torch.cat([torch.arange(500), torch.randint(0, 1 << 18, (500,))]).to(DEVICE)
    assert rotary.axes.tolist() == [0, 1, 2, 0]
    assert torch.equal(rotary.turns(positions.expand(3, -1)), rotary.turns(positions))


@pytest.fixture(scope="module")
def checkpoint(dense, tmp_path_factory):
    """A model that sees, as they are published."""
    folder, tokens = tmp_path_factory.mktemp("qwen3_5"), byte_tokenizer()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<|end|>"
    ).save_pretrained(folder)
    dense.save_pretrained(folder)
    said = {"size": {"shortest_edge": 256, "longest_edge": 4096}, "image_mean": [0.5, 0.4, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def built(folder, **more):
    job = Load(model="m", path=str(folder), dtype="float32", max_sequences=4, **more)
    return model.build(job, weights.load(job, DEVICE, lambda *_: None), DEVICE)


@pytest.mark.timeout(60)
def test_a_checkpoint_that_sees_is_loaded_with_its_tower(checkpoint, dense):
    made = built(checkpoint, context=512, memory_bytes=1 << 25)
    sees = Sight(token=TOKEN, patch=4, merge=2, least_pixels=256, most_pixels=4096)

    assert made.body.startswith("fused: ")
    assert made.weights.text.sight == text_files.read(str(checkpoint)).sight == sees
    assert made.weights.used_bytes == sum(p.nbytes for p in dense.parameters())
    assert 0 < made.weights.tower.most_bytes < 1 << 21
    assert made.used_bytes <= 1 << 25
    job = asking("r", [words(9, 2), picture(1, 3, 5), words(20, 3)], 8)
    first, ends = run(made.engine, [job])
    second, found = run(made.engine, [job])
    assert first == second
    assert (ends["r"].cached_tokens, found["r"].cached_tokens) == (0, 32)


@pytest.mark.timeout(60)
def test_layers_in_eight_bits_leave_the_tower_as_it_is(checkpoint, dense):
    made = built(checkpoint, context=512, quant="int8")
    shown = picture(1, 3, 5)

    whole = Tower(dense, SIGHT, sight.shades(checkpoint))
    assert torch.equal(made.weights.tower.features(shown), whole.features(shown))
    assert not torch.equal(whole.features(shown), tower_of(dense).features(shown)), "other shades"
    said, _ = run(made.engine, [asking("r", [words(9, 2), shown, words(20, 3)], 8)])
    assert len(said["r"]) == 8


@pytest.mark.timeout(60)
def test_a_model_whose_pictures_are_not_as_they_should_be_is_run_for_its_text(
    checkpoint, monkeypatch
):
    real = Tower.features
    monkeypatch.setattr(Tower, "features", lambda *told: 1.1 * real(*told))
    made = built(checkpoint, context=512)

    assert made.weights.text.sight is None
    assert "fused: " in made.body
    assert "; no pictures: not faster: its logits are off by" in made.body
    said, _ = run(made.engine, [ask("r", words(40, 1), 4)])
    assert len(said["r"]) == 4


@pytest.mark.parametrize(
    ("file", "said", "expected"),
    [
        ("preprocessor_config.json", {}, (56 * 56, 28 * 28 * 1280)),
        ("preprocessor_config.json", {"min_pixels": 64, "max_pixels": 128}, (64, 128)),
        (
            "processor_config.json",
            {"image_processor": {"size": {"shortest_edge": 99, "longest_edge": 999}}},
            (99, 999),
        ),
        ("preprocessor_config.json", {"image_processor_type": "Qwen2VLImageProcessorFast"}, ...),
        ("preprocessor_config.json", {"image_processor_type": "Ernie4_5_VLImageProcessor"}, None),
        ("config.json", {"architectures": ["Qwen3_5ForCausalLM"]}, None),
        ("config.json", {"vision_config": {"model_type": "qwen3_5_vision"}}, (3136, 1003520)),
        ("config.json", {"text_config": {"model_type": "qwen3_5_text"}}, None),  # no axes
    ],
)
def test_how_a_model_sees_is_read_from_its_files(tmp_path, file, said, expected):
    config = config_of("qwen3_5")
    config.architectures = ["Qwen3_5ForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    before = json.loads((tmp_path / file).read_text()) if file == "config.json" else {}
    (tmp_path / file).write_text(json.dumps(before | said))
    read = transformers.AutoConfig.from_pretrained(tmp_path)

    found = sight.read(tmp_path, read)

    architecture.check(str(tmp_path))  # its text can be run at least
    if expected is None:
        assert found is None
        return
    assert (found.token, found.patch, found.merge) == (TOKEN, read.vision_config.patch_size, 2)
    if expected is not ...:
        assert (found.least_pixels, found.most_pixels) == expected


def test_a_model_that_makes_text_of_pictures_alone_is_no_strange_kind(tmp_path):
    config = config_of("qwen3_vl")
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedArchitecture, match="qwen3_vl"):
        architecture.check(str(tmp_path))
    config.architectures = ["Qwen3VLForConditionalGeneration"]
    config.save_pretrained(tmp_path)
    architecture.check(str(tmp_path))


READS = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__index__")


@pytest.mark.parametrize("tier", ["modules", "fused"])
def test_text_is_computed_as_by_a_model_that_sees_nothing(dense, tier, monkeypatch):
    blind = transformers.AutoModelForCausalLM.from_config(dense.config.text_config).eval()
    blind.model.load_state_dict(dense.model.language_model.state_dict())
    blind.lm_head.load_state_dict(dense.lm_head.state_dict())
    jobs = [ask(str(n), words(length, n), 8) for n, length in enumerate((3, 40, 90))]
    results = []
    for module, tower in ((blind.to(DEVICE), None), (dense, tower_of(dense))):
        engine, recorded = engine_seeing(module, tier, tower)
        told, _ = run(engine, jobs, until=lambda said: len(said.get("2", ())) == 2)
        read = []
        with monkeypatch.context() as watched:
            for name in READS:
                watched.setattr(torch.Tensor, name, spy(read, name, getattr(torch.Tensor, name)))
            more, _ = run(engine)
        said = {job.id: told.get(job.id, []) + more.get(job.id, []) for job in jobs}
        results.append((said, recorded, read))
    (said, plain, read), (seen_said, seen, seen_read) = results

    assert seen_said == said
    assert seen.kept.keys() == plain.kept.keys()
    for name, kept in plain.kept.items():
        for length, logits in kept.items():
            assert torch.equal(seen.kept[name][length], logits)
    assert [step.places.ndim for step in seen.steps] == [1] * len(seen.steps)
    assert seen_read == read, "it reads from the device what the other does not"
    assert read, "the spies see nothing"


def spy(read, name, real):
    def noted(tensor, *more, **others):
        read.append((name, tuple(tensor.shape)))
        return real(tensor, *more, **others)

    return noted


def test_a_picture_is_looked_at_once_and_forgotten_when_others_need_the_room(dense, monkeypatch):
    looked = []
    real = dense.model.get_image_features

    def noted(patches, grid, **more):
        looked.append(grid.tolist()[0][1:])
        return real(patches, grid, **more)

    monkeypatch.setattr(dense.model, "get_image_features", noted)
    one, other, large = picture(1, 2, 2), picture(2, 2, 3), picture(3, 6, 6)
    room = (4 + 6) * 64 * 4
    tower = tower_of(dense, most_bytes=room)
    engine, _ = engine_seeing(dense, tower=tower, budget_tokens=5)

    run(engine, [asking("a", [one, [5, 6], other, [7] * 20, one], 3)])
    assert looked == [[4, 4], [4, 6]]
    run(engine, [asking("b", [[9], other, one], 3)])
    assert len(looked) == 2
    run(engine, [asking("c", [[9], large, [8]], 3)])  # larger than the room, and cut in pieces
    assert looked[2:] == [[12, 12]]
    run(engine, [asking("d", [[4], one], 3)])
    assert looked[3:] == [[4, 4]]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "too little memory"),
        (RuntimeError("the shapes do not fit"), "RuntimeError: the shapes"),
    ],
)
def test_a_picture_that_cannot_be_looked_at_costs_its_own_request_alone(
    dense, monkeypatch, error, said
):
    text = asking("text", [words(30, 1)], 8)
    good = asking("good", [words(3, 2), picture(1, 2, 2)], 8)
    bad = asking("bad", [words(3, 2), picture(1, 5, 5)], 8)
    real = dense.model.get_image_features

    def broken(patches, grid, **more):
        if len(patches) == 100:
            raise error
        return real(patches, grid, **more)

    monkeypatch.setattr(dense.model, "get_image_features", broken)
    engine, recorded = engine_seeing(dense, budget_tokens=512)
    answers, ends = run(engine, [text, bad, good], losing=["bad"])
    monkeypatch.undo()

    assert isinstance(ends["bad"], Lost)
    assert said in ends["bad"].message
    assert_right(dense, [text, good], answers, recorded)
    engine.scheduler.check()


def test_pictures_that_do_not_fit_their_prompt_are_refused():
    job = asking("r", [[5], picture(1, 2, 2), [6], picture(2, 1, 1)], 3)
    first, second = job.pictures
    assert flaw(job, SIGHT) is None
    assert flaw(ask("r", [5, TOKEN], 3), None) is None
    assert flaw(job, None) == "the model sees no pictures"

    def with_first(**more):
        return msgspec.structs.replace(
            job, pictures=[msgspec.structs.replace(first, **more), second]
        )

    assert "bytes" in flaw(with_first(rgb=first.rgb[1:]), SIGHT)
    assert "no room" in flaw(with_first(at=2), SIGHT)
    assert "no room" in flaw(with_first(at=0), SIGHT)
    assert "not of squares" in flaw(with_first(height=2 * SIDE + 1), SIGHT)
    assert "not of squares" in flaw(with_first(height=0, rgb=b""), SIGHT)
    assert "no room" in flaw(msgspec.structs.replace(job, pictures=[second, first]), SIGHT)
    assert "no room" in flaw(msgspec.structs.replace(job, pictures=[first, first]), SIGHT)
    assert "no room" in flaw(msgspec.structs.replace(job, prompt=job.prompt[:-1]), SIGHT)


def test_patches_are_cut_as_towers_want_them(dense):
    shown = picture(5, 2, 3)
    got, grid = tower_of(dense).patches(shown)
    got, shades = got.cpu(), transformers.image_utils
    pixels = torch.frombuffer(bytearray(shown.rgb), dtype=torch.uint8).view(2 * SIDE, 3 * SIDE, 3)

    assert grid.tolist() == [[1, 4, 6]]
    assert got.shape == (24, 3 * 2 * 16)
    for number, (row, column) in enumerate(
        (2 * high + down, 2 * wide + across)
        for high in range(2)
        for wide in range(3)
        for down in range(2)
        for across in range(2)
    ):
        square = pixels[4 * row : 4 * row + 4, 4 * column : 4 * column + 4].float() / 255
        mean, std = map(torch.tensor, (shades.OPENAI_CLIP_MEAN, shades.OPENAI_CLIP_STD))
        wanted = ((square - mean) / std).permute(2, 0, 1)
        for frame in range(2):
            assert (got[number].view(3, 2, 4, 4)[:, frame] - wanted).abs().max() < 2e-6
