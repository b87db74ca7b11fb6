"""Timing on asynchronous devices: synchronise, then read the clock; and deadlines."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch


def clock(device: torch.device) -> float:
    """Seconds of a monotonic clock, after all work queued on the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class TimeUpError(KeyboardInterrupt):
    """The time that was given is over; what is done is kept, and the same command goes on from there."""


@dataclass
class Deadline:
    """When to stop, as a moment of time.monotonic(); by default never."""

    at: float = math.inf

    def passed(self, ahead: float = 0.0) -> bool:
        """Whether it will have passed so many seconds from now."""
        return time.monotonic() + ahead > self.at

    def check(self) -> None:
        """Raise TimeUpError once it has passed."""
        if self.passed():
            raise TimeUpError


class Timer:
    """Sums the seconds between `start` and `stop`; only `read` waits for the device."""

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
