"""What a prediction takes is known before: the estimate holds, and is no more than it has to be."""

import json
import subprocess
import sys

import pytest

CODE = """
import json, sys
import numpy as np, torch
from pipeline.nn.checkpoints import Model
from pipeline.nn.networks import build_network
from pipeline.nn.probe import peak_gib
from pipeline.windows import Setting, predict_bytes, window_of
from pipeline.predict import predict_case
from pipeline.preprocess import Placement
from pipeline.restore import restore_labels
from tests.test_preprocess import make_plan
from tests.test_train import CPU

torch.set_num_threads(1)
num_labels, dims, window, shape, scan = json.loads(sys.argv[1])
plan = make_plan(dims=dims, labels=tuple(range(num_labels)), patch_size=(48, 48, 48)[-dims:],
                 strides=((1,) * dims, *((2,) * dims,) * 2), kernels=((3,) * dims,) * 3, spacing_mm=(2.0, 2.0, 2.0))
torch.manual_seed(0)
model = Model(build_network(plan, 8).eval(), plan, 8)
setting = Setting(window, 0.25, mirror=False)
estimate = predict_bytes(plan, 8, setting, shape, scan, memory_gib=8)
spacing = tuple(2.0 * edge / own for edge, own in zip(shape, scan))
where = Placement("zyx", tuple(scan[::-1]), tuple((0, edge) for edge in scan[::-1]), tuple(scan), spacing)
image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
window = window_of(setting, plan, 8, shape, (), 8)
restore_labels([predict_case([model], image, where, CPU, window, case="a")], plan)
print(json.dumps([peak_gib() * 2**30, estimate]))
"""


@pytest.mark.parametrize(
    ("num_labels", "dims", "window"), [(2, 3, 1), (15, 3, 1), (118, 3, 1), (15, 2, 1), (118, 3, 2)]
)
def test_a_prediction_takes_what_was_estimated(num_labels, dims, window):
    wanted = [num_labels, dims, window, (90, 84, 96), (120, 150, 140)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CODE, json.dumps(wanted)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    peak, estimate = json.loads(done.stdout.splitlines()[-1])
    assert peak <= 1.25 * estimate, f"{peak / 2**20:.0f} of {estimate / 2**20:.0f} MiB"
    assert peak >= 0.4 * estimate, f"{peak / 2**20:.0f} of {estimate / 2**20:.0f} MiB"
