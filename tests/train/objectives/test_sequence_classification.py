"""Sequence classification: transformers' loss, for decoders whose documents stay packed and for encoders."""

from __future__ import annotations

import pytest
import torch
import transformers
from train.bert import bert

from penjing.errors import PenjingError
from penjing.train.batch import document, pack, stack
from penjing.train.objectives.sequence_classification import Objective, bits, from_bits

DOCUMENTS = [([5, 6, 7, 8, 9], 2), ([10, 11], 0), ([12, 13, 14], 1), ([15], 2)]


def decoder():
    torch.manual_seed(0)
    settings = {"hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=67, num_labels=3, pad_token_id=0, **settings)
    return transformers.LlamaForSequenceClassification(config).eval()


@pytest.mark.parametrize("make", [decoder, lambda: bert("SequenceClassification", num_labels=3)], ids=["llama", "bert"])
def test_loss_is_that_of_transformers(make):
    model = make()
    one, two = ([document(tokens, label=label) for tokens, label in DOCUMENTS[at : at + 2]] for at in (0, 2))
    found = Objective()(model, stack([pack(one), pack(two)]))
    wanted = sum(float(model(torch.tensor([tokens]), labels=torch.tensor([label])).loss) for tokens, label in DOCUMENTS)
    assert found.count == 4
    assert float(found.total.detach()) == pytest.approx(wanted, rel=1e-5)


def test_several_classes_at_once():
    model = decoder()
    model.config.problem_type = "multi_label_classification"
    sets = [(0, 2), (), (1,), (0, 1, 2)]
    documents = [document(tokens, label=from_bits(s)) for (tokens, _), s in zip(DOCUMENTS, sets, strict=True)]
    found = Objective(multi_label=True)(model, pack(documents))
    wanted = 0.0
    for (tokens, _), chosen in zip(DOCUMENTS, sets, strict=True):
        label = torch.tensor([[float(number in chosen) for number in range(3)]])
        wanted += float(model(torch.tensor([tokens]), labels=label).loss)
    assert found.count == 4
    assert float(found.total.detach()) == pytest.approx(wanted, rel=1e-5)
    assert bits(torch.tensor([from_bits((62,))]), 63)[0].nonzero().tolist() == [[62]]
    with pytest.raises(PenjingError, match="64 classes"):
        bits(torch.tensor([1]), 64)
