"""The example that reranks the Cranfield collection, on a collection of five documents."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import cranfield

DOCUMENTS = """.I 1
.T
wings in a
slipstream .
.A
somebody
.B
j. 1958
.W
wings in a
slipstream .
  lift of a wing .
.I 3
.T
heat in slabs .
.A
.B
.W
composite slabs conduct heat .
.I 7
.T
.A
.B
.W
.I 9
.T
ropes .
.A
.B
.W
slipstream of a wing and a wing .
.I 12
.T
tea .
.A
.B
.W
a kettle of tea .
.I
"""
QUERIES = """.I 001
.W
how does a wing fare in a
slipstream .
.I 004
.W
what is known of heat in slabs .
"""
# Places of the questions, not their numbers. -1 is a misprint in the collection.
JUDGEMENTS = "1 1 2\n1 3 4\n1 9 -1\n2 3  1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cran.all.1400").write_text(DOCUMENTS)
    (tmp_path / "cran.qry").write_text(QUERIES)
    (tmp_path / "cranqrel").write_text(JUDGEMENTS)
    return tmp_path


def test_the_files_are_read(folder: Path) -> None:
    found = cranfield.read_collection(folder)
    assert found.documents == {
        1: "wings in a slipstream . lift of a wing .",
        3: "heat in slabs . composite slabs conduct heat .",
        7: "",
        9: "ropes . slipstream of a wing and a wing .",
        12: "tea . a kettle of tea .",
    }
    assert found.queries == [
        "how does a wing fare in a slipstream .",
        "what is known of heat in slabs .",
    ]
    assert found.grades == [{1: 3, 3: 1, 9: 0}, {3: 4}]
    assert cranfield.first_stage(found, 2, 2) == [[1, 9], [3, 1]]


def test_ndcg_counts_judged_documents_that_were_not_found() -> None:
    ideal = 7 + 1 / math.log2(3)
    assert cranfield.ndcg([1, 3], {1: 3, 3: 1, 9: 0}) == 1
    assert cranfield.ndcg([9, 1], {1: 3, 3: 1, 9: 0}) == pytest.approx(7 / math.log2(3) / ideal)
    assert cranfield.ndcg([1, 3], {1: 3, 3: 1}, k=1) == 1


def test_a_model_ranks_what_bm25_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.json"
    options = ["--depth", "3", "--num-alone", "2", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["cranfield.py", str(folder), "itemwise/demo", *options])
    with pytest.raises(SystemExit) as ended:
        cranfield.main()
    assert ended.value.code == 0
    report: dict[str, Any] = json.loads(path.read_text())
    row = report["itemwise/demo"]
    assert (row["items"], row["asked_alone"], row["same_bits_alone"]) == (6, 6, True)
    # Both models and BM25 see that document 3 is about heat in slabs.
    assert 0.5 < row["ndcg_at_10"] <= 1
    assert report["bm25"]["ndcg_at_10"] > 0.5
