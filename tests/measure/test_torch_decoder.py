"""The simulation of a packed model: the same decoder as transformers', for every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penjing.checkpoint import open_checkpoint

torch = pytest.importorskip("torch", reason="pip install 'penjing[fit]'")
torch_decoder = pytest.importorskip("penjing.measure.torch_decoder", reason="pip install 'penjing[fit]'")


def test_logits_are_those_of_transformers(tiny) -> None:
    scorer = torch_decoder.scorer(open_checkpoint(tiny.path))
    found_TV = np.concatenate(list(scorer.logits(tiny.token_T.astype(np.int32))))
    assert np.abs(found_TV - tiny.logit_TV).max() <= tiny.tolerance()


def test_a_packed_model_needs_no_config_of_theirs(packed_talker: Path, talker: Path) -> None:
    tokens_T = np.arange(1, 40, dtype=np.int32)
    plain, packed = open_checkpoint(talker), open_checkpoint(packed_talker)
    rounded = {part.name: torch.from_numpy(plain.read_part(part)).half().float() for part in plain.parts()}
    wanted = torch_decoder.DecoderScorer(plain.architecture, rounded).logits(tokens_T)
    found = torch_decoder.scorer(packed).logits(tokens_T)
    assert np.array_equal(np.concatenate(list(found)), np.concatenate(list(wanted)))
