"""The layer that guesses tokens: read from a checkpoint, and run over pages of its own."""

from __future__ import annotations

import json
import logging
import re
from contextlib import contextmanager
from copy import deepcopy

import attrs
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from cortex.neuron.engine import model, probe, weights
from cortex.neuron.engine.cache import Cache
from cortex.neuron.engine.jobs import Load
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.layers import decoder_of
from cortex.neuron.engine.modules import record, recurrences
from cortex.neuron.engine.mtp import mtp_of
from cortex.neuron.engine.places import plain
from cortex.neuron.engine.shards import Shards
from cortex.neuron.engine.stack import Stack
from cortex.neuron.engine.step import Shown
from tests.neuron.engine.engines import DEVICE, ask, model_of, run
from tests.neuron.engine.ranks import Rank, Together
from tests.neuron.engine.seeing import HYBRIDS as SEEING
from tests.neuron.engine.seeing import TOKEN, seeing
from tests.neuron.engine.tiny import byte_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread", "without_gradients")
FAMILIES = ("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", *SEEING)
BY_EXPERT = ("qwen3_next",)  # whose checkpoints have a weight for each expert
LIMIT = 1e-5 if DEVICE.type == "cpu" else 3e-5
GUESSES = 4


class Reference(torch.nn.Module):
    """The layer in modules of transformers', over a whole sequence, with a plain causal mask."""

    def __init__(self, module):
        super().__init__()
        body, config = body_of(module), deepcopy(module.config.get_text_config())
        config._attn_implementation = "eager"
        width, norm = config.hidden_size, type(body.norm)
        attending = config.layer_types.index("full_attention")
        self.layers = torch.nn.ModuleList([type(body.layers[0])(config, attending)])
        self.fc = torch.nn.Linear(2 * width, width, bias=False)
        self.norm, self.pre_fc_norm_embedding, self.pre_fc_norm_hidden = (
            norm(width, config.rms_norm_eps) for _ in range(3)
        )
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        self.eval().to(DEVICE)

    def forward(self, hidden, embedded, index, rotary):
        both = [self.pre_fc_norm_embedding(embedded), self.pre_fc_norm_hidden(hidden)]
        x = self.fc(torch.cat(both, -1))[None]
        mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, device=DEVICE).triu(1)
        index = index[..., None, :]
        if hasattr(rotary, "mrope_section"):  # some versions of transformers want all three axes
            index = index.expand(3, -1, -1)
        turned = rotary(x, index)
        out = self.layers[0](x, position_embeddings=turned, attention_mask=mask[None, None])
        return self.norm(out)[0]

    def named(self, by_expert):
        """Return its weights as a checkpoint has them."""
        found = {f"mtp.{name}": weight for name, weight in self.state_dict().items()}
        if by_expert:
            experts = "mtp.layers.0.mlp.experts"
            both, down = (found.pop(f"{experts}.{n}") for n in ("gate_up_proj", "down_proj"))
            for number, (gate_up, last) in enumerate(zip(both, down, strict=True)):
                parts = zip(("gate", "up", "down"), (*gate_up.chunk(2), last), strict=True)
                for name, weight in parts:
                    found[f"{experts}.{number}.{name}_proj.weight"] = weight
        return {name: weight.contiguous() for name, weight in found.items()}


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.said = []

    def emit(self, record):
        self.said.append(record.getMessage())


@contextmanager
def heard():
    """Yield what transformers says."""
    handler, logger = Heard(), logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield handler.said
    finally:
        logger.removeHandler(handler)


def body_of(module):
    return getattr(module.model, "language_model", module.model)


def add(folder, more):
    """Add weights to a checkpoint, in a file of their own."""
    save_file(more, folder / "extra.safetensors", metadata={"format": "pt"})
    files = {
        "model.safetensors": load_file(folder / "model.safetensors"),
        "extra.safetensors": more,
    }
    index = {name: file for file, has in files.items() for name in has}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def save(family, folder):
    """Save a random model and its tokenizer; returns the model."""
    module = seeing(family) if family in SEEING else model_of(family)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), eos_token="<|end|>"
    ).save_pretrained(folder)
    module.save_pretrained(folder)
    return module


