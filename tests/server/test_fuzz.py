"""Any body and any header gets an answer that is no 500, and the server is as well as before.

A few hundred cases by default; `--fuzz-cases 10000` runs as many.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from itemwise.bench.serving.client import Client, Reply, loopback_address
from itemwise.config import ServerConfig
from itemwise.dialects.score import ScoreBody
from itemwise.server.errors import STATUS_OF_CODE
from tests.server.fakes import GOOD, GOOD_SCORES, FakeScorer, get, post, running_server, wait_until

# The scorer's planted faults begin with these tokens; nobody else may see a 500.
ALLOWED = {200, *STATUS_OF_CODE.values()} - {500, 499}
ANSWER_S = 10


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    config = ServerConfig("org/fake-model", max_body_bytes=200_000)
    with running_server(config, FakeScorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made
        assert post(made, GOOD).json()["scores"] == GOOD_SCORES


def ask(url: str, body: bytes) -> Reply:
    async def once() -> Reply:
        client = Client(loopback_address(url))
        try:
            return await asyncio.wait_for(client.request("POST", "/v1/score", body), ANSWER_S)
        finally:
            client.close()

    return asyncio.run(once())


def check(reply: Reply) -> None:
    answer = json.loads(reply.body)
    assert reply.status in ALLOWED, answer
    if reply.status == 200:
        assert isinstance(answer["scores"], list)
    else:
        assert STATUS_OF_CODE[answer["error"]["code"]] == reply.status
    assert reply.headers["x-request-id"]


def by_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that a JSON schema allows, as far as the bodies' schema goes; ids are often known."""
    if "anyOf" in schema:
        return st.one_of([by_schema(each) for each in schema["anyOf"]])
    match schema["type"]:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "string":
            return st.text(max_size=8) | st.sampled_from(["w1", "w2 w3", "default", ""])
        case "integer":
            low = schema.get("minimum", -2)
            return st.integers(low, 900) | st.integers(low, 1100)
        case "number":
            return st.floats(allow_nan=False, allow_infinity=False) | st.floats(1e-3, 100)
        case "array":
            return st.lists(by_schema(schema["items"]), max_size=5)
        case "object":
            required = set(schema["required"])
            fields = {name: by_schema(each) for name, each in schema["properties"].items()}
            return st.fixed_dictionaries(
                {name: each for name, each in fields.items() if name in required},
                optional={name: each for name, each in fields.items() if name not in required},
            )
    raise NotImplementedError(schema)


BODIES = by_schema(ScoreBody.model_json_schema())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def test_bodies_by_the_schema(url: str, fuzz_cases: int) -> None:
    @given(body=BODIES)
    @settings(max_examples=fuzz_cases // 3, suppress_health_check=list(HealthCheck))
    def case(body: dict[str, Any]) -> None:
        check(ask(url, json.dumps(body).encode()))

    case()


def test_bodies_with_one_field_off_the_schema(url: str, fuzz_cases: int) -> None:
    fields = sorted(ScoreBody.model_fields)

    @given(name=st.sampled_from(fields), value=VALUES)
    @settings(max_examples=fuzz_cases // 3, suppress_health_check=list(HealthCheck))
    def case(name: str, value: Any) -> None:
        check(ask(url, json.dumps({**GOOD, name: value}).encode()))

    case()


def test_bodies_with_bytes_changed(url: str, fuzz_cases: int) -> None:
    rng = random.Random(0)
    good = json.dumps({**GOOD, "timeout_s": 5, "priority": 1, "temperature": 0.5}).encode()
    for _ in range(fuzz_cases // 3):
        body = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(body))
            change = rng.randrange(3)
            if change == 0:
                body[at] = rng.randrange(256)
            elif change == 1:
                del body[at:]
                body += b" "
            else:
                body[at:at] = rng.choice([b"[", b"]", b"{", b'"', b"-", b"1e999", b"null", b"\x00"])
        check(ask(url, bytes(body)))
