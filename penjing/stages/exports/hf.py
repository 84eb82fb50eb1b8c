"""hf: a Hugging Face folder of plain float32 weights, for transformers and whatever reads what it reads.

The values are those that the engine computes with: a code's meaning times its scale fits 19 bits, which no 16-bit
float holds.
"""

from __future__ import annotations

from pathlib import Path

from penjing.format.hf_writer import CheckpointWriter, Shard
from penjing.format.safetensors_file import TensorSpec
from penjing.stages import Progress, base
from penjing.stages.exports import Exported, Weights

_SHARD_BYTES = 2 << 30


def export(weights: Weights, out: Path, *, force: bool, progress: Progress | None) -> Exported:
    shards = _shards(weights)
    checkpoint = weights.checkpoint
    step = {"stage": "export", "to": "hf", "parent": checkpoint.digest}
    config = {key: value for key, value in weights.config.items() if key not in ("dtype", "torch_dtype")}
    done, total = 0, sum(len(shard.tensors) for shard in shards)
    with CheckpointWriter(out, shards, step=step, force=force) as writer:
        for index in writer.pending():
            with writer.shard(index) as shard:
                for name in shards[index].tensors:
                    if progress is not None:
                        progress(name, done, total)
                    shard.write(name, weights.read(name))
                    done += 1
        writer.write_texts(
            config=config | {"dtype": "float32"},
            generation=checkpoint.generation,
            tokenizer_json=checkpoint.tokenizer_json,
            chat_template=checkpoint.chat_template,
            companions=checkpoint.path if checkpoint.path.is_dir() else None,
            base=base(checkpoint),
        )
        writer.finish()
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    return Exported(out, size, {"float32": len(checkpoint.architecture.matrix_shapes())})


def _shards(weights: Weights) -> list[Shard]:
    shards: list[dict[str, TensorSpec]] = [{}]
    size = 0
    for name in weights.parts:
        spec = TensorSpec("F32", weights.shape(name))
        if size and size + spec.nbytes > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.nbytes
    return [Shard(tensors) for tensors in shards]
