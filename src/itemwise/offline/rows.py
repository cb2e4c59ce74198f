"""Rows in, the results of each out: what files, Ray and other batches of rows share.

A row becomes a body of a wire format and takes the way of the server: `dialects/` reads it, the
engine scores it, `dialects/` writes the answer. So a row has the bits of the same body online. Rows
are sorted by what they share, so that those of one query find its pages, and pairs with one query
share a body; results come back in the order of the rows. A row that cannot be scored has an
`error`, and no other row notices: a body that fails is taken apart.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, TypeVar

import orjson

from itemwise.dialects.base import NOTHING
from itemwise.dialects.table import by_path, dialect_of
from itemwise.errors import ConfigError, ItemwiseError, RequestError
from itemwise.progress import ProgressFn, silent
from itemwise.request.calls import Call, Prepared
from itemwise.scorer import Scorer
from itemwise.types import OpenRequest, ScoreRequest

SCORE, RERANK = "/v1/score", "/v1/rerank"
# What all items of a body share, by the names that formats have for it, outermost text first.
# A name that is missing here costs speed, never a result.
SHARED_FIELDS = ("instruction", "instruct", "state", "input", "query", "queries", "text_1")
MAX_GROUP = 256  # pairs that share a body
OPEN_STEPS = 4  # rows are opened until their tokens fill so many steps
# Fields of an answer that differ each time; what was in the cache is one.
CHANGING = ("id", "created", "created_at", "x_usage")

T = TypeVar("T")
Kind = Literal["score", "scores", "result"]


@dataclass(frozen=True)
class Unread:
    """A row that could not be read.

    Attributes:
        error: why.
        columns: what is known of it, to be repeated in an output.
    """

    error: str
    columns: Mapping[str, Any] = field(default_factory=dict)


Row = Mapping[str, Any] | Unread


@dataclass(frozen=True)
class RowForm:
    """How rows become bodies, and which columns their results have.

    With `query_column` and `item_column` a row is one pair: with `labels` (or `label_token_ids`) in
    `fields` the result is `scores`, a float for each label; without, `score`, as the model ranks.
    Otherwise a row is a body of the format at `endpoint`, and the result is `result`, the answer's
    body as clients of the server read it, without `CHANGING`.

    Attributes:
        endpoint: path of a wire format; None for the one of the columns, or `/v1/score`.
        query_column: column with the query of each row.
        item_column: column with the item of each row.
        fields: fields of every body; a row's own take precedence.
        prefix: goes in front of the names of result columns.
    """

    endpoint: str | None = None
    query_column: str | None = None
    item_column: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""

    def __post_init__(self) -> None:
        if (self.query_column is None) != (self.item_column is None):
            raise ConfigError(
                "`query_column` and `item_column` go together: give both, or rows that are bodies"
            )
        if self.path not in by_path():
            raise ConfigError(
                f"`endpoint` is {self.path!r}, expected one of {', '.join(sorted(by_path()))}"
            )
        if self.query_column is not None and self.path not in (SCORE, RERANK):
            raise ConfigError(
                f"`endpoint` is {self.path!r}, expected {SCORE} or {RERANK} with `query_column`"
            )

    @property
    def path(self) -> str:
        """The path of the wire format."""
        if self.endpoint is not None:
            return self.endpoint
        if self.query_column is None:
            return SCORE
        has_labels = any(self.fields.get(name) for name in ("labels", "label_token_ids"))
        return SCORE if has_labels else RERANK

    @property
    def kind(self) -> Kind:
        """What a row's result is: one number, a number for each label, or a body."""
        if self.query_column is None:
            return "result"
        return "scores" if self.path == SCORE else "score"

    @cached_property
    def columns(self) -> tuple[str, str, str]:
        """Names of the columns of results: of the `kind`, `truncated` and `error`."""
        return f"{self.prefix}{self.kind}", f"{self.prefix}truncated", f"{self.prefix}error"

    @property
    def input_columns(self) -> tuple[str, ...]:
        """Columns that every row must have."""
        return tuple(name for name in (self.query_column, self.item_column) if name is not None)

    def check(self, row: Mapping[str, Any]) -> None:
        """Returns if a row has its columns.

        Raises:
            RequestError: it lacks a column, or that is empty (`missing_column`), or no text
                (`invalid_column`).
        """
        for name in self.input_columns:
            value = row.get(name)
            if not isinstance(value, str | list):
                raise RequestError(
                    "missing_column" if value is None else "invalid_column",
                    f"column `{name}` is {'missing' if value is None else repr(value)[:100]}, "
                    "expected text or a list of token ids",
                    name,
                )

    def body(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The body of pairs with the same query, or of one row that is a body."""
        if self.query_column is None or self.item_column is None:
            (row,) = rows
            return {**self.fields, **row}
        query, items = rows[0][self.query_column], [row[self.item_column] for row in rows]
        name = "items" if self.path == SCORE else "documents"
        return {**self.fields, "query": query, name: items}

    def results(self, answer: Any, num_rows: int) -> list[tuple[Any, bool]]:
        """Each row's result, and whether a text was cut, from the answer's body as JSON."""
        if self.kind == "scores":
            cut = answer.get("truncated_items", ())
            return [(scores, i in cut) for i, scores in enumerate(answer["scores"])]
        if self.kind == "score":
            found: list[tuple[Any, bool]] = [(None, False)] * num_rows
            for each in answer["results"]:
                found[each["index"]] = each["relevance_score"], each.get("truncated", False)
            return found
        was_cut = _was_cut(answer)
        if isinstance(answer, dict):
            answer = {name: value for name, value in answer.items() if name not in CHANGING}
        return [(answer, was_cut)]


def _was_cut(answer: Any) -> bool:
    """Whether an answer of any format says that a text was too long."""
    results = answer
    if isinstance(answer, dict):
        if answer.get("truncated_items") or answer.get("truncated"):
            return True
        results = answer.get("results", answer.get("data"))
    each = results if isinstance(results, list) else []
    return any(isinstance(one, dict) and bool(one.get("truncated")) for one in each)


@dataclass(frozen=True)
class _Work:
    """A body that is ready to be scored, or being scored.

    Attributes:
        indices: of the rows that share it.
        answer: writes the body of the answer; see `Exchange`.
        prepared: its call.
    """

    indices: Sequence[int]
    answer: Callable[[Any, str], Any]
    prepared: Prepared[Any]


class RowScorer:
    """Scores batches of rows. One thread at a time.

        score = RowScorer(scorer, RowForm(query_column="query", item_column="text"))
        score([{"query": "desk lamp", "text": "Brass lamp"}])
        # [{"score": 0.2, "truncated": False, "error": None}]

    Args:
        scorer: of the model.
        form: of the rows.
        model: name that answers give the model.

    Attributes:
        num_items: items scored so far.
        num_tokens: tokens of these, as if each had been computed alone.
        backwards: whether the next batch is sorted the other way round, as every second one: it
            begins with the queries whose pages are still there.
    """

    def __init__(self, scorer: Scorer, form: RowForm, model: str = "default") -> None:
        self.form = form
        self.scorer = scorer
        self.model = model
        self.num_items = self.num_tokens = 0
        self.backwards = False

    def __call__(
        self, rows: Sequence[Row], on_progress: ProgressFn = silent
    ) -> list[dict[str, Any]]:
        """The results of the rows, in their order, each with all of the form's `columns`.

        Args:
            rows: what comes with them is left out of the results.
            on_progress: called with (what, done, total) as rows are scored.

        Raises:
            ItemwiseError: the engine failed, which is no row's fault.
        """
        batch = _Batch(self, rows, on_progress)
        self.backwards = not self.backwards
        try:
            batch.run()
        except BaseException:
            self.scorer.engine.reset()  # pages may be unwritten
            raise
        return batch.results

    def count(self, request: ScoreRequest) -> None:
        """Counts a request that was scored."""
        self.num_items += len(request.items)
        num_shared = len(request.query) * len(request.items)
        self.num_tokens += num_shared + len(request.items.tokens)


class _Batch:
    """One call of a `RowScorer`.

    Attributes:
        results: of each row; empty until it is known.
    """

    def __init__(self, owner: RowScorer, rows: Sequence[Row], on_progress: ProgressFn) -> None:
        self.results: list[dict[str, Any]] = [{}] * len(rows)
        self._owner = owner
        self._form = owner.form
        self._engine = owner.scorer.engine
        self._rows = rows
        self._on_progress = on_progress
        self._num_done = 0
        self._groups = deque(self._grouped())  # indices of rows that share a body, not yet read
        self._opened: dict[int, tuple[OpenRequest, _Work]] = {}  # by identity, oldest first

    def run(self) -> None:
        """Scores all rows: they are opened as there is room for them, and share steps."""
        room = OPEN_STEPS * self._engine.step_tokens
        waiting: _Work | None = None
        while True:
            while self._num_open_tokens() < room:
                waiting = waiting or self._next_work()
                if waiting is None or not self._open(waiting):
                    break
                waiting = None
            if not self._opened:
                return
            self._step()

    def _grouped(self) -> list[Sequence[int]]:
        """Rows by the body that they share, those with the same query one after another."""
        keyed: list[tuple[bytes, int]] = []
        for index, row in enumerate(self._rows):
            if isinstance(row, Unread):
                self._fail([index], row.error)
                continue
            try:
                self._form.check(row)
                keyed.append((_shared_text(self._form.body([row])), index))
            except RequestError as error:
                self._fail([index], error)
        keyed.sort(reverse=self._owner.backwards)
        config = self._engine.config
        if self._form.query_column is None or config.multi_item_algorithm == "packed":
            return [
                (index,) for _, index in keyed
            ]  # items packed together change each other's bits
        most = min(MAX_GROUP, config.max_multi_item_count or MAX_GROUP)
        groups: list[Sequence[int]] = []
        for _, group in groupby(keyed, key=lambda each: each[0]):
            indices = [index for _, index in group]
            groups += [indices[i : i + most] for i in range(0, len(indices), most)]
        return groups

    def _next_work(self) -> _Work | None:
        """The next body that is ready to be scored; None if all are read."""
        while self._groups:
            indices = self._groups.popleft()
            try:
                # `_grouped` let no `Unread` through.
                rows = [row for i in indices if not isinstance(row := self._rows[i], Unread)]
                body = self._form.body(rows)
                exchange = dialect_of(self._form.path, body).read(body)
                if exchange.call is not None:
                    prepared = self._prepared(exchange.call, alone=len(indices) == 1)
                    return _Work(indices, exchange.answer, prepared)
                self._finish(indices, exchange.answer(NOTHING, self._owner.model))
            except Exception as error:
                self._fail(indices, error)
        return None

    def _prepared(self, call: Call[T], *, alone: bool) -> Prepared[T]:
        scorer = self._owner.scorer
        return scorer.prepare_call(call) if alone else scorer.prepare_group(call)

    def _num_open_tokens(self) -> int:
        return sum(work.remaining_tokens for work, _ in self._opened.values())

    def _open(self, work: _Work) -> bool:
        """Whether a body's turn is over: it is open, or failed. Else there are no pages for it."""
        try:
            opened = self._engine.open(work.prepared.request)
        except RequestError as error:
            self._fail(work.indices, error)
            return True
        if opened is not None:
            self._opened[id(opened)] = opened, work
        return opened is not None

    def _step(self) -> None:
        outcome = self._engine.step([work for work, _ in self._opened.values()])
        for _, error in outcome.failed:
            raise error
        for done in outcome.finished:
            _, work = self._opened.pop(id(done))
            self._owner.count(done.request)
            try:
                result = work.prepared.finish(done.result())
                self._finish(work.indices, work.answer(result, self._owner.model))
            except Exception as error:
                self._fail(work.indices, error)

    def _finish(self, indices: Sequence[int], answer: Any) -> None:
        body = orjson.loads(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))
        results = self._form.results(body, len(indices))
        for index, (result, cut) in zip(indices, results, strict=True):
            self._set(index, result, cut, None)

    def _fail(self, indices: Sequence[int], error: Exception | str) -> None:
        """Gives a row its error; rows that shared a body are tried one by one."""
        if len(indices) > 1:
            self._groups.extendleft((index,) for index in reversed(indices))
            return
        self._set(indices[0], None, None, error if isinstance(error, str) else _text_of(error))

    def _set(self, index: int, *values: Any) -> None:
        self.results[index] = dict(zip(self._form.columns, values, strict=True))
        self._num_done += 1
        self._on_progress("rows", self._num_done, len(self.results))


def _text_of(error: Exception) -> str:
    if isinstance(error, ItemwiseError):
        return f"{error.code}: {error}"
    return f"internal_error: {type(error).__name__}"  # as the server answers 500


def _shared_text(body: Mapping[str, Any]) -> bytes:
    """What rows are sorted by."""
    shared = [body[name] for name in SHARED_FIELDS if body.get(name) is not None]
    try:
        return orjson.dumps(shared)
    except TypeError:  # no JSON, which its format refuses
        return b""
