"""`scripts/soak`: see there. Warms up, measures the idle service, loads it, measures it again; ends with a JSON summary.

Memory is the service process's resident set (Linux). It is flat when no sample under load is more than `--growth` percent
above the highest of the warm-up, in which the weights are read, the caches filled and every kind of request was served.
"""

# ruff: noqa: S311 (chance makes a load here, not a secret)
from __future__ import annotations

import argparse
import asyncio
import collections
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from soak_load import LIMITED_KEY, MIX, Kind, limited

KEY = "soak"


@dataclass
class Sample:
    """Of the service process. `rss`: MiB."""

    at: float
    rss: float
    files: int
    threads: int

    @staticmethod
    def take(pid: int) -> Sample:
        status = Path(f"/proc/{pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        rss = int(fields["VmRSS"].split()[0]) / 1024
        return Sample(time.monotonic(), rss, len(os.listdir(f"/proc/{pid}/fd")), int(fields["Threads"]))


@dataclass
class Soak:
    url: str
    pid: int | None  # None: another machine's service, whose memory is not seen
    clients: int
    headers: dict[str, str]
    mix: dict[Kind, int]
    report: float
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    failures: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    async def load(self, seconds: float) -> None:
        """All clients ask, one request after the other, until the time is up and each kind was asked for once; each client
        ends the request it has."""
        until = time.monotonic() + seconds
        first = random.sample(list(self.mix), len(self.mix))
        watch = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._client(until, first) for _ in range(self.clients)))
        watch.cancel()

    async def _client(self, until: float, first: list[Kind]) -> None:
        kinds, weights = list(self.mix), list(self.mix.values())
        async with httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=300, trust_env=False) as client:
            while first or time.monotonic() < until:
                kind = first.pop() if first else random.choices(kinds, weights)[0]
                self.counts[kind.__name__] += 1
                try:
                    await kind(client)
                except Exception as error:
                    self.failures.append(f"{kind.__name__}: {type(error).__name__}: {error}")
                    print("FAILED", self.failures[-1], file=sys.stderr, flush=True)

    async def _watch(self) -> None:
        told = time.monotonic()
        while self.pid is not None:
            self.samples.append(Sample.take(self.pid))
            if (now := time.monotonic()) - told >= self.report:
                told = now
                last = self.samples[-1]
                print(
                    f"{now - self.began:6.0f} s  {self.counts.total():6} requests  {len(self.failures)} failed  "
                    f"{last.rss:7.1f} MiB  {last.files} files  {last.threads} threads",
                    flush=True,
                )
            await asyncio.sleep(0.5)

    async def idle(self, timeout: float = 120) -> dict[str, float]:
        """The gauges, once they are 0, or after the timeout what they are."""
        async with httpx.AsyncClient(base_url=self.url, headers=self.headers, trust_env=False) as client:
            until = time.monotonic() + timeout
            while True:
                text = (await client.get("/metrics", timeout=30)).text
                found = dict(re.findall(r"^docduet_model_requests_(running|waiting) (\S+)$", text, re.MULTILINE))
                gauges = {name: float(value) for name, value in found.items()}
                if (gauges and not any(gauges.values())) or time.monotonic() > until:
                    return gauges
                await asyncio.sleep(0.1)


