"""Converters of folder trees named by class: ImageNet, Kinetics, UCF-101, Speech Commands and ModelNet, for example."""

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
    """Convert a tree of folders named by class: SPLIT/CLASS/**/FILE or CLASS/**/FILE.

    Args:
        tree: Folder whose subfolders are either splits (train, eval, validation, val, test), each with a folder per
            class, or the classes. Skipped are files of unknown types, files whose name begins with a dot, and
            subfolders whose name begins with a dot or an underscore.
        out: Path or URI of the folder to write to; its last part becomes the name of the source.
        eval_fraction: Fraction of every class's files that is held out, drawn by the seed; 0 for none. Only for trees
            of classes, and without `eval_list`.
        eval_list: Text file whose lines name the held-out files, relative to the tree, such as testing_list.txt of
            Speech Commands and testlist01.txt of UCF-101; text after a space is ignored. Only for trees of classes.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        seed: Seed of the order of the samples, and of what is held out.

    Returns:
        The conversion. Class names are the folder names, in alphabetical order or, if all are numbers, numerical order.

    Raises:
        UserError: The folder is missing, has no files of a known type or only one class, the fraction is out of range,
            or the list names a missing file.
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
        held_out = _listed(eval_list, tree) if eval_list else _draw_held_out(by_class, eval_fraction, seed)
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
        tree: The unpacked data set: a folder with CLASS/train/*.off and CLASS/test/*.off.
        out: Path or URI of the folder to write to; its last part becomes the name of the source.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        seed: Seed of the order of the samples.

    Returns:
        The conversion. Class names are the folder names in alphabetical order.

    Raises:
        UserError: No such files are found, or only one class.
    """
    samples = [
        ListedSample((path,), (path.parts[-3],), split)
        for folder, split in (("train", "train"), ("test", "eval"))
        for path in sorted(tree.glob(f"*/{folder}/*.off"))
        if not path.name.startswith(".")  # the published archive contains .DS_Store and the like
    ]
    check_samples(samples, f"folder {tree}: CLASS/train/*.off and CLASS/test/*.off")
    return convert_listed(samples, out, samples_per_shard, seed)


def _media(folder: Path) -> list[Path]:
    """Return all decodable files below a folder, in alphabetical order."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if field_of(path) in FIELD_MODALITY and not path.name.startswith(".") and path.is_file()
    ]


def _draw_held_out(by_class: dict[str, list[Path]], fraction: float, seed: int) -> set[Path]:
    """Return a random fraction of the files of every class."""
    random = np.random.default_rng(seed)
    return {
        paths[index]
        for paths in by_class.values()
        for index in random.permutation(len(paths))[: round(fraction * len(paths))]
    }


def _listed(eval_list: Path, tree: Path) -> set[Path]:
    """Return the files named in a list.

    Raises:
        UserError: The list, or a file named in it, is missing.
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
