"""Metrics for Prometheus: the latest figures of each guest, and what the daemon costs.

Names begin as those of libvirt's exporters, ``libvirt_domain_``, and the label ``domain`` means
the same, so that both can be joined.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from virtintrospect.cli.escape import printable
from virtintrospect.daemon.config import Metrics
from virtintrospect.daemon.hintmetrics import HintMetrics
from virtintrospect.daemon.sessions import DomainSession
from virtintrospect.daemon.state import State
from virtintrospect.errors import VirtIntrospectError
from virtintrospect.insight.figures import CPU, Sample

_LABELS = ("domain", "uuid")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Collector:
    """What prometheus-client asks at each scrape, in a thread of its own."""

    def __init__(
        self,
        sessions: Mapping[str, DomainSession],
        latest: Mapping[str, Sample],
        hints: HintMetrics | None = None,
    ) -> None:
        self.sessions = sessions
        self.latest = latest
        self.hints = hints

    def collect(self) -> Iterator[Any]:
        """All metrics."""
        sessions = list(self.sessions.values())
        yield from _states(sessions)
        yield from self._guests(sessions)
        if self.hints is not None:
            yield from self.hints.collect(sessions)
        yield from _own()

    def describe(self) -> Iterator[Any]:
        """Nothing: what there is depends on the guests."""
        return iter(())

    def _guests(self, sessions: list[DomainSession]) -> Iterator[Any]:
        samples = [
            (_labels(session), found)
            for session in sessions
            if (found := self.latest.get(session.domain.uuid)) is not None
        ]
        memory = _gauge("guest_memory_bytes", "Figures of the guest's /proc/meminfo", "kind")
        cpu = _counter("guest_cpu_seconds", "CPU time by the guest's own account", "mode")
        load = _gauge("guest_load", "Load averages and tasks of the guest", "kind")
        stalled = _counter(
            "guest_pressure_seconds", "Time lost to pressure (PSI)", "resource", "kind"
        )
        when = _gauge("guest_sample_timestamp_seconds", "When these figures were taken")
        for labels, found in samples:
            for name, value in found.get("memory", {}).items():
                memory.add_metric([*labels, name], value)
            for mode in CPU:
                if mode in found.get("cpu", {}):
                    cpu.add_metric([*labels, mode], found["cpu"][mode] / 1000)
            for name, value in found.get("load", {}).items():
                load.add_metric([*labels, name], value)
            for name, value in found.get("pressure", {}).items():
                resource, _, kind = name.partition("_")
                stalled.add_metric([*labels, resource, kind], value["total"] / 1e6)
            when.add_metric(labels, found["time"])
        yield from (memory, cpu, load, stalled, when)


def _states(sessions: list[DomainSession]) -> Iterator[Any]:
    state = _gauge("session_state", "1 for the state that the session is in", "state")
    spent = _counter("session_cpu_seconds", "CPU time that the session has cost")
    looks = _counter("session_looks", "Pieces of work of the session")
    kernel = _gauge("guest_info", "Always 1; the kernel is a label", "os", "kernel")
    for session in sessions:
        labels = _labels(session)
        for one in State:
            state.add_metric([*labels, one.value], float(session.state is one))
        spent.add_metric(labels, session.cost.seconds)
        looks.add_metric(labels, session.cost.count)
        if session.kernel:
            kernel.add_metric([*labels, session.os, printable(session.kernel)], 1)
    yield from (state, spent, looks, kernel)


def _own() -> Iterator[Any]:
    """The daemon itself."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    used = os.times()
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (at each scrape)
        resident = int(file.read().split()[1]) * _PAGE
    yield CounterMetricFamily(
        "virtintrospectd_cpu_seconds", "CPU time of the daemon", value=used.user + used.system
    )
    yield GaugeMetricFamily(
        "virtintrospectd_resident_bytes", "Memory of the daemon", value=resident
    )


def _labels(session: DomainSession) -> list[str]:
    return [printable(session.domain.name), session.domain.uuid]


def _gauge(name: str, text: str, *labels: str) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(f"libvirt_domain_{name}", text, labels=[*_LABELS, *labels])


def _counter(name: str, text: str, *labels: str) -> Any:
    from prometheus_client.core import CounterMetricFamily

    return CounterMetricFamily(f"libvirt_domain_{name}", text, labels=[*_LABELS, *labels])


def serve(config: Metrics, collector: Collector) -> Any:
    """Listen; gives the server, whose ``shutdown`` ends it.

    :raises VirtIntrospectError: prometheus-client is missing, or the port is taken.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError as error:
        raise VirtIntrospectError(
            "metrics.enabled needs prometheus-client", hint="pip install 'virtintrospect[metrics]'"
        ) from error
    registry = CollectorRegistry()
    registry.register(collector)
    try:
        server, _ = start_http_server(config.port, config.address, registry)
    except OSError as error:
        raise VirtIntrospectError(
            f"metrics: cannot listen on {config.address}:{config.port}: {error.strerror}",
            hint="set metrics.address and metrics.port",
        ) from error
    return server
