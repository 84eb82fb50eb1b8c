"""Any checkpoint as a transformers model: its own logits, and clear words where config and tensors disagree."""

from __future__ import annotations

import numpy as np
import pytest

from penjing.checkpoint import Checkpoint, open_checkpoint
from penjing.errors import PenjingError

torch_model = pytest.importorskip("penjing.measure.torch_model", reason="pip install 'penjing[fit]'")


class Changed:
    """A checkpoint with some of its facts replaced."""

    def __init__(self, checkpoint: Checkpoint, **facts: object) -> None:
        self.__dict__ |= {name: getattr(checkpoint, name) for name in ("name", "config", "tensors", "architecture")}
        self.read = checkpoint.read
        self.__dict__ |= facts


def test_logits_are_those_of_the_model_that_was_saved(tiny) -> None:
    scorer = torch_model.scorer(open_checkpoint(tiny.path))
    found_TV = np.concatenate(list(scorer.logits(tiny.token_T.astype(np.int32))))
    assert np.abs(found_TV - tiny.logit_TV).max() <= tiny.tolerance()


def test_chunks_make_no_difference(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_model("granite")
    scorer = torch_model.scorer(open_checkpoint(tiny.path))
    monkeypatch.setattr(torch_model, "_CHUNK_LOGITS", 5 * scorer.vocab_size)
    chunks = list(scorer.logits(tiny.token_T.astype(np.int32)))
    assert [len(chunk) for chunk in chunks] == [5, 5, 5, 5, 3]
    assert np.abs(np.concatenate(chunks) - tiny.logit_TV).max() <= tiny.tolerance()


def test_a_head_that_does_more_is_refused(tiny_model) -> None:
    tiny = tiny_model("granite")  # divides its logits
    with pytest.raises(PenjingError, match="after the head"):
        torch_model.TorchScorer(torch_model.load(open_checkpoint(tiny.path)))


def test_tensors_that_are_not_the_configs(tiny_model) -> None:
    checkpoint = open_checkpoint(tiny_model("llama").path)
    fewer = dict(list(checkpoint.tensors.items())[1:])
    with pytest.raises(PenjingError, match="1 missing tensors"):
        torch_model.load(Changed(checkpoint, tensors=fewer))
    narrow = checkpoint.config | {"num_hidden_layers": 2}
    with pytest.raises(PenjingError, match=r"unexpected tensors: model\.layers\.2"):
        torch_model.load(Changed(checkpoint, config=narrow))
    with pytest.raises(PenjingError, match="9 mismatched tensors"):
        torch_model.load(Changed(checkpoint, config=checkpoint.config | {"intermediate_size": 44}))
    with pytest.raises(PenjingError, match="does not accept"):
        torch_model.load(Changed(checkpoint, config=checkpoint.config | {"model_type": "bonsai"}))
