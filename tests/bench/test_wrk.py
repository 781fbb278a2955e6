"""What wrk prints is read to the last counter; what it does not print stops the run."""

from __future__ import annotations

import pytest

from bench.loads.errors import LoadFailed
from bench.loads.wrk import parse

PRINTED = """\
Running 5s test @ http://127.0.0.1:8000/v2/models/tiny/infer
  1 threads and 8 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   154.70us  340.40us  12.85ms   98.97%
    Req/Sec    52.80k     2.98k   56.48k    88.00%
  Latency Distribution
     50%  139.00us
     75%  148.00us
     90%    1.22ms
     99%    1.07s{pad}
  262610 requests in 5.00s, 66.62MB read
""".format(pad=" ")  # wrk fills units up to two characters
ENDED = """\
Requests/sec:  52514.42
Transfer/sec:     13.32MB
"""


def test_rate_and_percentiles_are_read_in_microseconds() -> None:
    found = parse(PRINTED + ENDED)
    assert (found.requests, found.rps) == (262610, 52514.42)
    assert (found.p50_us, found.p99_us) == (139.0, 1_070_000.0)
    assert (found.refused, found.broken) == (0, 0)


def test_refused_and_broken_requests_are_counted() -> None:
    errors = (
        "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 17\n"
    )
    found = parse(PRINTED + errors + ENDED)
    assert (found.refused, found.broken) == (17, 10)


@pytest.mark.parametrize("text", ["", "unable to connect to 127.0.0.1:1", PRINTED])
def test_a_missing_figure_stops_the_run(text: str) -> None:
    with pytest.raises(LoadFailed, match="cannot read wrk's answer"):
        parse(text)
