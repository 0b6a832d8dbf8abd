"""What segmenting new scans will take, by their headers and what was trained: for the scheduler, before the job starts.

Reads headers, plans and facts, no voxels. Imports no torch.
"""

from math import ceil
from pathlib import Path

from pipeline import records
from pipeline.config import with_previous
from pipeline.errors import PipelineError
from pipeline.images import grid_of, open_image, ras_grid
from pipeline.memory import PROCESS_BYTES, prepare_bytes
from pipeline.paths import Results
from pipeline.plan import read_plan
from pipeline.preprocess import prepared_shape
from pipeline.scans import find_scans
from pipeline.windows import predict_bytes, read_setting

UNKNOWN_MIB = 4000  # nothing is trained yet, or no scan has a header that can be read


def segment_mb(files: Results, scans: Path, fold: int, memory_gib: float) -> int:
    """MiB for the largest of the scans; they take turns in a process."""
    if not files.choice.exists() or not scans.exists():
        return UNKNOWN_MIB
    num_channels = len(records.read_cohort(files.cohort).channels)
    try:
        first_channels = [scan.case.channels[0] for scan in find_scans(scans, num_channels, files.converted)]
    except PipelineError:  # the job itself says what is wrong
        return UNKNOWN_MIB
    needed = [scan_bytes(files, path, fold, memory_gib) for path in first_channels if path.exists()]
    return ceil(max(needed) / 2**20) if any(needed) else UNKNOWN_MIB


def scan_bytes(files: Results, scan: Path, fold: int, memory_gib: float) -> int:
    """Of the process: all chosen configurations predict slab by slab beside each other. 0 for a header that is no use."""
    try:
        grid = ras_grid(grid_of(open_image(scan)))
    except PipelineError:
        return 0
    chosen: list[str] = records.read_json(files.choice)["for_new_scans"]
    prepare, predict = 0, 0
    for name in with_previous(chosen):
        plan, setting = read_plan(files.plan(name)), read_setting(files.inference(name))
        width = records.read_facts(files.training_facts(name, fold)).width
        shape, prepared = prepared_shape(plan, grid.shape, grid.spacing_mm)
        prepare = max(prepare, prepare_bytes(plan, shape, prepared))
        predict += predict_bytes(plan, width, setting, prepared, shape, memory_gib) - PROCESS_BYTES
    return PROCESS_BYTES + max(prepare, predict)
