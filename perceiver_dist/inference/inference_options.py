"""Options of the jobs that run a trained model on shards; `--help` is generated from their docstrings."""

from dataclasses import asdict, dataclass
from typing import Literal

from perceiver_dist.config.credentials import refuse_credentials
from perceiver_dist.range_checks import check_range

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Options that evaluation and prediction share.

    Attributes:
        model: Path or URI of a run such as runs/NAME (its newest checkpoint), of a checkpoint such as
            runs/NAME/step-00001000, or of an exported model.
        source: Source whose classes are predicted.
        shards: Paths or URIs of shards with braces and globs, as in "data/eval-*.tar"; requires a source if the model
            was trained on several.
        out: Path or URI of the output folder.
        device: Device of the model; auto uses GPUs if there are any.
        actors: Copies of the model; by default one per free GPU or, without GPUs, half of the free CPUs (all that
            readers leaves, if that is set).
        readers: Read tasks that run at a time, one CPU each; by default the remaining free CPUs.
        batch: Samples per batch; by default train.micro_batch of the training.
    """

    model: str
    source: str | None = None
    shards: str | None = None
    out: str | None = None
    device: Device = "auto"
    actors: int | None = None
    readers: int | None = None
    batch: int | None = None

    def __post_init__(self) -> None:
        """Check everything that can be checked without the model.

        Raises:
            UserError: A number is below 1, or an option holds a password or key.
        """
        refuse_credentials(asdict(self))
        check_range(self, "--", ["actors", "readers", "batch"], at_least=1)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ScoringOptions):
    """Options of `jobs/evaluate.py`.

    Attributes:
        source: The only source to evaluate; by default all sources with held-out shards.
        shards: Shards to evaluate on in place of the source's held-out ones, paths or URIs with braces and globs, as in
            "data/eval-*.tar"; requires a source if the model was trained on several.
        out: Path or URI of the folder for the report; by default evaluation-STEP in the run's folder.
        views: Windows in time per sample, evenly spaced from its start to its end; the model's probabilities for them
            are averaged. The paper uses 16 on AudioSet. The default 1 is the window at the center, as in the
            evaluations during training.
        attention: Samples per source for which a figure of the attention of each cross-attend is drawn; 0 draws none.
    """

    views: int = 1
    attention: int = 0

    def __post_init__(self) -> None:
        """Check everything that can be checked without the model.

        Raises:
            UserError: A number is out of range, or an option holds a password or key.
        """
        super().__post_init__()
        check_range(self, "--", ["views"], at_least=1)
        check_range(self, "--", ["attention"], at_least=0)


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(ScoringOptions):
    """Options of `jobs/predict.py` for shards.

    Attributes:
        source: Source whose classes are predicted; required if the model was trained on several.
        shards: Paths or URIs of shards with braces and globs, as in "data/eval-*.tar"; they need no labels.
        out: Path or URI of the folder for the Parquet files.
        top: Number of most likely classes per sample.
        embeddings: Whether to store the mean of the latents of each sample.
        samples_per_part: Samples per Parquet file, rounded down to whole batches. A job that is killed loses the file
            that it was working on; the default keeps that loss and the number of files small.
    """

    top: int = 5
    embeddings: bool = False
    samples_per_part: int = 4096

    def __post_init__(self) -> None:
        """Check everything that can be checked without the model.

        Raises:
            UserError: A number is below 1, or an option holds a password or key.
        """
        super().__post_init__()
        check_range(self, "--", ["top", "samples_per_part"], at_least=1)
