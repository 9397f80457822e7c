"""Small random models that see, pictures for them, and what their own forward says of both."""

from __future__ import annotations

import random
from hashlib import blake2b

import msgspec
import torch
import transformers

from cortex.neuron.engine import probe
from cortex.neuron.engine.kernels import kernels_for
from cortex.neuron.engine.modules import Modules
from cortex.neuron.engine.pictures import Picture, Sight
from cortex.neuron.engine.sight import Shades
from cortex.neuron.engine.stack import Stack
from cortex.neuron.engine.tower import Tower
from tests.neuron.engine.engines import (
    DEVICE,
    EXPERTS,
    HYBRID,
    LINEAR,
    SHARED,
    SIZES,
    ask,
    engine_of,
)

TOKEN, BEGIN, END = 299, 297, 296
SIGHT = Sight(token=TOKEN, patch=4, merge=2, least_pixels=64, most_pixels=1 << 16)
SIDE = SIGHT.patch * SIGHT.merge
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [3, 3, 2]}
PARTIAL = {**ROPE, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
PATCHES = {"patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 2,
    "out_hidden_size": 64,
    "num_position_embeddings": 64,
    "initializer_range": 0.2,
    **PATCHES,
}
DEEP = {**VISION, "deepstack_visual_indexes": [0, 1]}
WINDOWS = {**VISION, "fullatt_block_indexes": [1], "window_size": 16}
OLD = {"depth": 2, "embed_dim": 32, "mlp_ratio": 2, "num_heads": 2, "hidden_size": 64, **PATCHES}
MIXED = {
    "layer_types": HYBRID,
    **LINEAR,
    "rope_parameters": PARTIAL,
    "initializer_range": 0.08,  # larger weights make more of how a state was rounded
}
HYBRIDS = {
    "qwen3_5": (MIXED, VISION),
    "qwen3_5_moe": ({**MIXED, **EXPERTS, **SHARED}, VISION),
}
FAMILIES = {
    **HYBRIDS,
    "qwen3_vl": ({"head_dim": 16, "rope_parameters": ROPE}, DEEP),
    "qwen3_vl_moe": ({"head_dim": 16, "rope_parameters": ROPE, **EXPERTS}, DEEP),
    "qwen2_5_vl": ({"rope_parameters": ROPE}, WINDOWS),
    "qwen2_vl": ({"rope_parameters": ROPE}, OLD),
}


def config_of(family, **text):
    told, vision = FAMILIES[family]
    return transformers.AutoConfig.for_model(
        family,
        text_config={**SIZES, **told, **text},
        vision_config=vision,
        image_token_id=TOKEN,
        video_token_id=298,
        vision_start_token_id=BEGIN,
        vision_end_token_id=END,
    )


def seeing(family, **text):
    """Return a random model of *family*, in eval mode."""
    torch.manual_seed(0)
    module = transformers.AutoModelForImageTextToText.from_config(config_of(family, **text))
    for parameter in module.parameters():
        if parameter.ndim == 1:  # made all ones or zeros
            parameter.data += 0.3 * torch.randn_like(parameter)
    return module.eval().to(DEVICE)


def tower_of(module, most_bytes=1 << 20):
    return Tower(module, SIGHT, Shades(), most_bytes)


def picture(seed, high, wide):
    """Return a picture of noise of so many tokens, or of one colour if *seed* is none."""
    size = 3 * high * wide * SIDE**2
    rgb = bytes([90]) * size if seed is None else random.Random(seed).randbytes(size)
    digest = blake2b(rgb + bytes([high, wide]), digest_size=16).digest()
    return Picture(at=0, height=high * SIDE, width=wide * SIDE, rgb=rgb, digest=digest)


def asking(name, parts, count, **more):
    """Return a request whose prompt has ids and pictures one after the other."""
    prompt, pictures = [], []
    for part in parts:
        if isinstance(part, Picture):
            pictures.append(msgspec.structs.replace(part, at=len(prompt)))
            prompt += [TOKEN] * part.tokens(SIGHT)
        else:
            prompt += part
    return ask(name, prompt, count, pictures=pictures, **more)


def prompts_with_pictures():
    """Return requests of every kind: repetitive ones, and pictures in odd places, among them."""
    one, other, blank = picture(1, 3, 5), picture(2, 4, 2), picture(None, 6, 6)
    strip, dot = picture(3, 1, 9), picture(4, 1, 1)
    return [
        asking("text", [words(45, 1)], 20),
        asking("one", [words(9, 2), [BEGIN], one, [END], words(20, 3)], 20),
        asking("two", [words(5, 4), one, words(30, 5), other, words(3, 6)], 20),
        asking("twice", [blank, [7] * 12, blank, [7] * 30], 20),
        asking("strip", [[BEGIN], strip, [END], words(2, 7)], 20),  # nothing is offset by it
        asking("first and last", [dot, words(17, 8), other], 20),
        asking("touching", [words(3, 9), one, other, dot, [5]], 20),
        asking("placeholders", [[TOKEN] * 3, words(2, 1), other, [TOKEN] * 2, words(8, 2)], 20),
        asking("only", [blank], 20),
    ]


def words(count, seed):
    made = random.Random(seed)
    return [made.randrange(3, 290) for _ in range(count)]


def index_of(module, job):
    """
    Return what transformers says of the places in a prompt: the index, and what follows.

    Every other picture is called a video, of one moment: it takes touching ones for one else.
    """
    grids, kinds = {1: [], 2: []}, torch.zeros(1, len(job.prompt), dtype=torch.int32)
    for number, shown in enumerate(job.pictures):
        kinds[0, shown.at : shown.at + shown.tokens(SIGHT)] = kind = 1 + number % 2
        grids[kind].append([1, shown.height // SIGHT.patch, shown.width // SIGHT.patch])
    index, delta = module.model.get_rope_index(
        input_ids=torch.tensor([job.prompt]),
        mm_token_type_ids=kinds,
        image_grid_thw=torch.tensor(grids[1]) if grids[1] else None,
        video_grid_thw=torch.tensor(grids[2]) if grids[2] else None,
    )
    return index[:, 0], int(delta)


def truth(module, job, said):
    """Return the logits of the model's own forward over a prompt and what was *said* to it."""
    module.model.language_model.set_attn_implementation("eager")
    index, delta = index_of(module, job)
    ids = torch.tensor([*job.prompt, *said], device=DEVICE)
    rest = torch.arange(len(job.prompt), len(ids)).expand(3, -1) + delta
    looked = [tower_of(module).patches(shown) for shown in job.pictures]
    more = {}
    if looked:
        patches, grid = (torch.cat(parts) for parts in zip(*looked, strict=True))
        more = {"input_ids": ids[None], "pixel_values": patches, "image_grid_thw": grid}
    if looked and sum(shown.tokens(SIGHT) for shown in job.pictures) < (ids == TOKEN).sum():
        embeddings = module.get_input_embeddings()(ids)  # placeholders that stand for nothing
        features = module.model.get_image_features(patches, grid).pooler_output
        for shown, seen in zip(job.pictures, features, strict=True):
            embeddings[shown.at : shown.at + len(seen)] = seen
        more = {"inputs_embeds": embeddings[None]}
    return module(
        position_ids=torch.cat([index, rest], 1)[:, None].to(DEVICE),
        use_cache=False,
        **(more or {"input_ids": ids[None]}),
    ).logits[0]


class Recorded:
    """A body whose logits are kept: what came after so many tokens of a request."""

    name = "recorded"

    def __init__(self):
        self.kept = {}
        self.steps = []

    def logits(self, step, cache):
        out = self.body.logits(step, cache)
        names = {s.row: s.id for s in self.engine.scheduler.running.values()}
        for row, length, logits in zip(step.rows.tolist(), step.lengths.tolist(), out, strict=True):
            if row:
                self.kept.setdefault(names[row], {})[length] = logits
        self.steps.append(step)
        return out


def engine_seeing(module, tier="fused", tower="its own", **limits):
    """Return an engine over a model that sees, and the body that notes its logits."""
    recorded = Recorded()
    tower = tower_of(module) if tower == "its own" else tower
    engine = recorded.engine = engine_of(module, body=recorded, tower=tower, **limits)
    recorded.body = Stack(module, kernels_for(DEVICE)) if tier == "fused" else Modules(module)
    return engine, recorded


LIMIT = 1e-5 if DEVICE.type == "cpu" else 3e-5


def assert_right(module, jobs, said, recorded):
    """Check that answers, and all logits that were computed, are those of the model's forward."""
    for job in jobs:
        assert len(said[job.id]) == job.max_tokens
        wanted = truth(module, job, said[job.id])
        assert said[job.id] == wanted[len(job.prompt) - 1 : -1].argmax(-1).tolist()
        lengths, got = zip(*sorted(recorded.kept[job.id].items()), strict=True)
        assert lengths[-1] == len(job.prompt) + job.max_tokens - 1
        asked = wanted[[length - 1 for length in lengths]]
        off = probe.distance([torch.stack(got)], [asked])
        assert off < LIMIT, f"{job.id}: {off:.1e}"
