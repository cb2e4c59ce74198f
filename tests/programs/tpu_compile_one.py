"""Compiles one program for a TPU and prints a JSON object; `tests/tpu/test_compile.py` runs it.

A process of its own, because libtpu must not be loaded where other tests run.
"""

from __future__ import annotations

import json
import sys

from itemwise.config import prepare_tpu_compiler


def main(model: str, topology: str, tp_size: str, form: str, layers: str) -> None:
    """Prints what `compile_for_tpu` reports."""
    prepare_tpu_compiler()
    from itemwise.checkpoint.shapes import model_dict
    from itemwise.models.config import ModelConfig
    from itemwise.tpu.compile import compile_for_tpu

    report = compile_for_tpu(
        ModelConfig.from_hf(model_dict(model)),
        model,
        topology,
        tp_size=int(tp_size),
        layers=int(layers),
        forms=(form,),
    )
    sys.stdout.write(json.dumps(report.to_json()))


if __name__ == "__main__":
    main(*sys.argv[1:])
