"""The playground's files: small, of this host alone, open without a key, and only if wanted."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from itemwise.config import ServerConfig
from itemwise.server.playground import FOLDER, playground_files
from tests.server.fakes import GOOD, FakeScorer, get, post, running_server, send, wait_until

MAX_BYTES = 150_000
KEY = {"Authorization": "Bearer k"}
REPORT = "<!doctype html><title>Validation of a model</title>"


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    for name in ("demo-20261126", "other model"):
        (folder / name).mkdir()
        (folder / name / "index.html").write_text(REPORT)
        (folder / name / "result.json").write_text("{}")
        (folder / name / "server.log").write_text("planted")
    (folder / "no-report").mkdir()
    (folder / "secret.html").write_text("planted")
    (folder / "link").symlink_to(folder.parent)
    return folder


@pytest.fixture(scope="module")
def url(reports: Path) -> Iterator[str]:
    config = ServerConfig("org/fake-model", api_key="k", reports_dir=str(reports))
    with running_server(config, FakeScorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        yield made


def test_page_is_small_and_complete() -> None:
    files = playground_files()
    assert len(files) == len(list(FOLDER.iterdir()))
    assert sum(len(file.content) for file in files.values()) < MAX_BYTES
    page = files["/"].content.decode()
    wanted = set(re.findall(r'(?:href|src)="(playground/[^"]+)"', page))
    for at, file in files.items():
        if at.endswith(".js"):
            wanted |= {
                f"playground/{each}"
                for each in re.findall(r'from "\./([^"]+)"', file.content.decode())
            }
    assert {f"/{each}" for each in wanted} == files.keys() - {"/"}


def test_nothing_names_another_host_or_makes_markup_of_text() -> None:
    for at, file in playground_files().items():
        text = file.content.decode().replace(
            "http://www.w3.org/", ""
        )  # names of XML, not addresses
        assert "://" not in text, at
        assert not re.search(r"\burl\(", text), at
        unsafe = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function"
        assert not re.search(unsafe, text), at
        assert not re.search(r"localStorage|sessionStorage|cookie|indexedDB", text), at
    page = playground_files()["/"].content.decode()
    assert not re.search(r"<style|<script(?![^>]* src=)|\sstyle=|\son\w+=", page)


@pytest.mark.parametrize("at", sorted(playground_files()))
def test_files_are_open_without_a_key_and_kept_until_they_change(url: str, at: str) -> None:
    answer = get(f"{url}{at}")
    assert (answer.status_code, answer.content) == (200, playground_files()[at].content)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    kept = get(f"{url}{at}", {"If-None-Match": answer.headers["etag"]})
    assert (kept.status_code, kept.content) == (304, b"")
    assert get(f"{url}{at}", {"If-None-Match": '"older"'}).status_code == 200
    assert send("HEAD", f"{url}{at}").headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    "at",
    [
        "/playground",
        "/playground/",
        "/playground/index.html",
        "/playground/../app.py",
        "/index.html",
    ],
)
def test_other_paths_ask_for_the_key(url: str, at: str) -> None:
    assert httpx.get(f"{url}{at}").status_code == 401
    assert httpx.get(f"{url}{at}", headers=KEY).status_code == 404


def test_page_can_be_left_out() -> None:
    with running_server(
        ServerConfig("m", api_key="k", disable_playground=True), FakeScorer
    ) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        for at in playground_files():
            assert get(f"{made}{at}").status_code == 401
            assert get(f"{made}{at}", KEY).status_code == 404
        assert get(f"{made}/docs").status_code == 200


def test_scored_answers_count_their_tokens(url: str) -> None:
    headers = post(url, GOOD, KEY).headers
    counts = [int(headers[f"x-{name}-tokens"]) for name in ("prompt", "shared", "cached")]
    assert counts == [6, 2, 0]
    assert "x-prompt-tokens" not in get(f"{url}/server_info", KEY).headers
    assert "x-prompt-tokens" not in post(url, {**GOOD, "items": []}, KEY).headers


def test_files_of_the_page_are_not_logged(url: str, caplog: pytest.LogCaptureFixture) -> None:
    def paths() -> str:
        return " ".join(each.message for each in caplog.records if each.name == "itemwise.access")

    with caplog.at_level(logging.INFO, "itemwise.access"):
        for at in ("/playground/app.js", "/", "/playground/nothing.js"):
            get(f"{url}{at}", KEY)
        wait_until(lambda: "nothing.js" in paths())
    assert "path='/' status=200" in paths()
    assert "app.js" not in paths()


def test_reports_are_listed_and_shown_to_those_with_the_key(url: str) -> None:
    assert get(f"{url}/server_info", KEY).json()["reports"] == ["demo-20261126", "other model"]
    for at in ("reports/demo-20261126/", "reports/other%20model/"):
        assert get(f"{url}/{at}").status_code == 401
        answer = get(f"{url}/{at}", KEY)
        assert (answer.status_code, answer.text) == (200, REPORT)
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "sandbox" in answer.headers["content-security-policy"]
    assert get(f"{url}/reports/demo-20261126/result.json", KEY).json() == {}


@pytest.mark.parametrize(
    "at",
    [
        "demo-20261126/server.log",
        "demo-20261126/nothing.json",
        "no-report/",
        "nothing/",
        "..%2f..%2fetc/",
        "%2e%2e/",
        "link/",
        "link/index.html",
        "demo-20261126/..%2fsecret.html",
        "secret.html",
        "%00/",
        "a" * 300 + "/",
    ],
)
def test_nothing_but_reports_can_be_read(url: str, at: str) -> None:
    answer = get(f"{url}/reports/{at}", KEY)
    assert answer.status_code == 404
    assert "planted" not in answer.text


def test_without_a_folder_there_are_no_reports() -> None:
    with running_server(ServerConfig("m"), FakeScorer) as made:
        wait_until(lambda: get(f"{made}/health").status_code == 200)
        info = get(f"{made}/server_info").json()
        assert info["reports"] == []
        assert "reports_dir" not in info["server"]
        assert get(f"{made}/reports/demo/").status_code == 404
