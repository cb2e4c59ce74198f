"""Which replica takes a request: agreement, little movement, and a bound on overload."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import pytest

from itemwise.routing import (
    POLICIES,
    Policy,
    PolicyName,
    PrefixAware,
    TwoChoices,
    preferred,
    query_key,
)

NAMES = [f"replica-{number}" for number in range(8)]
KEYS = [query_key([number, 7]) for number in range(2000)]


def idle(names: Sequence[str]) -> list[float]:
    return [0.0] * len(names)


@pytest.mark.parametrize("name", POLICIES)
def test_choices_are_replicas_and_repeat_with_the_seed(name: PolicyName) -> None:
    def choices() -> list[int]:
        policy: Policy = POLICIES[name](3)
        return [policy.choose(key, NAMES, idle(NAMES)) for key in KEYS]

    assert choices() == choices()
    assert set(choices()) == set(range(len(NAMES)))
    assert POLICIES[name](0).choose(KEYS[0], NAMES[:1], [9.0]) == 0


def test_routers_agree_whatever_their_seed_and_the_order_of_replicas() -> None:
    shuffled = random.Random(0).sample(NAMES, len(NAMES))
    for key in KEYS[:200]:
        one = NAMES[PrefixAware(seed=1).choose(key, NAMES, idle(NAMES))]
        other = shuffled[PrefixAware(seed=2).choose(key, shuffled, idle(NAMES))]
        assert one == other == NAMES[preferred(key, NAMES)[0]]


def test_key_is_the_same_in_every_process() -> None:
    code = "from itemwise.routing import query_key; print(query_key('a query').hex())"
    run = [sys.executable, "-c", code]
    others = {subprocess.check_output(run, text=True).strip() for _ in range(2)}
    assert others == {query_key("a query").hex()}
    assert query_key([1, 2]) != query_key([2, 1])


def test_keys_spread_evenly() -> None:
    counts = Counter(preferred(key, NAMES)[0] for key in KEYS)
    assert len(counts) == len(NAMES)
    assert max(counts.values()) < 1.3 * len(KEYS) / len(NAMES)


def test_replica_that_leaves_moves_its_own_keys_alone_and_to_the_next_of_their_order() -> None:
    left = NAMES[:3] + NAMES[4:]
    for key in KEYS[:300]:
        order = [NAMES[place] for place in preferred(key, NAMES)]
        order.remove(NAMES[3])
        assert [left[place] for place in preferred(key, left)] == order


def test_overloaded_replica_hands_on_to_the_next_of_the_order() -> None:
    policy, key = PrefixAware(slack=2), KEYS[0]
    order, loads = preferred(key, NAMES), idle(NAMES)
    loads[order[0]] = 2.2  # the mean is 0.275
    assert policy.choose(key, NAMES, loads) == order[0]
    loads[order[0]] = 2.4
    assert policy.choose(key, NAMES, loads) == order[1]
    loads[order[0]] = loads[order[1]] = 3.0
    assert policy.choose(key, NAMES, loads) == order[2]


def test_load_that_all_have_moves_nothing() -> None:
    assert all(
        PrefixAware().choose(key, NAMES, [50.0] * 8) == preferred(key, NAMES)[0] for key in KEYS
    )


def test_popular_query_overloads_nobody_and_stays_on_few_replicas() -> None:
    policy, loads, key, served = PrefixAware(slack=2), idle(NAMES), KEYS[0], Counter[int]()
    for _ in range(12):
        place = policy.choose(key, NAMES, loads)
        loads[place] += 1
        served[place] += 1
    assert max(loads) <= sum(loads) / len(loads) + 3  # the bound, and the request that came then
    assert set(served) == set(preferred(key, NAMES)[: len(served)])
    assert len(served) <= 6


def test_two_choices_prefer_the_less_loaded() -> None:
    policy, loads = TwoChoices(), [float(number) for number in range(8)]
    counts = Counter(policy.choose(None, NAMES, loads) for _ in range(4000))
    assert counts[7] == 0
    assert counts[0] / 4000 == pytest.approx(0.25, abs=0.03)  # it is among two of eight


def test_without_a_key_the_prefix_policy_takes_two_choices() -> None:
    loads = [float(number % 3) for number in range(8)]
    ours, theirs = PrefixAware(seed=5), TwoChoices(5)
    for _ in range(50):
        assert ours.choose(None, NAMES, loads) == theirs.choose(None, NAMES, loads)


def test_negative_slack_is_refused() -> None:
    with pytest.raises(ValueError, match="`slack` is -1"):
        PrefixAware(slack=-1)
