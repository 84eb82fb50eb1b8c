"""Binary, ternary and book codes go through the stages: what a technique chose is in the child and in the file."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

pytest.importorskip("torch")
import torch

from penjing.checkpoint import open_checkpoint
from penjing.format.container import open_container
from penjing.format.pack import dequantize
from penjing.stages.pack import pack
from penjing.stages.quantize import quantize
from penjing.tensors.groups import Quantized, to_groups

BOOK = torch.tensor([-128, -20, 11, 127], dtype=torch.int8)
WAYS = {"binary": ("uniform", 1, [-1.0, 1.0]), "ternary": ("ternary", 2, [-1.0, 0.0, 1.0]), "book": ("book", 2, BOOK)}


def nearest(way: str, books: list) -> SimpleNamespace:
    """A technique: each weight to the nearest of the levels times the group's mean. `books`: what it was given."""
    levels, bits, values = WAYS[way]
    value_K = torch.as_tensor(values).float()

    @dataclass(frozen=True, kw_only=True)
    class Spec:
        group_size: int = 4
        symmetric: ClassVar[bool] = True

    Spec.bits, Spec.levels = bits, levels

    def codes(spec, weight_OI, book_K):
        weight_ONG = to_groups(weight_OI, spec.group_size)
        scale_ON = (weight_ONG.abs().mean(-1) / value_K.abs().max() + 1e-3).half()
        code_ONG = (weight_ONG.unsqueeze(-1) / scale_ON.float()[..., None, None] - value_K).abs().argmin(-1)
        return Quantized(code_ONG=code_ONG.byte(), scale_ON=scale_ON, bits=bits, levels=levels, book_K=book_K)

    def quantize(spec, weight_OI):
        return codes(spec, weight_OI, None)

    def quantize_by_book(spec, weight_OI, book_K=None):
        books.append(book_K)
        return codes(spec, weight_OI, BOOK.clone() if book_K is None else book_K)

    return SimpleNamespace(Spec=Spec, quantize=quantize_by_book if way == "book" else quantize)


@pytest.mark.parametrize("way", WAYS)
def test_codes_reach_the_file(tiny_model, tmp_path, monkeypatch, way):
    monkeypatch.setattr("penjing.stages.codes._CHUNK", 16 * 36)  # many chunks
    books: list = []
    method = nearest(way, books)
    monkeypatch.setattr("penjing.stages.quantize.technique", lambda name: method)
    parent = open_checkpoint(tiny_model("llama").path)
    quantize(parent, tmp_path / "child", method=way)
    child = open_checkpoint(tmp_path / "child")
    pack(child, tmp_path / "child.penjing")
    with open_container(tmp_path / "child.penjing") as container:
        assert container.bytes_by_part()["padding"] >= 0
        for part in child.parts():
            if part.name not in child.quantized:
                continue
            wanted = method.quantize(method.Spec(), torch.from_numpy(parent.read_part(part))).dequantize().numpy()
            layout = container.layouts[part.name]
            assert layout == child.quantized[part.name]
            assert (layout.levels, layout.bits) == WAYS[way][:2]
            np.testing.assert_array_equal(dequantize(layout, container.matrix(part.name)), wanted)
            np.testing.assert_array_equal(child.read_part(part), wanted)
    if way == "book":
        asked = [book_K for book_K in books if book_K is not None]
        assert asked, "later rows of a matrix were not given the book of the first"
        assert all(torch.equal(book_K, BOOK) for book_K in asked)


def test_a_technique_that_changes_its_book_is_stopped(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("penjing.stages.codes._CHUNK", 16 * 36)
    method = nearest("book", [])
    real, turns = method.quantize, iter(range(1000))
    method.quantize = lambda spec, weight_OI, book_K=None: real(spec, weight_OI, BOOK.clone().add_(-next(turns) % 2))
    monkeypatch.setattr("penjing.stages.quantize.technique", lambda name: method)
    with pytest.raises(ValueError, match="another book for later rows"):
        quantize(open_checkpoint(tiny_model("llama").path), tmp_path / "child", method="book")


def test_codes_that_are_not_what_the_settings_say_are_stopped(tiny_model, tmp_path, monkeypatch):
    method = nearest("ternary", [])
    method.quantize = lambda spec, weight_OI: nearest("binary", []).quantize(spec, weight_OI)
    monkeypatch.setattr("penjing.stages.quantize.technique", lambda name: method)
    with pytest.raises(ValueError, match=r"1 bits \(uniform\)"):
        quantize(open_checkpoint(tiny_model("llama").path), tmp_path / "child", method="ternary")
