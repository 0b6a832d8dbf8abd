"""Every error this project raises on purpose, and how a stage starts and shows one to its user.

PipelineError              something the user or the disk gave us cannot be used; always one line: who, found, expected, do
├── ConfigError            a key or value of the configuration
├── CohortError            the cohort folder, its table or its dataset.json
├── ImageError             one file: unreadable, or not the geometry that it should have
│   └── Refused            the same with its rule, for the table of `check`: pipeline/check/problem.py
├── PlanError              no network fits the cohort and the settings
├── TrainingError          training cannot start, or cannot go on
├── PredictionError        a scan cannot be segmented: no memory for it, or weights that give no numbers
├── DiskError              a file cannot be written: no room for it, or a disk that is read only
└── ExportError            a trained network cannot be written for others

Knows nothing of what the stages do.
"""

import os
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, get_type_hints

USER_ERROR_EXIT_CODE = 2
KEPT = (  # of a job's environment: where its code is, its threads, its GPU
    "PYTHONPATH",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)


class PipelineError(Exception):
    pass


class ConfigError(PipelineError):
    pass


class CohortError(PipelineError):
    pass


class ImageError(PipelineError):
    pass


class PlanError(PipelineError):
    pass


class TrainingError(PipelineError):
    pass


class PredictionError(PipelineError):
    pass


class DiskError(PipelineError):
    pass


class ExportError(PipelineError):
    pass


@contextmanager
def one_line() -> Iterator[None]:
    """Show a `PipelineError` as one line and exit with 2; anything else keeps its traceback."""
    try:
        yield
    except PipelineError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(USER_ERROR_EXIT_CODE)


def run(main: Callable[..., None]) -> None:
    """Run a stage's `main` from the command line: each parameter of its signature is an option `--parameter`.

    What is no terminal, as the log of a job, is first told the command that runs it again.
    """
    import typer

    if not sys.stdout.isatty() and os.environ.get("RANK", "0") == "0":
        print(command(), flush=True)
    hints = get_type_hints(main)
    main.__annotations__ = {name: Annotated[hint, typer.Option()] for name, hint in hints.items() if name != "return"}
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    with one_line():
        app()


def command() -> str:
    """What starts this process from any folder of a shell; for one of several under `torchrun`, what starts them all."""
    arguments = sys.orig_argv[1:]
    if count := os.environ.get("LOCAL_WORLD_SIZE"):
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
        arguments = [*launch, *arguments[arguments.index("-m") :]]
    environment = [f"{name}={os.environ[name]}" for name in KEPT if name in os.environ]
    return f"cd {shlex.quote(os.getcwd())} && {shlex.join(['env', *environment, sys.executable, *arguments])}"