@attrs.frozen(eq=False)
class Case:
    """A checkpoint as it was loaded, the sequences that are tried, and what should come of them."""

    found: weights.Weights
    stack: Stack
    mtp: object
    reference: Reference
    tried: list
    shown: object
    hidden: list

    @property
    def module(self):
        return self.found.module

    def cache(self):
        heads = record(self.module, torch.arange(3, device=DEVICE))
        assert self.mtp.layer == 1 + max(*heads, *recurrences(self.module))
        cache = Cache(
            {**heads, self.mtp.layer: self.mtp.heads},
            probe.BLOCKS + 1,  # what is beyond the end of the last sequence
            torch.float32,
            DEVICE,
            recurrent=recurrences(self.module),
            slots=probe.SLOTS,
        )
        cache.states.copy((0, number + 1) for number in range(len(self.tried)))
        return cache

    def index(self, number, length):
        """Return what the tokens of a sequence are turned by, and those guessed after it."""
        if self.shown is None:
            return torch.arange(length, device=DEVICE)
        found = plain(0, length) if number else self.shown.places.between(0, length)
        return found.to(DEVICE)

    def embedded(self, number, ids):
        """Return what stands for the tokens that follow."""
        made = self.module.get_input_embeddings()(ids).clone()
        if self.shown is not None and not number:
            made[ids == TOKEN] = self.found.tower.features(self.shown.picture)[0]
        return made

    def wanted(self, number, hidden, ids):
        index, rotary = self.index(number, len(ids)), body_of(self.module).rotary_emb
        return self.reference(hidden, self.embedded(number, ids), index, rotary)

    def step(self, tried, done, plan, cache):
        """Return a step, its pieces, and which of the tokens that follow are of pictures."""
        step, pieces = probe._step(tried, done, plan, cache.tile_tokens)
        if self.shown is None:
            return step, pieces, None
        of = [None if number else self.shown.places for number, *_ in pieces]
        later = [(p, start + 1, end + 1) for p, (_, start, end, _) in zip(of, pieces, strict=True)]
        follow = self.found.tower.show(later)[1]
        return probe._seeing(step, pieces, self.shown), pieces, follow


def case_of(family, folder):
    module = save(family, folder)
    reference = Reference(module)
    add(folder, reference.named(family in BY_EXPERT))
    job = Load(model="m", path=str(folder), dtype="float32")
    with heard() as said:
        found = weights.load(job, DEVICE, lambda *_: None)
    assert not [message for message in said if "mtp" in message]
    stack = Stack(found.module, kernels_for(DEVICE))
    record(found.module, torch.arange(3, device=DEVICE))
    mtp, why = mtp_of(folder, found.module, stack)
    assert mtp is not None, why
    decoder_of(found.module).set_attn_implementation("eager")
    tried = probe.sequences(290, DEVICE)
    shown = None if found.tower is None else probe.exhibit(tried, found.tower)
    assert (shown is not None) == (family in SEEING)
    hidden = []
    for number, ids in enumerate(tried):
        told = {} if shown is None or number else shown.told(found.module, ids)
        out = found.module.model(input_ids=ids[None], use_cache=False, **told)
        hidden.append(out.last_hidden_state[0])
    return Case(found, stack, mtp, reference, tried, shown, hidden)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tmp_path_factory):
    with torch.inference_mode():
        return case_of(request.param, tmp_path_factory.mktemp(request.param))


def rounds(case, cache):
    """
    Run all pieces through model and layer, which gets what the model's own forward made of them.

    Returns:
        What the head takes, states and logits of the layer, and who follows, of each sequence.
    """
    follow = [torch.cat([ids[1:], ids[:1]]) for ids in case.tried]
    kept = normed, states, logits = [[[] for _ in case.tried] for _ in range(3)]
    done = [0] * len(case.tried)
    for plan in probe.PLANS:
        step, pieces, shown = case.step(case.tried, done, plan, cache)
        of_model = case.stack.with_states(step, cache)[1]
        ids, hidden = (
            torch.cat([kind[n][start:end] for n, start, end, _ in pieces])
            for kind in (follow, case.hidden)
        )
        made = case.mtp.states(hidden, ids, step, cache, shown)
        of_step = of_model, made, case.mtp.logits(made)
        for n, start, end, row in pieces:
            for kind, new in zip(kept, of_step, strict=True):
                kind[n].append(new[row : row + end - start])
            done[n] = end
    return *([torch.cat(x) for x in kind] for kind in (normed, states, logits)), follow


def test_in_pieces_it_is_what_it_is_over_a_whole_sequence(case):
    normed, states, logits, follow = rounds(case, case.cache())
    wanted = [case.wanted(n, case.hidden[n], ids) for n, ids in enumerate(follow)]
    head = case.module.get_output_embeddings()

    assert probe.distance(states, wanted) < LIMIT
    assert probe.distance(logits, [head(x) for x in wanted]) < LIMIT
    assert probe.distance(normed, case.hidden) < 3 * LIMIT


