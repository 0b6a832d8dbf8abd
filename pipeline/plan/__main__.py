"""The stage `plan`."""

import json
import math
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from pipeline import errors, records
from pipeline.architectures import candidate_widths
from pipeline.errors import PlanError
from pipeline.fit import fit_to_memory
from pipeline.paths import Results
from pipeline.plan.measure import measure_step, with_measured
from pipeline.plan.record import DIGEST, digest, edited_note, is_edited, read_plan
from pipeline.plan.rules import of_cohort, plan_configuration
from pipeline.records import Cohort


def main(
    results: str, configuration: str, settings: str, memory_gib: float = 8, device: str = "auto", threads: int = 1
) -> None:
    files = Results(results)
    path = files.plan(configuration)
    if path.exists() and is_edited(path):
        refuse_other_cohort(path, records.read_cohort(files.cohort))
        path.touch()
        print(edited_note(path))
        return
    wanted = json.loads(settings)
    widths = candidate_widths(wanted)
    fingerprint, cohort = records.read_json(files.fingerprint), records.read_cohort(files.cohort)
    replan = partial(plan_configuration, fingerprint, cohort, configuration, wanted)
    plan = replan(memory_gib)
    if plan.previous and (reason := records.left_out(files.plan(plan.previous))):
        plan = replace(plan, left_out=f"there is no {plan.previous}, for {reason}")
    if plan.left_out is None:
        measure = partial(
            measure_step, widths=widths, device=device, threads=threads, is_deterministic=wanted["deterministic"]
        )
        plan, measured = fit_to_memory(replan, partial(measure, memory_gib=memory_gib), memory_gib)
        if measured is not None and not measured.seconds_per_sample:
            measured = measure(plan, memory_gib=math.inf)
        plan = with_measured(plan, measured, max(widths), memory_gib)
    content = asdict(plan)
    records.write_json(path, {**content, DIGEST: digest(json.loads(json.dumps(content)))})
    if plan.left_out:
        print(
            f"{configuration}: left out, for {plan.left_out}. "
            f"Set the `spacing_mm` of {plan.previous or configuration} to train it all the same."
        )
    print("\n".join(f"{configuration} {key}: {content[key]} ({reason})" for key, reason in plan.reasons.items()))


def refuse_other_cohort(path: Path, cohort: Cohort) -> None:
    """
    Raises:
        PlanError: edited by hand and of no use, or for a cohort that has changed since.
    """
    plan = read_plan(path)
    wrong = [
        f"{key} is {getattr(plan, key)}, {value} expected"
        for key, value in of_cohort(cohort).items()
        if getattr(plan, key) != value
    ]
    if wrong:
        raise PlanError(
            f"{path}: edited by hand for another cohort: {'; '.join(wrong)}. Delete it to plan anew, or undo the change."
        )


if __name__ == "__main__":
    errors.run(main)
