"""Converters of folder trees named by class: ImageNet, Kinetics, UCF-101, Speech Commands and ModelNet, for example."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from perceiver_dist.errors import UserError
from pipelines.convert.conversion import Conversion
from pipelines.convert.listed import ListedSample, check_samples, convert_listed
from pipelines.convert.text_files import read_text_file
from pipelines.convert.tree_layout import Layout, infer_layout, loosely_split_of, require_classes
from pipelines.fields import FIELD_MODALITY, field_of


def convert_folder(
    tree: Path,
    out: str,
    eval_fraction: float = 0.1,
    eval_list: Path | None = None,
    layout: Layout | None = None,
    ignore: Sequence[str] = (),
    samples_per_shard: int = 1000,
    seed: int = 0,
) -> Conversion:
    """Convert a tree of folders named by class: CLASS/**/FILE, SPLIT/CLASS/**/FILE or CLASS/SPLIT/**/FILE.

    Args:
        tree: The folder. Passed over and counted are files of unknown types or in no folder of a class, files whose
            name begins with a dot, and subfolders whose name begins with a dot or an underscore.
        out: Path or URI of the folder to write to; its last part becomes the name of the source.
        eval_fraction: Fraction of every class's files that is held out, drawn by the seed; 0 for none. Only for trees
            without splits, and without `eval_list`.
        eval_list: Text file whose lines name the held-out files, relative to the tree, such as testing_list.txt of
            Speech Commands and testlist01.txt of UCF-101; text after a space is ignored. Only for trees without splits.
        layout: Order of the folders: class, split/class or class/split. null: found by the names of splits (train,
            valid, test and their like, in upper or lower case), if they leave no doubt.
        ignore: Names of subfolders of the tree to leave out.
        samples_per_shard: Samples per shard; the last shard of a split may have fewer.
        seed: Seed of the order of the samples, and of what is held out.

    Returns:
        The conversion. Class names are the folder names, in alphabetical order or, if all are numbers, numerical order.

    Raises:
        UserError: The folder is missing, has no files of a known type or only one class, its layout is in doubt, the
            fraction is out of range, or a list or `ignore` names what is not there.
    """
    if not tree.is_dir():
        raise UserError(f"folder {tree}: no such folder")
    if not 0 <= eval_fraction < 1:
        raise UserError(f"--eval_fraction is {eval_fraction}, must be from 0 to below 1")
    folders = _subfolders(tree, ignore)
    found = infer_layout(tree, folders, layout)
    files, remarks = _media_files(tree, [folder.name for folder in folders])
    if found == "class":
        held_out = _listed(eval_list, tree) if eval_list else _draw_held_out(files, eval_fraction, seed)
        samples = [
            ListedSample((path,), (name,), "eval" if path in held_out else "train")
            for name, paths in files.items()
            for path in paths
        ]
    else:
        if eval_list:
            raise UserError(
                f"--eval_list {eval_list}: {tree} has splits already; leave the option out, or choose --layout class"
            )
        samples, without_class = _samples_of_splits(tree, files, found)
        remarks += [f"passed over {without_class:,} files that are in no folder of a class"] * bool(
            without_class
        )
    check_samples(samples, f"folder {tree}: CLASS/FILE, SPLIT/CLASS/FILE or CLASS/SPLIT/FILE")
    return convert_listed(samples, out, samples_per_shard, seed, remarks=tuple(remarks))


def _subfolders(tree: Path, ignore: Sequence[str]) -> list[Path]:
    """Return the subfolders that count, in alphabetical order.

    Raises:
        UserError: One to ignore does not exist.
    """
    folders = sorted(path for path in tree.iterdir() if path.is_dir() and path.name[0] not in "._")
    for name in ignore:
        if name not in {folder.name for folder in folders}:
            raise UserError(f"--ignore {name}: {tree} has no subfolder of that name")
    return [folder for folder in folders if folder.name not in ignore]


def _samples_of_splits(
    tree: Path, files: dict[str, list[Path]], layout: Layout
) -> tuple[list[ListedSample], int]:
    """Return the samples of a tree with splits, and the number of files that are not in a folder of both.

    Raises:
        UserError: A split has no samples.
    """
    samples, without_class = [], 0
    filled: set[str] = set()
    for paths in files.values():
        for path in paths:
            parts = path.relative_to(tree).parts
            if len(parts) < 3:
                without_class += 1
                continue
            split, label = parts[:2] if layout == "split/class" else (parts[1], parts[0])
            kind = loosely_split_of(split)
            if kind is None:
                raise UserError(
                    f"folder {tree}: {label}/{split} cannot be a split, expected names such as train, valid and test; "
                    "rename the folder, or choose --layout class"
                )
            filled.add(split)
            samples.append(ListedSample((path,), (label,), kind))
    if layout == "split/class":
        require_classes(tree, files, filled)
    return samples, without_class


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


def _media_files(tree: Path, folders: Sequence[str]) -> tuple[dict[str, list[Path]], list[str]]:
    """Return all decodable files by the tree's subfolder, in alphabetical order, and a line on what was passed over."""
    files: dict[str, list[Path]] = {name: [] for name in folders}
    passed_over: Counter[str] = Counter()
    for path in sorted(tree.rglob("*")):
        if not path.is_file():
            continue
        *above, name = path.relative_to(tree).parts
        if name.startswith(".") or any(part.startswith(".") for part in above):
            passed_over["hidden"] += 1
        elif not above:
            passed_over["in no subfolder"] += 1
        elif above[0] not in files:
            passed_over[f"in {above[0]}"] += 1
        elif field_of(path) not in FIELD_MODALITY:
            passed_over[path.suffix.lower() or "without an extension"] += 1
        else:
            files[above[0]].append(path)
    if not passed_over:
        return files, []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in passed_over.most_common())
    return files, [f"passed over {passed_over.total():,} files: {kinds}"]


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
    text = read_text_file(eval_list, f"--eval_list {eval_list}")
    paths = [tree / line.split()[0] for line in text.splitlines() if line.strip()]
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"--eval_list {eval_list}: {path}: no such file; its lines are relative to {tree}"
            )
    return set(paths)
