"""API keys from a setting and from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from itemwise.config import ServerConfig, check_environment
from itemwise.errors import ConfigError
from itemwise.server.keys import is_known, is_loopback, read_keys


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("one", (b"one",)),
        ("one\n", (b"one",)),
        ("one\r\ntwo\r\n", (b"one", b"two")),
        ("\n one \n\nschl\u00fcssel\n", (b"one", "schl\u00fcssel".encode())),
    ],
)
def test_keys_of_a_file(text: str, keys: tuple[bytes, ...], tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes(text.encode())
    config = ServerConfig(api_key_file=str(tmp_path / "keys"))
    assert config.has_key
    assert read_keys(config) == keys
    both = ServerConfig(api_key="more\n", api_key_file=str(tmp_path / "keys"))
    assert read_keys(both) == (b"more", *keys)


def test_no_key() -> None:
    assert read_keys(ServerConfig()) == ()
    assert not ServerConfig().has_key


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff\xfe", None])
def test_file_without_keys_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ConfigError, match="api_key_file"):
        read_keys(ServerConfig(api_key_file=str(tmp_path / "keys")))


@pytest.mark.parametrize("key", ["", " ", "\n"])
def test_empty_key_is_refused_and_not_taken_for_none(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="api_key"):
        ServerConfig(api_key=key)
    for name in ("ITEMWISE_API_KEY", "ITEMWISE_API_KEY_FILE"):
        monkeypatch.setenv(name, key)
        with pytest.raises(ConfigError, match=f"{name} is set but empty"):
            check_environment()
        monkeypatch.setenv(name, "key")
        check_environment()


def test_any_key_is_known_and_no_other() -> None:
    keys = b"one", b"two"
    assert is_known(b"one", keys)
    assert is_known(b"two", keys)
    for other in (b"", b"on", b"onee", b"two\x00"):
        assert not is_known(other, keys)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)]
    + [("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("box", False), ("", False)],  # noqa: S104
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
