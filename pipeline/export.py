"""Trained networks to MONAI bundles and ONNX files, which run where this project is not. Trains nothing.

There is one bundle for each configuration that `ensemble` takes for new scans: a program of all its folds, what
`monai.bundle run` needs around it, and single folds as ONNX where the packages for it are installed. A cascade has none, for
it reads what another bundle would make, and neither has what reads scans after N4, which MONAI does not know.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline import disk, errors, records
from pipeline.bundle import MEASURES, About, configure, describe, write_readme
from pipeline.errors import ExportError, TrainingError
from pipeline.nn.checkpoints import Model, load_model
from pipeline.nn.programs import missing_packages, save_onnx, save_program
from pipeline.paths import Results
from pipeline.plan import Plan

SCRIPTS = Path(__file__).parent / "nn" / "bundle"
LICENCE = Path(__file__).parents[1] / "LICENSE"


def main(results: str, folds: str, threads: int = 1) -> None:
    """`folds` is a list with commas."""
    files = Results(results)
    torch.set_num_threads(threads)
    if not files.choice.exists():
        raise TrainingError(f"{files.choice}: not there, so nothing is trained yet. Run `snakemake --cores 8` first.")
    chosen = records.read_json(files.choice)["for_new_scans"]
    shutil.rmtree(files.export, ignore_errors=True)  # of an earlier choice
    written = []
    for configuration in chosen:
        paths = {fold: files.model(configuration, fold) for fold in folds.split(",")}
        models = {fold: load_model(path, torch.device("cpu")) for fold, path in paths.items()}
        if reason := without_bundle(next(iter(models.values())).plan):
            print(f"{configuration}: no bundle, for {reason}.", flush=True)
            continue
        write_bundle(files, configuration, models)
        written.append(configuration)
    if not written:
        raise ExportError(
            f"{', '.join(chosen)}: chosen for new scans, yet what refines the masks of another network, or needs "
            "`bias_correction`, has no bundle of its own. Train a configuration that does without, such as 3d_fullres, in a "
            "run of another name."
        )
    if missing := missing_packages():
        wanted = f"pip install --constraint envs/constraints.txt {' '.join(missing)}"
        print(f"no ONNX was written, for {', '.join(missing)} not installed. `{wanted}`, then export again.")
    print(f"{len(written)} bundle(s) in {files.export}: {', '.join(written)}")


def without_bundle(plan: Plan) -> str:
    """Why a configuration cannot run elsewhere; empty if it can."""
    if plan.previous:
        return f"it refines masks that another network makes, {plan.previous}"
    return "it reads scans whose brightness N4 has made even" if plan.bias_corrected else ""


def write_bundle(files: Results, configuration: str, models: Mapping[str, Model]) -> None:
    """Everything of one bundle from its networks by fold, `metadata.json` last: a folder without it is not whole."""
    bundle = files.bundle(configuration)
    difference = save_program(bundle.program, list(models.values()))
    print(f"{bundle.program}: within {difference:.1g} of the networks", flush=True)
    onnx: list[Path] = []
    if not missing_packages():
        for fold, model in models.items():
            onnx.append(bundle.onnx(fold))
            difference = save_onnx(onnx[-1], model)
            print(f"{onnx[-1]}: logits within {difference:.1g} of the network", flush=True)
    plan, about = next(iter(models.values())).plan, gather(files, configuration, models)
    for script in SCRIPTS.glob("*.py"):
        disk.write_text(bundle.scripts / script.name, script.read_text())
    disk.write_text(bundle.licence, LICENCE.read_text())
    disk.write_text(bundle.readme, write_readme(plan, about, onnx=[path.name for path in onnx]))
    records.write_json(bundle.inference, configure(plan))
    records.write_json(bundle.metadata, describe(plan, about))


def gather(files: Results, configuration: str, models: Mapping[str, Model]) -> About:
    """Where the networks of one configuration come from and how good they are, as far as that was written down."""
    cases = records.read_cases(files.checked_cases)
    rows = records.read_table(files.summary) if files.summary.exists() else []
    scores = {
        row["name"]: {measure: float(row[measure]) for measure in MEASURES if row.get(measure)}
        for row in rows
        if row["configuration"] == configuration
    }
    sources = [*(files.model(configuration, fold) for fold in models), files.manifest, files.choice]
    return About(
        cohort=records.read_cohort(files.cohort),
        num_cases=len(cases),
        num_subjects=len({case.subject for case in cases}),
        folds=tuple(models),
        width=next(iter(models.values())).width,
        scores=scores,
        sources={str(path): records.sha256(path) for path in sources if path.exists()},
    )


if __name__ == "__main__":
    errors.run(main)
