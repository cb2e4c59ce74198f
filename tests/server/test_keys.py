"""API keys from a setting and from a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from itemwise.cli.app import app
from itemwise.config import ServerConfig, check_environment
from itemwise.errors import ConfigError
from itemwise.server.keys import is_known, is_loopback, read_keys
from tests.server.fakes import FakeScorer, get, running_server


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


@pytest.mark.parametrize("options", [["--api-key", ""], ["--api-key-file", ""], []])
def test_command_refuses_an_empty_key(options: list[str]) -> None:
    environment = {} if options else {"ITEMWISE_API_KEY": ""}
    result = CliRunner().invoke(app, ["serve", "--port", "0", *options], env=environment)
    assert isinstance(result.exception, ConfigError)
    assert "empty" in str(result.exception)


def test_server_takes_any_of_its_keys_and_opens_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("two\nthree\n")
    config = ServerConfig("org/net", api_key="one", api_key_file=str(tmp_path / "keys"))
    with running_server(config, FakeScorer) as url:
        for key, status in (("one", 200), ("two", 200), ("three", 200), ("four", 401)):
            headers = {"Authorization": f"Bearer {key}"}
            assert get(f"{url}/v1/models", headers).status_code == status
        shown = get(f"{url}/server_info", {"Authorization": "Bearer two"}).text
        assert str(tmp_path) not in shown
        assert get(f"{url}/anything").status_code == 401, "what is not known to be open is closed"
        assert get(f"{url}/health").status_code != 401
