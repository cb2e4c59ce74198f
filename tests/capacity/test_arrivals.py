"""Loads: rate, queries that come again, and the requests of the benchmark of arrivals."""

from __future__ import annotations

from dataclasses import replace

import pytest

from itemwise.bench.serving.traffic import Workload
from itemwise.capacity.arrivals import Load, replayed
from itemwise.errors import ConfigError
from tests.capacity.small import LOAD


def test_requests_come_at_the_rate_and_with_the_share_of_repeats() -> None:
    arrivals = list(replace(LOAD, repeat_within_s=1e9).arrivals(4000))
    assert 4000 / arrivals[-1].at == pytest.approx(LOAD.rate, rel=0.05)
    queries = {arrival.request.query.tobytes() for arrival in arrivals}
    assert 1 - len(queries) / 4000 == pytest.approx(LOAD.repeat_share, abs=0.03)
    assert {len(arrival.request.items) for arrival in arrivals} == {LOAD.num_items}


def test_query_is_forgotten_in_time() -> None:
    arrivals = list(replace(LOAD, repeat_share=0.9, repeat_within_s=0.1).arrivals(500))
    last = dict[bytes, float]()
    for arrival in arrivals:
        query = arrival.request.query.tobytes()
        assert arrival.at - last.get(query, arrival.at) <= 0.1
        last[query] = arrival.at


def test_replayed_requests_are_those_of_the_benchmark() -> None:
    workload = Workload(500, num_items=2, item_tokens=3, query_tokens=5)
    first, second = replayed(workload, 10.0, 2)
    assert first.request.query.tolist() == workload.body(0)["query"]
    assert second.request.items[1].tolist() == workload.body(1)["items"][1]
    assert 0 < first.at < second.at


def test_all_problems_of_a_load_are_named() -> None:
    with pytest.raises(ConfigError, match="`rate` is 0.*`repeat_share` is 2"):
        Load(0, 1, 1, 1, repeat_share=2)
