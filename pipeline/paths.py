"""Where everything lies: the only module that knows a path pattern. Opens no file.

`Results("demo")` names the files of one run; the Snakefile passes wildcards (`"{fold}"`) where stages pass values.
"""

from dataclasses import dataclass
from pathlib import Path

Fold = int | str

STAGES = (
    *("discover", "check", "fingerprint", "plan", "preprocess", "train"),
    *("inference", "predict", "ensemble", "evaluate", "report"),
)  # in the order of the flow: the names of modules, rules and folders
COST = ".cost.tsv"  # ends the name of every file that `Results.cost` names


@dataclass(frozen=True)
class Results:
    """The files of the run called `name`, below `results/<name>` of the working directory."""

    name: str

    @property
    def root(self) -> Path:
        return Path("results") / self.name

    @property
    def cases(self) -> Path:
        return self.root / "discover" / "cases.tsv"

    @property
    def cohort(self) -> Path:
        return self.root / "discover" / "cohort.json"

    @property
    def demo_scans(self) -> Path:
        return self.root / "discover" / "demo"

    @property
    def checked_cases(self) -> Path:
        """What every stage after `check` reads in place of `cases`: the cases that were not dropped, of files to be read."""
        return self.root / "check" / "cases.tsv"

    @property
    def test_cases(self) -> Path:
        """The checked cases of the test split, if there are any: `segment` takes this table for its scans."""
        return self.root / "check" / "test_cases.tsv"

    @property
    def manifest(self) -> Path:
        return self.root / "check" / "manifest.tsv"

    @property
    def problems(self) -> Path:
        return self.root / "check" / "problems.tsv"

    @property
    def problems_json(self) -> Path:
        return self.root / "check" / "problems.json"

    def standard(self, name: str) -> Path:
        """The copy of a channel or label, as `case_0000` or `case_label`, that is read in its place."""
        return self.root / "check" / "standard" / f"{name}.nii.gz"

    @property
    def fingerprint(self) -> Path:
        return self.root / "fingerprint" / "fingerprint.json"

    def plan(self, configuration: str) -> Path:
        return self.root / "plan" / f"{configuration}.json"

    def preprocessed(self, configuration: str, fold: Fold) -> Path:
        """The list of what one shard (the cases of a fold) made, with digests."""
        return self.root / "preprocess" / configuration / f"fold_{fold}.json"

    def arrays(self, configuration: str, case: str) -> Path:
        return self.root / "preprocess" / configuration / case

    def training(self, configuration: str, fold: Fold) -> Path:
        """The folder of one training: checkpoint, progress and events stay there when a job fails."""
        return self.root / "train" / configuration / f"fold_{fold}"

    def model(self, configuration: str, fold: Fold) -> Path:
        return self.training(configuration, fold) / "model.pt"

    def progress(self, configuration: str, fold: Fold) -> Path:
        return self.training(configuration, fold) / "progress.tsv"

    def training_facts(self, configuration: str, fold: Fold) -> Path:
        """What the training did with its budget."""
        return self.training(configuration, fold) / "training.json"

    def augmented(self, configuration: str, fold: Fold) -> Path:
        """A picture of training patches before and after augmentation."""
        return self.training(configuration, fold) / "augmented.png"

    def skips(self, configuration: str, fold: Fold) -> Path:
        """The skip connections of the trained network, dead, silent or alive."""
        return self.training(configuration, fold) / "skips.tsv"

    def inference(self, configuration: str) -> Path:
        """How scans are cut for prediction, and what else was tried."""
        return self.root / "inference" / f"{configuration}.json"

    def predicted(self, configuration: str, fold: Fold) -> Path:
        return self.root / "predict" / configuration / f"fold_{fold}.json"

    def probabilities(self, configuration: str, fold: Fold) -> Path:
        """The folder of what one job predicted, which Snakemake deletes once `ensemble` has read it."""
        return self.root / "predict" / configuration / f"fold_{fold}"

    def unfinished(self, configuration: str, fold: Fold) -> Path:
        """What one job has predicted so far: it stays there when the job fails, and is gone once it has ended."""
        return self.root / "predict" / configuration / f"fold_{fold}_unfinished"

    def probabilities_of(self, configuration: str, fold: Fold, case: str) -> Path:
        return self.probabilities(configuration, fold) / f"{case}.npz"

    def list_of_probabilities(self, configuration: str, fold: Fold) -> Path:
        return self.probabilities(configuration, fold) / "files.json"

    def mask(self, configuration: str, case: str) -> Path:
        return self.root / "masks" / configuration / f"{case}.nii.gz"

    @property
    def choice(self) -> Path:
        return self.root / "ensemble" / "choice.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.tsv"

    @property
    def summary(self) -> Path:
        return self.root / "summary.tsv"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison.tsv"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def report_cases(self) -> Path:
        """Scans and masks for the page's viewer, where they are too large to lie in the page."""
        return self.root / "report_cases"

    @property
    def report_cases_end(self) -> Path:
        """Written last: the page asks for it when it opens, and says so where the folder is gone. No case is called like this."""
        return self.report_cases / "_end.js"

    def report_case(self, case: str) -> Path:
        return self.report_cases / f"{case}.js"

    @property
    def segment(self) -> Path:
        return self.root / "segment"

    def segmented(self, case: str) -> Path:
        return self.segment / f"{case}.nii.gz"

    def segment_record(self, case: str) -> Path:
        """What the mask of a new scan was made of and what was found, or why there is none."""
        return self.segment / f"{case}.json"

    def segment_shard(self, shard: int | str) -> Path:
        """The cases that one job of `segment` went through."""
        return self.segment / "shards" / f"{shard}.tsv"

    def converted(self, name: str) -> Path:
        """The standard copy of a new scan's channel or label, as `case_0000` or `case_label`."""
        return self.segment / "converted" / f"{name}.nii.gz"

    def uncertainty(self, case: str, kind: str) -> Path:
        return self.segment / "uncertainty" / f"{case}_{kind}.nii.gz"

    @property
    def segment_cases(self) -> Path:
        return self.segment / "cases.tsv"

    @property
    def segment_labels(self) -> Path:
        return self.segment / "labels.tsv"

    @property
    def segment_problems(self) -> Path:
        return self.segment / "problems.tsv"

    @property
    def export(self) -> Path:
        return self.root / "export"

    def bundle(self, configuration: str) -> "Bundle":
        return Bundle(self.export / configuration)

    def log(self, stage: str, part: str = "") -> Path:
        """`part` tells jobs of one stage apart, for example `3d_fullres/fold_0`."""
        return Path("logs") / self.name / stage / f"{part or stage}.log"

    def cost(self, stage: str, part: str = "") -> Path:
        """Seconds and memory of a job, as Snakemake measured them, beside its log."""
        return self.log(stage, part).with_suffix(COST)


@dataclass(frozen=True)
class Bundle:
    """The files of a MONAI bundle, named as its specification wants, below `root`."""

    root: Path

    @property
    def metadata(self) -> Path:
        return self.root / "configs" / "metadata.json"

    @property
    def inference(self) -> Path:
        return self.root / "configs" / "inference.json"

    @property
    def program(self) -> Path:
        return self.root / "models" / "model.pt2"

    def onnx(self, fold: Fold) -> Path:
        return self.root / "models" / f"fold_{fold}.onnx"

    @property
    def scripts(self) -> Path:
        return self.root / "scripts"

    @property
    def readme(self) -> Path:
        return self.root / "docs" / "README.md"

    @property
    def licence(self) -> Path:
        return self.root / "LICENSE"
