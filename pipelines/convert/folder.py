"""Trees of folders whose names are labels: ImageNet, Kinetics, UCF-101, Speech Commands and the like, and ModelNet."""

from pathlib import Path

import numpy as np

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion
from pipelines.convert.listed import SPLITS, ListedSample, check_samples, convert_listed
from pipelines.decode import FIELD_MODALITY, field_of


def convert_folder(
    tree: Path,
    out: str,
    eval_fraction: float = 0.1,
    eval_list: Path | None = None,
    samples_per_shard: int = 1000,
    seed: int = 0,
) -> Conversion:
    """Convert a tree of folders that are named by class: SPLIT/CLASS/**/FILE or CLASS/**/FILE.

    Args:
        tree: Its folders are either splits (train, eval, validation, val, test), each with a folder for every class, or
            the classes. Files of unknown kinds are passed over, as is what has a name that begins with a dot or, of
            folders, an underscore.
        out: Path or URI of the folder to write to; its name becomes the source's.
        eval_fraction: Where the folders are classes, the fraction of every class's files that is held out, drawn by the
            seed; 0 for none. Not used where they are splits, or with a list.
        eval_list: A text file whose lines name what is held out, relative to the tree, as testing_list.txt of Speech
            Commands and testlist01.txt of UCF-101 do; what follows a space is passed over.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples, and what is held out.

    Returns:
        The conversion. Class names are the folders' in alphabetical order, or by number if all of them are numbers.

    Raises:
        UserError: There is no such folder, it has no files of a known kind, or only one class, the fraction is none, or
            the list names what is not there.
    """
    if not tree.is_dir():
        raise UserError(f"folder {tree}: no such folder")
    if not 0 <= eval_fraction < 1:
        raise UserError(f"--eval_fraction is {eval_fraction}, must be from 0 to below 1")
    folders = sorted(path for path in tree.iterdir() if path.is_dir() and path.name[0] not in "._")
    if folders and all(folder.name in SPLITS for folder in folders):
        samples = [
            ListedSample((path,), (path.relative_to(folder).parts[0],), SPLITS[folder.name])
            for folder in folders
            for path in _media(folder)
            if path.parent != folder
        ]
    else:
        by_class = {folder.name: _media(folder) for folder in folders}
        held_out = _listed(eval_list, tree) if eval_list else _drawn(by_class, eval_fraction, seed)
        samples = [
            ListedSample((path,), (name,), "eval" if path in held_out else "train")
            for name, paths in by_class.items()
            for path in paths
        ]
    check_samples(samples, f"folder {tree}: SPLIT/CLASS/FILE or CLASS/FILE")
    return convert_listed(samples, out, samples_per_shard, seed)


def convert_modelnet(tree: Path, out: str, samples_per_shard: int = 500, seed: int = 0) -> Conversion:
    """Convert the meshes of ModelNet10 or ModelNet40, as they are.

    Args:
        tree: The unpacked data set: the folder with CLASS/train/*.off and CLASS/test/*.off.
        out: Path or URI of the folder to write to; its name becomes the source's.
        samples_per_shard: Samples in every shard but the last of a split.
        seed: Decides the order of the samples.

    Returns:
        The conversion. Class names are the folders' in alphabetical order.

    Raises:
        UserError: There is no such folder, it has no such files, or only one class.
    """
    samples = [
        ListedSample((path,), (path.parts[-3],), split)
        for folder, split in (("train", "train"), ("test", "eval"))
        for path in sorted(tree.glob(f"*/{folder}/*.off"))
        if not path.name.startswith(".")  # left in the archive by the system that packed it
    ]
    check_samples(samples, f"folder {tree}: CLASS/train/*.off and CLASS/test/*.off")
    return convert_listed(samples, out, samples_per_shard, seed)


def _media(folder: Path) -> list[Path]:
    """All files below a folder that can be decoded, in alphabetical order."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if field_of(path) in FIELD_MODALITY and not path.name.startswith(".") and path.is_file()
    ]


def _drawn(by_class: dict[str, list[Path]], fraction: float, seed: int) -> set[Path]:
    """A fraction of every class's files."""
    random = np.random.default_rng(seed)
    return {
        paths[index]
        for paths in by_class.values()
        for index in random.permutation(len(paths))[: round(fraction * len(paths))]
    }


def _listed(eval_list: Path, tree: Path) -> set[Path]:
    """Return the files that a list names.

    Raises:
        UserError: The list is missing, or names a file that is not there.
    """
    if not eval_list.is_file():
        raise UserError(f"--eval_list {eval_list}: no such file")
    paths = [
        tree / line.split()[0] for line in eval_list.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"--eval_list {eval_list}: {path}: no such file; its lines are relative to {tree}"
            )
    return set(paths)
