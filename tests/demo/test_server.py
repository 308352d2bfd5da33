"""Who may ask the server what, and where it listens."""

import asyncio
import socket

import pytest

from globalvit.demo.server import Guard, listening


def answer(guard, headers, method="GET", parts=()):
    """Status and headers of the answer to a request whose body comes in parts."""
    sent, coming = [], list(parts)

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": coming.pop(0), "more_body": bool(coming)}

    listed = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(guard({"type": "http", "method": method, "headers": listed}, receive, send))
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
        ({"host": "[::1]evil"}, 421),
        ({"host": "localhost:x:evil"}, 421),
        ({"host": "evil@localhost"}, 421),
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
        with pytest.raises(OSError, match=rf"cannot listen on 127\.0\.0\.1, port {port}: .*; give another --port"):
            listening("127.0.0.1", port)


def test_any_free_port_can_be_had():
    with listening("127.0.0.1", 0) as listener:
        assert listener.getsockname()[1] > 0


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:7860"}, 200),
        ({"origin": "HTTP://LOCALHOST:7860"}, 200),
        ({"origin": "http://localhost:7860", "sec-fetch-site": "same-origin"}, 200),
        ({"origin": "https://space.example", "x-forwarded-host": "space.example"}, 200),
        ({"origin": "http://localhost:1234"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
    ],
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_nothing_that_another_site_sends_is_taken(headers, status, method):
    assert answer(Guard(app, ("localhost",), 100), {"host": "localhost:7860"} | headers, method)[0] == status
    assert answer(Guard(app, ("localhost",), 100), {"host": "localhost:7860"} | headers, "GET")[0] == 200


def test_more_than_a_request_says_is_refused_in_the_middle():
    async def reads(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            assert message["more_body"]
        raise ConnectionError("the client has left")

    assert answer(Guard(reads, None, 100), {}, "POST", [b"x" * 40_000] * 3)[0] == 413


def test_websockets_are_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Guard(app, None, 100)({"type": "websocket", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
