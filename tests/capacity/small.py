"""A small engine, costs and loads for the tests of this folder."""

from __future__ import annotations

from itemwise.capacity.arrivals import Load
from itemwise.capacity.replica import EngineShape
from itemwise.capacity.step_cost import StepCost
from itemwise.config import EngineConfig
from itemwise.engine.platform import PLATFORMS, step_shapes

CONFIG = EngineConfig()
ENGINE = EngineShape(step_shapes(CONFIG, PLATFORMS["cpu"], 2048), 200, CONFIG)
COST = StepCost(step_s=5e-4, place_s=2e-5, pair_s=2e-9, host_step_s=3e-4, host_row_s=1e-5)
LOAD = Load(60.0, query_tokens=300, num_items=4, item_tokens=20, repeat_share=0.6)
