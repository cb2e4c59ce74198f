"""Ranks with one client of another server, and provokes an error. Has an environment of its own.

    python rank_with.py CLIENT URL    prints {"indices", "scores", "error"} as JSON

Each client is a function that returns (index, score) of each document, best first.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

QUERY = "desk lamps"
DOCUMENTS = ["Tea kettle", "Brass lamp for the desk", "Desk with drawers", "Lamps for any desk"]
TOO_LONG = "desk lamps " * 3000
Ranked = list[tuple[int, float]]
Rank = Callable[[str, str], Ranked]
MODEL = "default"


def cohere(url: str, query: str) -> Ranked:
    import cohere

    client = cohere.ClientV2(api_key="key", base_url=url)
    found = client.rerank(model=MODEL, query=query, documents=DOCUMENTS, top_n=4)
    return [(result.index, result.relevance_score) for result in found.results]


def litellm(provider: str, path: str = "") -> Rank:
    def rank(url: str, query: str) -> Ranked:
        import litellm

        found = litellm.rerank(
            model=f"{provider}/{MODEL}",
            query=query,
            documents=DOCUMENTS,
            top_n=4,
            api_base=url + path,
            api_key="key",
            max_retries=0,
        )
        return [(result["index"], result["relevance_score"]) for result in found.results]

    return rank


def llama_index_tei(url: str, query: str) -> Ranked:
    from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
    from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

    ranker = TextEmbeddingInference(base_url=url, top_n=4)
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in DOCUMENTS]
    found = ranker.postprocess_nodes(nodes, QueryBundle(query))
    return [(DOCUMENTS.index(node.text), float(node.score or 0.0)) for node in found]


def jina_haystack(url: str, query: str) -> Ranked:
    from haystack import Document
    from haystack.utils import Secret
    from haystack_integrations.components.rankers.jina import JinaRanker

    ranker = JinaRanker(model=MODEL, api_key=Secret.from_token("key"), base_url=f"{url}/v1/rerank")
    found = ranker.run(query, [Document(content=text) for text in DOCUMENTS])["documents"]
    return [(DOCUMENTS.index(document.content or ""), document.score or 0.0) for document in found]


def infinity(url: str, query: str) -> Ranked:
    from infinity_client import Client
    from infinity_client.api.default import rerank
    from infinity_client.models import HTTPValidationError, RerankInput

    body = RerankInput(query=query, documents=DOCUMENTS, model=MODEL, return_documents=True)
    with Client(base_url=f"{url}/infinity", raise_on_unexpected_status=True) as client:
        found = rerank.sync(client=client, body=body)
    assert found is not None
    assert not isinstance(found, HTTPValidationError)
    return [(result.index, result.relevance_score) for result in found.results]


def voyage(url: str, query: str) -> Ranked:
    import voyageai

    client = voyageai.Client(api_key="key", base_url=url, max_retries=0)
    found = client.rerank(query, DOCUMENTS, model=MODEL)
    return [(result.index, result.relevance_score) for result in found.results]


def openai(url: str, query: str) -> Ranked:
    """Lists models, and ranks by the path that it has for anything."""
    import openai

    client = openai.OpenAI(api_key="key", base_url=f"{url}/v1", max_retries=0)
    assert [each.id for each in client.models.list()] == [client.models.retrieve("default").id]
    body = {"model": MODEL, "query": query, "documents": DOCUMENTS}
    found: Any = client.post("/rerank", body=body, cast_to=object)
    return [(result["index"], result["relevance_score"]) for result in found["results"]]


CLIENTS: dict[str, Rank] = {
    "cohere": cohere,
    "litellm-hosted_vllm": litellm("hosted_vllm"),
    "litellm-infinity": litellm("infinity", "/infinity"),
    "litellm-jina_ai": litellm("jina_ai", "/v1/rerank"),
    "litellm-cohere": litellm("cohere", "/v2/rerank"),
    "litellm-huggingface": litellm("huggingface"),
    "llama-index-tei": llama_index_tei,
    "jina-haystack": jina_haystack,
    "infinity": infinity,
    "voyage": voyage,
    "openai": openai,
}


def main() -> None:
    client, url = sys.argv[1:]
    rank = CLIENTS[client]
    ranked = rank(url, QUERY)
    try:
        rank(url, TOO_LONG)
        error = "no error"
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"
    answer = {"indices": [i for i, _ in ranked], "scores": [s for _, s in ranked], "error": error}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
