"""The model service beside its rivals: the same weights, threads and requests, in one run, in turns.

llama.cpp engine: beside xllamacpp's own HTTP server (llama.cpp's), with llama.cpp's batch sizes. transformers engine, on the
same weights unpacked to float32: beside transformers' own `generate`, one request after another, and beside `transformers
serve` with continuous batching. Each round asks all of them, in an order that changes, so that a noisy machine is noisy for
all; a ratio is the median over the rounds.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from bench_load import Server, late_arrival, load
from convert_gguf import convert_gguf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from services.model import catalog
from services.model.config import load_settings, usable_cores
from services.supervisor import free_port
from services.wheels import console_progress

BARE = """
import sys, time, xllamacpp
path, port, parallel, context, threads = sys.argv[1], *map(int, sys.argv[2:])
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_parallel, params.n_ctx = path, port, parallel, context * 2
params.kv_unified, params.n_gpu_layers, params.verbosity = True, 0, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(params)
print("ready", flush=True)
time.sleep(1 << 20)
"""
# One request after another: the next client's connection waits in the socket's backlog.
SERIAL = """
import http.server, json, sys, threading
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer
folder, port, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        ids = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True)
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        limit = body["max_tokens"]
        options = dict(**ids, streamer=streamer, do_sample=False, max_new_tokens=limit, min_new_tokens=limit)
        thread = threading.Thread(target=model.generate, kwargs=options)
        thread.start()
        self.send_response(200); self.send_header("content-type", "text/event-stream"); self.end_headers()
        for text in streamer:
            chunk = {"choices": [{"delta": {"content": text}}]} if text else {"choices": []}
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\\n\\n")
        thread.join()
        usage = {"choices": [], "usage": {"completion_tokens": limit}}
        self.wfile.write(b"data: " + json.dumps(usage).encode() + b"\\n\\n")
    def log_message(self, *args): pass
http.server.HTTPServer.request_queue_size = 64
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
CONTEXT = 2048


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench model")
    parser.add_argument("--model", default="embedded:0.5b", help="an embedded model or a GGUF file")
    parser.add_argument("--engine", choices=["llamacpp", "transformers", "both"], default="both")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prefix", choices=["own", "shared", "both"], default="both")
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    console = Console()
    with console_progress(arguments.model) as progress:
        path = catalog.resolve(arguments.model, load_settings().cache_dir, progress)
    found = {}
    for engine in ["llamacpp", "transformers"] if arguments.engine == "both" else [arguments.engine]:
        found[engine] = _measure(engine, path, arguments, console)
        _print(console, engine, found[engine])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


def _measure(engine: str, path: Path, arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    parallel, threads = max(arguments.clients), usable_cores()
    with ExitStack() as stack:
        if engine == "transformers":
            path = convert_gguf(path, path.parent / "hf" / path.stem)
        began = time.perf_counter()
        servers = [_ours(stack, path, parallel, threads)]
        ready_seconds = time.perf_counter() - began
        rss_loaded = _rss(servers[0].pid)
        servers += _rivals(stack, engine, path, parallel, threads)
        for server in servers:
            asyncio.run(load(server, 1, 1, "warm", shared=False))
        rows = []
        for shared in {"own": [False], "shared": [True], "both": [False, True]}[arguments.prefix]:
            for clients in arguments.clients:
                title = f"{engine}, {clients} clients, {'shared' if shared else 'own'} prefix"
                rounds = []
                for number in track(range(arguments.rounds), title, console=console, transient=True):
                    turn = number % len(servers)
                    salt = f"{clients}-{number}-{shared}"
                    rounds.append(
                        {
                            server.name: asyncio.run(load(server, clients, max(clients, 2), salt, shared=shared))
                            for server in servers[turn:] + servers[:turn]
                        }
                    )
                rows.append({"clients": clients, "shared": shared, "rounds": rounds})
        late = (
            [asyncio.run(late_arrival(servers[0], parallel - 1, f"late-{n}")) for n in range(3)] if parallel > 1 else []
        )
        return {
            "threads": threads,
            "ready_seconds": round(ready_seconds, 2),
            "rss_loaded_mb": round(rss_loaded),
            "rss_after_mb": {server.name: round(_rss(server.pid)) for server in servers},
            "names": [server.name for server in servers],
            "loads": rows,
            "late": late,
        }


def _ours(stack: ExitStack, path: Path, parallel: int, threads: int) -> Server:
    port = free_port()
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith("MODEL_")},
        "MODEL_ID": str(path),
        "MODEL_PORT": str(port),
        "MODEL_PARALLEL": str(parallel),
        "MODEL_CONTEXT": str(CONTEXT),
        "MODEL_KV_TOKENS": str(CONTEXT * 4),
        "MODEL_THREADS": str(threads),
        "MODEL_LOG_LEVEL": "warning",
    }
    process = _start(stack, [sys.executable, "-m", "services.model"], env)
    _wait(f"http://127.0.0.1:{port}/ready", process)
    return Server("docduet", f"http://127.0.0.1:{port}/v1", path.stem if path.is_file() else path.name, process.pid)


