"""The server's metrics, for Prometheus"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """All of one server's metrics: nothing in them comes from a request."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("dmd_serve_requests", "Requests by answer.", ["code"], registry=registry)
        self.images = Counter("dmd_serve_images", "Pictures drawn.", ["sampler"], registry=registry)
        self.dropped = Counter(
            "dmd_serve_dropped",
            "Requests whose client was gone before they were drawn.",
            ["sampler"],
            registry=registry,
        )
        self.waiting = Gauge("dmd_serve_waiting_images", "Pictures that wait.", ["sampler"], registry=registry)
        self.batch = Histogram(
            "dmd_serve_batch_images",
            "Pictures in a batch.",
            ["sampler"],
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.draw_seconds = Histogram(
            "dmd_serve_draw_seconds",
            "Time that a batch takes.",
            ["sampler"],
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30),
            registry=registry,
        )
        self.model = Gauge("dmd_serve_model", "The model that is served.", ["model", "version"], registry=registry)
        self.reloads = Counter("dmd_serve_reloads", "Looks at the alias.", ["outcome"], registry=registry)
