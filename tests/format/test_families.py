"""Each family against transformers: logits through the numpy reference, ropes, windows, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.format.families import family
from penjing.format.rope import max_positions, rope, rope_parameters
from penjing.runtime.reference import Decoder


def reference_logits(path, token_T):
    checkpoint = open_checkpoint(path)
    weights = {part.name: checkpoint.read_part(part) for part in checkpoint.parts()}
    return Decoder(checkpoint.architecture, weights).forward(token_T)


def test_logits_are_those_of_transformers(tiny):
    error = np.abs(reference_logits(tiny.path, tiny.token_T) - tiny.logit_TV).max()
    assert error <= tiny.tolerance()
    assert np.abs(tiny.logit_TV).max() > 0.1  # else the bound would say nothing
