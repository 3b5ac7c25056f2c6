"""GET /metrics, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rwkvflow.serve.shelf import Served, Shelf

COUNTERS = {
    "requests": "Texts that were asked for",
    "refused": "Texts that were refused because too many waited",
    "cancelled": "Texts that nobody waited for any more",
    "failed": "Texts that failed",
    "passes": "Passes over the weights",
    "read": "Tokens of prompts that were read",
    "cached": "Tokens of prompts that were not read again",
    "generated": "Tokens that were generated",
    "guessed": "Tokens that were guessed ahead",
    "kept": "Guessed tokens that were kept",
    "busy_seconds": "Seconds of evaluating",
}


class _Models(Collector):
    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def collect(self) -> Iterator[Metric]:
        """What there is to tell of every open model."""
        opened = self.shelf.opened()
        for name, text in COUNTERS.items():
            family = CounterMetricFamily(f"rwkvflow_{name}", text, labels=["model"])
            for served in opened:
                family.add_metric([served.entry.name], float(getattr(served.scheduler.figures, name)))
            yield family
        gauges: dict[str, tuple[str, Callable[[Served], int]]] = {
            "slots_used": ("Texts that are worked on", lambda s: s.scheduler.working),
            "queue": ("Texts that wait", lambda s: s.scheduler.waiting),
            "state_cache_bytes": ("Bytes of states that are kept by prefix", lambda s: s.scheduler.cache.size),
            "state_cache_limit_bytes": ("Bytes that those may take", lambda s: s.scheduler.cache.limit),
            "states_bytes": ("Bytes of states that clients keep", lambda s: s.states.size),
        }
        for name, (text, value) in gauges.items():
            gauge = GaugeMetricFamily(f"rwkvflow_{name}", text, labels=["model"])
            for served in opened:
                gauge.add_metric([served.entry.name], float(value(served)))
            yield gauge


def metrics(shelf: Shelf) -> bytes:
    """In Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Models(shelf))
    return generate_latest(registry)
