from snakemake.utils import min_version

from pipeline import flow

min_version("9.0")


if not workflow.config_settings.configfiles:  # `--configfile` replaces config.yaml, `--config` adds to it

    configfile: "config.yaml"


run = flow.Run(config)
files = run.files
captions = "pipeline/report/captions"  # for `snakemake --report`

shell.prefix(f'set -euo pipefail; export PYTHONPATH="{workflow.basedir}" {run.environment}; ')
workflow.global_resources.setdefault("gpu", run.gpus_at_once)  # of one machine; a cluster has its own count


resource_scopes:
    gpu="local",


container: run.config["container"]  # for `--sdm apptainer`, as `conda:` is for `--sdm conda`


wildcard_constraints:
    configuration="[^/]+",
    fold=r"\d+",
    shard=r"\d+",


onstart:
    run.remove_abandoned()


onsuccess:
    run.show_headline()


localrules:  # on a cluster, what takes seconds and opens no scan
    all,
    discover,
    segment,


rule all:
    """From scans to the report."""
    input:
        files.report,


rule discover:
    """The cohort folder to a table of cases with folds."""
    output:
        cases=files.cases,
        cohort=files.cohort,
    log:
        files.log("discover"),
    benchmark:
        files.cost("discover")
    retries: 0  # what is refused is refused again, whatever a profile asks for; below too
    conda:
        "envs/environment.yaml"
    params:
        results=run.name,
        settings=run.cohort_settings,
        cohort=run.config["cohort"],
        watched=run.cohort_watched,
    shell:
        "python -m pipeline.discover --results {params.results:q} --cohort {params.cohort:q}"
        " --settings {params.settings:q} 2>&1 | tee {log:q}"


rule check:
    """Every problem of every file in one run; nothing goes on with a refused file."""
    input:
        rules.discover.output,
    output:
        files.manifest,
        files.checked_cases,
    log:
        files.log("check"),
    benchmark:
        files.cost("check")
    retries: 0
    conda:
        "envs/environment.yaml"
    threads: run.threads
    params:
        results=run.name,
        settings=run.check_settings,
    shell:
        "python -m pipeline.check --results {params.results:q} --settings {params.settings:q}"
        " --threads {threads} 2>&1 | tee {log:q}"


rule fingerprint:
    """Shapes, spacings and intensities of the cohort."""
    input:
        rules.check.output,
    output:
        files.fingerprint,
    log:
        files.log("fingerprint"),
    benchmark:
        files.cost("fingerprint")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    params:
        results=run.name,
    shell:
        "python -m pipeline.fingerprint --results {params.results:q} --threads {threads} 2>&1 | tee {log:q}"


checkpoint plan:
    """Spacing, patch, batch and network of one configuration, each with its reason; or why it is left out."""
    input:
        files.fingerprint,
        run.previous_plan,
    output:
        update(files.plan("{configuration}")),  # not deleted before a rerun: an edit by hand is kept
    log:
        files.log("plan", "{configuration}"),
    benchmark:
        files.cost("plan", "{configuration}")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    resources:
        gpu=1,
        mem_mb=run.training_memory,
    params:
        results=run.name,
        settings=run.configuration,
        memory_gib=run.config["memory_gib"],
        device=run.config["device"],
    shell:
        "python -m pipeline.gpus {resources.gpu}"
        " python -m pipeline.plan --results {params.results:q} --configuration {wildcards.configuration}"
        " --settings {params.settings:q} --memory-gib {params.memory_gib} --device {params.device}"
        " --threads {threads} 2>&1 | tee {log:q}"


rule preprocess:
    """The cases of one fold as oriented, resampled, normalised arrays; for a cascade with the masks before it."""
    input:
        files.plan("{configuration}"),
        run.previous_masks,
    output:
        files.preprocessed("{configuration}", "{fold}"),
    log:
        files.log("preprocess", "{configuration}/fold_{fold}"),
    benchmark:
        files.cost("preprocess", "{configuration}/fold_{fold}")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    params:
        results=run.name,
        code=run.preparing_code,
    # as many cases at once as threads, each with one: BLAS, which Snakemake gives them all, would take them for every case
    shell:
        "OPENBLAS_NUM_THREADS=1 python -m pipeline.preprocess --results {params.results:q} --configuration {wildcards.configuration}"
        " --fold {wildcards.fold} --code {params.code} --threads {threads} 2>&1 | tee {log:q}"


rule train:
    """Weights that never saw the cases of the fold."""
    input:
        files.plan("{configuration}"),
        run.all_preprocessed,
    output:
        files.model("{configuration}", "{fold}"),
    log:
        files.log("train", "{configuration}/fold_{fold}"),
    benchmark:
        files.cost("train", "{configuration}/fold_{fold}")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    resources:
        gpu=run.config["train"]["gpus"],
        mem_mb=run.training_memory,
        runtime=run.training_minutes,
    params:
        results=run.name,
        launch=run.launch_training,
        settings=run.settings("train"),
        device=run.config["device"],
        seed=run.config["seed"],
    # a signal is for the training, which saves and says so: the shell and `tee` go on until it has
    shell:
        "trap : TERM; python -m pipeline.gpus {resources.gpu}"
        " {params.launch} pipeline.train --results {params.results:q} --configuration {wildcards.configuration}"
        " --fold {wildcards.fold} --settings {params.settings:q} --device {params.device}"
        " --seed {params.seed} --threads {threads} 2>&1"
        " | (trap '' INT TERM; exec tee {log:q})"


