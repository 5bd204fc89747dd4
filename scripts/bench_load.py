"""Load on an OpenAI endpoint, for the benchmark: closed-loop clients with prompts of about 320 tokens."""

import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from typing import Any

import httpx

PASSAGE = (
    "HDFS 是一个分布式文件系统。客户端写文件时，先向 NameNode 请求创建文件，NameNode 为每个块分配一组 DataNode，客户端把数据以包的形式"
    "依次写入由这些 DataNode 组成的流水线，每个 DataNode 收到包之后转发给下一个，并沿流水线返回确认。当一个块写满后，客户端再申请下一个块，"
    "直到文件写完并关闭。租约由 NameNode 管理，软限制一分钟，硬限制一小时。"
)
# The answer has to be longer than MAX_TOKENS, for not every rival can be told to ignore its end.
QUESTION = "请逐步、详细地说明 HDFS 如何写入一个文件，至少写三百字。"
MAX_TOKENS = 64


@dataclass(frozen=True)
class Server:
    """An endpoint under test. `plain`: takes only OpenAI's oldest parameters, so tokens are counted by their events."""

    name: str
    url: str  # with /v1
    model: str
    pid: int
    plain: bool = False


def prompt(salt: str, shared: bool) -> str:
    """With `shared`, everything but the last line is the same for all; without, the first token differs already."""
    if shared:
        return f"使用如下的内容来回答问题。\n{PASSAGE * 2}\n问题：{QUESTION}（编号 {salt}）"
    return f"[{salt}] 使用如下的内容来回答问题。\n{PASSAGE * 2}\n问题：{QUESTION}"


async def load(server: Server, clients: int, requests: int, salt: str, *, shared: bool) -> dict[str, float]:
    """Median time to first token, and tokens a second over all clients."""
    async with _client(clients) as client:
        pending = list(range(requests))
        done: list[dict[str, float]] = []

        async def work() -> None:
            while pending:
                done.append(await _ask(client, server, prompt(f"{salt}-{pending.pop()}", shared)))

        began = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(clients)))
        wall = time.perf_counter() - began
    return {
        "ttft_s": statistics.median(d["ttft"] for d in done),
        "tokens_s": sum(d["tokens"] for d in done) / wall,
    }


async def late_arrival(server: Server, others: int, salt: str) -> dict[str, float]:
    """Time to first token of a request on an idle service, and of one that arrives while `others` decode."""
    async with _client(others + 1) as client:
        idle = (await _ask(client, server, prompt(salt + "-idle", False)))["ttft"]
        started = [asyncio.Event() for _ in range(others)]
        busy = [
            asyncio.create_task(_ask(client, server, prompt(f"{salt}-{n}", False), started=event, max_tokens=400))
            for n, event in enumerate(started)
        ]
        await asyncio.gather(*(event.wait() for event in started))
        late = (await _ask(client, server, prompt(salt + "-late", False), max_tokens=4))["ttft"]
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
    return {"idle_s": idle, "late_s": late}


def _client(clients: int) -> httpx.AsyncClient:
    # A connection a request: the bare server closes them after a stream without saying so.
    limits = httpx.Limits(max_connections=clients + 1, max_keepalive_connections=0)
    return httpx.AsyncClient(timeout=600, limits=limits, trust_env=False)


async def _ask(
    client: httpx.AsyncClient,
    server: Server,
    text: str,
    *,
    started: asyncio.Event | None = None,
    max_tokens: int = MAX_TOKENS,
) -> dict[str, float]:
    body: dict[str, Any] = {
        "model": server.model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }
    if not server.plain:
        body |= {"ignore_eos": True, "stream_options": {"include_usage": True}}
    began, first, events, tokens = time.perf_counter(), 0.0, 0, 0
    async with client.stream("POST", f"{server.url}/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise SystemExit(f"scripts/bench: {server.name} answers {response.status_code}: {await response.aread()!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                raise SystemExit(f"scripts/bench: {server.name}: {chunk['error']}")
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                events += 1
                if not first:
                    first = time.perf_counter() - began
                    if started is not None:
                        started.set()
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
    return {"ttft": first, "tokens": tokens or events}
