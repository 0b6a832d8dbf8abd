"""The whole flow, killed at random moments: does it end with the bytes of the run that nobody killed?

Needs no cohort; `--kills 2` for a trial. A moment is drawn from the seconds of all jobs of the unbroken run and counts from the
begin of its job, for a busy machine is slower at one time than at another. SIGKILL goes to Snakemake and to all of its jobs at
once; then `snakemake --unlock` and the same command. A run that ends with other bytes stays in its folder.
"""

import random
import re
import shutil
from collections import Counter
from pathlib import Path

from pipeline import errors
from pipeline.errors import PipelineError
from tests import small_run
from tests.bench.ours import machine, record

START_S = 2.0  # of Snakemake, before the first job
RESUMED = re.compile(r"^resumed: .* at step (\d+) ", re.MULTILINE)


def main(kills: int = 20, seed: int = 0, folder: Path = Path(".bench/kills")) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    unbroken = folder / "unbroken"
    small_run.prepare(unbroken)
    finish(*small_run.run(unbroken))
    jobs, expected = {"said.txt": START_S, **small_run.jobs(unbroken)}, small_run.made(unbroken)
    print(f"unbroken: {sum(jobs.values()):.0f} s of {len(jobs)} jobs, {len(expected)} files to compare", flush=True)
    moments, stages, resumed, wrong = random.Random(seed), Counter[str](), 0, list[str]()
    while stages.total() < kills:
        killed = folder / f"kill_{stages.total():02d}"
        small_run.prepare(killed)
        log = moments.choices(list(jobs), weights=list(jobs.values()))[0]
        after = moments.uniform(0, jobs[log])
        if not small_run.kill(killed, log, after):
            print(f"done before {log} was {after:.1f} s old, once more", flush=True)
            shutil.rmtree(killed)
            continue
        stage, partial = running(killed), leftovers(killed)
        stages[stage] += 1
        finish(*small_run.go_on(killed))
        steps = [int(step) for log in logs(killed, "train") for step in RESUMED.findall(log.read_text())]
        resumed += len(steps)
        is_same = small_run.made(killed) == expected and not leftovers(killed)
        print(
            f"{killed.name}: {after:.1f} s after {log} began, in {stage}, {len(partial)} unfinished file(s), resumed at {steps}: "
            f"{'same bytes' if is_same else 'OTHER BYTES'}",
            flush=True,
        )
        if is_same:
            shutil.rmtree(killed)
        else:
            wrong.append(killed.name)
    places = ", ".join(f"{stage} {count}" for stage, count in stages.most_common())
    figure = f"{kills - len(wrong)} of {kills} ended with the same bytes"
    setting = (
        f"in {places}; {resumed} trainings went on from a checkpoint; {len(expected)} files compared, {machine(1)}"
    )
    record([("kill -9 at a random moment", "Segsnake", figure, setting)])
    if wrong:
        raise PipelineError(f"{folder}: other bytes in {', '.join(wrong)}, those of {unbroken} expected.")


def finish(code: int, said: str) -> None:
    """
    Raises:
        PipelineError: the run failed.
    """
    if code:
        raise PipelineError(f"snakemake: failed with {code}, 0 expected.\n{said[-4000:]}")


def running(folder: Path) -> str:
    """The stage whose log was made last."""
    written = logs(folder, "*")
    return max(written, key=lambda log: log.stat().st_mtime_ns).relative_to(folder).parts[2] if written else "start"


def logs(folder: Path, stage: str) -> list[Path]:
    return list((folder / "logs" / small_run.NAME).glob(f"{stage}/**/*.log"))


def leftovers(folder: Path) -> list[Path]:
    """What was being written when it was killed."""
    return list((folder / "results").rglob(".partial-*"))


if __name__ == "__main__":
    errors.run(main)
