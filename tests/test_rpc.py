"""Other machines as devices: who is asked, and what is said where nobody answers as a server does."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress

import pytest

from ggufreap.engine import native, rpc
from ggufreap.errors import EngineError, InputError
from ggufreap.options.engine import EngineSettings

pytestmark = pytest.mark.native


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port of this machine on which every caller gets `answer`."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        server.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                with suppress(TimeoutError, ConnectionError):
                    connection, _ = server.accept()
                    connection.settimeout(1)
                    with connection:
                        answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield server.getsockname()[1]
        done.set()
        thread.join()


def hello(connection: socket.socket) -> None:
    """What ggml-rpc.cpp (rpc_serve_client) does with whom it does not know yet."""
    asked = connection.recv(1 + 8 + 24, socket.MSG_WAITALL)
    assert asked[0] == 14
    assert int.from_bytes(asked[1:9], "little") == 24
    connection.sendall((28).to_bytes(8, "little"))
    time.sleep(0.05)  # the server sends size and content apart
    connection.sendall(bytes((7, 0, 0, 0)) + bytes(24))


def test_a_build_without_it_says_how_to_build_it() -> None:
    if native.bindings().llama_supports_rpc():
        pytest.skip("this llama.cpp has its RPC backend")
    with pytest.raises(EngineError, match=r"--rpc: this llama-cpp-python was built without GGML_RPC; .*-DGGML_RPC=ON"):
        rpc.add_servers("127.0.0.1:50052")


def test_a_server_that_answers_is_told_by_its_address() -> None:
    with listening(hello) as port:
        assert rpc._reached("localhost", port) == "127.0.0.1"


def test_a_server_that_hangs_up_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that is about to lose its former client."""
    monkeypatch.setattr(rpc, "RETRY_IN", 0.01)
    answers = iter([lambda connection: connection.recv(1), lambda connection: None, hello, hello])
    with listening(lambda connection: next(answers)(connection)) as port:
        assert rpc._reached("127.0.0.1", port) == "127.0.0.1"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda connection: connection.recv(1), "serves one client at a time"),
        (lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "no ggml-rpc-server"),
        (lambda connection: connection.sendall(b"<html>" * 50), "no ggml-rpc-server"),
        (lambda connection: connection.recv(64, socket.MSG_WAITALL), "serves one client at a time"),
    ],
)
def test_who_is_no_server_or_busy_is_said(
    answer: Callable[[socket.socket], None], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rpc, "ANSWERS_IN", 0.2)
    with listening(answer) as port, pytest.raises(EngineError, match=f"--rpc localhost:{port}: .*{why}"):
        rpc._reached("localhost", port)


def test_nobody_there_is_said() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
    with pytest.raises(EngineError, match=rf"--rpc 127.0.0.1:{port}: .*; start it there: ggml-rpc-server"):
        rpc._reached("127.0.0.1", port)
    with pytest.raises(EngineError, match=r"--rpc nobody\.invalid:1: "):
        rpc._reached("nobody.invalid", 1)


@pytest.mark.parametrize("text", ["", "host", "host:", ":50052", "host:0", "host:65536", "a:1,,b:2", "[::1]:50052"])
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"--rpc: '.*' is not HOST:PORT"):
        EngineSettings(rpc=text)


@pytest.mark.parametrize(("values", "flag"), [({"device": "none"}, "-dev none"), ({"n_gpu_layers": 0}, "-ngl 0")])
def test_a_server_that_could_not_be_used_is_refused(values: dict[str, object], flag: str) -> None:
    with pytest.raises(InputError, match=f"--rpc: with {flag} no other machine computes anything"):
        EngineSettings(rpc="host:1", **values)  # type: ignore[arg-type]
