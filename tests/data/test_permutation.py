"""The computed shuffle: every order is a permutation, and no two keys or places look alike."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.permutation import permute


@settings(deadline=None, max_examples=60)
@given(n=st.integers(1, 1500), key=st.integers(0, 2**63 - 1))
def test_it_is_a_bijection_for_every_size(n: int, key: int) -> None:
    assert sorted(permute(i, n, key) for i in range(n)) == list(range(n))


@given(n=st.integers(1, 2**50), key=st.integers(0, 2**63 - 1), data=st.data())
def test_places_of_a_large_permutation_stay_inside_and_apart(n: int, key: int, data: st.DataObject) -> None:
    chosen = data.draw(st.sets(st.integers(0, n - 1), max_size=20))
    images = {permute(i, n, key) for i in chosen}
    assert len(images) == len(chosen)
    assert all(0 <= image < n for image in images)


@pytest.mark.parametrize("n", [5, 16, 17, 100])
def test_over_the_keys_an_element_goes_everywhere_equally_often(n: int) -> None:
    counts = Counter(permute(3, n, key) for key in range(200 * n))
    assert set(counts) == set(range(n))
    # 200 expected each, with a standard deviation of 14
    assert max(abs(count - 200) for count in counts.values()) < 5 * 14


def test_neighbours_do_not_stay_together() -> None:
    n = 10_000
    steps = [abs(permute(i + 1, n, 1) - permute(i, n, 1)) for i in range(n - 1)]
    assert abs(sum(steps) / len(steps) - n / 3) < 0.03 * n  # two independent uniform places are n/3 apart


@pytest.mark.parametrize("i", [-1, 10])
def test_a_place_outside_is_refused(i: int) -> None:
    with pytest.raises(IndexError, match=f"place {i} of a permutation of 10"):
        permute(i, 10, 0)
