"""Layout of a folder tree with a folder per class: which folders are splits, which are classes.

Names alone decide, so a wrong guess would train on classes called "train" and "valid" without a word. So a layout is
inferred only where the names leave no doubt; everything else is an error that shows what was found and names the option
that decides.
"""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, get_args

from perceiver_dist.errors import UserError

Layout = Literal["class", "split/class", "class/split"]
"""Order of the folders, from the top: classes only, splits with classes below, or classes with splits below."""

_TRAIN = ("train", "training", "trainset", "trn")
_HELD_OUT = (
    *("eval", "evaluation", "valid", "validation", "validate", "val", "dev", "devel", "development"),
    *("test", "testing", "testset", "tst", "holdout", "heldout", "held_out", "held-out"),
)
SPLITS: dict[str, str] = {**dict.fromkeys(_TRAIN, "train"), **dict.fromkeys(_HELD_OUT, "eval")}
"""Names of splits, in lower case, and whether they are for training or evaluation."""

_SHOWN = 6
"""Names in a message: enough to recognise a tree by, in one line."""


def split_of(name: str) -> str | None:
    """Return train or eval if a name is that of a split, in upper or lower case, else None.

    Args:
        name: Name of a folder, or an entry of a table.
    """
    return SPLITS.get(name.strip().casefold())


def loosely_split_of(name: str) -> str | None:
    """Return train or eval if a name, or one word of it as in train_images or val2017, is that of a split, else None.

    Args:
        name: Name of a folder.
    """
    splits = {SPLITS[word] for word in re.findall("[a-z]+", name.casefold()) if word in SPLITS}
    return split_of(name) or (splits.pop() if len(splits) == 1 else None)


def infer_layout(tree: Path, folders: Sequence[Path], layout: Layout | None) -> Layout:
    """Return the layout of a tree: the given one, or the only one that the folders' names allow.

    Args:
        tree: The tree, for errors.
        folders: Its subfolders, without ignored ones.
        layout: The layout, if the user has given it.

    Raises:
        UserError: The names allow more than one layout, or not the given one.
    """
    if layout is not None and layout not in get_args(Layout):
        raise UserError(f"--layout is {layout!r}, must be one of {', '.join(get_args(Layout))}")
    names = [folder.name for folder in folders]
    if layout == "split/class":
        if unknown := [name for name in names if loosely_split_of(name) is None]:
            raise UserError(
                f"folder {tree}: {_shown(unknown)} cannot be a split, expected names such as train, valid and test; "
                "rename the folder, or leave it out with --ignore"
            )
        return layout
    if layout is not None:
        return layout
    if names and all(split_of(name) for name in names):
        return "split/class"
    exact = [name for name in names if split_of(name)]
    if exact or (names and all(loosely_split_of(name) for name in names)):
        others = [name for name in names if name not in exact]
        raise UserError(
            f"folder {tree}: has {_shown([*exact, *others])}, which may be splits or classes; choose "
            "--layout split/class or --layout class, and leave other folders out with --ignore"
        )
    return _layout_below(tree, folders)


def _layout_below(tree: Path, classes: Sequence[Path]) -> Layout:
    """Return whether folders of classes have splits below.

    Raises:
        UserError: Some have, others have not.
    """
    below = {folder.name: [path.name for path in folder.iterdir() if path.is_dir()] for folder in classes}
    with_splits = [name for name, inner in below.items() if any(split_of(one) for one in inner)]
    if not with_splits:
        return "class"
    if all(inner and all(split_of(one) for one in inner) for inner in below.values()):
        return "class/split"
    name = with_splits[0]
    raise UserError(
        f"folder {tree}: {name} has {_shown(below[name])} below it, which may be splits, but not all folders have only "
        "splits; choose --layout class/split or --layout class"
    )


def require_classes(tree: Path, splits: Collection[str], filled: Collection[str]) -> None:
    """Check that every split has samples in folders of classes.

    Args:
        tree: The tree, for errors.
        splits: Names of the splits' folders.
        filled: Those that have a known file in a folder of a class.

    Raises:
        UserError: One has none.
    """
    for split in splits:
        if split not in filled:
            raise UserError(
                f"folder {tree}: the split {split} has no folder of a class with files of known types, expected "
                f"{split}/CLASS/FILE; sort its files by class, or leave it out with --ignore {split}"
            )


def _shown(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
