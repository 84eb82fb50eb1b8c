"""The knapsack against exhaustive search, and its promises."""

import itertools
import random

import pytest

from penjing.errors import PenjingError
from penjing.recipe.search import Option, allocate, size


def random_options(rng, parts=4, choices=4):
    return {
        f"part{n}": [Option({"bits": k}, rng.randint(1, 60), rng.random() ** 4) for k in range(choices)]
        for n in range(parts)
    }


def best_error(options, max_bytes):
    combinations = itertools.product(*options.values())
    return min((sum(o.error for o in c) for c in combinations if size(c) <= max_bytes), default=None)


@pytest.mark.parametrize("seed", range(60))
def test_never_over_the_limit_and_near_the_best(seed):
    rng = random.Random(seed)
    options = random_options(rng)
    max_bytes = rng.randint(4, 240)
    best = best_error(options, max_bytes)
    if best is None:
        with pytest.raises(PenjingError, match="smallest choice"):
            allocate(options, max_bytes)
        return
    chosen = allocate(options, max_bytes)
    assert chosen.keys() == options.keys()
    assert size(chosen.values()) <= max_bytes
    # the relaxation loses at most what one part's choice is worth
    worst_step = max(max(o.error for o in choices) for choices in options.values())
    assert best <= sum(o.error for o in chosen.values()) <= best + worst_step


def test_more_bytes_never_hurt_beyond_one_step():
    options = random_options(random.Random(1), parts=30, choices=6)
    errors = [sum(o.error for o in allocate(options, b).values()) for b in range(900, 1800, 30)]
    worst_step = max(o.error for choices in options.values() for o in choices)
    assert all(later <= earlier + worst_step for earlier, later in itertools.pairwise(errors))
    assert sum(o.error for o in allocate(options, 10**6).values()) == pytest.approx(
        sum(min(o.error for o in c) for c in options.values())
    )


def test_no_upgrade_is_left_that_fits():
    options = random_options(random.Random(2), parts=20)
    chosen = allocate(options, 500)
    left = 500 - size(chosen.values())
    for part, now in chosen.items():
        for option in options[part]:
            assert option.error >= now.error or option.size_bytes - now.size_bytes > left


def test_huge_errors_still_give_way_to_bytes():
    options = {"a": [Option({}, 1, 1e12), Option({}, 2, 0.0)], "b": [Option({}, 1, 1e-12), Option({}, 2, 0.0)]}
    chosen = allocate(options, 3)
    assert (chosen["a"].size_bytes, chosen["b"].size_bytes) == (2, 1)
    assert size(allocate(options, 2).values()) == 2
