"""A SLURM of one node on this machine, for as long as a test wants it: Debian's packages, loopback, two GPUs that are none.

Needs root, and a machine without a SLURM of its own: /etc/slurm is written, because `srun` inside a job looks nowhere else.
What was written is gone afterwards, for a slurm.conf without a controller makes every later `snakemake` wait ten seconds.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

CONF, GRES = Path("/etc/slurm/slurm.conf"), Path("/etc/slurm/gres.conf")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel")
SETTINGS = """\
ClusterName=segsnake
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MinJobAge=300
KillWait=30
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=64000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """The reason why no node can be started here; empty if one can."""
    missing = [name for name in PROGRAMS if not _found(name)]
    if missing:
        return f"not installed: {', '.join(missing)} (apt-get install munge slurmctld slurmd slurm-client)"
    if os.geteuid() != 0:
        return "only root starts the daemons"
    return f"{CONF} is of another SLURM" if CONF.exists() else ""


@contextmanager
def running_node(folder: Path) -> Iterator[None]:
    """Its files lie below `folder`; jobs that are left are killed with it. It claims more memory than there may be."""
    host = socket.gethostname().split(".")[0]
    for name in ("controller", "node"):
        (folder / name).mkdir(parents=True)
    key, sock = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    munge = ["--force", "--key-file", key, "--socket", sock, "--pid-file", folder / "munge.pid"]
    munge += ["--log-file", folder / "munge.log", "--seed-file", folder / "munge.seed"]
    with ExitStack() as stack:
        stack.callback(GRES.unlink, missing_ok=True)
        stack.callback(CONF.unlink, missing_ok=True)
        CONF.parent.mkdir(exist_ok=True)
        GRES.write_text(f"NodeName={host} Name=gpu File=/dev/null,/dev/zero\n")
        CONF.write_text(SETTINGS.format(host=host, folder=folder, cpus=os.cpu_count()))
        stack.enter_context(_daemon(folder, "munged", "--foreground", *munge))
        _wait_for(sock.exists, folder)
        stack.enter_context(_daemon(folder, "slurmctld", "-D"))
        stack.enter_context(_daemon(folder, "slurmd", "-D", "-N", host))
        stack.callback(_end_jobs)
        _wait_for(lambda: "idle" in said("sinfo", "--noheader", "--format=%T"), folder)
        yield


@contextmanager
def _daemon(folder: Path, name: str, *arguments: object) -> Iterator[None]:
    """In the foreground, as a child that ends with the tests, however they do."""
    with (folder / f"{name}.txt").open("w") as log:
        command = ["setpriv", "--pdeathsig", "TERM", _found(name), *arguments]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()


def _end_jobs() -> None:
    subprocess.run(["scancel", "--signal=KILL", "--full", "--user=root"], check=False, timeout=20)
    subprocess.run(["scancel", "--user=root"], check=False, timeout=20)


def _wait_for(is_there: Callable[[], bool], folder: Path) -> None:
    deadline = time.monotonic() + 30
    while not is_there():
        if time.monotonic() > deadline:
            raise RuntimeError("\n".join(log.read_text()[-2000:] for log in sorted(folder.glob("*.txt"))))
        time.sleep(0.2)


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=20).stdout


def _found(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path="/usr/sbin")
