"""A small `.penjing` file with every kind of layout in it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penjing.format.architecture import Architecture, Rope
from penjing.format.container import bias_sizes, write_container
from penjing.format.pack import Layout, pack_codes, pack_float
from penjing.format.scales import unpack_scales

CHAT_TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
BIASES = ("layers.0.q.bias", "layers.1.down.bias")


def architecture(**changes: Any) -> Architecture:
    fields: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 40,
        "hidden_size": 24,
        "intermediate_size": 36,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 6,
        "max_position_embeddings": 32,
        "tied": False,
        "qk_norm": "head",
        "attention_scale": 6**-0.5,
        "ropes": (Rope(inv_freq=(1.0, 0.1, 0.01)),),
        "layer_rope": (0, -1),
        "layer_window": (0, 3),
        "eos_token_ids": (2,),
    }
    return Architecture(**(fields | changes))


def layouts(arch: Architecture) -> dict[str, Layout]:
    """Every kind and width in turn, groups that are padded among them."""
    ways: list[dict[str, Any]] = [
        {"kind": "codes", "bits": 4, "group_size": 12},
        {"kind": "codes", "bits": 3, "group_size": 12, "symmetric": False},
        {"kind": "f16"},
        {"kind": "codes", "bits": 8, "group_size": 6, "symmetric": False},
        {"kind": "bf16"},
        {"kind": "codes", "bits": 2, "group_size": 12},
        {"kind": "f32"},
        {"kind": "codes", "bits": 5, "group_size": 4},
        {"kind": "codes", "bits": 6, "group_size": 12, "symmetric": False},
        {"kind": "codes", "bits": 2, "group_size": 12, "levels": "ternary"},
        {"kind": "codes", "bits": 1, "group_size": 12},
        *({"kind": "codes", "bits": bits, "group_size": 12, "levels": "book"} for bits in (2, 4)),
        {"kind": "codes", "bits": 3, "group_size": 12, "levels": "book", "scale_bits": 8},
    ]
    shapes = arch.matrix_shapes().items()
    return {name: Layout(rows=r, cols=c, **ways[n % len(ways)]) for n, (name, (r, c)) in enumerate(shapes)}


def tensors(arch: Architecture, seed: int = 0, biases: Collection[str] = BIASES) -> Iterator[tuple[str, Any]]:
    generator = np.random.default_rng(seed)
    for name, layout in layouts(arch).items():
        if layout.kind == "codes":
            code_OI = generator.integers(0, layout.num_codes, (layout.rows, layout.cols), dtype=np.uint8)
            groups = (layout.rows, layout.num_groups)
            scale_ON = generator.uniform(0.5, 1, groups).astype(np.float16) / np.float16(1 << layout.bits)
            if layout.scale_bits == 8:
                scale_ON = unpack_scales(generator.integers(0, 256, groups, dtype=np.uint8))
            zero_ON = None if layout.symmetric else generator.integers(0, 1 << layout.bits, groups, dtype=np.uint8)
            book_K = generator.integers(-128, 128, 1 << layout.bits, dtype=np.int8) if layout.book_size else None
            packed = pack_codes(layout, code_OI, scale_ON, zero_ON, book_K)
        else:
            packed = pack_float(layout, generator.standard_normal((layout.rows, layout.cols), dtype=np.float32))
        yield from ((f"{name}.{suffix}", array) for suffix, array in packed.items())
    sizes = bias_sizes(arch)
    for name, size in [*arch.norm_sizes().items(), *((bias, sizes[bias]) for bias in biases)]:
        yield name, generator.standard_normal(size, dtype=np.float32)


def write_tiny(path: Path, **changes: Any) -> None:
    """A file of a few kB; `changes` are arguments of write_container that differ."""
    arch = changes.get("architecture", architecture())
    biases = changes.get("biases", BIASES)
    arguments: dict[str, Any] = {
        "architecture": arch,
        "layouts": layouts(arch),
        "tensors": tensors(arch, biases=biases),
        "biases": biases,
        "tokenizer_json": '{"version": "1.0", "text": "盆景"}',
        "chat_template": CHAT_TEMPLATE,
        "generation": {"temperature": 0.5},
        "provenance": {"name": "tiny"},
        "evidence": [{"stage": "pack"}],
    }
    write_container(path, **(arguments | changes))


#: fields of `architecture` that differ, so that together the files have every norm and every bias
SEEDS: dict[str, dict[str, Any]] = {
    "heads": {"post_norm": True, "activation": "gelu_tanh", "embedding_scale": 4.0},
    "tied": {"tied": True, "qk_norm": "none", "bos_token_id": 1},
    "parallel": {"norm": "layer", "parallel": True, "gated": False, "activation": "gelu"},
    "full": {"qk_norm": "full", "pre_norm": False, "post_norm": True, "ropes": (), "layer_rope": (-1, -1)},
}


def write_seeds(folder: Path) -> list[Path]:
    """A file for each of SEEDS."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, changes in SEEDS.items():
        arch = architecture(**changes)
        write_tiny(folder / f"{name}.penjing", architecture=arch, biases=sorted(bias_sizes(arch)))
    return [folder / f"{name}.penjing" for name in SEEDS]


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of every norm, every kind of layout, biases wherever they may be."""
    return write_seeds(tmp_path_factory.mktemp("seeds"))


@pytest.fixture
def make_container(tmp_path: Path) -> Callable[..., Path]:
    """make_container(name, **arguments of write_container that differ) -> path."""

    def make(name: str = "tiny.penjing", **changes: Any) -> Path:
        write_tiny(tmp_path / name, **changes)
        return tmp_path / name

    return make
