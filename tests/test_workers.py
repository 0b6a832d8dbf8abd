"""Two processes train one network, as `torchrun` starts them on two GPUs; here on two CPU cores."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from pipeline.nn.workers import ALONE, Workers

SCRIPT = """
import json, sys, torch
from pathlib import Path
from pipeline import train as module
from pipeline.nn.workers import join_workers, leave_workers
from tests.test_train import CPU, SETTINGS, blob_source, tiny_plan

torch.set_num_threads(1)
workers, _ = join_workers(torch.device("cpu"))
drawn = []
draw = module.draw_batch
module.draw_batch = lambda *args: drawn.append(args[2]) or draw(*args)
weights, _ = module.train(
    tiny_plan(batch_size=3), {**SETTINGS, "iterations": 6}, CPU,
    training=[blob_source(seed) for seed in range(3)], validation=[blob_source(9)],
    seed=(1, 0), folder=Path(sys.argv[1]), workers=workers,
)
total = float(sum(value.double().abs().sum() for value in weights.values()))
Path(sys.argv[1], f"rank_{workers.rank}.json").write_text(json.dumps({"total": total, "drawn": drawn[0]}))
leave_workers(workers)
"""


def test_two_processes_share_a_batch_and_end_with_the_same_weights(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [*command, tmp_path / "script.py", tmp_path], capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank_{rank}.json").read_text()) for rank in range(2))
    assert first == second, "gradients are averaged, so the weights stay equal"
    assert first["drawn"] == 2, "a batch of three is two patches for each"
    assert done.stdout.count("trained: 6 steps") == 1, "the first process speaks for all"
    assert (tmp_path / "progress.tsv").exists()


def test_a_process_on_its_own_asks_nobody():
    assert ALONE.agree(1.5, True) == (1.5, True)
    network = torch.nn.Linear(1, 1)
    assert ALONE.wrap(network) is network
    assert (ALONE.share(5), Workers(0, 2).share(5), Workers(1, 8).share(3)) == (5, 3, 1)
