"""Both schedules, against brute force and against the table of counts that the released sampler is known for."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unmask.diffusion.schedule import reference_budget, reference_share, reference_times, split_steps, step_budget

# --- the exact schedule -------------------------------------------------------------------------------------------


def dealt(total, steps):
    """Hand out positions one at a time, first step first, until none is left."""
    counts = [0] * steps
    for number in range(total):
        counts[number % steps] += 1
    return counts


@given(st.integers(0, 300), st.integers(1, 300))
def test_budgets_are_those_of_dealing_one_position_at_a_time(total, steps):
    assert [step_budget(total, steps, index) for index in range(steps)] == dealt(total, steps)


@pytest.mark.parametrize("total", range(1, 30))
def test_no_step_is_empty_as_long_as_there_are_no_more_steps_than_positions(total):
    for steps in range(1, total + 1):
        assert min(step_budget(total, steps, index) for index in range(steps)) >= 1


SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=12)


@st.composite
def sizes_and_steps(draw):
    """Blocks and a number of steps between one per block and one per position."""
    sizes = draw(SIZES)
    return sizes, draw(st.integers(len(sizes), sum(sizes)))


@given(sizes_and_steps())
def test_shares_of_the_steps_add_up_and_fit_their_blocks(case):
    sizes, steps = case
    shares = split_steps(sizes, steps)
    assert sum(shares) == steps
    assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))


@given(SIZES, st.integers(0, 200))
def test_more_steps_than_positions_are_shared_out_too(sizes, extra):
    steps = sum(sizes) + extra
    shares = split_steps(sizes, steps)
    assert sum(shares) == steps
    assert min(shares) >= 1


@given(SIZES, st.integers(1, 4))
def test_shares_are_in_proportion_where_that_is_whole(sizes, factor):
    assert split_steps([size * factor for size in sizes], sum(sizes)) == sizes


@given(st.integers(1, 40), st.integers(1, 12), st.data())
def test_equal_blocks_get_equal_shares_up_to_one(size, blocks, data):
    shares = split_steps([size] * blocks, data.draw(st.integers(blocks, blocks * size)))
    assert max(shares) - min(shares) <= 1


def test_small_blocks_do_not_make_the_run_longer():
    assert split_steps([1, 1, 98], 3) == [1, 1, 1]
    assert split_steps([98, 1, 1], 3) == [1, 1, 1]
    assert sum(split_steps([1, 1, 1, 97], 10)) == 10


# --- the reference schedule ---------------------------------------------------------------------------------------


def reference_counts(total, steps, eps=1e-3):
    times, left, counts = reference_times(steps, eps), total, []
    for index in range(steps):
        counts.append(reference_budget(torch.tensor(float(left)), times, index))
        left -= counts[-1]
    return counts


@pytest.mark.parametrize(
    ("total", "steps", "first", "between", "last"),
    [
        (256, 256, 0, 1, 2),
        (512, 512, 0, 1, 2),
        (768, 768, 0, 1, 2),
        (256, 128, 1, 2, 3),
        (256, 64, 3, 4, 5),
        (256, 32, 7, 8, 9),
    ],
)
def test_the_table_of_the_released_sampler(total, steps, first, between, last):
    assert reference_counts(total, steps) == [first, *[between] * (steps - 2), last]


def test_more_steps_than_positions_leave_73_of_200_steps_empty():
    assert reference_counts(128, 200).count(0) == 73


@given(st.integers(0, 200), st.integers(1, 200), st.sampled_from([1e-3, 1e-2, 0.3]))
def test_every_position_is_committed_once(total, steps, eps):
    counts = reference_counts(total, steps, eps)
    assert sum(counts) == total
    assert min(counts) >= 0


@given(st.integers(1, 300), st.sampled_from([1e-3, 0.1, 1.0]))
def test_times_fall_on_a_straight_line_from_one_to_eps(steps, eps):
    times = reference_times(steps, eps)
    assert times.dtype is torch.float32
    assert times.tolist() == pytest.approx([1 + (eps - 1) * index / steps for index in range(steps + 1)], abs=1e-6)
    assert all(later <= earlier for earlier, later in pairwise(times.tolist()))


@given(st.integers(1, 300), st.data())
def test_the_share_of_a_step_is_one_less_s_over_t_and_one_at_the_end(steps, data):
    index = data.draw(st.integers(0, steps - 1))
    line = [1 + (1e-3 - 1) * at / steps for at in range(steps + 1)]
    expected = 1.0 if index == steps - 1 else 1 - line[index + 1] / line[index]
    assert float(reference_share(reference_times(steps, 1e-3), index)) == pytest.approx(expected, abs=1e-4)