def _rivals(stack: ExitStack, engine: str, path: Path, parallel: int, threads: int) -> list[Server]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    if engine == "llamacpp":
        numbers = [str(n) for n in (port, parallel, CONTEXT * 2, threads)]
        bare = _start(stack, [sys.executable, "-c", BARE, str(path), *numbers], dict(os.environ))
        _wait(f"{url}/health", bare)
        return [Server("llama.cpp", f"{url}/v1", str(path), bare.pid)]
    serial = _start(stack, [sys.executable, "-c", SERIAL, str(path), str(port), str(threads)], dict(os.environ))
    _wait(url, serial)
    found = [Server("generate", f"{url}/v1", str(path), serial.pid)]
    if importlib.util.find_spec("accelerate") is None:
        Console(stderr=True).print("transformers serve is left out: it needs `pip install accelerate`")
        return found
    port = free_port()
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(path), "--continuous-batching"]
    command += ["--attn-implementation", "sdpa", "--device", "cpu", "--dtype", "float32", "--cb-num-blocks", "64"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error"]
    env = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    serve = _start(stack, command, env)
    _wait(f"http://127.0.0.1:{port}/health", serve)
    found.append(Server("transformers serve", f"http://127.0.0.1:{port}/v1", str(path), serve.pid, plain=True))
    return found


def _start(stack: ExitStack, command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(command, env=env)
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return process


def _wait(url: str, process: subprocess.Popen[bytes]) -> None:
    while True:
        if process.poll() is not None:
            raise SystemExit(f"scripts/bench: {' '.join(map(str, process.args))[:80]} ended: see its output above")  # type: ignore[arg-type]
        try:
            if httpx.get(url, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)


def _rss(pid: int) -> float:
    """Resident memory in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def _print(console: Console, engine: str, figures: dict[str, Any]) -> None:
    rivals = figures["names"][1:]
    table = Table(title=f"{engine} engine, {figures['threads']} threads: docduet beside {' and '.join(rivals)}")
    columns = ["prefix", "clients", "tokens/s"] + [text for name in rivals for text in (name, "ratio")]
    columns += ["first token s"] + [text for name in rivals for text in (name, "ratio")]
    for column in columns:
        table.add_column(column, justify="right")
    for row in figures["loads"]:
        cells = ["shared" if row["shared"] else "own", str(row["clients"])]
        for figure, digits in (("tokens_s", 1), ("ttft_s", 2)):
            cells.append(f"{_middle(row, 'docduet', figure):.{digits}f}")
            for name in rivals:
                ratio = statistics.median(r["docduet"][figure] / r[name][figure] for r in row["rounds"])
                cells += [f"{_middle(row, name, figure):.{digits}f}", f"{ratio:.2f}"]
        table.add_row(*cells)
    console.print(table)
    if figures["late"]:
        idle = statistics.median(item["idle_s"] for item in figures["late"])
        late = statistics.median(item["late_s"] for item in figures["late"])
        ratios = " ".join(f"{item['late_s'] / item['idle_s']:.2f}" for item in figures["late"])
        console.print(f"first token: idle {idle:.2f} s, while the other places decode {late:.2f} s (ratios {ratios})")
    after = ", ".join(f"{name} {size}" for name, size in figures["rss_after_mb"].items())
    console.print(
        f"start to ready {figures['ready_seconds']} s; resident MiB: {figures['rss_loaded_mb']} when ready; after: {after}"
    )


def _middle(row: dict[str, Any], name: str, figure: str) -> float:
    return float(statistics.median(r[name][figure] for r in row["rounds"]))


if __name__ == "__main__":
    main()
