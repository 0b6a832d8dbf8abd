"""The torture list: every fault of a cohort's files by its number, through `discover` and `check` as the workflow calls them.

What is refused ends with exit code 2 and names rule, file and number, what is mended or odd is said so, and nothing else
is written or changed. Faults of writing, training and prediction, from 48 on, stand at the end or in the tests named there.
"""

import gzip
import hashlib
import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import discover, errors, records
from pipeline.check.__main__ import main as check
from pipeline.errors import TrainingError
from pipeline.flow import Run
from pipeline.images import read_labels_ras, read_ras, write_mask
from pipeline.nn.checkpoints import load_checkpoint, previous_checkpoint, read_model, save_checkpoint
from pipeline.paths import Results
from tests.test_check import Edit, both_codes_zero, save, setting, slope_0_with_intercept

ROOT = Path(__file__).parents[1]
SHAPE = (60, 48, 36)  # large enough for a shear of 5e-4 to show
SPACING_MM = (0.7, 1.0, 2.5)
LABELS = {"0": "background", "1": "liver", "2": "spleen"}
NUM_CASES = 4
CONFIG = {"name": "torture", "cohort": "scans", "folds": 2, "configurations": ["2d"]}
FILES = Results("torture")
IMAGE, LABEL = Path("scans/imagesTr/case_1.nii.gz"), Path("scans/labelsTr/case_1.nii.gz")


def oblique() -> NDArray[np.float64]:
    """15 degrees about z, then 20 about x."""
    about_z, about_x = np.deg2rad(15), np.deg2rad(20)
    z = [[np.cos(about_z), -np.sin(about_z), 0], [np.sin(about_z), np.cos(about_z), 0], [0, 0, 1]]
    x = [[1, 0, 0], [0, np.cos(about_x), -np.sin(about_x)], [0, np.sin(about_x), np.cos(about_x)]]
    return nib.affines.from_matvec(np.array(x) @ z @ np.diag(SPACING_MM), [-31.0, 17.0, 103.0])


AFFINE = oblique()


def scan(seed: int = 1) -> NDArray[np.int16]:
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)


def segmentation() -> NDArray[np.uint8]:
    """Label 1 touches the border."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[:9, 12:25, :20] = 1
    labels[30:42, 20:30, 10:20] = 2
    return labels


@pytest.fixture
def cohort(tmp_path: Path) -> Iterator[Path]:
    """Four sound cases in MSD layout, below a working folder of their own that holds results of an earlier run."""
    with chdir(tmp_path):
        for number in range(NUM_CASES):
            save(Path(f"scans/imagesTr/case_{number}.nii.gz"), scan(number), AFFINE)
            save(Path(f"scans/labelsTr/case_{number}.nii.gz"), segmentation(), AFFINE)
        describe()
        records.write_json(FILES.fingerprint, {"of": "an earlier run"})
        yield tmp_path


def describe(**changes: object) -> None:
    """The cohort's dataset.json."""
    entries = [{"image": f"imagesTr/case_{n}.nii.gz", "label": f"labelsTr/case_{n}.nii.gz"} for n in range(NUM_CASES)]
    content = {"name": "Torture", "labels": LABELS, "modality": {"0": "CT"}, "training": entries, **changes}
    Path("scans/dataset.json").write_text(json.dumps(content))


def run_check(**changes: object) -> int:
    """The exit code of `discover` and `check` one after the other."""
    run = Run({**CONFIG, **changes})
    try:
        with errors.one_line():
            discover.main(run.name, run.config["cohort"], run.cohort_settings)
            check(run.name, run.check_settings)
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def tree() -> dict[Path, str]:
    """Every file below the working folder with its digest, but for what `discover` and `check` report in."""
    written = {FILES.cases, FILES.cohort, FILES.problems, FILES.problems_json}
    files = (path for path in Path().rglob("*") if path.is_file() and path not in written)
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def problems() -> list[dict[str, str]]:
    return records.read_table(FILES.problems) if FILES.problems.exists() else []


# The faults ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fault:
    """`damage` changes the cohort; `found` is what is said of `file`, a pattern; `config` is what the user has set."""

    name: str
    rule: str
    found: str
    damage: Callable[[], object]
    file: Path = IMAGE
    config: dict[str, object] | None = None

    @property
    def settings(self) -> dict[str, object]:
        return self.config or {}


