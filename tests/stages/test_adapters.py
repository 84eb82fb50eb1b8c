"""Merged is what the adapter says, removed is what was there before, stacked is the sum."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install 'penjing[fit]'")
peft = pytest.importorskip("peft", reason="pip install 'penjing[fit]'")

from penjing.checkpoint import open_checkpoint  # noqa: E402
from penjing.errors import PenjingError  # noqa: E402
from penjing.format.adapter import read_adapter  # noqa: E402
from penjing.measure.torch_model import load  # noqa: E402
from penjing.stages.adapt import Examples, Training, adapt  # noqa: E402
from penjing.stages.adapters import merge, stack  # noqa: E402
from penjing.train.batch import document  # noqa: E402

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture
def parent(tiny_model):
    return open_checkpoint(tiny_model("llama").path)


@pytest.fixture
def adapted(parent, tmp_path):
    rng = np.random.default_rng(0)
    documents = [document(rng.integers(3, 101, rng.integers(4, 12))) for _ in range(30)]
    training = Training(steps=4, rows=2, length=24, rate=1e-2, precision="f32")

    def make(method, **spec):
        out = tmp_path / f"{method}-{len(list(tmp_path.iterdir()))}"
        adapt(parent, out, Examples(documents={"data": documents}), method=method, spec=spec, training=training)
        return out

    return make


def _logits(model):
    token_BT = torch.arange(3, 15)[None]
    with torch.no_grad():
        return model.eval()(input_ids=token_BT).logits


@pytest.mark.parametrize("method", ["lora", "rslora", "pissa", "dora", "ia3", "norms", "gradient"])
def test_merged_says_what_the_adapter_says(parent, adapted, tmp_path, method):
    folder = adapted(method, **({"rank": 2} if method not in ("ia3", "norms") else {}))
    wanted_BTV = _logits(peft.PeftModel.from_pretrained(load(parent), folder))
    merge(parent, [folder], tmp_path / "merged")
    found_BTV = _logits(load(open_checkpoint(tmp_path / "merged")))
    slack = 3 * 7 * 52 * EPS * float(wanted_BTV.abs().max())  # 3 layers of 7 matrices, at most 52 products each
    torch.testing.assert_close(found_BTV, wanted_BTV, rtol=0, atol=slack)
    assert float((found_BTV - _logits(load(parent))).abs().max()) > 10 * slack


def test_removed_is_what_was_there_before(parent, adapted, tmp_path):
    folder = adapted("lora", rank=2)
    merge(parent, [folder], tmp_path / "with")
    merge(open_checkpoint(tmp_path / "with"), [folder], tmp_path / "without", weights=[-1.0])
    again = open_checkpoint(tmp_path / "without")
    for name in parent.tensors:
        before = parent.read(name)
        np.testing.assert_allclose(again.read(name), before, rtol=0, atol=4 * EPS * float(np.abs(before).max()))


def test_stacked_is_the_weighted_sum(parent, adapted, tmp_path):
    one, two = adapted("lora", rank=2), adapted("rslora", rank=3)
    stack(parent, [one, two], tmp_path / "both.adapter", weights=[1.0, -0.5], half=False)
    found = read_adapter(tmp_path / "both.adapter", parent.architecture)
    parts = [read_adapter(path, parent.architecture) for path in (one, two)]
    assert found.parent == parent.digest
    for name, addition in found.additions.items():
        assert len(addition.a) == 5
        first, second = (part.additions[name].b @ part.additions[name].a for part in parts)
        size = float(np.abs(first).max() + np.abs(second).max())
        np.testing.assert_allclose(addition.b @ addition.a, first - 0.5 * second, rtol=0, atol=16 * EPS * size)


def test_what_cannot_be_merged(parent, adapted, tmp_path):
    prompt, vectors, low_rank = adapted("p_tuning_v2", tokens=2), adapted("ia3"), adapted("lora", rank=2)
    for adapters, weights in (([prompt], None), ([vectors], [0.5]), ([low_rank], [1.0, 2.0]), ([], None)):
        with pytest.raises(PenjingError):
            merge(parent, adapters, tmp_path / "m", weights=weights)
    with pytest.raises(PenjingError, match="no such adapter"):
        stack(parent, [tmp_path / "nowhere"], tmp_path / "s.adapter")
    with pytest.raises(PenjingError, match="no weight differs"):
        merge(parent, [low_rank], tmp_path / "m", weights=[0.0])
    assert not (tmp_path / "m").exists()
