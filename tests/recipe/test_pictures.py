"""Labels stand beside their points and do not cover each other."""

from __future__ import annotations

import itertools

import pytest

pytest.importorskip("matplotlib")
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from penjing.recipe.pictures import label_points


def labelled(points):
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*points, strict=True), "o")
    axes.margins(x=0.3, y=0.3)
    label_points(axes, [(f"the point of number {n}", at) for n, at in enumerate(points)])
    figure.draw_without_rendering()
    return axes, [text.get_window_extent() for text in axes.texts if text.get_text()]


@pytest.mark.parametrize(
    "points",
    [
        [(1.0, 1.0)],
        [(1.0, 1.0), (1.01, 1.0), (1.0, 1.01), (2.0, 2.0)],  # side by side
        [(1.0, 1.0)] * 5,  # in one place
        [(float(n), 1.0) for n in range(6)],  # in a row, nearer than labels are long
    ],
)
def test_no_label_covers_another_or_a_point(points):
    axes, boxes = labelled(points)
    assert len(boxes) == len(points)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    for x, y in axes.transData.transform(points):
        assert not Bbox.from_bounds(x - 2, y - 2, 4, 4).count_overlaps(boxes)
    assert all(axes.figure.bbox.x0 <= box.x0 and box.x1 <= axes.figure.bbox.x1 for box in boxes)


def test_where_there_is_no_room_labels_are_written_all_the_same():
    _, boxes = labelled([(1.0, 1.0)] * 40)
    assert len(boxes) == 40
