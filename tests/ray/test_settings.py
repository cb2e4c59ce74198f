"""Arguments of an application, what Ray reserves, and the rules that need no cluster."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.autoscaling_state import _resolve_policy_callable
from ray.serve.config import AutoscalingConfig

from itemwise.errors import ConfigError
from itemwise.ray.router import PolicyRouter
from itemwise.ray.serve import engine_options
from itemwise.ray.settings import NOT_HERE, actor_options, app_config
from itemwise.routing import PrefixAware, query_key


def test_texts_of_a_command_line_become_values() -> None:
    config = app_config(
        {"model_path": "m", "min_replicas": "2", "skip_self_check": "true", "max_timeout_s": "7.5"}
    )
    assert config.server.model_path == "m"
    assert config.server.max_timeout_s == 7.5
    assert config.replicas.min_replicas == 2
    assert config.scorer_arguments()["skip_self_check"] is True


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"model": "m"}, "`model`"),
        ({"min_replicas": "two"}, "`min_replicas`"),
        ({"min_replicas": 0}, "`min_replicas`"),
        ({"min_replicas": 3, "max_replicas": 2}, "`max_replicas`"),
        ({"device": "abacus"}, "`device`"),
        ({"page_tokens": 33, "max_timeout_s": -1}, "`page_tokens`"),
        ({"page_tokens": 33, "max_timeout_s": -1}, "`max_timeout_s`"),
        *(({name: 1}, f"`{name}`") for name in NOT_HERE),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        app_config(arguments)


def test_a_key_in_arguments_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        app_config({"api_key": "secret"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("device", "reserved"),
    [
        ("cpu", {"num_cpus": 4}),
        ("gpu", {"num_cpus": 4, "num_gpus": 2}),
        ("tpu", {"num_cpus": 4, "resources": {"TPU": 2}}),
    ],
)
def test_engines_reserve_their_device(device: Any, reserved: dict[str, Any]) -> None:
    assert actor_options(device, 4, 2) == reserved
    options = engine_options(app_config({"device": device, "num_cpus": 4, "tp_size": 2}))
    assert options["ray_actor_options"] == reserved


def policy(target: int) -> Any:
    """The autoscaling policy as Serve's controller makes it from its options."""
    options = engine_options(app_config({"max_replicas": 9, "target_queued_tokens": target}))
    config = options["autoscaling_config"]
    assert isinstance(config, AutoscalingConfig)
    return _resolve_policy_callable(config.policy)


@pytest.mark.parametrize(
    ("waiting", "wanted"), [([], 1), ([0, 0], 1), ([1000, 1000], 2), ([500, 4500], 5), ([90], 1)]
)
def test_engines_follow_the_tokens_that_wait(waiting: list[float], wanted: float) -> None:
    metrics = {"queued_tokens": dict(enumerate(waiting))} if waiting else None
    number, state = policy(1000)(SimpleNamespace(aggregated_metrics=metrics))
    assert (number, state) == (wanted, {})


class Known:
    """A router that was told of replicas and their loads."""

    def __init__(self, loads: dict[str, int], name: str = "prefix") -> None:
        self.router = PolicyRouter.__new__(PolicyRouter)
        self.router.initialize_state(policy=name)
        vars(self.router)["_replica_queue_len_cache"] = SimpleNamespace(get=loads.get)
        self.replicas: list[Any] = [
            SimpleNamespace(replica_id=_Id(each), unique_id=each) for each in loads
        ]

    def first(self, key: str) -> str:
        context = SimpleNamespace(should_backoff=False)
        pending: Any = SimpleNamespace(
            metadata=SimpleNamespace(session_id=key), routing_context=context
        )
        ranks = asyncio.run(self.router.choose_replicas(self.replicas, pending))
        assert context.should_backoff
        assert 1 <= len(ranks[1]) <= 2
        (chosen,) = ranks[0]
        name: str = chosen.replica_id.unique_id
        return name


class _Id(str):
    @property
    def unique_id(self) -> str:
        return str(self)


def test_router_follows_the_policy_and_its_loads() -> None:
    names = [f"replica-{i}" for i in range(5)]
    keys = [query_key(f"query {i}").hex() for i in range(50)]
    idle = Known(dict.fromkeys(names, 0))
    homes = [idle.first(key) for key in keys]
    assert [idle.first(key) for key in keys] == homes
    assert set(homes) == set(names)
    expected = [names[PrefixAware().choose(key.encode(), names, [0.0] * 5)] for key in keys]
    assert homes == expected
    busy = Known(dict.fromkeys(names, 0) | {homes[0]: 50})
    assert busy.first(keys[0]) != homes[0]
    assert len({Known(dict.fromkeys(names, 0), "random").first(keys[0]) for _ in range(60)}) > 1


def test_without_replicas_nothing_is_chosen() -> None:
    assert asyncio.run(Known({}).router.choose_replicas([])) == []


def test_without_ray_the_import_says_what_to_install() -> None:
    code = (
        "import importlib.util, sys\n"
        "sys.modules['ray'] = None\n"
        "importlib.util.find_spec = lambda name: None\n"
        "import itemwise\n"
        "try:\n    import itemwise.ray.serve\n"
        "except itemwise.ConfigError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "install itemwise[ray]" in done.stdout
