"""The memory that this process may still take: of the machine, or of the job that a cluster or a container makes of it.

SLURM and containers set the limit as a control group of Linux; what takes more is killed, however much the machine has left.
"""

from pathlib import Path

import psutil

GROUPS, MOUNT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def free_bytes(groups: Path = GROUPS, mount: Path = MOUNT) -> int:
    """What is free, and no more than the limit of the group that this process is in, or of one around it."""
    return min([psutil.virtual_memory().available, *limits(groups, mount)])


def limits(groups: Path, mount: Path) -> list[int]:
    """In bytes; none where there are no control groups, as on macOS."""
    lines = groups.read_text().splitlines() if groups.exists() else []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        is_second = not controllers  # of the two versions of control groups: one tree for everything
        if not is_second and "memory" not in controllers.split(","):
            continue
        tree = mount if is_second else mount / "memory"
        own = tree / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder == tree.parent:
                break
            limit = folder / ("memory.max" if is_second else "memory.limit_in_bytes")
            if limit.exists() and (text := limit.read_text().strip()) != "max":
                found.append(int(text))
    return found
