"""Scores rows with Ray Data on two engines, in a process of its own.

    python score_rows.py FOLDER SETTINGS    reads FOLDER/rows.jsonl, writes FOLDER/scores.json

SETTINGS are those of the engine, as JSON. Begins once a line comes on standard input.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    warnings.simplefilter("ignore")
    sys.stdin.readline()
    import ray
    from ray.data import DataContext

    from itemwise.ray import Engines, RowForm, score_dataset

    ray.init(
        num_cpus=3,  # two engines, and one for what reads
        include_dashboard=False,
        object_store_memory=80 << 20,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
    )
    try:
        DataContext.get_current().enable_progress_bars = False
        rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
        form = RowForm(
            query_column="query",
            item_column="item",
            fields={"labels": [" yes", " no"], "apply_softmax": True},
        )
        dataset = ray.data.from_items(rows, override_num_blocks=6)
        scored = score_dataset(dataset, form, engines=Engines(2, batch_rows=16), **settings)
        (folder / "scores.json").write_text(json.dumps(scored.sort("id").take_all()))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