def image(edit: Edit | None = None, array: NDArray | None = None, affine: NDArray[np.float64] = AFFINE) -> Path:
    return save(IMAGE, scan() if array is None else array, affine, edit=edit or (lambda header: None))


def label(edit: Edit | None = None, array: NDArray | None = None, affine: NDArray[np.float64] = AFFINE) -> Path:
    return save(LABEL, segmentation() if array is None else array, affine, edit=edit or (lambda header: None))


def shifted(shift_mm: float) -> NDArray[np.float64]:
    moved = AFFINE.copy()
    moved[0, 3] += shift_mm
    return moved


def shear(amount: float) -> None:
    """Image and label alike, in the sform alone."""
    sheared = np.eye(4)
    sheared[0, 1] = amount
    for made in (image, label):
        made(setting("qform_code", 0), affine=AFFINE @ sheared)


def disagree() -> None:
    """The qform as it is, the sform mirrored."""

    def mirror(header: nib.Nifti1Header) -> None:
        header["sform_code"] = 2
        header["srow_x"] *= -1

    image(mirror, affine=np.diag([*SPACING_MM, 1]))


def to_micron() -> None:
    affine = np.diag([1000, 1000, 1000, 1]) @ AFFINE
    for made in (image, label):
        made(setting("xyzt_units", 3), affine=affine)


def with_voxel(value: float) -> NDArray[np.float32]:
    array = scan().astype(np.float32)
    array[3, 4, 5] = value
    return array


def with_label(value: int, dtype: type[np.integer] = np.int16) -> NDArray[np.integer]:
    labels = segmentation().astype(dtype)
    labels[0, 0, 0] = value
    return labels


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def wrong_checksum() -> None:
    content = bytearray(IMAGE.read_bytes())
    content[-8] ^= 1
    IMAGE.write_bytes(content)


def header_only() -> None:
    IMAGE.write_bytes(gzip.compress(gzip.decompress(IMAGE.read_bytes())[:352]))


def plain_named_gz() -> None:
    IMAGE.write_bytes(gzip.decompress(IMAGE.read_bytes()))


def replaced_by(make: Callable[[Path], object]) -> None:
    IMAGE.unlink()
    make(IMAGE)


def lfs_pointer(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n")


def linked_folder(path: Path) -> None:
    path.symlink_to("../labelsTr")


def same_bytes() -> None:
    """Of all four cases, so that two of them are in two folds however they are dealt."""
    content = IMAGE.read_bytes()
    for number in range(NUM_CASES):
        IMAGE.with_name(f"case_{number}.nii.gz").write_bytes(content)


def second_channel_is_missing() -> None:
    for number in range(NUM_CASES):
        path = IMAGE.with_name(f"case_{number}.nii.gz").rename(IMAGE.with_name(f"case_{number}_0000.nii.gz"))
        if number != 1:
            save(path.with_name(f"case_{number}_0001.nii.gz"), scan(9 + number), AFFINE)
    describe(modality={"0": "T1", "1": "T2"})


def single_slice() -> None:
    image(array=scan()[:, :, :1])
    label(array=segmentation()[:, :, :1])


COLOUR = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])

