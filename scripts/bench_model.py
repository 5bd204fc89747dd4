"""The model service beside the bare engine: the same GGUF, threads, slots and requests, in one run, in turns.

The bare engine is xllamacpp's own HTTP server (llama.cpp's) in a process of its own, with llama.cpp's batch sizes. Each
round sends the same number of requests to both, one server after the other, so that a noisy machine is noisy for both;
a ratio is the median over the rounds.
"""

import argparse
import asyncio
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
PASSAGE = (
    "HDFS 是一个分布式文件系统。客户端写文件时，先向 NameNode 请求创建文件，NameNode 为每个块分配一组 DataNode，客户端把数据以包的形式"
    "依次写入由这些 DataNode 组成的流水线，每个 DataNode 收到包之后转发给下一个，并沿流水线返回确认。当一个块写满后，客户端再申请下一个块，"
    "直到文件写完并关闭。租约由 NameNode 管理，软限制一分钟，硬限制一小时。"
)
MAX_TOKENS = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench")
    parser.add_argument("--model", default="embedded:0.5b")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures there")
    arguments = parser.parse_args()
    console = Console()
    with console_progress(arguments.model) as progress:
        path = catalog.resolve(arguments.model, load_settings().cache_dir, progress)
    parallel, context, threads = max(arguments.clients), 2048, usable_cores()
    with ExitStack() as stack:
        ours_port, bare_port = free_port(), free_port()
        env = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MODEL_")},
            "MODEL_ID": str(path),
            "MODEL_PORT": str(ours_port),
            "MODEL_PARALLEL": str(parallel),
            "MODEL_CONTEXT": str(context),
            "MODEL_KV_TOKENS": str(context * 2),
            "MODEL_THREADS": str(threads),
            "MODEL_LOG_LEVEL": "warning",
        }
        began = time.perf_counter()
        ours = _start(stack, [sys.executable, "-m", "services.model"], env)
        url = f"http://127.0.0.1:{ours_port}"
        _wait(f"{url}/ready", ours)
        ready_seconds = time.perf_counter() - began
        rss_loaded = _rss(ours.pid)
        numbers = [str(n) for n in (bare_port, parallel, context, threads)]
        bare = _start(stack, [sys.executable, "-c", BARE, str(path), *numbers], dict(os.environ))
        _wait(f"http://127.0.0.1:{bare_port}/health", bare)
        servers = {"docduet": f"{url}/v1", "bare": f"http://127.0.0.1:{bare_port}/v1"}
        for server in servers.values():
            asyncio.run(_load(server, 1, 1, "warm"))
        rows = []
        for clients in arguments.clients:
            rounds: list[dict[str, dict[str, float]]] = []
            for number in track(range(arguments.rounds), f"{clients} clients", console=console, transient=True):
                # The order changes with each round: a machine that warms up or slows down favours nobody.
                names = list(servers) if number % 2 == 0 else list(servers)[::-1]
                rounds.append(
                    {n: asyncio.run(_load(servers[n], clients, max(clients, 3), f"{clients}-{number}")) for n in names}
                )
            rows.append(_summary(clients, rounds))
        weights = path.stat().st_size / (1 << 20)
        figures = {
            "model": arguments.model,
            "threads": threads,
            "ready_seconds": round(ready_seconds, 2),
            "weights_mb": round(weights),
            "rss_loaded_mb": round(rss_loaded),
            "rss_after_mb": round(_rss(ours.pid)),
            "bare_rss_after_mb": round(_rss(bare.pid)),
            "loads": rows,
        }
    _print(console, figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


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


async def _load(base: str, clients: int, requests: int, salt: str) -> dict[str, float]:
    """``requests`` requests by ``clients`` closed-loop clients; prompts of about 320 tokens that share no prefix."""
    # A connection a request: the bare server closes them after a stream without saying so.
    limits = httpx.Limits(max_connections=clients + 1, max_keepalive_connections=0)
    async with httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as client:
        model = (await client.get(f"{base}/models")).json()["data"][0]["id"]
        pending = list(range(requests))
        done: list[dict[str, float]] = []

        async def work() -> None:
            while pending:
                prompt = (
                    f"[{salt}-{pending.pop()}] 使用如下的内容来回答问题。\n{PASSAGE * 2}\n问题：HDFS 如何写入一个文件？"
                )
                done.append(await _one(client, base, model, prompt))

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        wall = time.perf_counter() - began
    return {
        "ttft_s": statistics.median(d["ttft"] for d in done),
        "tokens_s": sum(d["tokens"] for d in done) / wall,
    }


async def _one(client: httpx.AsyncClient, base: str, model: str, prompt: str) -> dict[str, float]:
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first, tokens = time.perf_counter(), 0.0, 0
    async with client.stream("POST", f"{base}/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"scripts/bench: {base} answers {response.status_code}: {await response.aread()!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if not first and any(c["delta"].get("content") for c in chunk["choices"]):
                first = time.perf_counter() - began
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return {"ttft": first, "tokens": tokens}


def _summary(clients: int, rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    def middle(name: str, figure: str) -> float:
        return statistics.median(r[name][figure] for r in rounds)

    def ratio(figure: str) -> float:
        return statistics.median(r["docduet"][figure] / r["bare"][figure] for r in rounds)

    return {
        "clients": clients,
        **{
            f"{name}_{figure}": round(middle(name, figure), 3)
            for name in ("docduet", "bare")
            for figure in ("ttft_s", "tokens_s")
        },
        "ttft_ratio": round(ratio("ttft_s"), 3),
        "tokens_ratio": round(ratio("tokens_s"), 3),
        "tokens_ratios": [round(r["docduet"]["tokens_s"] / r["bare"]["tokens_s"], 3) for r in rounds],
    }


def _print(console: Console, figures: dict[str, Any]) -> None:
    table = Table(title=f"{figures['model']}, {figures['threads']} threads: docduet beside the bare engine")
    for column in ("clients", "first token s", "bare", "ratio", "tokens/s", "bare", "ratio", "ratios by round"):
        table.add_column(column, justify="right")
    for row in figures["loads"]:
        table.add_row(
            str(row["clients"]),
            f"{row['docduet_ttft_s']:.2f}",
            f"{row['bare_ttft_s']:.2f}",
            f"{row['ttft_ratio']:.2f}",
            f"{row['docduet_tokens_s']:.1f}",
            f"{row['bare_tokens_s']:.1f}",
            f"{row['tokens_ratio']:.2f}",
            " ".join(map(str, row["tokens_ratios"])),
        )
    console.print(table)
    console.print(
        f"start to ready {figures['ready_seconds']} s; weights {figures['weights_mb']} MiB; resident {figures['rss_loaded_mb']} MiB "
        f"when ready, {figures['rss_after_mb']} MiB after the load (bare engine {figures['bare_rss_after_mb']} MiB)"
    )


if __name__ == "__main__":
    main()
