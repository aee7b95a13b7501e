"""What can be chosen when a trained model works on shards; the jobs' options are made from it."""

from dataclasses import asdict, dataclass
from typing import Literal

from perceiver_dist.config.credentials import refuse_credentials
from perceiver_dist.range_checks import check_range

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """What every work on shards can be told.

    Attributes:
        model: Path or URI of a run such as runs/NAME (its newest checkpoint), of a checkpoint such as
            runs/NAME/step-00001000, or of an exported model.
        source: Whose classes to tell apart.
        shards: Paths or URIs of shards with braces and globs, as in "data/eval-*.tar"; needs a source if the model was
            trained on several.
        out: Path or URI of the folder for the result.
        device: What the model runs on; auto takes GPUs if there are any.
        actors: Copies of the model; by default one on each GPU that is free, or on half of the CPUs.
        readers: Read tasks at a time, each on one CPU; by default all CPUs that are left.
        batch: Samples that are looked at together; by default train.micro_batch of the training.
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
        """Check what can be checked without the model.

        Raises:
            UserError: A number is below 1, or an option holds a password or key.
        """
        refuse_credentials(asdict(self))
        check_range(self, "--", ["actors", "readers", "batch"], at_least=1)


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions(ScoringOptions):
    """What an evaluation can be told.

    Attributes:
        source: The only source to evaluate; by default all that have held-out shards.
        shards: Shards to evaluate on in place of the source's held-out ones, paths or URIs with braces and globs, as in
            "data/eval-*.tar"; needs a source if the model was trained on several.
        out: Path or URI of the folder for the report; by default evaluation-STEP in the run's folder.
        views: Windows in time, from the first to the last, at which each sample is looked at; their mean probabilities
            count. The paper takes 16 of AudioSet. 1 is the centre alone, as in training's own evaluation.
        attention: Samples of each source for which a figure shows where every cross-attend looks; 0 for none.
    """

    views: int = 1
    attention: int = 0

    def __post_init__(self) -> None:
        """Check what can be checked without the model.

        Raises:
            UserError: A number is below 1, or an option holds a password or key.
        """
        super().__post_init__()
        check_range(self, "--", ["views"], at_least=1)
        check_range(self, "--", ["attention"], at_least=0)


@dataclass(frozen=True, kw_only=True)
class PredictionOptions(ScoringOptions):
    """What a prediction on shards can be told.

    Attributes:
        source: Whose classes to tell apart; needed if the model was trained on several.
        shards: Paths or URIs of shards with braces and globs, as in "data/eval-*.tar"; they need no labels.
        out: Path or URI of the folder for the Parquet files.
        top: How many of the likeliest classes to name.
        embeddings: Whether to store the mean of the latents of each sample.
        samples_per_part: Samples in a Parquet file, rounded down to whole batches.
    """

    top: int = 5
    embeddings: bool = False
    samples_per_part: int = 4096

    def __post_init__(self) -> None:
        """Check what can be checked without the model.

        Raises:
            UserError: A number is below 1, or an option holds a password or key.
        """
        super().__post_init__()
        check_range(self, "--", ["top", "samples_per_part"], at_least=1)
