"""Loads Ray first, whose own imports warn of what it does to pydantic."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray.data
    import ray.serve  # noqa: F401
