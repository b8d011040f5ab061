"""Other machines as devices: llama.cpp's RPC backend, where this build has it (common/arg.cpp, add_rpc_devices)."""

import ctypes
import socket
import struct
import time
from contextlib import suppress
from functools import cache
from typing import Any

from ggufreap.engine.native import bindings, declare, loaded_with_llama
from ggufreap.errors import EngineError
from ggufreap.options.flag import split_endpoints

ANSWERS_IN, RETRY_IN = 20.0, 0.2  # seconds; a server that is free answers at once
_ADD_SERVER = b"ggml_backend_rpc_add_server"
# What a client says first: the command, the size of what follows, what the connection can do. Back come a size, the
# version in three bytes, a byte of nothing, and what the other side can do (ggml-rpc.cpp, rpc_serve_client).
_HELLO, _CAPABILITIES = 14, 24
_GREETING = struct.pack(f"<BQ{_CAPABILITIES}x", _HELLO, _CAPABILITIES)
_REPLY = struct.calcsize(f"<QBBBB{_CAPABILITIES}x")
_REPLY_NBYTES = struct.pack("<Q", _REPLY - 8)
_REBUILD = "CMAKE_ARGS=-DGGML_RPC=ON pip install --force-reinstall --no-cache-dir 'llama-cpp-python>=0.3.36,<0.4'"


@cache
def add_servers(endpoints: str) -> None:
    """Make the devices of these servers (HOST:PORT, with commas) devices of this process, called RPC0, RPC1, ...

    Raises EngineError where this build has no RPC backend or a server does not answer: ggml would end the process, or
    wait for as long as another client is served.
    """
    bindings().llama_backend_init()
    register, add_server = _functions()
    for host, port in split_endpoints(endpoints):
        device = add_server(f"{_reached(host, int(port))}:{port}".encode())
        if not device:
            raise EngineError(f"--rpc {host}:{port}: that server has no device; see what it said when it started")
        register(device)


def _functions() -> tuple[Any, Any]:
    """ggml_backend_register, and what adds a server."""
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    ggml, base = loaded_with_llama("ggml"), loaded_with_llama("ggml-base")
    declare(ggml, ("ggml_backend_reg_by_name", [text], pointer), ("ggml_backend_register", [pointer], None))
    declare(base, ("ggml_backend_reg_get_proc_address", [pointer, text], pointer))
    backend = ggml.ggml_backend_reg_by_name(b"RPC")
    address = backend and base.ggml_backend_reg_get_proc_address(backend, _ADD_SERVER)
    if not address:
        raise EngineError(f"--rpc: this llama-cpp-python was built without GGML_RPC; build it anew: {_REBUILD}")
    return ggml.ggml_backend_register, ctypes.CFUNCTYPE(pointer, text)(address)


def _reached(host: str, port: int) -> str:
    """The IPv4 address of a server that answers.

    ggml gets the address: it names copies of tensors after the device, in which the name is, and cuts them at 63 bytes.
    """
    until = time.monotonic() + ANSWERS_IN
    try:
        address = socket.gethostbyname(host)
        while time.monotonic() < until:
            if reply := _greeted(address, port, max(0.1, until - time.monotonic())):
                break
            time.sleep(RETRY_IN)
        else:
            raise TimeoutError
    except TimeoutError:
        why = f"it says nothing for {ANSWERS_IN:g} s; a server serves one client at a time: is another one working?"
    except OSError as error:
        why = f"{error.strerror or error}; start it there: ggml-rpc-server -H 0.0.0.0 -p {port}"
    else:
        if len(reply) == _REPLY and reply.startswith(_REPLY_NBYTES):
            return address
        why = "what answers there is no ggml-rpc-server of this version of llama.cpp"
    raise EngineError(f"--rpc {host}:{port}: {why}")


def _greeted(address: str, port: int, seconds: float) -> bytes:
    """What comes back; nothing where the other side hangs up, as a server may that has just lost a client."""
    reply = b""
    with socket.create_connection((address, port), seconds) as connection, suppress(ConnectionError):
        connection.sendall(_GREETING)
        while len(reply) < _REPLY and (more := connection.recv(_REPLY - len(reply))):
            reply += more
    return reply
