"""Trees of folders whose names are labels: ImageNet, Kinetics, UCF-101 and the like, and ModelNet."""

from pathlib import Path

import numpy as np

from perceiver_dist.errors import UserError
from pipelines.convert.listed_files import SPLITS, ListedFile, check_files, extension, write_files
from pipelines.decode import FIELD_MODALITY
from pipelines.source import SourceConfig


def convert_folder(
    tree: Path, out: Path, eval_fraction: float = 0.1, samples_per_shard: int = 1000, seed: int = 0
) -> SourceConfig:
    """Write a tree of folders that are named by class to shards: SPLIT/CLASS/**/FILE or CLASS/**/FILE.

    Args:
        tree: Its folders are either splits (train, eval, validation, val, test), each with a folder for every class, or
            the classes. Files of unknown kinds are passed over, as are those whose name begins with a dot.
        out: Directory to write to; its name becomes the source's.
        eval_fraction: Where the folders are classes, the fraction of every class's files that is held out, drawn by the
            seed; 0 for none. Not used where they are splits.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples, and what is held out.

    Returns:
        The source. Its class names are the folders' in alphabetical order, or by number if all of them are numbers.

    Raises:
        UserError: There is no such folder, it has no files of a known kind, or only one class, or the fraction is none.
    """
    if not tree.is_dir():
        raise UserError(f"folder {tree}: no such folder")
    if not 0 <= eval_fraction < 1:
        raise UserError(f"--eval_fraction is {eval_fraction}, must be from 0 to below 1")
    folders = sorted(path for path in tree.iterdir() if path.is_dir() and not path.name.startswith("."))
    if folders and all(folder.name in SPLITS for folder in folders):
        files = [
            ListedFile(path, path.relative_to(folder).parts[0], SPLITS[folder.name])
            for folder in folders
            for path in _media(folder)
            if path.parent != folder
        ]
    else:
        random = np.random.default_rng(seed)
        files = []
        for folder in folders:
            paths = _media(folder)
            held_out = set(random.permutation(len(paths))[: round(eval_fraction * len(paths))].tolist())
            files += [
                ListedFile(path, folder.name, "eval" if number in held_out else "train")
                for number, path in enumerate(paths)
            ]
    check_files(files, f"folder {tree}: SPLIT/CLASS/FILE or CLASS/FILE")
    return write_files(files, out, samples_per_shard, seed)


def _media(folder: Path) -> list[Path]:
    """All files below a folder that can be decoded, in alphabetical order."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if extension(path) in FIELD_MODALITY and not path.name.startswith(".") and path.is_file()
    ]


def convert_modelnet(tree: Path, out: Path, samples_per_shard: int = 500, seed: int = 0) -> SourceConfig:
    """Write the meshes of ModelNet10 or ModelNet40 to shards, as they are.

    Args:
        tree: The unpacked data set: the folder with CLASS/train/*.off and CLASS/test/*.off.
        out: Directory to write to; its name becomes the source's.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples.

    Returns:
        The source. Its class names are the folders' in alphabetical order.

    Raises:
        UserError: There is no such folder, it has no such files, or only one class.
    """
    files = [
        ListedFile(path, label=path.parts[-3], split=split)
        for folder, split in (("train", "train"), ("test", "eval"))
        for path in sorted(tree.glob(f"*/{folder}/*.off"))
        if not path.name.startswith(".")  # left in the archive by the system that packed it
    ]
    check_files(files, f"folder {tree}: CLASS/train/*.off and CLASS/test/*.off")
    return write_files(files, out, samples_per_shard, seed)
