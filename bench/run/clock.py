"""Timing on asynchronous devices: synchronise, then read the clock."""

from __future__ import annotations

import time
from typing import Any

import torch


def clock(device: torch.device) -> float:
    """Monotonic time in seconds, read after the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Timer:
    """Stopwatch that sums the seconds between `start` and `stop`; only `read` waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds = 0.0
        self.spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def start(self) -> None:
        self.started = self._now()

    def stop(self) -> None:
        started, now = self.started, self._now()
        if isinstance(started, float):
            self.seconds += now - started
        else:
            self.spans.append((started, now))

    def read(self) -> float:
        """Seconds since the last reading."""
        if self.spans:
            self.spans[-1][1].synchronize()
        seconds = self.seconds + sum(start.elapsed_time(end) for start, end in self.spans) / 1000
        self.seconds, self.spans = 0.0, []
        return seconds

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
