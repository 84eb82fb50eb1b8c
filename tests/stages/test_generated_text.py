"""Generated text: the model's own, the same for the same seed, long enough to calibrate on."""

import numpy as np
import pytest

import penjing
from penjing.checkpoint import open_checkpoint
from penjing.errors import PenjingError
from penjing.runtime.session import Session
from penjing.stages import generated_text as module
from penjing.stages.generated_text import generated_text


def test_same_seed_same_text_and_as_much_as_was_asked_for(talker):
    parent = open_checkpoint(talker)
    told = []
    text = generated_text(parent, num_tokens=6000, seed=1, progress=lambda *said: told.append(said))
    assert text.digest == generated_text(parent, num_tokens=6000, seed=1).digest
    assert text.digest != generated_text(parent, num_tokens=6000, seed=2).digest
    assert len(set(text.documents)) == len(text.documents) > 1
    assert told[-1][1:] == (6000, 6000)


def test_a_document_begins_anywhere_then_as_is_likeliest_and_ends_at_the_end_token(packed_talker):
    parent = open_checkpoint(packed_talker)
    with Session(packed_talker, context=module.DOCUMENT + 2, sequences=4) as session:
        documents = module._documents(session, parent, np.random.default_rng(0))
    bos = parent.architecture.bos_token_id
    with Session(packed_talker) as session:
        for ids in documents:
            session.truncate(0)
            for place in range(1, min(module._LIKELIEST + 1, len(ids))):
                begin = [*([] if bos is None else [bos]), *ids[:place]]
                session.truncate(0)
                assert ids[place] == session.forward(begin)[0].argmax()
    assert len({ids[0] for ids in documents}) > 1
    assert not set(parent.architecture.eos_token_ids).intersection(token for ids in documents for token in ids[1:])
    assert max(map(len, documents)) <= module.DOCUMENT


def test_a_model_without_words_is_told(talker, monkeypatch):
    parent = open_checkpoint(talker)
    monkeypatch.setattr(parent, "tokenizer_json", None)
    with pytest.raises(PenjingError, match="no tokenizer"):
        generated_text(parent, num_tokens=10)
    monkeypatch.undo()
    monkeypatch.setattr(module, "_documents", lambda *given: [[1]])
    monkeypatch.setattr(module, "load_tokenizer", lambda *given, **named: Blank())
    with pytest.raises(PenjingError, match="writes nothing"):
        generated_text(parent, num_tokens=10)


class Blank:
    def decode(self, ids, skip_special_tokens):
        return " "


def test_it_calibrates(talker, tmp_path):
    model = penjing.open(talker)
    told = []
    child = model.quantize(
        tmp_path / "child", method="scale_search", data="self", bits=3, group_size=16,
        progress=lambda *said: told.append(said[0]),
    )  # fmt: skip
    assert "writing its own text, tokens" in told
    assert child.evidence.corpus is not None
    other = model.quantize(tmp_path / "other", method="scale_search", data="self", seed=1, bits=3, group_size=16)
    assert other.evidence.corpus != child.evidence.corpus
