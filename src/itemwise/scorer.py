"""`Scorer`: the public, synchronous way to score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

from itemwise.checkpoint.locate import locate
from itemwise.config import DEMO_MODEL, EngineConfig, SpecialTokens, Tokenize
from itemwise.engine.engine import Engine
from itemwise.errors import CheckpointError, RequestError
from itemwise.progress import ProgressFn, silent
from itemwise.request.calls import Call, Prepared, ScoreCall
from itemwise.request.check import REQUEST_FIELDS, RequestLimits
from itemwise.request.decide.answers import Decisions
from itemwise.request.decide.call import DecideCall, Options
from itemwise.request.decide.profile import DecisionProfile, find_decision_profile
from itemwise.request.decide.questions import Question
from itemwise.request.profiles import Profile, find_profile
from itemwise.request.ranking import RankCall
from itemwise.request.template import PromptTemplate
from itemwise.request.tokenizer import TOKENIZER_FILE, Tokenizer
from itemwise.request.tools import PromptTools
from itemwise.types import RankedItem, ScoreRequest, ScoreResult

T = TypeVar("T")


class Scorer:
    """Scores items against a query with one model.

        scorer = Scorer.from_pretrained("Qwen/Qwen3-0.6B")  # without a name: the demo model
        result = scorer.score("cheap flights", ["...", "..."], labels=[" yes", " no"])
        result.scores  # float32 [items, labels]

    Only one thread at a time may score; the server puts a queue in front.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        template: PromptTemplate | None = None,
        profile: Profile | str = "it has no profile",
        decisions: DecisionProfile | str = "it has no decision profile",
    ) -> None:
        self.engine = engine
        self.tokenizer = tokenizer
        self.template = template
        limits = RequestLimits(
            vocab_size=engine.model_config.vocab_size,
            num_head_labels=engine.model_config.num_labels,
            max_seq_len=engine.max_seq_len,
            max_items=engine.config.max_multi_item_count,
            delimiter=engine.config.multi_item_scoring_delimiter,
            tokenize=engine.config.tokenize,
            special_tokens=engine.config.special_tokens,
            truncate=engine.config.allow_auto_truncate,
        )
        self._tools = PromptTools(limits, tokenizer, template, profile, decisions)

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path = DEMO_MODEL,
        *,
        prompt_template: str | Path | None = None,
        decision_profile: str | Path | None = None,
        tokenizer_path: str | None = None,
        revision: str | None = None,
        download_dir: str | None = None,
        on_progress: ProgressFn = silent,
        **engine: Any,
    ) -> Scorer:
        """A scorer for a checkpoint: compiled, self-checked, ready.

        Args:
            model: a local folder or a Hugging Face Hub id; by default the demo model that
                is included in the package, a small one that judges whether a title matches a
                search query.
            prompt_template: file with a template, to use instead of the checkpoint's own
                `prompt_template.json`.
            decision_profile: file that says how typed questions are asked and read, to use instead
                of the checkpoint's own `decision_profile.json`.
            tokenizer_path: a folder or a Hub id whose tokenizer is used instead of the
                checkpoint's own.
            revision: branch, tag or commit of the model on the Hub.
            download_dir: where models from the Hub are kept; by default the Hub's own cache.
            on_progress: called during long work with (what, done, total).
            **engine: fields of `EngineConfig`.

        Raises:
            CheckpointError: the checkpoint cannot be read or is of an unsupported kind.
            ConfigError: a setting is wrong, or does not fit the machine.
            SelfCheckError: scores change with batch composition on this device, or are not finite.
        """
        config = EngineConfig(**engine)
        folder = locate(str(model), revision=revision, download_dir=download_dir)
        if tokenizer_path is None:
            tokenizer = Tokenizer.from_folder(folder)
        else:
            tokenizer = _tokenizer_of(tokenizer_path, download_dir)
        if prompt_template is None:
            template = PromptTemplate.from_folder(folder)
        else:
            template = PromptTemplate.from_file(Path(prompt_template))
        engine_of_folder = Engine(folder, config, on_progress)
        num_labels = engine_of_folder.model_config.num_labels
        profile = find_profile(str(model), folder, num_labels, tokenizer, template)
        file = None if decision_profile is None else Path(decision_profile)
        decisions = find_decision_profile(str(model), folder, num_labels, tokenizer, file)
        return cls(engine_of_folder, tokenizer, template, profile, decisions)

    def score(
        self,
        query: str | Sequence[int],
        items: Sequence[str] | Sequence[Sequence[int]],
        *,
        labels: Sequence[str] | Sequence[Sequence[str]] | None = None,
        label_token_ids: Sequence[int] | Sequence[Sequence[int]] | None = None,
        apply_softmax: bool = False,
        apply_template: bool = False,
        item_first: bool = False,
        tokenize: Tokenize | None = None,
        special_tokens: SpecialTokens | None = None,
        temperature: float = 1.0,
        on_progress: ProgressFn = silent,
    ) -> ScoreResult:
        """Scores of every item: the next-token distribution over the labels after `query + item`.

        Args:
            query: text, or token ids.
            items: texts, or lists of token ids; an empty one is scored at the query's end.
            labels: texts of one token each, for all items or per item.
            label_token_ids: the labels as token ids instead.
            apply_softmax: softmax over the labels; otherwise probabilities over the vocabulary.
            apply_template: put query and items, as text, into the checkpoint's prompt template;
                its labels are used if none are given.
            item_first: score `item + query`; then items share nothing.
            tokenize: `"whole"` tokenises query and item as one text, `"parts"` each by itself; by
                default the engine's setting.
            special_tokens: whether control tokens that texts spell stay `"text"` or are
                `"control"` tokens; `"auto"` goes by `apply_template`. By default the engine's
                setting.
            temperature: divides the logits, above zero.
            on_progress: called with (what, done, total) as items are scored.

        Raises:
            RequestError: the request is invalid; its `code` and `param` say where.
            NotFiniteError: the model gives NaN or infinity for an item.
        """
        fields: dict[str, Any] = {
            "query": query,
            "items": items,
            "apply_softmax": apply_softmax,
            "apply_template": apply_template,
            "item_first": item_first,
            "tokenize": tokenize,
            "special_tokens": special_tokens,
            "temperature": temperature,
        }
        if labels is not None:
            fields["labels"] = labels
        if label_token_ids is not None:
            fields["label_token_ids"] = label_token_ids
        return self.run_call(ScoreCall(fields), on_progress)

    def rank(
        self,
        query: str,
        items: Sequence[str],
        top_n: int | None = None,
        *,
        instruction: str | None = None,
        on_progress: ProgressFn = silent,
    ) -> list[RankedItem]:
        """The items, best first, as the model's profile asks and reads it.

        They are sorted by a margin that does not saturate; equal ones keep their order.

        Args:
            query: text.
            items: texts.
            top_n: how many to return; None for all.
            instruction: what counts as a match; None for the profile's own words.
            on_progress: called with (what, done, total) as items are scored.

        Raises:
            RequestError: the request is invalid (`invalid_top_n`, ...), or the model cannot rank
                (`no_profile`).
            NotFiniteError: the model gives NaN or infinity for an item.
        """
        is_whole = isinstance(top_n, Integral) and not isinstance(top_n, bool)
        if top_n is not None and not (is_whole and top_n >= 1):
            raise RequestError(
                "invalid_top_n", f"`top_n` is {top_n!r}, expected a whole number from 1 on", "top_n"
            )
        if isinstance(items, str):  # a sequence of texts, too: its characters
            raise RequestError(
                "invalid_items_type", "`items` is one text, expected a list of texts", "items"
            )
        items = list(items)
        call = RankCall(query, items, instruction, names=("query", "items"))
        found = self.run_call(call, on_progress)
        return [
            RankedItem(i, items[i], float(found.scores[i]), float(found.margins[i]), found.cut[i])
            for i in found.order(top_n)
        ]

    def rerank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
    ) -> list[dict[str, Any]]:
        """As `rank`, in the form of `CrossEncoder.rank` of sentence-transformers.

        Args:
            query: text.
            documents: texts.
            top_k: how many to return; None for all.
            return_documents: whether each entry has its `text`.

        Returns:
            dicts with `corpus_id` (the place in `documents`), `score` and perhaps `text`.
        """
        ranking = self.rank(query, documents, top_k)
        return [
            {
                "corpus_id": item.index,
                "score": item.score,
                **({"text": item.text} if return_documents else {}),
            }
            for item in ranking
        ]

    def decide(
        self,
        state: Any,
        questions: Mapping[str, Question],
        *,
        rotations: int = 1,
        label_mass: bool = False,
        case_forms: bool | None = None,
        temperature: float | None = None,
        on_progress: ProgressFn = silent,
    ) -> Decisions:
        """The answers to typed questions about one state, as the model's decision profile asks.

        An answer depends on model, state and question alone, to the last bit, and not on what else
        is asked.

        Args:
            state: what the questions are about: text, or a JSON value.
            questions: `YesNo`, `Choice` or `Rating` by ids of your own, which the model never sees.
            rotations: in how many cyclic rotations the options of a choice are shown; the mean of
                their log-probabilities does not prefer an option for its place.
            label_mass: whether answers tell which share the labels have of all the model might say.
            case_forms: whether `yes` and `Yes` count as one answer; None as the profile says.
            temperature: divides the logits, above zero; None as the profile says.
            on_progress: called with (what, done, total) as questions are scored.

        Raises:
            RequestError: the request is invalid, or the model cannot decide (`no_profile`).
            NotFiniteError: the model gives NaN or infinity for a question.
        """
        options = Options(rotations, label_mass, False, case_forms, temperature)
        return self.run_call(DecideCall(state, questions, options), on_progress)

    def prepare(
        self,
        fields: Mapping[str, Any] | None = None,
        between_pieces: Callable[[], None] | None = None,
        /,
        **named: Any,
    ) -> ScoreRequest:
        """A checked and tokenised request, from the fields of a JSON body or from keywords.

        Args:
            fields: values by name; unknown names are ignored.
            between_pieces: called between pieces of text; it raises to give up.
            **named: further values, which take precedence.

        Raises:
            RequestError: the request is invalid; its `code` and `param` say where.
            TypeError: a keyword is not a request field.
        """
        if unknown := named.keys() - set(REQUEST_FIELDS):
            raise TypeError(
                f"`{min(unknown)}` is not a request field, expected one of "
                f"{', '.join(REQUEST_FIELDS)}"
            )
        fields = {**(fields or {}), **named}
        return self.prepare_call(ScoreCall(fields), between_pieces).request

    def prepare_call(
        self, call: Call[T], between_pieces: Callable[[], None] | None = None, /
    ) -> Prepared[T]:
        """A checked and tokenised call, as the server's dialects make them.

        Args:
            call: what is asked for.
            between_pieces: called between pieces of text; it raises to give up.

        Raises:
            RequestError: the call is invalid; its `code` and `param` say where.
        """
        return call.prepare(self._tools.with_check(between_pieces))

    def prepare_group(self, call: Call[T]) -> Prepared[T]:
        """As `prepare_call`, for items that get the same bits as each of them alone.

        Raises:
            RequestError: the call is invalid, or where its query ends depends on the items
                (`dependent_items`), as with tokenizers of which nothing can be proved.
        """
        return call.prepare(self._tools.independent())

    def run_call(self, call: Call[T], on_progress: ProgressFn = silent) -> T:
        """The result of a call; raises what `prepare_call` and its `finish` raise."""
        prepared = self.prepare_call(call)
        return prepared.finish(self.engine.score([prepared.request], on_progress)[0])

    def run(self, requests: Sequence[ScoreRequest]) -> list[ScoreResult]:
        """Scores prepared requests together, in shared steps."""
        return self.engine.score(requests)

    def info(self) -> dict[str, Any]:
        """What runs, as JSON values: model, profile, settings, device, self-check and counters."""
        return {
            **self.engine.info(),
            "profile": self.profile_info(),
            "decision_profile": self.decision_info(),
        }

    def profile_info(self) -> dict[str, Any]:
        """How the model ranks and why so, as JSON values; or why it cannot."""
        profile = self._tools.profile
        return {"name": None, "why": profile} if isinstance(profile, str) else profile.info()

    def decision_profile(self) -> DecisionProfile:
        """How the model answers typed questions.

        Raises:
            RequestError: it cannot (`no_profile`).
        """
        profile = self._tools.decisions
        if isinstance(profile, DecisionProfile):
            return profile
        raise RequestError("no_profile", f"the model cannot answer questions: {profile}")

    def decision_info(self) -> dict[str, Any]:
        """How the model answers typed questions and why so, as JSON values; or why it cannot."""
        profile = self._tools.decisions
        return {"name": None, "why": profile} if isinstance(profile, str) else profile.info()


def _tokenizer_of(model: str, download_dir: str | None) -> Tokenizer:
    tokenizer = Tokenizer.from_folder(locate(model, download_dir=download_dir, weights=False))
    if tokenizer is None:
        raise CheckpointError(
            f"`{model}` has no {TOKENIZER_FILE}, expected the folder or the Hub id of a tokenizer"
        )
    return tokenizer
