"""Scores the rows of a Ray Data dataset on many engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from ray.data import ActorPoolStrategy, Dataset

from itemwise.config import DEMO_MODEL
from itemwise.offline.rows import RowForm, RowScorer
from itemwise.offline.writing import result_fields
from itemwise.ray.settings import Engines


def score_dataset(
    dataset: Dataset,
    form: RowForm,
    model: str = DEMO_MODEL,
    engines: Engines | None = None,
    **settings: Any,
) -> Dataset:
    """The dataset with the columns of results added.

    Nothing runs before the dataset is read or written. A row that cannot be scored has an error in
    its last column. Rows with the same query share its pages if they are in one batch: sort the
    dataset by its query where that is not so already. Ray Data hands on what is finished first,
    unless `DataContext.execution_options.preserve_order` is set.

    Args:
        dataset: rows as `form` says.
        form: which columns have query and item, or the format of rows that are bodies.
        model: folder of a checkpoint on each machine, or its Hub id.
        engines: how many, on what.
        **settings: of the engine, as of `Scorer.from_pretrained`.
    """
    engines = engines or Engines()
    least, most = engines.least, engines.most or engines.least
    options = engines.actor_options(settings)
    return dataset.map_batches(
        RowEngine,
        batch_size=engines.batch_rows,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        fn_constructor_kwargs={"model": model, "form": form, "settings": settings},
        udf_modifying_row_count=False,
        **options,
    )


class RowEngine:
    """An engine that adds results to tables of rows; one in each actor."""

    def __init__(self, model: str, form: RowForm, settings: Mapping[str, Any]) -> None:
        from itemwise.scorer import Scorer

        self._score = RowScorer(Scorer.from_pretrained(model, **settings), form, model)

    def __call__(self, table: Any) -> Any:
        """The `pyarrow.Table` with the columns of results."""
        import pyarrow as pa

        form, results = self._score.form, self._score(table.to_pylist())
        for field in result_fields(form):
            values = [row[field.name] for row in results]
            if form.kind == "result" and field.name == form.columns[0]:
                values = [value and orjson.dumps(value).decode() for value in values]
            table = table.append_column(field, pa.array(values, field.type))
        return table