def test_guesses_go_on_from_guesses(case):
    cache = case.cache()
    _, states, logits, follow = rounds(case, cache)
    head, done = case.module.get_output_embeddings(), [len(ids) for ids in case.tried]
    last, scores = (torch.stack([x[-1] for x in kept]) for kept in (states, logits))
    offsets = torch.tensor([0 if case.shown is None else case.shown.places.offset, 0])
    hidden = list(case.hidden)
    for _ in range(GUESSES):
        picked = scores.argmax(1)
        longer = [torch.cat([ids, ids[:1]]) for ids in follow]  # one more; which it is, is not read
        step, _ = probe._step(longer, done, (1, 1), cache.tile_tokens)
        if case.shown is not None:
            step = attrs.evolve(step, places=step.positions + offsets.to(DEVICE))
        last = case.mtp.states(last, picked, step, cache)
        scores = case.mtp.logits(last)
        for n, ids in enumerate(follow):
            before = case.wanted(n, hidden[n], ids)[-1]
            assert int(head(before).argmax()) == int(picked[n])
            hidden[n] = torch.cat([hidden[n], before[None]])
            follow[n] = torch.cat([ids, picked[n : n + 1]])
        wanted = torch.stack([case.wanted(n, hidden[n], ids)[-1] for n, ids in enumerate(follow)])
        assert probe.distance([last, scores], [wanted, head(wanted)]) < LIMIT
        done = [count + 1 for count in done]


def test_several_tokens_of_a_sequence_may_decode_in_one_step(case):
    cache = case.cache()
    _, _, _, follow = rounds(case, cache)
    counts, done = (3, 1), [len(ids) for ids in case.tried]
    longer = [torch.cat([ids, ids[:n]]) for ids, n in zip(follow, counts, strict=True)]
    more = [torch.cat([h, h[:n]]) for h, n in zip(case.hidden, counts, strict=True)]
    step, pieces = probe._step(longer, done, counts, cache.tile_tokens)
    each = torch.tensor(step.counts, device=DEVICE)
    step = attrs.evolve(
        step,
        rows=step.rows.repeat_interleave(each),
        lengths=step.positions + 1,
        decodes=len(step.ids),
        counts=(1,) * len(step.ids),
        ends=tuple((step.positions + 1).tolist()),
        tiles=None,
        lasts=None,
        places=torch.cat([case.index(n, end)[..., start:] for n, start, end, _ in pieces], -1),
    )
    ids, hidden = (
        torch.cat([kind[n][start:end] for n, start, end, _ in pieces]) for kind in (longer, more)
    )
    shown = torch.cat([case.embedded(n, longer[n])[start:end] for n, start, end, _ in pieces])
    shown = Shown(at=torch.arange(len(ids), device=DEVICE), features=shown[None])

    got = case.mtp.states(hidden, ids, step, cache, shown)
    wanted = [case.wanted(n, more[n], longer[n])[start:] for n, start, *_ in pieces]
    assert probe.distance([got], [torch.cat(wanted)]) < LIMIT


@pytest.mark.parametrize("family", ["granite", "qwen3_5_text"])
def test_what_the_head_takes_comes_with_the_logits_that_are_wanted(family):
    module = model_of(family)
    ids = torch.arange(5, 42, device=DEVICE)
    out = module.model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    wanted = module(input_ids=ids[None], use_cache=False).logits[0, -1:]
    recurrent, heads = recurrences(module), record(module, ids)
    cache = Cache(heads, 4, torch.float32, DEVICE, recurrent=recurrent, slots=2)
    stack = Stack(module, kernels_for(DEVICE))
    step, _ = probe._step([ids], [0], (37,), cache.tile_tokens)
    step = attrs.evolve(step, wanted=step.lasts)

    logits, states = stack.with_states(step, cache)
    assert logits.shape == (1, 300)
    assert probe.distance([logits, states], [wanted, out]) < 3 * LIMIT


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    """A checkpoint without such a layer, its model, and what the layer would be."""
    folder = tmp_path_factory.mktemp("dense")
    with torch.inference_mode():
        module = save("qwen3_5_text", folder)
        return folder, module, Reference(module).named(by_expert=False)


def changed(dense, tmp_path, more, **said):
    """Return a checkpoint with *more* weights, some None, that are in addition to the layer's."""
    folder, _, own = dense
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | said))
    add(tmp_path, {name: w for name, w in {**own, **more}.items() if w is not None})
    return tmp_path


def built(folder, **more):
    job = Load(model="m", path=str(folder), dtype="float32", max_sequences=2, **more)
    return model.build(job, weights.load(job, DEVICE, lambda *_: None), DEVICE)


def answer(folder):
    made = built(folder)
    assert made.body.startswith("fused")
    return run(made.engine, [ask("r", range(5, 45), 4)])[0], made.used_bytes


@pytest.mark.timeout(60)
def test_a_model_that_is_to_guess_says_the_same(dense, tmp_path):
    folder = changed(dense, tmp_path, {})
    jobs = [
        ask("greedy", range(5, 45), 30),
        ask("drawn", range(7, 30), 30, temperature=1.0, seed=3),
    ]
    wanted, _ = run(built(folder).engine, jobs)
    made = built(folder, speculation="auto", draft_tokens=3)

    said, _ = run(made.engine, jobs)

    assert made.body.endswith("what it says next is guessed by its own layer")
    assert said == wanted
    assert made.engine.scheduler.drafted_tokens > 60
    guessed = made.used_bytes - built(folder, speculation="ngram", draft_tokens=3).used_bytes
    assert guessed > sum(weight.nbytes for weight in dense[2].values())  # and its keys


