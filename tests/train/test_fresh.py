"""New models: of about the size that was asked for, opened by penjing, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.train.fresh import ENCODERS, FAMILIES, config, new_model, shape


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [300_000, 5_000_000])
def test_sizes_are_met(family, size):
    found = shape(family, size, 512)
    with torch.device("meta"):
        model = new_model(config(family, found, 512, 64))
    # norms, biases, and an encoder's embeddings of positions and its heads are not counted in the plan
    assert model.num_parameters() == pytest.approx(size, rel=0.45 if family in ENCODERS else 0.25)
    assert model.num_parameters() == pytest.approx(found.num_parameters(family, 512), rel=0.15)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ENCODERS])
def test_decoders_open(family, tmp_path):
    new_model(config(family, shape(family, 150_000, 300), 300, 64, bos_token_id=0, eos_token_id=0)).save_pretrained(
        tmp_path
    )
    assert open_checkpoint(tmp_path).architecture.vocab_size == 300


def test_seeds():
    made = config("llama", shape("llama", 150_000, 300), 300, 64)
    one, same, other = (new_model(made, seed).model.layers[0].mlp.down_proj.weight for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    # 0.02 of transformers, over the square root of twice the layers
    assert float(one.detach().std()) == pytest.approx(0.02 / (2 * made.num_hidden_layers) ** 0.5, rel=0.05)


def test_what_cannot_be():
    with pytest.raises(PenjingError, match="no family 'rwkv'"):
        shape("rwkv", 1_000_000, 512)
    with pytest.raises(PenjingError, match="with 100000 tokens"):
        shape("llama", 100_000, 100_000)
