"""The front: who is on it, and a picture that is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import PenjingError
from penjing.recipe.front import draw_front, front
from penjing.recipe.pictures import check_plot
from penjing.recipe.plots import Point

STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


def test_who_is_on_the_front():
    points = [
        Point("c", 30, 5.0),
        Point("a", 10, 9.0),
        Point("worse", 20, 9.5),
        Point("b", 20, 7.0),
        Point("d", 40, 5.0),
    ]
    assert [point.label for point in front(points)] == ["a", "b", "c"]
    assert front([]) == []


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=12))
def test_nobody_beats_the_front_and_it_beats_the_rest(pairs):
    points = [Point(str(n), size, value) for n, (size, value) in enumerate(pairs)]
    best = front(points)
    for point in points:
        beaten = [
            other
            for other in best
            if other.size_bytes <= point.size_bytes and other.value <= point.value and other is not point
        ]
        assert (point in best) != bool(beaten)


@pytest.mark.parametrize("kind", STARTS)
def test_a_picture_is_written(tmp_path, kind):
    pytest.importorskip("matplotlib")
    points = [Point("small $x$", 1e6, 20.0), Point("large", 3e6, 10.0), Point("beaten", 4e6, 11.0)]
    draw_front(points, tmp_path / f"a.{kind}", unit="perplexity")
    data = (tmp_path / f"a.{kind}").read_bytes()
    assert data.startswith(STARTS[kind])
    if kind == "svg":
        assert data.count(b"<!-- small $x$ -->") == 1
        assert data.count(b"<!-- file, MB -->") == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{kind}"]


def test_what_cannot_be_drawn_is_told_before(tmp_path):
    with pytest.raises(PenjingError, match=r"cannot be a \.jpg") as caught:
        check_plot(tmp_path / "front.jpg")
    assert "front.png" in caught.value.attempt
    with pytest.raises(PenjingError, match="no such folder"):
        check_plot(tmp_path / "nowhere" / "front.png")
