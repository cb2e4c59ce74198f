"""The page at `/docs`: whole, of this host alone, and safe against what a schema may hold."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest

from itemwise.config import ServerConfig
from itemwise.server.api_page import api_page
from itemwise.server.app import create_app
from tests.server.fakes import FakeScorer, get, running_server, wait_until

VOID = {"meta", "input"}


class Page(HTMLParser):
    """Checks that tags close in order, and notes attributes and texts by tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture(scope="module")
def answer() -> Iterator[httpx.Response]:
    with running_server(ServerConfig("org/fake-model", api_key="k"), FakeScorer) as url:
        wait_until(lambda: get(f"{url}/health").status_code == 200)
        pages = httpx.get(f"{url}/redoc", headers={"Authorization": "Bearer k"}, timeout=60)
        assert pages.status_code == 404
        yield get(f"{url}/docs")


def test_page_shows_every_operation_and_field(answer: httpx.Response) -> None:
    page = Page(answer.text)
    schema = create_app(ServerConfig("m"), FakeScorer).openapi()
    operations = {(m.upper(), p) for p, methods in schema["paths"].items() for m in methods}
    assert set(zip(page.texts["b"], page.texts["span"], strict=True)) == operations
    body = schema["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]
    choices = body["schema"].get("anyOf", [body["schema"]])
    assert {name for one in choices for name in one["properties"]} <= set(page.texts["code"])
    assert "list of list of integer" in answer.text
    examples = [json.loads(text) for text in page.texts["textarea"]]
    assert [one["examples"][0] for one in choices if "examples" in one][0] in examples


def test_page_loads_nothing_from_anywhere(answer: httpx.Response) -> None:
    page = Page(answer.text)
    loading = {"src", "href", "action", "srcset", "style", "data", "background", "poster"}
    loaded = [value for _, name, value in page.attributes if name in loading]
    assert loaded == ["openapi.json"]
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "http:" not in answer.text
    assert "https:" not in answer.text
    assert "url(" not in answer.text


def test_policy_allows_the_pages_own_script_and_style_alone(answer: httpx.Response) -> None:
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        (text,) = re.findall(f"<{tag}>(.*?)</{tag}>", answer.text, re.S)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert "unsafe" not in str(policy)


def test_only_a_server_with_a_key_asks_for_one(answer: httpx.Response) -> None:
    assert 'id="key"' in answer.text
    assert 'id="key"' not in api_page(create_app(ServerConfig("m"), FakeScorer).openapi())


def test_texts_of_a_schema_stay_texts() -> None:
    hostile = "</textarea><script>alert(1)</script>\"'&`<b>`"
    field = {"type": hostile, "description": hostile, "default": hostile}
    body = {"properties": {hostile: field}, "examples": [{hostile: hostile}]}
    content: dict[str, Any] = {"content": {"application/json": {"schema": body}}}
    operation = {"description": hostile, "requestBody": content, "responses": {hostile: {}}}
    info = {"title": hostile, "version": hostile, "summary": hostile}
    page = Page(api_page({"info": info, "paths": {f"/{hostile}": {"post": operation}}}))
    assert len(page.texts["script"]) == 1
    assert page.texts["textarea"] == [json.dumps({hostile: hostile})]
    assert ("form", "data-path", hostile) in page.attributes


def test_paths_below_a_prefix_and_references_are_understood() -> None:
    part = {"properties": {"score": {"type": "number"}}}
    body = {"$ref": "#/$defs/Inner", "$defs": {"Inner": part}}
    content: dict[str, Any] = {"content": {"application/json": {"schema": body}}}
    paths = {"/v1/models/{id}": {"get": {"responses": {"200": content}}}, "/live": {"get": {}}}
    page = Page(api_page({"info": {"title": "t", "version": "1"}, "paths": paths}))
    assert page.texts["code"] == ["score"]
    assert [v for _, name, v in page.attributes if name == "data-path"] == ["live"]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_script_sends_the_form_and_shows_the_answer(answer: httpx.Response) -> None:
    """The script itself, on a stand-in for the browser's objects."""
    (script,) = re.findall("<script>(.*?)</script>", answer.text, re.S)
    stage = """
    const output = {}, body = {value: '{"a": 1}'}, key = {value: "k"};
    const form = {
      dataset: {path: "v1/score", method: "POST"},
      querySelector: (name) => ({output, textarea: body})[name],
      addEventListener: (name, run) => { form.run = run; },
    };
    globalThis.document = {querySelectorAll: () => [form], querySelector: () => key};
    globalThis.fetch = async (path, options) => {
      console.log(JSON.stringify([path, options]));
      return {status: 200, statusText: "OK", text: async () => "<b>answer</b>"};
    };
    """
    run = "form.run({preventDefault() {}}).then(() => console.log(output.textContent));"
    command = ["node", "-e", stage + script + run]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    sent, *shown = done.stdout.splitlines()
    path, options = json.loads(sent)
    assert path == "v1/score"
    assert (options["method"], options["body"]) == ("POST", '{"a": 1}')
    assert options["headers"] == {
        "Content-Type": "application/json",
        "Authorization": "Bearer k",
    }
    assert shown == ["200 OK", "<b>answer</b>"]
