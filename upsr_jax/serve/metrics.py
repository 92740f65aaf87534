"""What a server tells Prometheus about itself."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from upsr_jax.serve.jobs import Desk

BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300)
ROUTES = ("/", "/upscale", "/sdapi/v1/extra-single-image", "/healthz", "/metrics", "/docs")


def make_metrics(desk: Desk) -> tuple[CollectorRegistry, Callable[[str, int, float], None]]:
    """Make a desk's metrics, and the function that is told path, status and seconds of answers."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    answers = Counter("upsr_answers", "Answers sent.", ["path", "status"], registry=registry)
    seconds = Histogram(
        "upsr_answer_seconds",
        "From a request's arrival to the start of its answer.",
        ["path"],
        buckets=BUCKETS,
        registry=registry,
    )
    running = Gauge("upsr_jobs_running", "Photos being upscaled.", registry=registry)
    running.set_function(lambda: desk.running)
    waiting = Gauge("upsr_jobs_waiting", "Photos taken in and not begun.", registry=registry)
    waiting.set_function(lambda: max(0, len(desk.jobs) - desk.running))
    expected = Gauge("upsr_expected_seconds", "About how long those take.", registry=registry)
    expected.set_function(desk.waiting_seconds)

    def count(path: str, status: int, taken: float) -> None:
        route = path if path in ROUTES else "other"  # a label for each would never end
        answers.labels(route, str(status)).inc()
        seconds.labels(route).observe(taken)

    return registry, count
