"""Frequencies against transformers' own functions, in both forms of config."""

from __future__ import annotations

import numpy as np
import pytest

from penjing.errors import PenjingError
from penjing.format.rope import max_positions, rope, rope_parameters

HEAD_DIM = 64
KINDS = {
    "default": {},
    "linear": {"factor": 3.0},
    "dynamic": {"factor": 2.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 1024},
    "yarn, betas": {"factor": 4.0, "beta_fast": 20.0, "beta_slow": 2.0, "truncate": False},
    "yarn, mscale": {"factor": 40.0, "mscale": 0.7, "mscale_all_dim": 1.2, "original_max_position_embeddings": 256},
    "yarn, told": {"factor": 4.0, "attention_factor": 1.25, "original_max_position_embeddings": 1024},
    "longrope": {
        "short_factor": np.linspace(1, 3, 32).tolist(),
        "long_factor": np.linspace(1, 60, 32).tolist(),
        "original_max_position_embeddings": 1024,
    },
    "longrope, told": {
        "short_factor": [1.5] * 32,
        "long_factor": [1.5] * 32,
        "factor": 6.0,
        "original_max_position_embeddings": 512,
    },
}
BASE = {"max_position_embeddings": 4096, "hidden_size": 256, "num_attention_heads": 4}


@pytest.mark.parametrize("old", [False, True], ids=["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize("name", KINDS)
def test_frequencies_are_those_of_transformers(name, old):
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    transformers = pytest.importorskip("transformers")
    kind = name.split(",")[0]
    config = transformers.LlamaConfig(**BASE, rope_parameters={"rope_type": kind, "rope_theta": 5e5} | KINDS[name])
    if kind == "default":
        llama = pytest.importorskip("transformers.models.llama.modeling_llama")
        wanted, scale = llama.LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        wanted, scale = utils.ROPE_INIT_FUNCTIONS[kind](config, "cpu")
    ours = BASE | {"rope_theta": 5e5, "rope_scaling": {"type": kind} | KINDS[name]}
    found = rope(rope_parameters(ours if old else config.to_dict()), HEAD_DIM)
    # theirs and ours may each round the power, and what follows, by an ulp or two
    np.testing.assert_allclose(found.inv_freq, wanted.numpy(), rtol=6 * np.finfo(np.float32).eps)
    assert found.scale == pytest.approx(scale, rel=1e-12)


@pytest.mark.parametrize(("part", "pairs"), [(1.0, 5), (0.6, 3), (0.25, 1)])
def test_part_of_a_head(part, pairs):
    config = BASE | {"partial_rotary_factor": part}
    assert len(rope(rope_parameters(config), 10).inv_freq) == pairs


def test_longrope_ends_where_its_short_factors_do():
    parameters = {"rope_type": "longrope"} | KINDS["longrope"]
    assert max_positions(rope_parameters(BASE | {"rope_parameters": parameters})) == 1024
    same = parameters | {"long_factor": parameters["short_factor"]}
    assert max_positions(rope_parameters(BASE | {"rope_parameters": same})) == 4096


@pytest.mark.parametrize(
    ("parameters", "key"),
    [
        ({"rope_type": "axial"}, "rope_type"),
        ({"rope_type": ["yarn"]}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "linear", "factor": 0}, "factor"),
        ({"rope_type": "linear", "factor": "2"}, "factor"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"partial_rotary_factor": 1.5}, "partial_rotary_factor"),
        ({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 1}, "high_freq_factor"),
        ({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}, "short_factor"),
        ({"rope_type": "longrope", "short_factor": [0.0] * 32, "long_factor": [0.0] * 32}, "rope_type"),
        ({"rope_type": "yarn", "factor": 2.0, "beta_fast": -1}, "beta_fast"),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 0}, "beta_fast"),
    ],
)
def test_nonsense_is_refused_by_key(parameters, key):
    with pytest.raises(PenjingError) as caught:
        rope(rope_parameters(BASE | {"rope_parameters": parameters}), HEAD_DIM)
    assert key in str(caught.value)


def test_a_table_is_needed():
    with pytest.raises(PenjingError, match="rope_scaling is 'yarn'"):
        rope_parameters(BASE | {"rope_scaling": "yarn"})