REFUSED = [
    Fault("03_affine_shift_1vox", "grid-differs", "^0.7 mm apart", lambda: label(affine=shifted(0.7)), LABEL),
    Fault("04_label_other_shape", "grid-differs", "^another shape", lambda: label(array=segmentation()[1:]), LABEL),
    Fault(
        "05_label_xflip_header_only",
        "grid-differs",
        "^82.6 mm apart",
        lambda: label(affine=AFFINE @ np.diag([-1, 1, 1, 1])),
        LABEL,
    ),
    Fault("06_qs_disagree_q1s2", "qform-sform-differ", "^82.6 mm apart", disagree),
    Fault("08_codes_00", "orientation-unknown", "both 0", lambda: image(both_codes_zero)),
    Fault("10_shear_0.2", "affine-sheared", r"^\d\.\d+ mm apart", lambda: shear(0.2)),
    Fault("11_sform_singular", "affine-singular", "; 0 0 0 1", lambda: image(setting("srow_z", [0, 0, 0, 1]))),
    Fault("12_srow_nan", "affine-singular", "nan", lambda: image(setting("srow_x", np.nan, 3))),
    Fault("13_pixdim_zero", "pixdim-not-positive", r"0\.0", lambda: image(setting("pixdim", 0, 2))),
    Fault("14_pixdim_negative", "pixdim-not-positive", r"-1\.0", lambda: image(setting("pixdim", -1, 2))),
    Fault(
        "15_pixdim_1mm_sform_other",
        "pixdim-differs",
        r"spacing 1 1 1 mm",
        lambda: image(setting("pixdim", 1, slice(1, 4))),
    ),
    Fault("16_quaternion_bad", "quaternion-invalid", "w2 should be positive", lambda: image(setting("quatern_b", 3))),
    Fault(
        "20_channels_undeclared",
        "not-3d",
        r"shape \(60, 48, 36, 2\)",
        lambda: image(array=np.stack([scan(1), scan(2)], axis=-1)),
    ),
    Fault("21_rgb24", "voxel-type", "R.*G.*B", lambda: image(array=np.zeros(SHAPE, COLOUR))),
    Fault("22_complex64", "voxel-type", "complex64", lambda: image(array=scan().astype(np.complex64))),
    Fault("24_slope0_inter5", "scale-invalid", "slope 0 with intercept 5", lambda: image(slope_0_with_intercept)),
    Fault("25_nan_voxel", "nonfinite", "^1 voxels NaN", lambda: image(array=with_voxel(np.nan))),
    Fault("26_inf_voxel", "nonfinite", "^1 voxels NaN, infinite", lambda: image(array=with_voxel(np.inf))),
    Fault(
        "28_label_float_0.5",
        "label-not-integer",
        "up to 0.5 from an integer",
        lambda: label(array=segmentation() * np.float32(0.5)),
        LABEL,
    ),
    Fault("30_label_undeclared_7", "label-undeclared", "^7 in 1 voxels", lambda: label(array=with_label(7)), LABEL),
    Fault(
        "32_label_in_no_case",
        "label-in-no-case",
        "^label 3 spine in no case",
        lambda: describe(labels=LABELS | {"3": "spine"}),
        Path(),
    ),
    Fault("34_same_bytes_two_folds", "same-content", "the bytes of scans/imagesTr/case_", same_bytes, Path()),
    Fault(
        "36_missing_channel",
        "file-missing",
        "no such file",
        second_channel_is_missing,
        IMAGE.with_name("case_1_0001.nii.gz"),
    ),
    Fault(
        "37_single_slice_3d",
        "single-slice",
        r"shape \(60, 48, 1\)",
        single_slice,
        config={"configurations": ["3d_fullres"]},
    ),
    Fault("38_gz_truncated_60", "unreadable", "ended before", lambda: cut(IMAGE, 0.6)),
    Fault("39_gz_crc_wrong", "unreadable", "CRC check failed", wrong_checksum),
    Fault("40_gz_header_only", "truncated", "^0 bytes of voxels", header_only),
    Fault("41_plain_named_gz", "wrong-suffix", "data that is not gzip", plain_named_gz),
    Fault("42_lfs_pointer", "not-nifti", "a Git LFS pointer", lambda: replaced_by(lfs_pointer)),
    Fault("42_fifo", "not-nifti", "a pipe or device", lambda: replaced_by(os.mkfifo)),
    Fault("42_dirlink", "not-nifti", "a folder", lambda: replaced_by(linked_folder)),
    Fault(
        "43_header_bomb_32767",
        "too-large",
        r"\(32767, 32767, 32767\), 5.24e\+05 GiB",
        lambda: image(setting("dim", 32767, slice(1, 4))),
    ),
]


