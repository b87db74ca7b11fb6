"""Work on threads of one core each: in order, without gradients, and without a trace on the caller's."""

import os
import threading
from collections.abc import Iterator

import pytest
import torch

from bench.kernels.threads import on_threads


@pytest.fixture(autouse=True, params=[2, 3])
def _n_threads(request) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_of_one_core_each():
    caller = threading.get_ident()
    found = on_threads(lambda x: (x, torch.get_num_threads(), threading.get_ident()), [1, 2])
    assert [(x, n) for x, n, _ in found] == [(1, 1), (2, 1)]
    assert caller not in [ident for *_, ident in found]
    assert on_threads(lambda x: (x, threading.get_ident()), [1]) == [(1, caller)]


def test_numbers_next_to_zero_are_zero_there_and_not_here():
    def half(_: int) -> float:
        return (torch.tensor([1e-40]) * 0.5).item()

    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot")
    assert on_threads(half, [1, 2]) == [0, 0]
    assert half(0) > 0


def test_no_gradients_there():
    weight = torch.ones(2, requires_grad=True)
    assert not any(x.requires_grad for x in on_threads(lambda k: k * weight, [1.0, 2.0]))
    assert (2 * weight).requires_grad


def test_what_is_raised_there_is_raised_here():
    def fails(k: int) -> None:
        raise ValueError(f"part {k}")

    with pytest.raises(ValueError, match="part 1"):
        on_threads(fails, [1, 2])


def test_a_forked_process_has_threads_of_its_own():
    on_threads(lambda k: k, [1, 2])
    child = os.fork()
    if not child:
        os._exit(0 if on_threads(lambda k: k, [1, 2]) == [1, 2] else 1)
    assert os.waitpid(child, 0)[1] == 0
