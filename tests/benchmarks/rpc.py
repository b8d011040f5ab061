"""Does a model on other machines tell what it tells on this one? Run by rpc.sh, which sets everything up.

Two ggml-rpc-servers run on the loopback. The stages calibrate, preview, verify and eval run on this machine alone, with
all of the model on one server, half of its blocks there, and all of it on two; statistics and importance matrix are
compared with those of this machine. Ends with 1 when a command fails, when the totals of blocks differ by more than
gpu_check.py lets a GPU differ, or when no weights went to a server that should have some. Then the server is killed in
the middle of a calibration, which must end with one line, and the same command again tell the same.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from gpu_check import CTX, TOLERANCE, differences, told_by

from ggufreap import inspect
from ggufreap.corpus.standard_library import calibration_text, held_out_text
from ggufreap.demonstration import MODEL as DEMO_MODEL
from ggufreap.observation import load

SERVER = Path(sys.executable).with_name("ggml-rpc-server")
THREADS = "1"


@contextmanager
def server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A ggml-rpc-server on a port of this machine, once it answers."""
    command = [SERVER, "-p", str(port), "-t", THREADS]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except ConnectionRefusedError:
                    time.sleep(0.1)
            yield process
        finally:
            process.kill()


def free_port() -> int:
    """A port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def compared(model: Path, folder: Path, chunks: int, ports: tuple[int, int]) -> bool:
    """Print what every placement gives; whether all is as it should be."""
    one, both = (",".join(f"localhost:{port}" for port in ports[:count]) for count in (1, 2))
    places = {
        "local": ("-dev", "none", "-ngl", "0"),
        "all": ("--rpc", one),
        "half": ("--rpc", one, "-ngl", str(inspect(model).n_block // 2)),
        "two": ("--rpc", both, "-ts", "1,1"),
    }
    good, local = True, None
    for which, flags in places.items():
        told = told_by(model, folder / which, (*flags, "-t", THREADS, "--no-repack"), chunks)
        local = local or told
        found = differences(told, local)
        same = all(np.array_equal(told.values[name], values) for name, values in local.values.items())
        print(f"{which:>6}  {told.weights}")
        print("        " + "  ".join(f"{verb} {seconds:.1f} s" for verb, seconds in told.seconds.items()))
        print("        " + "  ".join(f"{what} {value:.1e}" for what, value in found.items()), end="")
        print(f"  KLD {told.kld:.4f}  perplexity {told.ppl:.4f}  statistics {'identical' if same else 'differ'}")
        n_servers = told.weights.count(" in RPC")
        if n_servers != len(flags[1].split(",")) * (flags[0] == "--rpc"):
            good = False
            print(f"        weights are on {n_servers} servers")
        if max(found["blocks"], found["imatrix"]) > TOLERANCE:
            good = False
            print(f"        differs by more than {TOLERANCE:.0%}")
    return good


def goes_on(model: Path, folder: Path, chunks: int, port: int) -> bool:
    """Whether a calibration whose server dies says so, and the same command again tells what it should."""
    out = folder / "killed.npz"
    command = [sys.executable, "-m", "ggufreap", "calibrate", model, "-o", out, "-f", folder / "calibration.txt"]
    command += ["--chunks", str(chunks), "-c", str(CTX), "-ub", str(CTX), "-t", THREADS, "--no-repack"]
    command += ["--rpc", f"localhost:{port}"]
    with server(port) as process, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr
        for line in run.stderr:
            if line.startswith("weights of"):
                process.kill()
        print(f"killed: {line.strip()}")
    with server(port):
        again = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if run.returncode != 1 or again.returncode:
        print(f"        ended with {run.returncode} and {again.returncode}, 1 and 0 were expected: {again.stderr}")
        return False
    whole, found = (load(path)[0].total.values for path in (folder / "all" / "S.npz", out))
    return all(np.array_equal(found[name], values) for name, values in whole.items())


def main() -> None:
    """Check the model that is given, or the embedded one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=DEMO_MODEL, help="a trained model (the embedded one)")
    parser.add_argument("--chunks", type=int, default=32, help=f"of {CTX} tokens, for calibration (32)")
    options = parser.parse_args()
    ports = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="ggufreap-") as name:
        folder = Path(name)
        (folder / "calibration.txt").write_text(calibration_text(8 * CTX * options.chunks))
        (folder / "held_out.txt").write_text(held_out_text(8 * CTX * options.chunks))
        with server(ports[0]), server(ports[1]):
            good = compared(options.model, folder, options.chunks, ports)
        good &= goes_on(options.model, folder, options.chunks, ports[0])
    sys.exit(0 if good else "not all is as it should be")


if __name__ == "__main__":
    main()
