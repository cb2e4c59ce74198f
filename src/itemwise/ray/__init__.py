"""Itemwise on many machines, by Ray: `score_dataset` for Ray Data, `serve:app` for Ray Serve.

Needs the extra `ray`. Importing `itemwise` does not load this.
"""

from __future__ import annotations

from importlib.util import find_spec

from itemwise.errors import ConfigError

if find_spec("ray") is None:
    raise ConfigError("`itemwise.ray` needs Ray, which is not installed: install itemwise[ray]")
