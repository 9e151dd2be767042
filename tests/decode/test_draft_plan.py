"""The plan of a round against trying all of them."""

from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.decode.draft_plan import CHECK, column_cost, plan

chances = st.floats(0.01, 0.99)


@given(st.lists(chances, max_size=5), chances, st.integers(0, 5), st.floats(0.005, 0.6), st.integers(1, 9))
def test_no_other_number_of_columns_is_worth_more(
    surety: list[float], rate: float, longest: int, cost: float, room: int
) -> None:
    found = plan(surety, rate=rate, longest=longest, cost=cost, room=room)

    def checks(count: int) -> float:
        """Tokens accepted, less what it costs to check them."""
        return sum(prod(surety[: k + 1]) for k in range(count)) - CHECK * cost * count

    most = min(len(surety), room - 1)
    assert checks(found.checked) == pytest.approx(max(checks(count) for count in range(most + 1)))
    for i, count in enumerate(found.masks):
        chance = prod(surety[:i]) * (1.0 if i == found.checked else 1 - surety[i])

        def masks(count: int, chance: float = chance) -> float:
            """Tokens accepted in the next round, less what it costs to draft them here and to check them there."""
            return sum(chance * (rate ** (j + 1) - CHECK * cost) - cost for j in range(count))

        assert masks(count) == pytest.approx(
            max(masks(other) for other in range(min(longest, max(room - i - 1, 0)) + 1))
        )


def test_nothing_is_drafted_beyond_the_end() -> None:
    found = plan([0.9, 0.9, 0.9], rate=0.9, longest=4, cost=0.01, room=2)
    assert (found.checked, found.masks) == (1, (1, 0))
    assert plan([0.9], rate=0.9, longest=4, cost=0.01, room=1).num_columns == 1


def test_columns_cost_more_in_a_batch() -> None:
    costs = [column_cost(rows) for rows in (1, 8, 64, 10_000)]
    assert costs == sorted(costs)
    assert costs[-1] < 1
    assert plan([0.5, 0.5], rate=0.5, longest=4, cost=0.9).num_columns == 1
