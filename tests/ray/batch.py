"""Runs `itemwise batch` on FOLDER/rows.jsonl with two engines on Ray.

python batch.py FOLDER OPTIONS    writes FOLDER/out.jsonl, once a line comes on standard input
"""

from __future__ import annotations

import json
import sys
import warnings


def main() -> None:
    folder, options = sys.argv[1], json.loads(sys.argv[2])
    warnings.simplefilter("ignore")
    sys.stdin.readline()

    from itemwise.cli.app import main as itemwise

    ray = ["--ray", "local", "--ray-engines", "2"]
    itemwise(["batch", f"{folder}/rows.jsonl", f"{folder}/out.jsonl", *options, *ray])


if __name__ == "__main__":
    main()
