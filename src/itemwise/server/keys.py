"""API keys: where they come from, and whether a request has one."""

from __future__ import annotations

import hmac
import ipaddress
from pathlib import Path

from itemwise.config import ServerConfig
from itemwise.errors import ConfigError, brief


def read_keys(config: ServerConfig) -> tuple[bytes, ...]:
    """The keys of a server; any of them lets a request in. None at all if it asks for none.

    Raises:
        ConfigError: the file with keys cannot be read, or has none.
    """
    keys = [] if config.api_key is None else [config.api_key]
    if config.api_key_file is not None:
        path = Path(config.api_key_file).expanduser()
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"`api_key_file` cannot be read: {brief(error)}") from None
        found = [line.strip() for line in lines if line.strip()]
        if not found:
            raise ConfigError(f"`api_key_file` {path} has no key, expected one on each line")
        keys += found
    return tuple(key.strip("\r\n").encode() for key in keys)


def is_known(given: bytes, keys: tuple[bytes, ...]) -> bool:
    """Whether a key is one of those; takes the same time whichever it is, and if it is none."""
    return any([hmac.compare_digest(given, key) for key in keys])  # noqa: C419  # looks at all


def is_loopback(host: str) -> bool:
    """Whether an address is reachable from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
