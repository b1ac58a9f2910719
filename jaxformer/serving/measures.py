"""What a server counts, in Prometheus' format."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxformer.external import need
from jaxformer.serving.served import Served

# Seconds; from a token of a small model to a long text.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Measures:
    """Counters and histograms of one server; what the models count is read when it is asked for."""

    def __init__(self, served: Mapping[str, Served]) -> None:
        prometheus = need("prometheus_client", "serve")
        self._prometheus, self.registry = prometheus, prometheus.CollectorRegistry()

        def histogram(name: str, help: str, labels: tuple[str, ...]) -> Any:
            return prometheus.Histogram(f"jaxformer_{name}", help, labels, registry=self.registry, buckets=BUCKETS)

        self.requests = prometheus.Counter(
            "jaxformer_requests", "Requests that were answered.", ("route", "status"), registry=self.registry
        )
        self.seconds = histogram("request_seconds", "From a request to the end of its answer.", ("route",))
        self.first_token = histogram("first_token_seconds", "From a request to its first token.", ("model",))
        self.next_token = histogram("next_token_seconds", "Between two tokens of a text.", ("model",))
        self._follow(served)

    def _follow(self, served: Mapping[str, Served]) -> None:
        metrics = self._prometheus.metrics_core

        class FromModels:
            def collect(self) -> Any:
                running = metrics.GaugeMetricFamily("jaxformer_running", "Texts being written.", labels=["model"])
                waiting = metrics.GaugeMetricFamily("jaxformer_waiting", "Requests that wait.", labels=["model"])
                tokens = metrics.CounterMetricFamily(
                    "jaxformer_tokens", "Tokens, by what was done with them.", labels=["model", "kind"]
                )
                for name, one in served.items():
                    if one.batcher is not None:
                        waiting.add_metric([name], one.batcher.waiting)
                    if one.scheduler is not None:
                        counts = one.scheduler.counts
                        running.add_metric([name], one.scheduler.running)
                        waiting.add_metric([name], one.scheduler.waiting)
                        tokens.add_metric([name, "prompt"], counts.prompt_tokens)
                        tokens.add_metric([name, "kept"], counts.kept_tokens)
                        tokens.add_metric([name, "written"], counts.written_tokens)
                return [running, waiting, tokens]

        self.registry.register(FromModels())

    def note(self, model: str) -> Callable[[bool, float], None]:
        """A function that counts the seconds before a token of a model's text, the first one apart."""
        first, later = self.first_token.labels(model), self.next_token.labels(model)
        return lambda is_first, seconds: (first if is_first else later).observe(seconds)

    def page(self) -> tuple[bytes, str]:
        """The page and its content type."""
        return self._prometheus.generate_latest(self.registry), self._prometheus.CONTENT_TYPE_LATEST
