"""Memory is what a job was given, not what its machine has."""

import psutil
import pytest

from pipeline.limits import free_bytes, limits


def group(tmp_path, line, files):
    """A /proc/self/cgroup of one line and a tree with those files."""
    for name, text in files.items():
        path = tmp_path / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "self").write_text(line)
    return tmp_path / "self", tmp_path / "cgroup"


@pytest.mark.parametrize(
    ("line", "files"),
    [
        ("0::/system/job_7/step_0\n", {"system/job_7/memory.max": "4096\n", "system/job_7/step_0/memory.max": "max\n"}),
        ("9:name=systemd:/a\n4:cpu,memory:/slurm/job_7\n", {"memory/slurm/job_7/memory.limit_in_bytes": "4096\n"}),
    ],
    ids=["second_version", "first_version"],
)
def test_a_job_has_the_memory_of_the_smallest_group_around_it(tmp_path, line, files):
    assert free_bytes(*group(tmp_path, line, files)) == 4096


@pytest.mark.parametrize("line", ["0::/\n", "1:cpu:/a\n0::/a\n", ""])
def test_without_a_limit_there_is_what_the_machine_has(tmp_path, line):
    assert limits(*group(tmp_path, line, {"memory.stat": ""})) == []
    assert limits(tmp_path / "none", tmp_path) == []
    assert 0 < free_bytes() <= psutil.virtual_memory().total
