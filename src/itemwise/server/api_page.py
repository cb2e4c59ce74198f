"""The page at `/docs`: the API as its OpenAPI schema describes it, with forms to try it.

It is one page of plain HTML. Nothing comes from other hosts, so it works offline and tells nobody
who reads it; its policy lets the browser run nothing but the page's own script.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

Schema = dict[str, Any]
_STYLE = (Path(__file__).parent / "api_page.css").read_text(encoding="utf-8")
_SCRIPT = (Path(__file__).parent / "api_page.js").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(_STYLE)}",
            f"script-src {_hash(_SCRIPT)}",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def api_page(schema: Schema) -> str:
    """The HTML of an OpenAPI schema; send it with `HEADERS`."""
    info = schema["info"]
    title = escape(f"{info['title']} {info['version']}")
    return "".join(
        (
            f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style></head><body><h1>{title}</h1>",
            f"<p>{_text(info.get('summary', ''))} ",
            '<a href="openapi.json">openapi.json</a> has the same for programs.</p>',
            *_key(schema),
            *_operations(schema),
            f"<script>{_SCRIPT}</script></body></html>",
        )
    )


def _key(schema: Schema) -> Iterator[str]:
    if schema.get("components", {}).get("securitySchemes"):
        yield '<p><label>API key <input id="key" type="password" autocomplete="off"></label></p>'


def _operations(schema: Schema) -> Iterator[str]:
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield f"<h2><b>{escape(method.upper())}</b> <span>{escape(path)}</span></h2>"
            yield f"<p>{_text(operation.get('description', ''))}</p>"
            body = _body(operation.get("requestBody"))
            for choice in _choices(body):
                yield from _fields("Body", choice, schema)
            yield from _answers(operation.get("responses", {}), schema)
            yield from _form(method, path, body)


def _answers(responses: Schema, schema: Schema) -> Iterator[str]:
    for choice in _choices(_body(responses.get("200"))):
        yield from _fields("Answer", choice, schema)
    codes = [f"<code>{escape(code)}</code>" for code in responses if code != "200"]
    if codes:
        yield f"<p>Errors: {', '.join(codes)}</p>"


def _form(method: str, path: str, body: Schema | None) -> Iterator[str]:
    if "{" in path:
        return
    # Relative, so that it works below a path that a proxy removes.
    yield f'<form data-method="{escape(method.upper())}" data-path="{escape(path.lstrip("/"))}">'
    if body is not None:
        examples = [each for one in _choices(body) for each in one.get("examples", [])] or [{}]
        text = escape(json.dumps(examples[0], ensure_ascii=False))
        yield f'<textarea rows="5" aria-label="Body" spellcheck="false">{text}</textarea>'
    yield "<button>Send</button><output></output></form>"


def _body(holder: Schema | None) -> Schema | None:
    """The schema of a JSON body."""
    content = (holder or {}).get("content", {}).get("application/json", {})
    found: Schema | None = content.get("schema")
    return found


def _choices(body: Schema | None) -> list[Schema]:
    """The schemas that a body may have: of each wire format at its path."""
    return [] if body is None else body.get("anyOf", [body])


def _fields(title: str, body: Schema, schema: Schema) -> Iterator[str]:
    found = _resolved(body, body, schema)
    if not found.get("properties"):
        return
    yield f"<table><thead><tr><th>{title}</th><th>Type</th><th></th></tr></thead><tbody>"
    required = found.get("required", [])
    for name, field in found["properties"].items():
        text = _text(field.get("description", ""))
        if "default" in field:
            text += f" Default: <code>{escape(json.dumps(field['default']))}</code>."
        star = " *" if name in required and title == "Body" else ""
        kind = escape(_type(field))
        yield f"<tr><td><code>{escape(name)}</code>{star}</td><td>{kind}</td><td>{text}</td></tr>"
    yield "</tbody></table>"


def _resolved(part: Schema, body: Schema, schema: Schema) -> Schema:
    """`part`, or what it refers to: a definition of the body, or a component of the API."""
    if "$ref" not in part:
        return part
    name = part["$ref"].rpartition("/")[2]
    components: Schema = schema.get("components", {}).get("schemas", {})
    found: Schema = {**components, **body.get("$defs", {})}.get(name, {})
    return found


def _type(field: Schema) -> str:
    """A type in words, like `list of integer or null`."""
    if "$ref" in field:
        return str(field["$ref"].rpartition("/")[2])
    if "const" in field or "enum" in field:
        return " or ".join(json.dumps(v) for v in field.get("enum", [field.get("const")]))
    choices = field.get("anyOf") or field.get("oneOf")
    if choices:
        return " or ".join(map(_type, choices))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}))}"
    return str(field.get("type", "any"))


def _text(text: str) -> str:
    """Text as HTML, with its `code` marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
