"""A child checkpoint with the weights of a transformers model that was made from its parent and then changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.errors import PenjingError
from penjing.evidence import Recorder
from penjing.files import write_file
from penjing.format.hf_writer import CheckpointWriter, Shard
from penjing.format.safetensors_file import TensorSpec
from penjing.stages import EVIDENCE, base
from penjing.stages.codes import plan

#: keys of a config that say whether matrices have biases, and the modules they are about
_BIAS_KEYS = {"attention_bias": "self_attn.", "mlp_bias": "mlp."}


def changed_weights(parent: Checkpoint, model: Any) -> list[str]:
    """Tensors of the model, under their names in the parent, that the parent lacks or has otherwise."""
    state = model.state_dict()
    added = [name for name in state if name not in parent.tensors and name.endswith(".bias")]
    return added + [name for name in parent.tensors if not torch.equal(state[name].float().cpu(), _read(parent, name))]


def write_child(
    parent: Checkpoint, model: Any, out: Path, *, step: Mapping[str, Any], work: Recorder, force: bool = False
) -> None:
    """Write OUT, whole or not at all, in the dtypes of the parent; biases that were added are in float32.

    Raises PenjingError where nothing was changed, or where transformers has no place for a bias.
    """
    state = model.state_dict()
    missing = sorted(set(parent.tensors) - set(state))
    if missing:
        raise PenjingError(f"{missing[0]} is not in the model", where=parent.name, attempt="a family penjing knows")
    if not changed_weights(parent, model):
        raise PenjingError("no weight differs from the parent's", where=str(out), attempt="train longer")
    added = {name: state[name] for name in state if name not in parent.tensors and name.endswith(".bias")}
    config = dict(parent.config) | _bias_keys(parent, added)
    shards = [Shard(dict(shard.tensors) | _beside(shard, added)) for shard in plan(parent, {})]
    with CheckpointWriter(out, shards, step=step, force=force) as writer:
        for index in writer.pending():
            with writer.shard(index) as shard:
                for name in shards[index].tensors:
                    shard.write(name, state[name].detach().float().cpu().numpy())
        known = parent.path / EVIDENCE
        if known.is_file() and not (writer.folder / EVIDENCE).exists():
            write_file(writer.folder / EVIDENCE, known.read_bytes())
        writer.write_texts(
            config=config,
            generation=parent.generation,
            tokenizer_json=parent.tokenizer_json,
            chat_template=parent.chat_template,
            companions=parent.path if parent.path.is_dir() else None,
            base=base(parent),
        )
        work.child = open_checkpoint(writer.folder).digest
        writer.finish()


def _read(parent: Checkpoint, name: str) -> torch.Tensor:
    return torch.from_numpy(parent.read(name))


def _beside(shard: Shard, added: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """Added biases go where their matrices are."""
    return {
        name: TensorSpec("F32", tuple(bias.shape))
        for name, bias in added.items()
        if f"{name.removesuffix('.bias')}.weight" in shard.tensors
    }


def _bias_keys(parent: Checkpoint, added: Mapping[str, Any]) -> dict[str, bool]:
    """What the config must say for transformers to read the biases."""
    if not added:
        return {}
    found = {key: True for key, part in _BIAS_KEYS.items() if any(part in name for name in added)}
    if not all(key in parent.config or parent.config.get("model_type") == "llama" for key in found):
        raise PenjingError(
            f"a {parent.config.get('model_type')} model has no place for added biases",
            where=parent.name,
            attempt="--method norms or lora",
        )
    return found
