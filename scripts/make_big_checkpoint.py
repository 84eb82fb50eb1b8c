"""Make a Llama-shaped checkpoint of random bfloat16 weights, of any size, without ever holding much of it in memory.

    python scripts/make_big_checkpoint.py OUT --layers 24

With the defaults (a 128256 x 2048 embedding, 16 layers) it is 2.5 GB on disk; each further layer is 122 MB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from penjing.files import write_file
from penjing.format.families import family
from penjing.format.pack import round_floats
from penjing.format.safetensors_file import SafetensorsWriter, TensorSpec

_CHUNK = 1 << 22  # weights made at a time


def config(*, vocab: int, hidden: int, intermediate: int, layers: int) -> dict[str, object]:
    """A Llama config with heads of 64, four query heads to a key-value head, and an embedding that is also the head."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 256,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def specs(settings: dict[str, object]) -> dict[str, TensorSpec]:
    """Hugging Face name to what is stored."""
    llama = family("llama")
    architecture = llama.architecture(dict(settings))
    shapes: dict[str, tuple[int, ...]] = dict(architecture.matrix_shapes())
    shapes |= {name: (size,) for name, size in architecture.norm_sizes().items()}
    return {
        part.source: TensorSpec("BF16", shapes[part.name]) for part in llama.parts(architecture) if part.name in shapes
    }


def chunks(spec: TensorSpec, generator: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """First row and rows of one tensor: normal with standard deviation 0.02, norms about 1."""
    mean = 1.0 if len(spec.shape) == 1 else 0.0
    step = max(1, _CHUNK // (spec.row_bytes // 2))
    for start in range(0, spec.num_rows, step):
        shape = (min(step, spec.num_rows - start), *spec.shape[1:])
        rows = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02) + np.float32(mean)
        yield start, round_floats(rows, "bf16")


def make(out: Path, settings: dict[str, object], *, seed: int = 0) -> None:
    """Write the checkpoint as one safetensors file and its config."""
    out.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    tensors = specs(settings)
    with SafetensorsWriter(out / "model.safetensors", tensors, {"format": "pt"}) as writer:
        for name, spec in tensors.items():
            for start, rows in chunks(spec, generator):
                writer.write(name, rows, start)
        writer.finish()
    write_file(out / "config.json", json.dumps(settings, indent=1).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab", type=int, default=128256)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--intermediate", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()
    make(args.out, config(vocab=args.vocab, hidden=args.hidden, intermediate=args.intermediate, layers=args.layers))


if __name__ == "__main__":
    main()
