"""Several processes that train one network, started by `torchrun`; one process on its own is the usual case.

Each draws its share of every batch; gradients are averaged; the first one keeps the clock, the files and the log.
"""

import os
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Workers:
    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, batch_size: int) -> int:
        """Patches per process, at least one; rounded up."""
        return -(-batch_size // self.count)

    def part_of(self, number: int, share: int) -> int:
        """How many of the first `number` patches of the whole batch are in this process' share."""
        return min(max(number - self.rank * share, 0), share)

    def wrap(self, network: nn.Module) -> nn.Module:
        return network if self.count == 1 else DistributedDataParallel(network)

    def agree(self, *numbers: float) -> tuple[float, ...]:
        """The first process' numbers, in all of them."""
        if self.count == 1:
            return numbers
        shared = torch.tensor(numbers, dtype=torch.float64)
        distributed.broadcast(shared, 0)
        return tuple(shared.tolist())


ALONE = Workers()


def join_workers(device: torch.device) -> tuple[Workers, torch.device]:
    """This process among those of `torchrun`, and its own GPU; alone and on `device` when not started by it."""
    if "LOCAL_RANK" not in os.environ:
        return ALONE, device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    # gloo carries the clock between CPUs, so that a GPU never waits for it
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Workers(distributed.get_rank(), distributed.get_world_size()), device


def leave_workers(workers: Workers) -> None:
    if workers.count > 1:
        distributed.destroy_process_group()
