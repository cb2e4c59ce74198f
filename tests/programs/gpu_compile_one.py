"""Compiles one program for an H100 and prints a JSON object; `test_gpu_compile.py` runs it.

A process of its own, which finds JAX's GPU plugin apart from other packages. No GPU is needed: XLA
compiles for a device that it is told about.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

# What the compiler asks of the device; from XLA's own description, `h100_sxm.txtpb` in OpenXLA.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  driver_version: "13.0.0"
  runtime_version: "12.8.0"
  compile_time_toolkit_version: "12.8.0"
  dnn_version: "9.10.0"
  name: "NVIDIA H100 80GB HBM3"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def main(name: str, form: str, layers: str, num_pages: str) -> None:
    """Prints what the compiled program is made of."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies

    from itemwise.checkpoint.shapes import model_dict
    from itemwise.config import EngineConfig
    from itemwise.engine.compile_cache import compile_whole
    from itemwise.engine.lowering import Lowering, ProgramSpec
    from itemwise.engine.packed_sequence import packed_shape
    from itemwise.engine.platform import PLATFORMS, step_shapes
    from itemwise.models.config import ModelConfig

    topology = topologies.get_topology_desc(
        "h100", platform="cuda", topology="1x1x1", target_config=H100
    )
    (device,), platform = topology.devices, PLATFORMS["gpu"]
    whole = ModelConfig.from_hf(model_dict(name))
    model = replace(whole, num_layers=min(whole.num_layers, int(layers)))
    *_, shape = step_shapes(EngineConfig(), platform, whole.max_position_embeddings)
    dtypes = platform.dtypes(np.dtype(jnp.bfloat16))
    kernel = platform.kernel_for(model, dtypes, shape.page_tokens)
    programs = Lowering(
        ProgramSpec(model, shape, int(num_pages), dtypes, platform, kernel, device=device)
    )
    weights = programs.weights()
    sequence = packed_shape(12000, 500, shape.max_scored_rows, shape.granule_tokens)
    with lowering_for(device):
        if form == "exact step":
            lowered = programs.lower_step(weights)
        elif form == "log-sum-exp":
            lowered = programs.lower_vocab(weights)
        else:
            assert form == "packed segment"
            lowered = programs.lower_packed(weights, sequence, "segment")
    start = time.perf_counter()
    compiled = compile_whole(lowered, platform.compiler_options, None)
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    text = compiled.as_text() or ""
    pages = jax.tree.leaves(programs.pages())
    found = {
        "compile_s": seconds,
        "step_tokens": shape.tokens,
        "layers": model.num_layers,
        "temp_bytes": memory.temp_size_in_bytes,
        "argument_bytes": memory.argument_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "pool_bytes": sum(page.size * page.dtype.itemsize for page in pages),
        "kernels": text.count("__gpu$xla.gpu.triton"),
        "cublas_products": text.count('custom_call_target="__cublas'),
        "loops": len(loops := [line for line in text.splitlines() if " while(" in line]),
        "loops_of_unknown_length": sum("known_trip_count" not in line for line in loops),
        "masks_pairs": f"{sequence.tokens},{sequence.tokens}" in text,
        "concatenated_weights": text.count("wrapped_concatenate"),
    }
    sys.stdout.write(json.dumps(found))


def lowering_for(device: Any) -> AbstractContextManager[Any]:
    """Tells Pallas which GPU to lower for; before JAX 0.11 it takes compute capability 9.0."""
    import jax

    if jax.__version_info__ < (0, 11):
        return nullcontext()
    abstract = jax.sharding.AbstractDevice(
        device_kind=device.device_kind, num_cores=132, platform="gpu"
    )
    kind = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("x",), axis_types=kind, abstract_device=abstract)
    context: AbstractContextManager[Any] = jax.sharding.use_abstract_mesh(mesh)
    return context


if __name__ == "__main__":
    main(*sys.argv[1:])
