"""The node's processors, memory, disks and network, as MLflow's own monitors measure them."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from dmd_trainer.tracking.client import import_mlflow

logger = logging.getLogger(__name__)

SECONDS = 10.0
"""Between two measurements."""


class SystemMetrics:
    """A thread that measures until it is closed.

    Args:
        log: receives metrics and the number of the measurement.
    """

    def __init__(self, log: Callable[[Mapping[str, float], int], None]) -> None:
        self._log = log
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._measure, name="system-metrics", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Ends the thread."""
        self._closing.set()
        self._thread.join(timeout)

    def _measure(self) -> None:
        import_mlflow()
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor

            monitors.append(GPUMonitor())
        except (ImportError, RuntimeError):
            logger.debug("no GPU to monitor")
        step = 0
        while not self._closing.wait(SECONDS):
            values: dict[str, float] = {}
            for monitor in monitors:
                monitor.collect_metrics()
                values |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
                monitor.clear_metrics()
            self._log(values, step)
            step += 1
