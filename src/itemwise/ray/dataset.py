"""Scores the rows of a Ray Data dataset on many engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset

from itemwise.config import DEMO_MODEL
from itemwise.errors import ConfigError
from itemwise.offline.rows import RowForm, RowScorer
from itemwise.offline.writing import result_fields
from itemwise.ray.settings import Device, actor_options

BATCH_ROWS = (
    4096  # a step of a small model has thousands of tokens, and a batch feeds several steps
)


@dataclass(frozen=True)
class Engines:
    """The engines that score a dataset.

    Attributes:
        least: engines that always run.
        most: engines that run while there are batches for them; None for `least`.
        device: of each: `tp_size` GPUs or TPU chips, or `num_cpus` processors.
        num_cpus: processors that Ray reserves for each.
        batch_rows: rows that an engine gets at a time; it sorts them by query.
    """

    least: int = 1
    most: int | None = None
    device: Device = "cpu"
    num_cpus: float = 1.0
    batch_rows: int = BATCH_ROWS

    def __post_init__(self) -> None:
        if not 1 <= self.least <= (self.most or self.least):
            raise ConfigError(
                f"`least` is {self.least} and `most` {self.most}, expected 1 or more engines, and "
                "`most` at least `least`"
            )


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
    options = actor_options(engines.device, engines.num_cpus, settings.get("tp_size", 1))
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

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table with the columns of results."""
        form, results = self._score.form, self._score(table.to_pylist())
        for field in result_fields(form):
            values = [row[field.name] for row in results]
            if form.kind == "result" and field.name == form.columns[0]:
                values = [value and orjson.dumps(value).decode() for value in values]
            table = table.append_column(field, pa.array(values, field.type))
        return table
