"""Fitting a plan to memory, on a device that is a formula: what is tried, what is kept, and when trying ends."""

from dataclasses import dataclass

import pytest

from pipeline.fit import Measured, fit_to_memory


@dataclass(frozen=True)
class Size:
    patch_size: tuple[int, ...]
    batch_size: int

    @property
    def memory_estimate_gib(self):
        return self.batch_size * self.patch_size[0] / 16


def replan(gib):
    """The largest patch of 16 to 128 voxels of which two fit, then as many as fit, up to 8."""
    edge = max([edge for edge in range(16, 129, 16) if 2 * edge / 16 <= gib], default=16)
    return Size((edge,), max(2, min(8, int(gib * 16 / edge))))


class Device:
    """Takes `factor` times the estimate; has `most` GiB; remembers what was tried."""

    def __init__(self, factor, most=1e9, kind="cuda"):
        self.factor, self.most, self.kind, self.tried = factor, most, kind, []

    def __call__(self, plan):
        self.tried.append(plan)
        gib = self.factor * plan.memory_estimate_gib
        return Measured(gib, self.kind) if gib <= self.most else None


def test_an_estimate_that_holds_is_tried_once_and_kept():
    device = Device(factor=1)
    plan, measured = fit_to_memory(replan, device, 16)
    assert (plan, measured) == (Size((128,), 2), Measured(16, "cuda"))
    assert len(device.tried) == 1


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
@pytest.mark.parametrize("factor", [1.02, 1.5, 3, 7])
def test_a_step_that_takes_more_than_its_estimate_shrinks_until_it_fits(factor, kind):
    plan, measured = fit_to_memory(replan, Device(factor, kind=kind), 16)
    assert measured.gib <= 16
    assert plan.patch_size < (128,)
    assert measured.gib > 16 / 3, "not smaller than it has to be"


def test_the_batch_gives_way_before_the_patch_where_a_patch_is_the_whole_scan():
    def small_scans(gib):
        return Size((16,), max(2, min(8, int(gib))))

    plan, _ = fit_to_memory(small_scans, Device(factor=2), 8)
    assert plan == Size((16,), 4)


def test_out_of_memory_halves_what_is_assumed_until_a_step_can_be_measured():
    device = Device(factor=1, most=5)
    plan, measured = fit_to_memory(replan, device, 16)
    assert [size.patch_size for size in device.tried] == [(128,), (64,), (32,)]
    assert (plan, measured.gib) == (Size((32,), 2), 4)


def test_a_gpu_with_room_left_gets_a_larger_plan_and_a_cpu_does_not():
    plan, measured = fit_to_memory(replan, Device(factor=0.5), 8)
    assert (plan, measured.gib) == (Size((128,), 2), 8)
    plan, measured = fit_to_memory(replan, Device(factor=0.5, kind="cpu"), 8)
    assert (plan, measured.gib) == (Size((64,), 2), 4)


def test_a_larger_plan_that_does_not_fit_is_given_up_for_the_one_that_did():
    grows_faster = Device(factor=0.5, most=6)
    plan, measured = fit_to_memory(replan, grows_faster, 8)
    assert (plan, measured.gib) == (Size((64,), 2), 4)
    assert len(grows_faster.tried) == 2


def test_sizes_that_are_set_stay_although_they_take_more():
    device = Device(factor=3)
    plan, measured = fit_to_memory(lambda gib: Size((64,), 2), device, 8)
    assert (plan, measured.gib) == (Size((64,), 2), 24)
    assert len(device.tried) == 1


def test_without_memory_for_the_smallest_plan_nothing_is_measured():
    plan, measured = fit_to_memory(replan, Device(factor=1, most=0), 8)
    assert (plan.patch_size, measured) == ((16,), None)
