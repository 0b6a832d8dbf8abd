"""The cases of a stage in processes beside each other; one that is killed gets a second chance, and then is named.

The system kills a process that takes the last of the memory, often for what its neighbours took: alone the case may well go
through.
"""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import TypeVar

from tqdm import tqdm

from pipeline.errors import CohortError
from pipeline.records import Case

Made = TypeVar("Made")


def map_cases(
    work: Callable[..., Made], cases: Sequence[Case], *others: Iterable[object], processes: int, desc: str
) -> list[Made]:
    """`work(case, *others)` for each case, in the order of the cases; the first error of one ends it.

    Raises:
        CohortError: the process of a case was killed twice, the second time with no other beside it.
    """
    jobs = list(zip(cases, *others, strict=True))
    made: dict[int, Made] = {}
    futures: list[Future[Made]] = []
    with ProcessPoolExecutor(processes) as pool:
        try:  # with a process that is killed, all cases are lost that have not ended, or are not handed out yet
            with suppress(BrokenProcessPool):
                for job in jobs:
                    futures.append(pool.submit(work, *job))
            for index, future in enumerate(tqdm(futures, desc=desc, total=len(jobs), mininterval=1)):
                with suppress(BrokenProcessPool):
                    made[index] = future.result()
        finally:
            pool.shutdown(cancel_futures=True)
    return [
        made[index] if index in made else _alone(work, job, case.case)
        for index, (job, case) in enumerate(zip(jobs, cases, strict=True))
    ]


def _alone(work: Callable[..., Made], job: Sequence[object], case: str) -> Made:
    print(f"{case}: lost when a process was killed, once more without others beside it", flush=True)
    try:
        with ProcessPoolExecutor(1) as pool:
            return pool.submit(work, *job).result()
    except BrokenProcessPool as error:
        raise CohortError(
            f"{case}: its process was killed twice, as the system does when memory is short. Free memory, crop the scan, "
            "or drop the case."
        ) from error
