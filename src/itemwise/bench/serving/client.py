"""A small HTTP client on asyncio streams: one kept-alive connection, cheaper than the server."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from itemwise.errors import ConfigError


@dataclass(frozen=True)
class Reply:
    """An answer.

    Attributes:
        status: HTTP status.
        headers: by their names in lower case.
        body: the body.
        seconds: from the request's first byte to the answer's last.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float


@dataclass(frozen=True)
class Address:
    """The address of a server."""

    host: str
    port: int


def loopback_address(url: str) -> Address:
    """The address of a server on this machine.

    Raises:
        ConfigError: it is not an HTTP URL, or not on this machine: only load your own server.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"`url` is {url!r}, expected one like http://127.0.0.1:30000")
    port = parts.port or 80
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"`url` is {url!r}, but its host is unknown") from error
    host = str(found[0][4][0])
    if not ipaddress.ip_address(host).is_loopback:
        raise ConfigError(
            f"`url` is {url!r}, expected this machine; run the benchmark on the server's machine"
        )
    return Address(host, port)


class Client:
    """One connection, opened when needed. Not for concurrent use.

    `OSError` and `EOFError` mean that the server did not answer.
    """

    def __init__(self, address: Address, api_key: str | None = None) -> None:
        self._address = address
        self._head = f"Host: {address.host}\r\n"
        if api_key is not None:
            self._head += f"Authorization: Bearer {api_key}\r\n"
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def send(self, method: str, path: str, body: bytes = b"") -> None:
        """Sends a request without waiting for the answer."""
        if self._writer is None or self._writer.is_closing():
            address = self._address
            self._reader, self._writer = await asyncio.open_connection(
                address.host, address.port, limit=1 << 26
            )
        head = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        await self._writer.drain()

    async def request(self, method: str, path: str, body: bytes = b"") -> Reply:
        """Sends a request and reads the answer."""
        started = time.perf_counter()
        try:
            await self.send(method, path, body)
            reply = await self._read(started)
        except BaseException:
            self.close()
            raise
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply

    async def _read(self, started: float) -> Reply:
        assert self._reader is not None
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(head[0].split()[1])
        pairs = (line.split(":", 1) for line in head[1:] if line)
        headers = {name.lower(): value.strip() for name, value in pairs}
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        return Reply(status, headers, body, time.perf_counter() - started)

    def close(self) -> None:
        """Closes the connection."""
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None
