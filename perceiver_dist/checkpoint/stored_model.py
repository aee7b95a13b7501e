"""Location of a trained model's weights and configuration: a run, one of its checkpoints, or an exported folder.

    runs/NAME                       config.yaml, and the newest complete checkpoint; with `train.best_metric` the best
    runs/NAME/step-00001000         one checkpoint; config.yaml is in the run's folder above it
    exported/NAME                   config.yaml and weights.safetensors, as jobs/export.py and a promotion write them

Each may be a path or a URI.
"""

from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from perceiver_dist.checkpoint.format import read_weights
from perceiver_dist.checkpoint.manifest import MANIFEST, find_damage
from perceiver_dist.checkpoint.run_folder import RunFolder, steps_of
from perceiver_dist.config.command_line import read_run
from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from pipelines.storage.files import STORAGE_ERRORS, join, list_folder, open_storage, reason_of

WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class StoredModel:
    """A trained model in storage.

    Attributes:
        place: Path or URI of the folder with the weights: a checkpoint or an exported folder.
        config: Configuration of its training.
        mlflow_run_id: MLflow run of its training; "" if unknown.
    """

    place: str
    config: RunConfig
    mlflow_run_id: str = ""

    @property
    def steps(self) -> int:
        """Optimizer steps of a checkpoint, from the name of its folder; 0 for an exported model."""
        return steps_of(self.place) or 0

    @property
    def folder(self) -> str:
        """Path or URI of the folder with config.yaml: a checkpoint's run, or the exported folder."""
        return RunFolder.of_checkpoint(self.place).uri if self.steps else self.place

    def weights(self) -> dict[str, Tensor]:
        """Return all weights by name, fp32, on the host. A checkpoint is compared with its manifest first.

        Raises:
            UserError: A file is damaged or cannot be read.
        """
        # An exported model has no manifest; its safetensors file is parsed as a whole, which finds a truncated one.
        if MANIFEST in list_folder(self.place):
            damage = find_damage(self.place)
            if damage:
                raise UserError(f"checkpoint {self.place} is damaged ({damage}); use another checkpoint")
            return read_weights(self.place)
        filesystem, path = open_storage(join(self.place, WEIGHTS))
        try:
            with filesystem.open_input_stream(path) as stream:
                return load(stream.read())
        except (*STORAGE_ERRORS, SafetensorError) as error:
            raise UserError(
                f"{join(self.place, WEIGHTS)} is not a complete safetensors file ({reason_of(error)}); export the "
                "model again"
            ) from error


def find_model(place: str) -> StoredModel:
    """Locate weights and configuration of a trained model.

    Args:
        place: Path or URI of a run's folder, of a checkpoint, or of an exported model.

    Raises:
        UserError: The place holds no trained model, its configuration cannot be read, or its best checkpoint is gone.
    """
    place = place.rstrip("/")
    files = list_folder(place)
    if MANIFEST in files:
        return _model_at(place, RunFolder.of_checkpoint(place))
    # An exported folder keeps its configuration and the id of its MLflow run under the same names as a run's folder.
    folder = RunFolder(place)
    if WEIGHTS in files:
        return _model_at(place, folder)
    step = folder.model_step()
    if step:
        return _model_at(folder.checkpoint(step), folder)
    raise UserError(
        f"{place}: no trained model there; name a run such as runs/NAME, one of its checkpoints such as "
        f"runs/NAME/step-00001000, or an exported folder with {WEIGHTS}"
    )


def _model_at(place: str, folder: RunFolder) -> StoredModel:
    """Return the model whose configuration is in a folder.

    Raises:
        UserError: config.yaml is missing, or written by another version.
    """
    text = folder.read_config()
    if text is None:
        raise UserError(f"{folder.config}: missing; a model cannot be built without its configuration")
    return StoredModel(place, read_run(text), folder.read_mlflow_run_id())
