"""Who may ask the server what, and where it listens."""

import asyncio
import socket

import pytest

from globalvit.demo.server import Guard, listening


def answer(guard, headers, kind="http"):
    """Status and headers of the answer to a request."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    asyncio.run(guard(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "LocalHost:7860"}, 200),
        ({"host": "evil.example:7860"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({}, 421),
        ({"host": "localhost", "content-length": "1000"}, 200),
        ({"host": "localhost", "content-length": "200000"}, 413),
        ({"host": "localhost", "content-length": "-1"}, 413),
    ],
)
def test_only_this_machine_is_answered_and_only_small_requests(headers, status):
    found, shown = answer(Guard(app, ("127.0.0.1", "localhost", "::1"), 100_000), headers)
    assert found == status
    assert b"connect-src 'self'" in shown[b"content-security-policy"]


def test_where_all_may_ask_any_host_name_will_do():
    assert answer(Guard(app, None, 100), {"host": "lab-server"})[0] == 200


def test_a_taken_port_is_one_line_with_the_remedy():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot serve at 127\.0\.0\.1, port {port}: .*; give another --port"):
            listening("127.0.0.1", port)


def test_any_free_port_can_be_had():
    with listening("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0
