"""TensorFlow Serving's metrics under their real names, in Prometheus' text format.

Source: tensorflow_serving/servables/tensorflow/util.cc and tensorflow_serving/util/prometheus_exporter.cc.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Sequence

PATH = "/monitoring/prometheus/metrics"
# Microseconds from 10 to 25 minutes; examples from 1 to 16,384.
_LATENCY_US = [10 * 1.8**n for n in range(33)]
_EXAMPLES = [float(2**n) for n in range(15)]
_QUEUING_US = [100 * 1.2**n for n in range(52)]  # to a second
_LABEL_SETS = 1000  # names come from requests: beyond so many of them they are counted together
_OTHER = "(other)"


class Counter:
    """A number per set of labels that only grows."""

    kind = "counter"

    def __init__(self, name: str, labels: Sequence[str]) -> None:
        self.name = name
        self.labels = tuple(labels)
        self._lock = threading.Lock()
        self._values: dict[tuple[str, ...], int] = {}

    def add(self, *labels: str, by: int = 1) -> None:
        """Count `by` more."""
        with self._lock:
            key = labels if labels in self._values or len(self._values) < _LABEL_SETS else (_OTHER, *labels[1:])
            self._values[key] = self._values.get(key, 0) + by

    def total(self) -> int:
        """Over all labels."""
        with self._lock:
            return sum(self._values.values())

    def lines(self) -> list[str]:
        """In text format."""
        with self._lock:
            found = sorted(self._values.items())
        return [f"{self.name}{_labels(self.labels, key)} {value}" for key, value in found]


class Histogram:
    """Counts per bucket and set of labels."""

    kind = "histogram"

    def __init__(self, name: str, labels: Sequence[str], limits: Sequence[float]) -> None:
        self.name = name
        self.labels = tuple(labels)
        self._limits = list(limits)
        self._lock = threading.Lock()
        self._cells: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}

    def add(self, *labels: str, value: float) -> None:
        """Note one value."""
        with self._lock:
            key = labels if labels in self._cells or len(self._cells) < _LABEL_SETS else (_OTHER, *labels[1:])
            counts, total = self._cells.setdefault(key, ([0] * (len(self._limits) + 1), [0.0]))
            counts[bisect.bisect_left(self._limits, value)] += 1
            total[0] += value

    def lines(self) -> list[str]:
        """In text format."""
        with self._lock:
            cells = sorted((key, (list(counts), total[0])) for key, (counts, total) in self._cells.items())
        lines = []
        for key, (counts, total) in cells:
            seen = 0
            for limit, count in zip([*(f"{limit:g}" for limit in self._limits), "+Inf"], counts, strict=True):
                seen += count
                lines.append(f"{self.name}_bucket{_labels((*self.labels, 'le'), (*key, limit))} {seen}")
            lines.append(f"{self.name}_sum{_labels(self.labels, key)} {total:g}")
            lines.append(f"{self.name}_count{_labels(self.labels, key)} {seen}")
        return lines


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    pairs = []
    for name, value in zip(names, values, strict=True):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        pairs.append(f'{name}="{escaped}"')
    return "{" + ",".join(pairs) + "}"


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        prefix = ":tensorflow:serving:"
        self.request_count = Counter(f"{prefix}request_count", ("model_name", "status"))
        self.request_latency = Histogram(f"{prefix}request_latency", ("model_name", "API", "entrypoint"), _LATENCY_US)
        self.runtime_latency = Histogram(f"{prefix}runtime_latency", ("model_name", "API", "runtime"), _LATENCY_US)
        self.request_example_counts = Histogram(f"{prefix}request_example_counts", ("model",), _EXAMPLES)
        self.request_example_count_total = Counter(f"{prefix}request_example_count_total", ("model",))

        self.queuing_latency = Histogram(
            f"{prefix}batching_session:queuing_latency", ("thread_pool_name",), _QUEUING_US
        )
        self.model_warmup_latency = Histogram(f"{prefix}model_warmup_latency", ("model_path", "status"), _LATENCY_US)
        self.model_warmup_records_read = Counter(f"{prefix}model_warmup_records_read", ("model_path",))
        self.request_log_count = Counter(f"{prefix}request_log_count", ("model_name", "status"))

    def queued(self, pool: str, seconds: float) -> None:
        """One request taken out of a batching queue."""
        self.queuing_latency.add(pool, value=seconds * 1e6)

    def warmed(self, folder: str, status: str, records: int, seconds: float) -> None:
        """One version warmed up, or not."""
        self.model_warmup_latency.add(folder, status, value=seconds * 1e6)
        self.model_warmup_records_read.add(folder, by=records)

    def request(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """One request answered."""
        self.request_count.add(model, status)
        if status == "OK":
            self.request_latency.add(model, api, entrypoint, value=seconds * 1e6)

    def runtime(self, model: str, api: str, seconds: float) -> None:
        """One run of TensorFlow."""
        self.runtime_latency.add(model, api, "TF1", value=seconds * 1e6)

    def examples(self, model: str, count: int) -> None:
        """The examples of one request."""
        self.request_example_counts.add(model, value=count)
        self.request_example_count_total.add(model, by=count)

    def totals(self) -> dict[str, int]:
        """Each counter's total by its name in TensorFlow, ``/tensorflow/serving/request_count``."""
        counters = (metric for metric in vars(self).values() if isinstance(metric, Counter))
        return {counter.name.replace(":", "/"): counter.total() for counter in counters}

    def page(self) -> str:
        """All of it in Prometheus' text format."""
        lines = []
        for metric in (
            self.request_count,
            self.request_latency,
            self.runtime_latency,
            self.request_example_counts,
            self.request_example_count_total,
            self.queuing_latency,
            self.model_warmup_latency,
            self.model_warmup_records_read,
            self.request_log_count,
        ):
            lines += [f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"
