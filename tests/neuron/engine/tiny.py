"""Random models of real families, a few hundred kilobytes each, with a byte tokenizer."""

from __future__ import annotations

from cortex.fleet.model import Checkpoint

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}


def byte_tokenizer():
    """Return a tokenizer whose tokens are `SPECIAL` and the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: number for number, piece in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return backend


def save_tiny(family, folder):
    """Save a random model of *family* and return its checkpoint."""
    import torch
    import transformers

    backend = byte_tokenizer()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", chat_template=TEMPLATE
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(family, vocab_size=backend.get_vocab_size(), **SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    return checkpoint_of(folder)


def save_tiny_embedder(family, folder, mode="mean", *, dense=None, normalise=True, **sizes):
    """
    Save a random model for embeddings and return its checkpoint.

    Args:
        family: Of transformers, with or without a causal mask.
        folder: Where to.
        mode: How to pool.
        dense: Components after a dense layer; None goes without.
        normalise: End with vectors of length one.
        sizes: Of the configuration.
    """
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules as kinds
    from tokenizers import processors

    backend = byte_tokenizer()
    around = [(text, SPECIAL.index(text)) for text in ("<|assistant|>", "<|end|>")]
    backend.post_processor = processors.TemplateProcessing(
        single="<|assistant|> $A <|end|>", special_tokens=around
    )
    plain = folder / "plain"
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", pad_token="<|system|>", model_max_length=512
    ).save_pretrained(plain)
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(
        family,
        **{**SIZES, "vocab_size": backend.get_vocab_size(), "pad_token_id": 3, **sizes},
    )
    transformers.AutoModel.from_config(config).save_pretrained(plain)
    modules = [kinds.Transformer(str(plain)), kinds.Pooling(config.hidden_size, mode)]
    if dense is not None:
        modules.append(kinds.Dense(config.hidden_size, dense))
    if normalise:
        modules.append(kinds.Normalize())
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "whole"))
    return checkpoint_of(folder / "whole")


def checkpoint_of(folder):
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return Checkpoint(path=folder, format="safetensors", size_bytes=size)


SEEING = (
    "{%- macro shown(content) %}{% if content is string %}{{ content }}{% else %}"
    "{% for part in content %}{% if part.type == 'image' %}<|begin|><|picture|><|over|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
    "{%- for m in messages %}<|{{ m.role }}|>{{ shown(m.content) }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLACES = ["<|picture|>", "<|begin|>", "<|over|>", "<|film|>"]
UNKNOWN = "<|endoftext|>"  # Qwen's tokenizer has it in any case


def save_tiny_seeing(folder):
    """Save a random model that sees, a token for eight pixels by eight; return its checkpoint."""
    import json

    import torch
    import transformers

    from tests.neuron.engine.seeing import FAMILIES

    backend = byte_tokenizer()
    backend.add_special_tokens([*PLACES, UNKNOWN])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", chat_template=SEEING
    ).save_pretrained(folder)
    told, vision = FAMILIES["qwen3_5"]
    image, begin, over, film = map(backend.token_to_id, PLACES)
    config = transformers.AutoConfig.for_model(
        "qwen3_5",
        text_config={
            **SIZES,
            **told,
            "num_hidden_layers": len(told["layer_types"]),
            "vocab_size": backend.get_vocab_size(),
        },
        vision_config=vision,
        image_token_id=image,
        video_token_id=film,
        vision_start_token_id=begin,
        vision_end_token_id=over,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    model.generation_config.eos_token_id = 0
    model.save_pretrained(folder)
    said = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 1024, "longest_edge": 65536},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return checkpoint_of(folder)
