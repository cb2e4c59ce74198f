"""Routes about the server: SGLang's names, HEAD, other origins, a path of a proxy."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from itemwise.config import ServerConfig
from itemwise.errors import ConfigError
from itemwise.server.service import AnyScorer
from tests.server.fakes import (
    GOOD,
    GOOD_SCORES,
    FakeScorer,
    get,
    post,
    running_server,
    send,
    wait_until,
)

ORIGIN = "http://localhost:5173"
KEY = {"Authorization": "Bearer key"}


@pytest.fixture(scope="module")
def scorer() -> FakeScorer:
    return FakeScorer()


@pytest.fixture(scope="module")
def url(scorer: FakeScorer) -> Iterator[str]:
    def load() -> AnyScorer:
        return scorer

    with running_server(ServerConfig("org/fake-model"), load) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


@pytest.fixture(scope="module")
def proxied() -> Iterator[str]:
    config = ServerConfig(
        "org/fake-model", api_key="key", root_path="/scores", allowed_origins=ORIGIN
    )
    with running_server(config, FakeScorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


@pytest.mark.parametrize("path", ["/health", "/live", "/metrics", "/v1/models", "/server_info"])
def test_head_has_the_status_of_get(url: str, path: str) -> None:
    head, full = send("HEAD", url + path), get(url + path)
    assert (head.status_code, head.content) == (full.status_code, b"")
    assert head.headers["content-type"] == full.headers["content-type"]


def test_head_of_a_scoring_route_is_not_allowed(url: str) -> None:
    assert send("HEAD", f"{url}/v1/score").status_code == 405


def test_names_of_sglang_have_the_same_answers(url: str) -> None:
    assert get(f"{url}/health_generate").json() == get(f"{url}/health").json()
    known = get(f"{url}/get_server_info").json()
    assert known.keys() == get(f"{url}/server_info").json().keys()
    assert (known["model_path"], known["internal_states"]) == ("org/fake-model", [])
    for path in ("/get_model_info", "/model_info"):
        assert get(url + path).json()["model_path"] == "org/fake-model"


def test_models_name_the_profile_in_use(url: str) -> None:
    body = get(f"{url}/v1/models").json()
    assert body["data"][0]["profile"] == {"name": "fake", "why": "planted"}
    assert body["data"][0]["decision_profile"] == {"name": "words", "why": "planted"}
    (named,) = body["models"]
    assert named["name"] == "org/fake-model"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", named["release_date"])
    for name in ("org/fake-model", "default"):
        assert get(f"{url}/v1/models/{name}").json() == body["data"][0]
    unknown = get(f"{url}/v1/models/other")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")


def test_cache_is_emptied_on_the_thread_of_the_engine(url: str, scorer: FakeScorer) -> None:
    before = scorer.engine.num_forgotten
    answer = send("POST", f"{url}/flush_cache")
    assert (answer.status_code, scorer.engine.num_forgotten) == (200, before + 1)
    assert "flushed" in answer.text
    assert post(url, GOOD).json()["scores"] == GOOD_SCORES
    assert len(scorer.engine.threads) == 1


def test_errors_of_rerank_have_their_own_shape(url: str) -> None:
    body = send("POST", f"{url}/rerank", json={"documents": ["w1"]}).json()
    assert body["detail"] == body["message"] == body["error"]["message"]
    tei = send("POST", f"{url}/rerank", json={"texts": ["w1"]}).json()
    assert "`query`" in tei["error"]
    early = send("POST", f"{url}/rerank", content=b"{").json()
    assert early["detail"] == early["message"]


def test_browser_of_an_allowed_origin_may_ask(proxied: str) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
    for origin, allowed in ((ORIGIN, ORIGIN), ("http://elsewhere", None)):
        answer = send("OPTIONS", f"{proxied}/v1/score", headers={"Origin": origin, **asks})
        assert answer.headers.get("access-control-allow-origin") == allowed
        assert (answer.status_code == 200) is (allowed is not None)
    scored = post(proxied, GOOD, {"Origin": ORIGIN, **KEY})
    assert scored.headers["access-control-allow-origin"] == ORIGIN
    refused = post(proxied, GOOD, {"Origin": ORIGIN})  # the page must be able to read the error
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ORIGIN)


def test_no_origin_is_allowed_by_default(url: str) -> None:
    headers = {"Origin": ORIGIN, "Access-Control-Request-Method": "POST"}
    answer = send("OPTIONS", f"{url}/v1/score", headers=headers)
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("prefix", ["", "/scores"])
def test_proxy_may_take_its_path_off_or_leave_it(proxied: str, prefix: str) -> None:
    page = get(f"{proxied}{prefix}/docs").text
    assert 'href="openapi.json"' in page  # relative, so it is below the proxy's path
    scored = post(proxied + prefix, GOOD, KEY)
    assert scored.json()["scores"] == GOOD_SCORES
    refused = post(proxied + prefix, GOOD)
    assert refused.json()["error"]["code"] == "invalid_api_key"
    error = send("POST", f"{proxied}{prefix}/rerank", json={}, headers=KEY).json()
    assert error["detail"]


@pytest.mark.parametrize("path", ["scores", "/scores/", "/"])
def test_root_path_is_checked(path: str) -> None:
    with pytest.raises(ConfigError, match="root_path"):
        ServerConfig(root_path=path)


@pytest.mark.parametrize(
    ("text", "allowed"), [("*", "*"), (f'["{ORIGIN}", "http://b"]', "http://b")]
)
def test_origins_may_be_a_list_or_all(text: str, allowed: str) -> None:
    with running_server(ServerConfig("m", allowed_origins=text), FakeScorer) as url:
        answer = get(f"{url}/live", {"Origin": "http://b"})
        assert answer.headers["access-control-allow-origin"] == allowed
