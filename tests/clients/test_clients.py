"""Clients that people have, unchanged, against a real server: each ranks and reads an error."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from itemwise import Scorer
from tests.clients.rank_with import CLIENTS, DOCUMENTS, QUERY

SCRIPT = Path(__file__).with_name("rank_with.py")
FOLDER = Path(os.environ.get("ITEMWISE_CLIENTS", Path(__file__).parents[2] / ".venv" / "clients"))
PYTHON = FOLDER / "bin" / "python"
# Its error is a failed assertion: it takes every answer for a list of scores.
NO_MESSAGE = {"llama-index-tei", "litellm-huggingface"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no clients in {FOLDER}; see `make clients`"),
]


@pytest.mark.parametrize("client", CLIENTS)
def test_client_ranks_and_reads_an_error(client: str, url: str, scorer: Scorer) -> None:
    expected = scorer.rank(QUERY, DOCUMENTS)
    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONPATH": ""}
    done = subprocess.run(
        [PYTHON, SCRIPT, client, url],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    assert answer["indices"] == [item.index for item in expected]
    assert answer["scores"] == [item.score for item in expected]  # the very bits
    assert answer["error"] != "no error"
    if client not in NO_MESSAGE:
        assert "tokens" in answer["error"], answer["error"]
