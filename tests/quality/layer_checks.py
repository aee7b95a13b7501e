"""Checks of dependencies between modules and folders, and of the number and names of files in folders.

Functions from module sources or paths to offences, as in `code_checks`. Modules have dotted names; that of a package's
`__init__.py` is the package's. Imports inside functions count too.
"""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from code_checks import imported

Imports = dict[str, dict[str, int]]
"""Module -> the modules that it imports -> the line of the import."""


def module_name(path: str) -> str:
    """Return the dotted name of a file such as `a/b.py` or `a/__init__.py`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports_among(sources: Mapping[str, str]) -> Imports:
    """Return the imports of these modules among each other.

    Args:
        sources: Module -> source text.
    """
    return {
        module: {
            target: line
            for name, line in imported(source).items()
            if (target := _module_of(name, sources)) is not None and target != module
        }
        for module, source in sources.items()
    }


def _module_of(name: str, modules: Container[str]) -> str | None:
    """Return the module that `name` is, or is defined in; None if it is none of `modules`."""
    return next((known for known in (name, name.rpartition(".")[0]) if known in modules), None)


def layer_of(module: str, layers: Sequence[str]) -> int | None:
    """Return the index of the layer that a module belongs to; None if there is none.

    A layer is one module or, if its name ends in `.*`, a package with the modules directly in it.
    """
    names = (module, f"{module}.*", f"{module.rpartition('.')[0]}.*")
    return next((layers.index(name) for name in names if name in layers), None)


def layer_offences(imports: Imports, layers: Sequence[str]) -> list[str]:
    """Return modules without a layer, layers without a module, and imports of a higher layer.

    Args:
        imports: From `imports_among`.
        layers: Layers from the lowest to the highest.
    """
    places = {module: layer_of(module, layers) for module in imports}
    offences = [f"{module} is in no layer" for module, place in places.items() if place is None]
    offences += [
        f"{layer} has no module" for place, layer in enumerate(layers) if place not in places.values()
    ]
    for module, targets in imports.items():
        for target, line in targets.items():
            here, there = places[module], places[target]
            if here is not None and there is not None and there > here:
                offences.append(
                    f"{module}:{line}: imports {target}, from {layers[here]} up to {layers[there]}"
                )
    return offences


def cycles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the strongly connected components of two or more nodes (Tarjan 1972).

    Args:
        edges: Node -> nodes that it points to.
    """
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            together = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(together) > 1:
                found.append(sorted(together))

    for node in edges:
        if node not in index:
            visit(node)
    return found


def folder_edges(imports: Imports, facades: Iterable[str] = ()) -> dict[str, set[str]]:
    """Return the imports between folders.

    Args:
        imports: From `imports_among`.
        facades: Packages whose `__init__.py` counts as a folder of its own, as it re-exports names of its subfolders.
    """
    packages = {module.rpartition(".")[0] for module in imports}

    def folder_of(module: str) -> str:
        if module in facades:
            return f"{module}.__init__"
        return module if module in packages else module.rpartition(".")[0]

    edges: dict[str, set[str]] = {}
    for module, targets in imports.items():
        folder = folder_of(module)
        edges.setdefault(folder, set()).update(folder_of(target) for target in targets)
        edges[folder].discard(folder)
    return edges


def crowded_folders(paths: Iterable[str], max_files: int) -> list[str]:
    """Return folders that directly hold more than `max_files` of the files."""
    counts = Counter(str(PurePosixPath(path).parent) for path in paths)
    return [
        f"{folder} has {count} files, at most {max_files}"
        for folder, count in counts.items()
        if count > max_files
    ]


def repeated_names(paths: Iterable[str], but: Iterable[str] = ("__init__.py",)) -> list[str]:
    """Return file names that occur more than once below one top-level folder.

    Args:
        paths: Paths of the files, relative to the repository.
        but: Names that may occur more than once.
    """
    counts = Counter((PurePosixPath(path).parts[0], PurePosixPath(path).name) for path in paths)
    return [
        f"{name} occurs {count} times in {top}"
        for (top, name), count in counts.items()
        if count > 1 and name not in but
    ]
