"""Qwen3-Reranker, in small: prompts and scores are those of the code on its model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from itemwise import Scorer
from itemwise.request.ranking import RankCall
from tests.checkpoint.by_transformers import build

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytestmark = [
    pytest.mark.filterwarnings("default::DeprecationWarning", "default::FutureWarning"),
    pytest.mark.usefixtures("one_torch_thread"),
]
# How Qwen's tokenizers split a text, and which tokens they add.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CORPUS = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no". Given a web search query, retrieve '
    "relevant passages that answer the query <Instruct>: <Query>: <Document>: system user "
    "assistant brass lamps for desks, tea kettles, quiet hotels "
)
QUERIES = ["brass lamps for a desk?", "Größe: 12 cm\n", "x "]
DOCUMENTS = [
    "A lamp of brass, for desks.",
    "Tea kettle, 2 l",
    "",
    "quiet hotel\n\nnear the station\n",
    "答案 is «yes» 🙂",
    "brass " * 150,
]
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
PREFIX = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and "
    'the Instruct provided. Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
)
SUFFIX = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def qwen_tokenizer() -> Any:
    """A byte-level BPE that splits as Qwen's, with `<think>` as an added token."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    parts = [
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    made.pre_tokenizer = pre_tokenizers.Sequence(parts)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=480, special_tokens=SPECIAL, show_progress=False, initial_alphabet=alphabet
    )
    made.train_from_iterator([CORPUS * 20, *["yes", "no"] * 200], trainer)
    added = [AddedToken(text, special=False) for text in ("<think>", "</think>")]
    made.add_tokens(added)
    return made


def by_model_card(model: Any, folder: Path, query: str, documents: list[str]) -> Any:
    """Log-odds of yes, float64, as the model card of Qwen3-Reranker computes them."""
    import torch
    import transformers

    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (PREFIX, SUFFIX))
    margins = []
    for document in documents:
        text = f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
        ids = [*before, *tokenizer.encode(text, add_special_tokens=False), *after]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        margins.append(float(logits[yes] - logits[no]))
    return np.array(margins)


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("models") / "Qwen3-Reranker-0.6B"
    model = build("qwen3", vocab_size=512, max_position_embeddings=2048)
    model.save_pretrained(folder)
    qwen_tokenizer().save(str(folder / "tokenizer.json"))
    return folder, model


def start(folder: Path, cache_folder: str) -> Scorer:
    settings: dict[str, Any] = {"page_tokens": 32, "step_lanes": 2, "kv_cache_bytes": 8 << 20}
    return Scorer.from_pretrained(
        folder, **settings, skip_self_check=True, compilation_cache_dir=cache_folder
    )


def margins_of(scorer: Scorer, query: str, documents: list[str]) -> Any:
    ranking = scorer.rank(query, documents)
    return np.array([item.margin for item in sorted(ranking, key=lambda item: item.index)])


def test_scores_are_those_of_the_model_card(causal: tuple[Path, Any], cache_folder: str) -> None:
    folder, model = causal
    scorer = start(folder, cache_folder)
    assert scorer.profile_info()["name"] == "qwen3-reranker"
    for query in QUERIES:
        truth = by_model_card(model, folder, query, DOCUMENTS)
        found = margins_of(scorer, query, DOCUMENTS)
        assert np.ptp(truth) > 0.1  # the documents differ
        np.testing.assert_allclose(1 / (1 + np.exp(-found)), 1 / (1 + np.exp(-truth)), atol=1e-5)


def test_converted_checkpoint_ranks_as_the_causal_one(
    causal: tuple[Path, Any], cache_folder: str, tmp_path: Path
) -> None:
    import torch

    folder, model = causal
    tokenizer = qwen_tokenizer()
    yes, no = tokenizer.token_to_id("yes"), tokenizer.token_to_id("no")
    converted = build(
        "qwen3",
        "SequenceClassification",
        vocab_size=512,
        max_position_embeddings=2048,
        num_labels=1,
    )
    converted.model.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        converted.score.weight.copy_((model.lm_head.weight[yes] - model.lm_head.weight[no])[None])
    place = tmp_path / "Qwen3-Reranker-0.6B-seq-cls"
    converted.save_pretrained(place)
    tokenizer.save(str(place / "tokenizer.json"))
    by_head, by_labels = start(place, cache_folder), start(folder, cache_folder)
    assert by_head.profile_info()["read_out"] == "logit"
    for query in QUERIES:
        heads, labels = (margins_of(each, query, DOCUMENTS) for each in (by_head, by_labels))
        np.testing.assert_allclose(heads, labels, atol=1e-4)
        assert np.argsort(-heads).tolist() == np.argsort(-labels).tolist()


def test_prompt_has_the_tokens_of_the_model_card(
    causal: tuple[Path, Any], cache_folder: str
) -> None:
    import transformers

    folder, _ = causal
    scorer = start(folder, cache_folder)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    for query in QUERIES:
        request = scorer.prepare_call(RankCall(query, DOCUMENTS)).request
        for document, item in zip(DOCUMENTS, request.items, strict=True):
            middle = f"<Instruct>: {INSTRUCTION}\n<Query>: {query}\n<Document>: {document}"
            parts = [
                tokenizer.encode(text, add_special_tokens=False)
                for text in (PREFIX, middle, SUFFIX)
            ]
            assert [*request.query.tolist(), *item.tolist()] == [
                id_ for ids in parts for id_ in ids
            ]
