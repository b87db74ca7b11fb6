"""The training loop's timer: sums spans, and waits for a GPU only when it is read."""

from unittest import mock

import torch

from bench.run.clock import Timer


def test_spans_are_summed_and_what_lies_between_is_not_counted():
    with mock.patch("time.perf_counter", side_effect=[1.0, 1.5, 7.0, 7.25, 8.0, 9.0]):
        timer = Timer(torch.device("cpu"))
        for _ in range(2):
            timer.start()
            timer.stop()
        assert timer.read() == 0.75
        timer.start()
        timer.stop()
        assert timer.read() == 1.0
    assert timer.read() == 0.0


def test_a_start_that_was_not_stopped_is_forgotten():
    with mock.patch("time.perf_counter", side_effect=[1.0, 2.0, 2.5]):
        timer = Timer(torch.device("cpu"))
        timer.start()
        timer.start()
        timer.stop()
    assert timer.read() == 0.5


def test_on_a_gpu_only_reading_waits():
    waits = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, stream: str) -> None:
            assert stream == "stream of cuda:1"

        def elapsed_time(self, end: "Event") -> float:
            assert waits  # it is an error before the device has come so far
            return 20.0

        def synchronize(self) -> None:
            waits.append(self)

    with (
        mock.patch("torch.cuda.Event", Event),
        mock.patch("torch.cuda.current_stream", lambda device: f"stream of {device}"),
    ):
        timer = Timer(torch.device("cuda:1"))
        for _ in range(3):
            timer.start()
            timer.stop()
        assert not waits
        assert timer.read() == 0.06
        assert len(waits) == 1
        assert timer.read() == 0.0
