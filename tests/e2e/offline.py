"""Runs the pair where there is no network but loopback, and reports what tried to leave. See test_offline.py.

The kernel counts packets that found no route (``OutNoRoutes``), whatever library or language sent them; a hook in every
Python process writes down each name that was looked up and each address outside loopback that was connected to.
"""

import ctypes
import fcntl
import json
import os
import socket
import struct
import sys
from pathlib import Path

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 1

HOOK = """
import os, socket
_log = os.environ["OFFLINE_LOG"]
_connect, _lookup = socket.socket.connect, socket.getaddrinfo
def _note(what):
    with open(_log, "a") as log:
        log.write(f"{os.getpid()} {what}\\n")
def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not str(address[0]).startswith(("127.", "::1", "localhost")):
        _note(f"connect {address}")
    return _connect(self, address)
def getaddrinfo(host, *rest, **more):
    if host not in (None, "localhost", "127.0.0.1", "::1", b"127.0.0.1", b"localhost", "0.0.0.0", ""):
        _note(f"look up {host}")
    return _lookup(host, *rest, **more)
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""


def cut_network() -> None:
    """Enter a network of our own with nothing but loopback. Raises OSError where the kernel does not allow it."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = CLONE_NEWNET if os.geteuid() == 0 else CLONE_NEWNET | CLONE_NEWUSER
    if libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14s", b"lo", IFF_UP, b""))


def no_route() -> int:
    names, values = (line.split() for line in Path("/proc/self/net/snmp").read_text().splitlines() if line[:3] == "Ip:")
    return int(values[names.index("OutNoRoutes")])


def main(work: Path) -> None:
    try:
        cut_network()
    except OSError as error:
        print(json.dumps({"skip": f"this system does not let a process have a network of its own: {error}"}))
        return
    (work / "sitecustomize.py").write_text(HOOK)
    log = work / "left.log"
    log.touch()
    os.environ |= {"PYTHONPATH": f"{work}:{os.environ.get('PYTHONPATH', '')}", "OFFLINE_LOG": str(log)}

    import httpx

    from tests.e2e.conftest import MODEL_ID, cache_env
    from tests.rag.conftest import upload, wait
    from tests.support.servers import ROOT, start_service

    with start_service("services.model", {"MODEL_ID": MODEL_ID, **cache_env()}) as model:
        env = {
            "RAG_MODEL_URL": model.url + "/v1",
            "RAG_EMBEDDING_MODEL": "embedded",
            "RAG_DATA_DIR": str(work / "data"),
        }
        with (
            start_service("services.rag", env | cache_env()) as rag,
            httpx.Client(base_url=rag.url, timeout=240) as client,
        ):
            job = upload(client, next((ROOT / "samples").glob("*.zh.pdf")))
            state = wait(client, job["job_id"])["state"]
            answer = client.post("/rag/invoke", json={"input": {"question": "租约的硬限制是多久？"}}).json()["output"]
            docs = [client.get(path).status_code for path in ("/docs", "/rag/playground/", "/chat/playground/")]
    print(
        json.dumps(
            {
                "state": state,
                "answerable": answer["answerable"],
                "pages": docs,
                "no_route": no_route(),
                "left": log.read_text(),
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
