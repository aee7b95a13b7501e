"""Class names of shards: from a file that the user names, or from classes.json beside the shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from perceiver_dist.errors import UserError
from pipelines.convert.conversion_writer import CLASSES
from pipelines.storage.files import STORAGE_ERRORS, folder_of, join, read_text, reason_of

_CONVERTED_LABEL = "cls"
"""Field in which the converters write labels: classes.json has the names of no other field."""


@dataclass(frozen=True)
class ClassNames:
    """Names of the classes of shards.

    Attributes:
        names: The names, in the order of the class numbers; empty if unknown.
        remark: One line for the user: why the file beside the shards is not used; "" if it is, or does not exist.
    """

    names: list[str]
    remark: str = ""


def find_class_names(
    classes: str | None, shards: Sequence[str], label: str, num_classes: int | None
) -> ClassNames:
    """Return the class names from a file, by default from classes.json beside the shards.

    Args:
        classes: Path or URI of a JSON file with a list of names; None to look beside the shards.
        shards: Paths or URIs of the shards.
        label: Field or entry of the label.
        num_classes: Number of classes that the user gave; None if not given.

    Raises:
        UserError: The file that `classes` names is missing or invalid, or has another number of names.
    """
    if classes is not None:
        text = _read(classes)
        if text is None:
            raise UserError(
                f"--classes is '{classes}': no such file; jobs/prepare_data.py writes classes.json beside shards"
            )
        return ClassNames(_parse(text, classes, num_classes))
    folders = {folder_of(shard) for shard in shards}
    if label != _CONVERTED_LABEL or len(folders) != 1:
        return ClassNames([])
    file = join(folders.pop(), CLASSES)
    try:
        text = _read(file)
        return ClassNames([] if text is None else _parse(text, file, num_classes))
    except UserError as error:
        # Not an error here: other tools write other things to a file of this name.
        reason = str(error).removeprefix("--classes is ")
        return ClassNames([], f"class names are not shown: {reason}; or name a file with --classes")


def _read(file: str) -> str | None:
    """Return the content of a file, or None if it is missing.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        return read_text(file)
    except (*STORAGE_ERRORS, UnicodeDecodeError) as error:
        raise UserError(f"--classes is '{file}', which cannot be read ({reason_of(error)})") from error


def _parse(text: str, file: str, num_classes: int | None) -> list[str]:
    """Return the names in a list of class names, as the converters write it.

    Raises:
        UserError: The text is something else, or has another number of names.
    """
    try:
        names = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"--classes is '{file}', which is not JSON ({error}); expected a list of names"
        ) from error
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise UserError(
            f"--classes is '{file}', which holds {text[:40]!r}; expected a list of two names or more"
        )
    if num_classes not in (None, len(names)):
        raise UserError(
            f"--num_classes is {num_classes}, but {file} has {len(names)} names; leave out --num_classes"
        )
    return names
