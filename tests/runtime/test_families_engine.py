"""Each family through the C++ engine with float weights, against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from penjing.checkpoint import open_checkpoint
from penjing.format.pack import Layout, pack_float
from penjing.runtime.session import Session


def float_session(path, *, threads: int) -> Session:
    checkpoint = open_checkpoint(path)
    matrices = checkpoint.architecture.matrix_shapes()
    layouts, tensors = {}, {}
    for part in checkpoint.parts():
        weight = checkpoint.read_part(part)
        if part.name not in matrices:
            tensors[part.name] = weight
            continue
        layouts[part.name] = Layout(kind="f32", rows=weight.shape[0], cols=weight.shape[1])
        for field, array in pack_float(layouts[part.name], weight).items():
            tensors[f"{part.name}.{field}"] = array
    return Session.from_tensors(checkpoint.architecture, layouts, tensors, context=40, threads=threads, kv="f32")


@pytest.mark.parametrize("threads", [1, 2])
def test_logits_are_those_of_transformers(tiny, threads):
    with float_session(tiny.path, threads=threads) as session:
        logit_TV = session.forward(tiny.token_T, num_logits=len(tiny.token_T))
    assert np.abs(logit_TV - tiny.logit_TV).max() <= tiny.tolerance()


def test_token_by_token_is_the_same_as_at_once(tiny):
    with float_session(tiny.path, threads=1) as session:
        logit_TV = np.stack([session.forward([token])[0] for token in tiny.token_T])
    assert np.abs(logit_TV - tiny.logit_TV).max() <= tiny.tolerance()
