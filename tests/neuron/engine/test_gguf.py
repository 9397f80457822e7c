"""A GGUF file answers as the safetensors it was made of."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
import transformers

from cortex.neuron.engine import weights
from cortex.neuron.engine.jobs import Load
from tests.neuron.engine.tiny import SPECIAL, save_tiny

CPU = torch.device("cpu")
ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
KINDS = {  # how far logits may be off, as a share of the largest
    gguf.GGMLQuantizationType.F32: 1e-5,
    gguf.GGMLQuantizationType.F16: 2e-3,
    gguf.GGMLQuantizationType.Q8_0: 3e-2,
}


def interleaved(weight, heads):
    """Return the rows of a query or key as llama.cpp's rotary embedding wants them for llama."""
    rows = weight.reshape(heads, 2, -1, weight.shape[-1])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


def write(folder, family, kind):
    """Write the model of *folder* as GGUF, its matrices of *kind*; returns the file."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    file = folder / f"{kind.name}.gguf"
    out = gguf.GGUFWriter(file, family)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    if family == "qwen3":
        out.add_key_length(config.head_dim)
        out.add_value_length(config.head_dim)
    out.add_vocab_size(config.vocab_size)
    tokens = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    out.add_tokenizer_model("gpt2")
    out.add_token_list(tokens)
    out.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    out.add_token_scores([0.0] * len(tokens))
    out.add_eos_token_id(0)
    out.add_bos_token_id(0)
    names = gguf.get_tensor_name_map(ARCHITECTURES[family], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        data = tensor.numpy()
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            heads = config.num_attention_heads if is_query else config.num_key_value_heads
            data = interleaved(data, heads)
        own = kind if data.ndim > 1 else gguf.GGMLQuantizationType.F32
        said = names.get_name(name, try_suffixes=(".weight", ".bias"))
        out.add_tensor(said, gguf.quants.quantize(data, own), raw_dtype=own)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return file


def load(path):
    told = []
    job = Load(model="m", path=str(path))
    return weights.load(job, CPU, lambda *progress: told.append(progress)), told


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("family", ARCHITECTURES)
@pytest.mark.timeout(90)
@torch.inference_mode()
def test_its_logits_are_those_of_the_model_it_was_made_of(family, kind, tmp_path):
    folder = save_tiny(family, tmp_path).path
    ids = torch.tensor([[7, 70, 71, 200, 9, 12, 99, 70]])
    wanted = load(folder)[0].module(input_ids=ids).logits

    found, told = load(write(folder, family, kind))

    assert found.module.config.model_type == family
    got = found.module(input_ids=ids).logits
    assert float((got - wanted).abs().max() / wanted.abs().max()) < KINDS[kind]
    assert found.end_tokens == {0}
    read = [(done, total) for stage, done, total in told if stage == "reading weights" and total]
    assert read[-1][0] == read[-1][1] > 100_000
