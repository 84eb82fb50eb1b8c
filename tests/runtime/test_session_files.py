"""Sessions over files: a packed model, one that changes meanwhile, and a real model's own format."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from runtime.random_models import BASE, Tiny, codes_layout

from penjing.errors import PenjingError
from penjing.format.architecture import Architecture, Rope
from penjing.format.container import write_container
from penjing.format.pack import Layout, pack_float
from penjing.runtime.reference import Decoder
from penjing.runtime.session import Session

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "stories260K" / "stories260K.bin"


def test_a_packed_file_gives_what_its_arrays_give(tmp_path):
    tiny = Tiny(BASE, codes_layout())
    path = tmp_path / "tiny.penjing"
    biases = [name for name in tiny.tensors if name.endswith(".bias")]
    write_container(path, architecture=BASE, layouts=tiny.layouts, tensors=tiny.tensors.items(), biases=biases)
    with Session(path, context=64, threads=1) as from_file, tiny.session(kv="f16") as from_arrays:
        assert (from_file.vocab_size, from_file.context, from_file.threads) == (37, 64, 1)
        assert from_file.nbytes == from_arrays.nbytes > 0
        assert from_file.forward([1, 2, 3]).tobytes() == from_arrays.forward([1, 2, 3]).tobytes()


def test_a_file_that_changed_is_not_read(tmp_path):
    tiny = Tiny(BASE, biases=False)
    path = tmp_path / "tiny.penjing"
    write_container(path, architecture=BASE, layouts=tiny.layouts, tensors=tiny.tensors.items())
    with Session(path, context=64, threads=1) as session:
        session.forward([1])
        os.truncate(path, 4096)
        with pytest.raises(PenjingError):
            session.forward([1])


def read_llama2c(path):
    """A llama2.c checkpoint: 7 sizes, then float32 tensors; its rotary pairs are neighbours, ours are halves apart."""
    hidden, inner, layers, heads, kv_heads, vocab, context = map(int, np.fromfile(path, np.int32, 7))
    assert vocab > 0  # tied
    dim = hidden // heads
    arch = Architecture(
        model_type="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        max_position_embeddings=context,
        tied=True,
        attention_scale=dim**-0.5,
        ropes=(Rope(inv_freq=tuple(10_000.0 ** (-2 * j / dim) for j in range(dim // 2))),),
        layer_rope=(0,) * layers,
        layer_window=(0,) * layers,
    )
    data = np.fromfile(path, np.float32, offset=28)
    weights = {}

    def take(*shape):
        nonlocal data
        size = int(np.prod(shape))
        taken, data = data[:size].reshape(shape), data[size:]
        return taken

    halves = np.concatenate([np.arange(0, dim, 2), np.arange(1, dim, 2)])
    weights["embed"] = take(vocab, hidden)
    order = [("attn_norm", (hidden,)), ("q", (hidden, hidden)), ("k", (kv_heads * dim, hidden))]
    order += [("v", (kv_heads * dim, hidden)), ("o", (hidden, hidden)), ("mlp_norm", (hidden,))]
    order += [("gate", (inner, hidden)), ("down", (hidden, inner)), ("up", (inner, hidden))]
    for part, shape in order:
        for n, weight in enumerate(take(layers, *shape)):
            if part in ("q", "k"):
                weight = weight.reshape(-1, dim, hidden)[:, halves].reshape(shape)
            weights[f"layers.{n}.{part}"] = weight
    weights["final_norm"] = take(hidden)
    return arch, weights


@pytest.mark.skipif(not STORIES.is_file(), reason=f"{STORIES} is not there")
def test_a_real_model_tells_the_same_story_as_the_reference():
    arch, weights = read_llama2c(STORIES)
    layouts, tensors = {}, {}
    for name, weight in weights.items():
        if weight.ndim == 1:
            tensors[name] = weight
            continue
        layouts[name] = Layout(kind="f32", rows=weight.shape[0], cols=weight.shape[1])
        tensors[f"{name}.weight"] = pack_float(layouts[name], weight)["weight"]
    reference = Decoder(arch, weights)
    story = [1]  # the beginning of a text
    with Session.from_tensors(arch, layouts, tensors, context=256, threads=2, kv="f32") as session:
        logits = session.forward(story)
        for _ in range(200):
            exact = reference.forward(story[-1:])
            assert logits.argmax() == exact.argmax()
            story.append(int(exact.argmax()))
            logits = session.forward(story[-1:])
    assert len(set(story)) > 30  # a story, not one word again and again