def test_a_model_without_such_a_layer_guesses_by_what_was_said(dense):
    made = built(dense[0], speculation="auto", draft_tokens=3)
    assert "guessed by n-grams: the checkpoint guesses no tokens" in made.body


@pytest.mark.timeout(60)
def test_a_model_is_what_it_is_without_and_its_loading_says_nothing_of_it(dense, tmp_path):
    without = answer(dense[0])
    with heard() as said:
        assert answer(changed(dense, tmp_path, {})) == without
    assert not [message for message in said if "mtp" in message]


def test_its_weights_take_what_they_say_and_stay_as_they_are(dense, tmp_path):
    folder = changed(dense, tmp_path, {})
    module, stack = found_in(folder)
    stack.quantise(torch.int8)
    mtp, _ = mtp_of(folder, module, stack)

    assert mtp.used_bytes == sum(weight.nbytes for weight in dense[2].values())
    assert mtp._block.mlp.down.weight.dtype == torch.float32


@pytest.mark.parametrize("is_dedicated", [True, False])
def test_it_may_have_an_embedding_and_a_head_of_its_own(is_dedicated, dense, tmp_path):
    tables = [torch.randn(300, 64), torch.randn(300, 64)]
    more = dict(zip(("mtp.embed_tokens.weight", "mtp.lm_head.weight"), tables, strict=True))
    folder = changed(dense, tmp_path, more, mtp_use_dedicated_embeddings=is_dedicated)
    module, stack = found_in(folder)
    mtp, _ = mtp_of(folder, module, stack)
    step, _ = probe._step([torch.arange(9, device=DEVICE)], [0], (9,), 8)
    cache = Cache({mtp.layer: mtp.heads}, 2, torch.float32, DEVICE)
    hidden, ids = torch.randn(9, 64, device=DEVICE), step.ids + 1
    states = mtp.states(hidden, ids, step, cache)
    got = states, mtp.logits(states)

    own = module.get_input_embeddings().weight, module.get_output_embeddings().weight
    table, head = (weight.to(DEVICE) for weight in (tables if is_dedicated else own))
    reference = Reference(module)
    named = {name.removeprefix("mtp."): weight for name, weight in dense[2].items()}
    reference.load_state_dict(named)
    wanted = reference(hidden, table[ids], step.positions, module.model.rotary_emb)
    assert probe.distance([*got], [wanted, wanted @ head.T]) < LIMIT


def found_in(folder):
    job = Load(model="m", path=str(folder), dtype="float32", max_sequences=2)
    loaded = weights.load(job, DEVICE, lambda *_: None)
    return loaded.module, Stack(loaded.module, kernels_for(DEVICE))


NORM = "mtp.layers.0.input_layernorm.weight"


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"mtp.layers.1.mlp.up_proj.weight": torch.ones(96, 64)}, "mtp.layers.1.*not known"),
        ({"mtp.fc.weight": torch.ones(64, 128).to(torch.float8_e4m3fn)}, "fc.weight in eight bits"),
        ({"mtp.fc.weight": None}, "fc.weight"),
        ({NORM: None}, "layers.0.input_layernorm.weight is missing"),
        ({NORM: torch.ones(65)}, "(?i)size|mismatch"),
        ({"mtp.layers.0.mlp.odd.weight": torch.ones(3)}, "odd.weight is missing, or there for"),
    ],
)
def test_what_cannot_be_run_is_left_and_why_is_told(more, why, dense, tmp_path):
    folder = changed(dense, tmp_path, more)
    mtp, told = mtp_of(folder, *found_in(folder))
    assert mtp is None
    assert re.search(why, told), told


def test_a_checkpoint_without_it_has_none(dense, tmp_path):
    folder, module, _ = dense
    stack = Stack(module, kernels_for(DEVICE))
    assert mtp_of(folder, module, stack) == (None, "the checkpoint guesses no tokens")
    assert mtp_of(folder / "model.gguf", module, stack)[1].startswith("of a GGUF file")
    assert "has no model.safetensors" in mtp_of(tmp_path, module, stack)[1]


def test_a_model_split_over_devices_has_none(dense, tmp_path):
    folder = changed(dense, tmp_path, {})
    shards = Shards(dense[1].config, Rank(0, Together(2)))
    share, _ = shards.model(shards.of(dense[1].state_dict()), dtype=torch.float32)
    mtp, why = mtp_of(folder, share, Stack(share, kernels_for(DEVICE), shards))
    assert mtp is None
    assert "split over devices" in why
