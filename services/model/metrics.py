"""What `/metrics` shows. One registry per app, so that two apps in one process do not count into each other."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_FIRST_TOKEN = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 15, 30, 60, 120)
_PER_TOKEN = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        prefix = "docduet_model_"
        self.requests = Counter(
            prefix + "requests",
            "Answered requests by route and HTTP status (499: the client left)",
            ["route", "status"],
            registry=self.registry,
        )
        self.limited = Counter(
            prefix + "requests_limited",
            "Requests refused because the client had used up a limit: requests, tokens or concurrent",
            ["limit"],
            registry=self.registry,
        )
        self.running = Gauge(prefix + "requests_running", "Requests that the engine works on", registry=self.registry)
        self.waiting = Gauge(prefix + "requests_waiting", "Requests that wait for a place", registry=self.registry)
        self.prompt_tokens = Counter(prefix + "prompt_tokens", "Tokens of accepted prompts", registry=self.registry)
        self.cached_tokens = Counter(
            prefix + "prompt_tokens_cached", "Prompt tokens that were already in the cache", registry=self.registry
        )
        self.generated_tokens = Counter(prefix + "generated_tokens", "Tokens generated", registry=self.registry)
        self.first_token = Histogram(
            prefix + "time_to_first_token_seconds",
            "From the request's arrival to its first token, waiting included",
            buckets=_FIRST_TOKEN,
            registry=self.registry,
        )
        self.per_token = Histogram(
            prefix + "time_per_token_seconds",
            "Mean time between the tokens of a request, after the first",
            buckets=_PER_TOKEN,
            registry=self.registry,
        )

    def watch(self, running: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Reads the two gauges from their source at each scrape."""
        self.running.set_function(running)
        self.waiting.set_function(waiting)

    def render(self) -> bytes:
        return generate_latest(self.registry)