def start(model: str, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """A service whose caches are small, so that they are full after a short warm-up; what grows later is no cache."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    small = {"MODEL_CONTEXT": "2048", "MODEL_PROMPT_CACHE_MB": "16", "MODEL_LOG_LEVEL": "warning"}
    limits = json.dumps({LIMITED_KEY: {"requests_per_minute": 1}})
    fixed = {
        "MODEL_ID": model,
        "MODEL_PORT": str(port),
        "MODEL_HOST": "127.0.0.1",
        "MODEL_API_KEYS": f"{KEY},{LIMITED_KEY}",
        "MODEL_LIMITS": limits,
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "services.model"], env=small | dict(os.environ) | fixed, stdout=out, stderr=out
        )
    url = f"http://127.0.0.1:{port}"
    until = time.monotonic() + 900  # the first time it downloads
    while time.monotonic() < until and process.poll() is None:
        try:
            if httpx.get(url + "/ready", timeout=5, trust_env=False).status_code == 200:
                return process, url
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    process.kill()
    sys.exit(f"the service did not start; its log:\n{log.read_text(errors='replace')[-5000:]}")


async def run(soak: Soak, minutes: float, growth: float) -> dict[str, Any]:
    """The summary; `problems` is empty when all is well."""
    seconds = minutes * 60
    warm_up = min(600, seconds / 3)
    await soak.load(warm_up)
    gauges = [await soak.idle()]
    before = Sample.take(soak.pid) if soak.pid else None
    warm, soak.samples = soak.samples, []
    await soak.load(seconds - warm_up)
    gauges.append(await soak.idle())
    problems = [f"{len(soak.failures)} failed requests"] if soak.failures else []
    if any(value for found in gauges for value in found.values()) or not all(gauges):
        problems.append(f"the gauges did not return to 0: {gauges}")
    summary: dict[str, Any] = {
        "minutes": round(minutes, 2),
        "clients": soak.clients,
        "requests": dict(sorted(soak.counts.items())),
        "total": soak.counts.total(),
        "failures": soak.failures[:20],
        "gauges": gauges,
    }
    if soak.pid and before:
        after = Sample.take(soak.pid)
        base, peak = max(sample.rss for sample in warm), max(sample.rss for sample in soak.samples)
        summary["memory_mib"] = {
            "warm_up_peak": round(base, 1),
            "peak": round(peak, 1),
            "growth_percent": round(100 * (peak / base - 1), 2),
            "slope_mib_per_hour": round(_slope(soak.samples) * 3600, 1),
            "idle": [round(before.rss, 1), round(after.rss, 1)],
        }
        summary["files"], summary["threads"] = [before.files, after.files], [before.threads, after.threads]
        if peak > base * (1 + growth / 100):
            problems.append(f"memory grew from {base:.0f} to {peak:.0f} MiB, more than {growth:g} %")
        # Closed connections and threads that end are let go of a moment later than the gauges say.
        if after.files > before.files + 3:
            problems.append(f"open files grew from {before.files} to {after.files}, both idle")
        if after.threads > before.threads + 2:
            problems.append(f"threads grew from {before.threads} to {after.threads}, both idle")
    return summary | {"problems": problems}


def _slope(samples: list[Sample]) -> float:
    """Least squares, MiB a second."""
    count = len(samples)
    at, rss = sum(sample.at for sample in samples) / count, sum(sample.rss for sample in samples) / count
    spread = sum((sample.at - at) ** 2 for sample in samples)
    return sum((sample.at - at) * (sample.rss - rss) for sample in samples) / spread if spread else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description="A mixed load on a live model service.")
    parser.add_argument("--minutes", type=float, default=60, help="a third of it, at most 10, is the warm-up")
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--model", default="embedded:0.5b", help="MODEL_ID of the service that is started")
    parser.add_argument("--url", help="of a running service, instead of starting one")
    parser.add_argument("--pid", type=int, help="its process, to watch its memory")
    parser.add_argument("--api-key", help="its key")
    parser.add_argument("--growth", type=float, default=5, help="percent of memory above the warm-up that are let pass")
    parser.add_argument("--report", type=float, default=60, help="seconds between two lines")
    given = parser.parse_args()
    process = None
    log = Path(tempfile.mkdtemp(prefix="docduet-soak-")) / "service.log"
    mix, url, pid, key = dict(MIX), given.url, given.pid, given.api_key
    if url is None:
        process, url = start(given.model, log)
        pid, key = process.pid, KEY
        mix[limited] = 1
    headers = {"authorization": f"Bearer {key}"} if key else {}
    soak = Soak(url.rstrip("/"), pid, given.clients, headers, mix, given.report)
    try:
        summary = asyncio.run(run(soak, given.minutes, given.growth))
        if process is not None and process.poll() is not None:
            summary["problems"].append(f"the service ended with code {process.returncode}; its log is {log}")
    finally:
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
    if errors := [line for line in log.read_text().splitlines() if "Traceback" in line] if log.exists() else []:
        summary["problems"].append(f"{len(errors)} tracebacks in {log}")
    print(json.dumps(summary, indent=2, ensure_ascii=False))
    return 1 if summary["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
