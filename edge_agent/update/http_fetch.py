"""python-tuf's fetcher over HTTP, for repositories that lie on a web server.

The agent itself gets metadata over MQTT; this serves the outside suite that holds the same client
to the TUF specification (`conformance`).

Rules:
    * Only "404 Not Found" is "not found"; silence, refusals and redirects are errors.
    * A server that is silent, or sends for longer than `deadline_s`, is given up.
    * Bytes are handed on as they come: who asks bounds their number.
"""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from typing import Final
from urllib.parse import quote, urlsplit

from tuf.api import exceptions
from tuf.ngclient import FetcherInterface

from edge_agent.update.ports import Clock

_BLOCK_BYTES: Final = 64 * 1024
_AS_IT_IS: Final = "/%:@!$&'()*+,;=~-._"
"""What stays unquoted in a path; names of metadata come quoted."""


class HttpFetcher(FetcherInterface):
    """See the module.  A connection per file."""

    def __init__(
        self, *, timeout_s: float = 10.0, deadline_s: float = 300.0, clock: Clock = time.monotonic
    ) -> None:
        """
        Args:
            timeout_s: longest silence.
            deadline_s: longest time for a whole file.
            clock: monotonic seconds.
        """
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._clock = clock

    def _fetch(self, url: str) -> Iterator[bytes]:
        connection, path = self._connection(url)
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise exceptions.DownloadError(f"{url}: {error}") from error
        if response.status != http.HTTPStatus.OK:
            connection.close()
            if response.status == http.HTTPStatus.NOT_FOUND:
                raise exceptions.DownloadHTTPError(f"{url} does not exist", response.status)
            raise exceptions.DownloadError(f"{url}: the server answers {response.status}")
        return self._blocks(url, connection, response)

    def _connection(self, url: str) -> tuple[http.client.HTTPConnection, str]:
        parts = urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        if parts.scheme not in kinds or not parts.hostname:
            raise exceptions.DownloadError(f"{url[:200]} is no http address")
        connection = kinds[parts.scheme](parts.hostname, parts.port, timeout=self._timeout_s)
        return connection, quote(parts.path or "/", safe=_AS_IT_IS)

    def _blocks(
        self, url: str, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> Iterator[bytes]:
        end_at = self._clock() + self._deadline_s
        try:
            while block := response.read1(_BLOCK_BYTES):
                yield block
                if self._clock() > end_at:
                    raise exceptions.SlowRetrievalError(f"{url}: took over {self._deadline_s:g} s")
            if response.length:
                raise exceptions.DownloadError(f"{url}: {response.length} bytes are missing")
        except (OSError, http.client.HTTPException) as error:
            raise exceptions.DownloadError(f"{url}: {error}") from error
        finally:
            connection.close()
