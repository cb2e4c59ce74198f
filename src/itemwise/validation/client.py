"""A client of scoring servers: Itemwise and SGLang (`/v1/score`), vLLM (`/generative_scoring`).

The formats, as in their sources:

- SGLang: `ScoringRequest` and `ScoringResponse` in python/sglang/srt/entrypoints/openai/protocol.py
  and serving_score.py of sgl-project/sglang: `query items label_token_ids apply_softmax item_first
  model` in, `scores` [items][labels] out.
- vLLM: vllm/entrypoints/openai/generative_scoring/serving.py of vllm-project/vllm, and "Generative
  Scoring" in its documentation (docs.vllm.ai, online serving): nearly the same request; `data` out,
  with an `index` and one `score` per item, only the probability of the first label.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from itemwise.errors import ConfigError, EndpointError, RequestRefusedError
from itemwise.validation.files import Json
from itemwise.validation.measures import Scores

Dialect = Literal["sglang", "vllm"]
PATHS: dict[Dialect, str] = {"sglang": "/v1/score", "vllm": "/generative_scoring"}
INFO_PATHS = ("/server_info", "/get_server_info")
INFO_TIMEOUT_S = 10.0
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class ScoreClient:
    """Scores through one server's HTTP API, one request at a time.

    Args:
        url: of the scoring endpoint, or of the server.
        model: the model name in requests; None for none.
        dialect: `sglang` or `vllm`.
        api_key: sent as a bearer token.
        timeout_s: maximum seconds from a request to the end of its answer.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        dialect: Dialect = "sglang",
        api_key: str | None = None,
        timeout_s: float = 600.0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"`url` is {url!r}, expected http://HOST:PORT{PATHS[dialect]}")
        self.root = f"{parts.scheme}://{parts.netloc}"
        self.url = url if parts.path.strip("/") else self.root + PATHS[dialect]
        self.model = model
        self.dialect = dialect
        self.timeout_s = timeout_s
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=timeout_s,
            # Certificates are slow to load, and a proxy cannot reach this machine's own servers.
            verify=parts.scheme == "https",
            trust_env=parts.hostname not in _LOOPBACK,
        )

    def __enter__(self) -> ScoreClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def score(
        self,
        query: Sequence[int],
        items: Sequence[Sequence[int]],
        labels: Sequence[int],
        *,
        apply_softmax: bool = True,
        **more: Any,
    ) -> Scores:
        """Scores as the server sent them, [items][labels]; with vLLM, of the first label only.

        Raises:
            RequestRefusedError: the server refuses this request.
            EndpointError: the server is unreachable, too slow or failing, or its answer has another
                format.
        """
        body = {
            "query": list(query),
            "items": [list(item) for item in items],
            "label_token_ids": list(labels),
            "apply_softmax": apply_softmax,
            "item_first": False,
            **more,
        }
        if self.model is not None:
            body["model"] = self.model
        answer = self._post(body)
        scores: Any = _vllm_scores(answer) if self.dialect == "vllm" else answer.get("scores")
        if not _is_scores(scores, len(items)):
            raise EndpointError(
                f"{self.url} answered {json.dumps(answer)[:200]}, expected a row of scores for "
                f"each of {len(items)} items; is --dialect {self.dialect} right?"
            )
        return [[float(score) for score in row] for row in scores]

    def info(self) -> Json | None:
        """The server's description of itself, or None if it gives none."""
        for path in INFO_PATHS:
            try:
                answer = self._http.get(self.root + path, timeout=INFO_TIMEOUT_S)
                found = answer.json() if answer.status_code == httpx.codes.OK else None
            except (httpx.HTTPError, ValueError):
                continue
            if isinstance(found, dict):
                return found
        return None

    def _post(self, body: Json) -> Json:
        deadline = time.perf_counter() + self.timeout_s
        late = EndpointError(
            f"{self.url} did not answer within {self.timeout_s:g} s; raise --timeout, or use "
            "fewer items with --item-counts"
        )
        content = bytearray()
        try:
            with self._http.stream("POST", self.url, json=body) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if time.perf_counter() > deadline:
                        raise late
        except httpx.TimeoutException as error:
            raise late from error
        except httpx.ConnectError as error:
            raise EndpointError(
                f"{self.url} cannot be reached ({error}); is the server running there?"
            ) from error
        except httpx.HTTPError as error:
            raise EndpointError(
                f"the connection to {self.url} was lost during a request "
                f"({error or type(error).__name__}); the server's log may say why"
            ) from error
        return self._read(response.status_code, bytes(content))

    def _read(self, status: int, content: bytes) -> Json:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if status != httpx.codes.OK:
            raise self._refusal(status, answer, content)
        if not isinstance(answer, dict):
            raise EndpointError(f"{self.url} answered {content[:200]!r}, expected a JSON object")
        return answer

    def _refusal(self, status: int, answer: Any, content: bytes) -> EndpointError:
        reason, text = _reason(answer)
        text = text or content[:200].decode(errors="replace")
        message = f"{self.url} answered {status}: {text}"
        if reason == "token_id_exceeds_vocab" or (status in (400, 422) and "vocab" in text.lower()):
            message += ". The workload does not fit this model's vocabulary: give another with "
            message += "--workload demo or --workload FILE"
        if status in (401, 403):
            message += ". Give the server's key with --api-key"
        if 400 <= status < 500 and status not in (401, 403, 404, 405, 408, 429):
            return RequestRefusedError(message, status, reason)
        return EndpointError(message)


def _vllm_scores(answer: Json) -> Any:
    """Rows of one score in the order of the items; None if the answer has another format."""
    data = answer.get("data")
    if not (isinstance(data, list) and all(isinstance(one, dict) for one in data)):
        return None
    by_index = {one.get("index"): one.get("score") for one in data}
    if set(by_index) != set(range(len(data))):
        return None
    return [[by_index[index]] for index in range(len(data))]


def _is_scores(scores: Any, num_items: int) -> bool:
    return (
        isinstance(scores, list)
        and len(scores) == num_items
        and all(isinstance(row, list) and row for row in scores)
        and all(_is_number(x) for row in scores for x in row)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _reason(answer: Any) -> tuple[str | None, str | None]:
    """The stable code and the text of an error body, in OpenAI's format or SGLang's."""
    if not isinstance(answer, dict):
        return None, None
    inner = answer.get("error")
    for body in (inner, answer):
        if isinstance(body, dict) and isinstance(body.get("message"), str):
            code = body.get("code")
            return code if isinstance(code, str) else None, body["message"]
    return None, json.dumps(answer)[:300]