rule inference:
    """The fastest way to cut scans that costs no accuracy on held-out cases."""
    input:
        run.first_trained,
    output:
        files.inference("{configuration}"),
    log:
        files.log("inference", "{configuration}"),
    benchmark:
        files.cost("inference", "{configuration}")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    resources:
        gpu=1,
        mem_mb=run.training_memory,
    params:
        results=run.name,
        fold=run.run_folds[0],
        settings=run.inference_settings,
        device=run.config["device"],
    shell:
        "python -m pipeline.gpus {resources.gpu}"
        " python -m pipeline.inference --results {params.results:q} --configuration {wildcards.configuration}"
        " --fold {params.fold} --settings {params.settings:q} --device {params.device}"
        " --threads {threads} 2>&1 | tee {log:q}"


rule predict:
    """Masks of the fold's cases on their original grid."""
    input:
        rules.train.output,
        inference=files.inference("{configuration}"),
    output:
        files.predicted("{configuration}", "{fold}"),
        [
            directory(folder) if run.has_cascade else temp(directory(folder))
            for folder in run.probabilities("{configuration}", "{fold}")
        ],
    log:
        files.log("predict", "{configuration}/fold_{fold}"),
    benchmark:
        files.cost("predict", "{configuration}/fold_{fold}")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    resources:
        gpu=1,
        mem_mb=run.predict_memory,
    params:
        results=run.name,
        settings=run.predict_settings,
        probabilities="--keep-probabilities" if run.probabilities("{configuration}", "{fold}") else "",
        device=run.config["device"],
    shell:
        "python -m pipeline.gpus {resources.gpu}"
        " python -m pipeline.predict --results {params.results:q} --configuration {wildcards.configuration}"
        " --fold {wildcards.fold} --settings {params.settings:q} {params.probabilities}"
        " --device {params.device} --threads {threads} 2>&1 | tee {log:q}"


rule ensemble:
    """Masks of the combination of configurations that does best on the other folds, cleaned where that helps there."""
    input:
        run.all_predicted,
        lambda _: run.all_predicted_if_needed(checkpoints),
    output:
        files.choice,
    log:
        files.log("ensemble"),
    benchmark:
        files.cost("ensemble")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    params:
        results=run.name,
        configurations=",".join(run.configurations),
        folds=run.folds,
        settings=run.settings("ensemble"),
    shell:
        "python -m pipeline.ensemble --results {params.results:q} --configurations {params.configurations}"
        " --folds {params.folds} --settings {params.settings:q} --threads {threads} 2>&1 | tee {log:q}"


rule evaluate:
    """Measures of every mask against its reference."""
    input:
        files.choice,
    output:
        metrics=report(files.metrics, caption=f"{captions}/metrics.rst", category="Tables"),
        summary=report(files.summary, caption=f"{captions}/summary.rst", category="Tables"),
        comparison=report(files.comparison, caption=f"{captions}/comparison.rst", category="Tables"),
    log:
        files.log("evaluate"),
    benchmark:
        files.cost("evaluate")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    params:
        results=run.name,
        configurations=",".join([*run.configurations, "ensemble"]),
        folds=run.folds,
        settings=run.settings("evaluate"),
    shell:
        "python -m pipeline.evaluate --results {params.results:q} --configurations {params.configurations}"
        " --folds {params.folds} --settings {params.settings:q} --threads {threads} 2>&1 | tee {log:q}"


rule report:
    """One self-contained page."""
    input:
        rules.evaluate.output,
    output:
        report(files.report, caption=f"{captions}/page.rst", category="Report"),
    log:
        files.log("report"),
    benchmark:
        files.cost("report")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    params:
        results=run.name,
        settings=run.settings("report"),
        config=run.provenance,
    shell:
        "python -m pipeline.report --results {params.results:q} --settings {params.settings:q}"
        " --config {params.config:q} --threads {threads} 2>&1 | tee {log:q}"


rule segment_shard:
    """Masks of a share of the new scans; those that are there and still right are kept."""
    output:
        files.segment_shard("{shard}"),
    log:
        files.log("segment", "shard_{shard}"),
    benchmark:
        files.cost("segment", "shard_{shard}")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    resources:
        gpu=1,
        mem_mb=run.segment_memory,
    params:
        results=run.name,
        scans=run.config.get("scans", ""),
        settings=run.segment_settings,
        folds=run.folds,
        shards=run.config["segment"]["shards"],
        device=run.config["device"],
        asked=run.now,
    shell:
        "python -m pipeline.gpus {resources.gpu}"
        " python -m pipeline.segment --results {params.results:q} --scans {params.scans:q} --folds {params.folds}"
        " --settings {params.settings:q} --shard {wildcards.shard} --shards {params.shards}"
        " --device {params.device} --threads {threads} 2>&1 | tee {log:q}"


rule segment:
    """Masks for new scans with the trained models: `snakemake segment --config scans=DIR`. Trains nothing."""
    input:
        run.segment_shards,
    log:
        files.log("segment"),
    benchmark:
        files.cost("segment")
    retries: 0
    conda:
        "envs/environment.yaml"
    params:
        results=run.name,
        shards=run.config["segment"]["shards"],
        settings=run.settings("evaluate"),
    shell:
        "python -m pipeline.segment_tables --results {params.results:q} --shards {params.shards}"
        " --settings {params.settings:q} 2>&1 | tee {log:q}"


rule export:
    """Trained networks as MONAI bundles and ONNX, which run elsewhere: `snakemake export`. Trains nothing."""
    log:
        files.log("export"),
    benchmark:
        files.cost("export")
    conda:
        "envs/environment.yaml"
    threads: run.threads
    params:
        results=run.name,
        folds=run.folds,
    shell:
        "python -m pipeline.export --results {params.results:q} --folds {params.folds}"
        " --threads {threads} 2>&1 | tee {log:q}"
