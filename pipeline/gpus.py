"""The GPUs of this machine, found without torch, and a command that has some of them to itself.

`python -m pipeline.gpus 1 COMMAND ...` waits for a free GPU, shows COMMAND no other, and becomes COMMAND: a signal reaches
it, and the lock on the GPU ends when it does, however that is. Where there is no GPU, it just becomes COMMAND. A lock holds
among all runs of one user on a machine; in a job of SLURM, which hands out GPUs itself, among what runs inside that job.
"""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from pipeline import errors
from pipeline.errors import TrainingError

VISIBLE = "CUDA_VISIBLE_DEVICES"
SHARE = "GPU_SHARE"  # how many jobs may have one GPU at the same time
WAIT_S = 0.5  # between two looks for a free one


def main(number: int, command: list[str]) -> None:
    """
    Raises:
        TrainingError: the machine has fewer GPUs.
    """
    found = gpu_ids()
    if found and number:
        if number > len(found):
            raise TrainingError(
                f"train.gpus is {number}, {len(found)} found ({', '.join(found)}). Set it to {len(found)} or fewer, or "
                f"let {VISIBLE} name more."
            )
        share = int(os.environ.get(SHARE, 1))
        os.environ[VISIBLE] = ",".join(wait_for(number, found, share, lock_folder()))
    os.execvp(command[0], command)


def gpu_ids() -> list[str]:
    """Those that CUDA_VISIBLE_DEVICES names, or all if it is not set; none without a driver."""
    if (visible := os.environ.get(VISIBLE)) is not None:
        return [gpu for gpu in visible.replace(" ", "").split(",") if gpu and gpu not in ("-1", "NoDevFiles")]
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    except OSError:
        return []
    return [str(index) for index in range(sum(line.startswith("GPU ") for line in done.stdout.splitlines()))]


def lock_folder() -> Path:
    return Path(tempfile.gettempdir()) / "-".join(
        ["segsnake-gpus", str(os.getuid()), *filter(None, [os.environ.get("SLURM_JOB_ID")])]
    )


def wait_for(number: int, gpus: Sequence[str], share: int, folder: Path) -> list[str]:
    """Different GPUs, locked until this process and what it becomes have ended."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    has_said = False
    while len(taken := free_gpus(number, gpus, share, folder)) < number:
        for handle in taken.values():  # two jobs that wait for two must not keep one each
            os.close(handle)
        if not has_said:
            print(f"GPU: waiting, for other jobs have {', '.join(gpus)}; their locks are in {folder}", flush=True)
            has_said = True
        time.sleep(WAIT_S)
    for handle in taken.values():
        os.set_inheritable(handle, True)
    return list(taken)


def free_gpus(number: int, gpus: Sequence[str], share: int, folder: Path) -> dict[str, int]:
    """At most `number` GPUs that have room for another job, and the file that locks each; unused ones first."""
    taken: dict[str, int] = {}
    for place, gpu in product(range(share), gpus):
        if gpu in taken or len(taken) == number:
            continue
        handle = os.open(folder / f"{gpu.replace('/', '_')}-{place}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
        else:
            taken[gpu] = handle
    return taken


if __name__ == "__main__":
    with errors.one_line():
        main(int(sys.argv[1]), sys.argv[2:])