@pytest.mark.parametrize("fault", REFUSED, ids=lambda fault: fault.name)
def test_refused_with_code_2_by_rule_file_and_number(
    cohort: Path, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    fault.damage()
    before, begin = tree(), time.monotonic()
    assert run_check(**fault.settings) == errors.USER_ERROR_EXIT_CODE
    assert time.monotonic() - begin < 2
    assert tree() == before
    rows = [row for row in problems() if row["severity"] == "refuse"]
    assert {row["rule"] for row in rows} == {fault.rule}, rows
    row = next(row for row in rows if row["file"] == str(fault.file) or fault.file == Path())
    assert re.search(fault.found, row["found"]), row
    assert row["expected"]
    assert row["do"]
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith(f"CohortError: check: {len(rows)} problem")
    assert all(text in printed.out for text in (fault.rule, row["found"], row["file"]))


ACCEPTED = [
    Fault("02_affine_shift_0.05vox", "grid-differs", "^0.035 mm apart", lambda: label(affine=shifted(0.035)), LABEL),
    Fault("09_shear_5e-4", "affine-sheared", r"^0\.0\d+ mm apart", lambda: shear(5e-4)),
    Fault("17_units_micron", "unit-not-mm", "micron", to_micron),
    Fault("19_dim4_singleton", "not-3d", r"shape \(60, 48, 36, 1\)", lambda: image(array=scan()[..., None])),
    Fault(
        "27_label_float_0.99999",
        "label-not-integer",
        "up to 2e-05 from an integer",
        lambda: label(array=segmentation() * np.float32(0.99999)),
        LABEL,
    ),
    Fault(
        "31_label_empty_case", "label-empty", "background only", lambda: label(array=np.zeros(SHAPE, np.uint8)), LABEL
    ),
]


@pytest.mark.parametrize("fault", ACCEPTED, ids=lambda fault: fault.name)
def test_mended_or_odd_and_said_so(cohort: Path, fault: Fault) -> None:
    fault.damage()
    before = tree()
    assert run_check() == 0
    assert before.items() <= tree().items()
    assert tree().keys() - before.keys() == {FILES.manifest, FILES.checked_cases}
    severity = "warn" if fault.rule == "label-empty" else "fix"
    row = next(row for row in problems() if row["rule"] == fault.rule and row["file"] == str(fault.file))
    assert row["severity"] == severity
    assert re.search(fault.found, row["found"]), row
    array, grid = read_ras(IMAGE)  # later stages read what was mended
    labels, _ = read_labels_ras(LABEL)
    assert grid.spacing_mm == pytest.approx(SPACING_MM, rel=1e-3)
    assert array.shape == labels.shape == SHAPE


def sform_0() -> None:
    image(setting("sform_code", 0))


def slope_and_intercept() -> None:
    def scale(header: nib.Nifti1Header) -> None:
        header["scl_slope"], header["scl_inter"] = 2, -1024

    image(scale)


def labels_to_300() -> None:
    labels = (np.arange(np.prod(SHAPE)) % 300).astype(np.uint16).reshape(SHAPE)
    label(array=labels)
    describe(labels={str(value): f"part {value}" for value in range(300)})


def big_endian() -> None:
    for path, array in ((IMAGE, scan()), (LABEL, segmentation())):
        save(path, array, AFFINE, kind=nib.Nifti2Image, endianness=">")


SOUND = [
    Fault("01_affine_noise_1e-7", "", "", lambda: label(affine=AFFINE + 1e-7)),
    Fault("07_sform0_qform1", "", "", sform_0),
    Fault("23_slope_2_inter_-1024", "", "", slope_and_intercept),
    Fault("29_label_300_values", "", "", labels_to_300),
    Fault("44_nifti2_big_endian", "", "", big_endian),
]


@pytest.mark.parametrize("fault", SOUND, ids=lambda fault: fault.name)
def test_accepted_without_a_word(cohort: Path, fault: Fault) -> None:
    fault.damage()
    before = tree()
    assert run_check() == 0
    assert problems() == []
    assert tree().keys() - before.keys() == {FILES.manifest, FILES.checked_cases}
    array, grid = read_ras(IMAGE)
    scaled = 2 * scan() - 1024.0 if fault.name.startswith("23") else scan()
    np.testing.assert_array_equal(array, scaled)
    assert grid.affine == pytest.approx(AFFINE, abs=1e-4)
    labels, _ = read_labels_ras(LABEL)
    write_mask(Path("mask.nii.gz"), labels, IMAGE)
    written = nib.load("mask.nii.gz").get_data_dtype()
    assert written.newbyteorder("=") == (np.uint16 if fault.name.startswith("29") else np.uint8)
    np.testing.assert_array_equal(read_labels_ras(Path("mask.nii.gz"))[0], labels)


def test_18_orient_48(cohort: Path) -> None:
    """One scan stored in every order and direction of its axes: accepted, and read as the same."""
    array, labels = scan()[:20, :16, :12], segmentation()[:20, :16, :12]
    array[0, 0, 0] = 5000  # tells the corners apart
    straight = np.diag([*SPACING_MM, 1.0])
    entries = []
    for number, (order, signs) in enumerate(product(permutations(range(3)), product([1, -1], repeat=3))):
        orientation = np.column_stack([order, signs])
        for folder, voxels in (("imagesTr", array), ("labelsTr", labels)):
            turned = nib.orientations.apply_orientation(voxels, orientation)
            affine = straight @ nib.orientations.inv_ornt_aff(orientation, voxels.shape)
            turned = turned + (number if folder == "imagesTr" else 0)  # no two scans alike
            save(Path(f"scans/{folder}/turned_{number}.nii.gz"), turned.astype(voxels.dtype), affine)
        entries.append({key: f"{key}sTr/turned_{number}.nii.gz" for key in ("image", "label")})
    describe(training=entries, labels={"0": "background", "1": "liver"})
    assert run_check() == 0
    assert len(records.read_cases(FILES.checked_cases)) == 48
    assert len({row["orientation"] for row in records.read_table(FILES.manifest)}) == 48
    for number, case in enumerate(records.read_cases(FILES.checked_cases)):
        voxels, grid = read_ras(case.channels[0])
        number = int(case.case.removeprefix("turned_"))
        np.testing.assert_array_equal(voxels, array + number)
        assert grid.affine == pytest.approx(straight, abs=1e-5)


# Refused by name, before a file is opened ----------------------------------------------------------------------------


def test_33_duplicate_id_casefold(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entries = [{"image": f"imagesTr/{name}.nii.gz", "label": "labelsTr/case_1.nii.gz"} for name in ("case_1", "CASE_1")]
    describe(training=entries)
    assert_no_cohort(capsys, "case id 'C(ASE|ase)_1' found twice|case id 'case_1' found twice")


def test_47_case_id_dotdot(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    describe(training=[{"image": "imagesTr/..nii.gz", "label": "labelsTr/case_1.nii.gz"}])
    assert_no_cohort(capsys, r"case id '\.' found, 1 to 64 letters")


def assert_no_cohort(capsys: pytest.CaptureFixture[str], message: str) -> None:
    before = tree()
    assert run_check() == errors.USER_ERROR_EXIT_CODE
    assert tree() == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("CohortError: ")
    assert re.search(message, line), line


def test_45_analyze_pair(cohort: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nib.save(nib.AnalyzeImage(scan(), np.eye(4)), "scans/imagesTr/case_1.hdr")
    entries = [{"image": f"imagesTr/case_{n}.nii.gz", "label": f"labelsTr/case_{n}.nii.gz"} for n in (0, 2)]
    describe(training=[*entries, {"image": "imagesTr/case_1.hdr", "label": "labelsTr/case_1.nii.gz"}])
    before = tree()
    assert run_check() == errors.USER_ERROR_EXIT_CODE
    assert tree() == before
    assert "Convert it to .nii.gz" in "".join(capsys.readouterr())


def test_46_name_unicode_space_dollar(cohort: Path) -> None:
    """Through the shell that Snakemake starts: nothing in a name is run, and the files are found."""
    name = "ä ö $(touch run) 'q' \"d\""
    Path("scans").rename(name)
    Path("config.json").write_text(json.dumps({**CONFIG, "cohort": name, "threads": 1}))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1", "check"]
    done = subprocess.run([*command, "--configfile", "config.json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(records.read_table(FILES.manifest)) == 2 * NUM_CASES
    assert not Path("run").exists()


def test_43_header_bomb_is_refused_in_little_memory(cohort: Path) -> None:
    image(setting("dim", 32767, slice(1, 4)))
    assert run_check() == errors.USER_ERROR_EXIT_CODE
    code = (
        "import sys\nfrom pathlib import Path\nfrom pipeline.check.case import check_file\n"
        "from pipeline.check.problem import Asked\nfrom tests.bench import memory\n"
        "for asked in (Asked(), Asked(scan_gib=1e9)):\n"
        "    assert check_file(Path(sys.argv[1]), asked).problems[0].severity == 'refuse'\n"
        "print(memory.peak())"  # not getrusage, whose count begins with what the tests' own process had
    )
    done = run_python(["-c", code, str(IMAGE)])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 500


# Writing, training and prediction ------------------------------------------------------------------------------------

WRITE_MASK = """
import sys
from pathlib import Path
import numpy as np
from pipeline.images import open_image, write_mask
scan = Path(sys.argv[1])
labels = np.random.default_rng(0).integers(0, 9, open_image(scan).shape)
write_mask(Path(sys.argv[2]), labels, scan)
"""


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder]).returncode:
        pytest.skip("mounting a small file system is for root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_48_disk_full_write(cohort: Path, full_disk: Path) -> None:
    mask = full_disk / "mask.nii.gz"
    mask.write_bytes(b"the old file")
    done = run_python(["-c", WRITE_MASK, str(IMAGE), str(mask)])
    assert done.returncode != 0
    assert "[Errno 28] No space left on device" in done.stderr
    assert [(path, path.read_bytes()) for path in full_disk.iterdir()] == [(mask, b"the old file")]


def run_python(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("damage", ["bitflip", "truncated"])
def test_50_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    """The one before is used, and that is said; with both damaged, none is."""
    path = tmp_path / "checkpoint.pt"
    for step in (1, 2):
        save_checkpoint(path, "key", {"step": step, "weights": torch.arange(1000.0)})
    for file, expected in ((path, {"step": 1}), (previous_checkpoint(path), None)):
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "bitflip" else content[:-100])
        state = load_checkpoint(path, "key")
        assert (state and {"step": state["step"]}) == expected
        assert f"{file}: damaged (" in capsys.readouterr().out


class Malicious:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("executed",)


def test_51_checkpoint_malicious_pickle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("model.pt")
    torch.save({"key": "key", "weights": Malicious()}, path)
    assert load_checkpoint(path, "key") is None
    assert "model.pt: damaged (Weights only load failed" in capsys.readouterr().out
    with pytest.raises(TrainingError, match=r"^model\.pt: damaged \(Weights only load failed"):
        read_model(path)
    assert not Path("executed").exists()


def test_56_dev_shm_8MB(tmp_path: Path) -> None:
    """There is nothing to ask for at the start: training keeps no data in shared memory, and runs with next to none."""
    code = (
        f"from pathlib import Path; from tests.test_train import run; run(Path({str(tmp_path)!r}), {{'iterations': 2}})"
    )
    inside = f'mount -t tmpfs -o size=64k tmpfs /dev/shm && cd {ROOT} && exec {sys.executable} -c "$0"'
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("a /dev/shm of its own is for root")
    done = subprocess.run(["unshare", "--mount", "sh", "-c", inside, code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ELSEWHERE = {
    "35_same_subject_two_folds": "test_cohort.test_35_same_subject_two_folds",
    "49_kill9_mid_checkpoint": "test_train.test_a_run_killed_at_twenty_random_steps_ends_with_the_same_bytes",
    "52_nan_logits_one_window": (
        "test_segment.test_a_network_that_is_not_finite_in_one_window_fails_that_scan_by_name_and_no_other"
    ),
    "53_label_voxels_flipped_same_header": "test_cohort.test_53_label_voxels_flipped_same_header",
    "55_worker_sigkill": "test_processes.test_55_worker_sigkill",
    "54_cache_after_image_changed": "test_preprocess.test_arrays_are_made_again_after_the_file_changed",
}


@pytest.mark.parametrize("place", ELSEWHERE.values(), ids=ELSEWHERE.keys())
def test_the_faults_of_training_and_prediction_are_tested_where_they_are_met(place: str) -> None:
    module, name = place.split(".")
    assert callable(getattr(importlib.import_module(f"tests.{module}"), name))
