"""Two thousand damaged files: `check` refuses each or what it accepts reads as it did; none ends the process or hangs it."""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from pipeline.check.case import check_file
from pipeline.check.problem import Asked, any_refused
from pipeline.images import read_ras
from tests.test_check import save

ROOT = Path(__file__).parents[1]
NUM_FILES = 2000
LONGEST_S = 5  # for one file; the kernel then ends the process
FORMS = ("edited.nii.gz", "edited.nii", "edited_then_compressed.nii.gz")


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """One to four bytes changed, mostly in the first 400, where the headers are; or the end cut off, or bytes put in."""
    if random.random() < 0.2:
        return content[: random.integers(len(content))]
    edited = bytearray(content)
    for _ in range(random.integers(1, 5)):
        position = random.integers(min(400, len(edited)) if random.random() < 0.7 else len(edited))
        if random.random() < 0.1:
            edited[position:position] = random.bytes(3)
        else:
            edited[position] = random.integers(256)
    return bytes(edited)


def judge(path: Path, expected: np.ndarray) -> str:
    """`refused`, or `accepted` after it was read; where gzip's checksum holds for the original, as the original."""
    if any_refused(check_file(path, Asked()).problems):
        return "refused"
    array, _ = read_ras(path)
    if path.name == FORMS[0]:
        np.testing.assert_array_equal(array, expected)
    return "accepted"


def main(folder: Path) -> None:
    """Prints the number of each file before it is looked at, so that the one that ends the process is known."""
    sound = save(folder / "sound.nii")
    expected, content = read_ras(sound)[0], sound.read_bytes()
    for number in range(NUM_FILES):
        random = np.random.default_rng(number)
        form = FORMS[number % 3]
        path = folder / form
        start = gzip.compress(content) if form == FORMS[0] else content
        after = damaged(start, random)
        path.write_bytes(gzip.compress(after, 1) if form == FORMS[2] else after)
        print(number, form, end=" ", flush=True)
        signal.alarm(LONGEST_S)
        print(judge(path, expected), flush=True)


def test_no_damaged_file_crashes_hangs_or_passes_with_other_voxels(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.test_fuzz", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, (lines[-1], done.stderr)
    assert len(lines) == NUM_FILES
    verdicts = {form: [line.rsplit(maxsplit=1)[1] for line in lines if f" {form} " in line] for form in FORMS}
    assert {form for form, found in verdicts.items() if {"refused", "accepted"} == set(found)} == set(FORMS)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
