"""The habits of this project's code that a program can check. Each check takes source text and returns offences.

An offence is one line that begins with the line number, so that an assertion `check(source) == []` shows what to
mend. ruff checks style, the arguments in a docstring that are not there (DOC102) and the rest of what it knows;
here is what it does not know.
"""

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from statistics import median

VAGUE_NAMES = {
    "utils",
    "util",
    "misc",
    "helpers",
    "helper",
    "common",
    "manager",
    "managers",
    "handler",
    "handlers",
}
SHAPE = re.compile(
    r"\((?:[^()]*[^\w()])?[BMNCDH]\b[^()]*\)|(?:^|: ) *\([^()]+,[^()]*\)|\b[Ss]calar\b|any shape",
    re.MULTILINE,
)
"""A tuple with a letter of the legend; any tuple that opens the text of an argument; or words for no shape."""
SKIPS = {"skip", "skipif", "xfail", "importorskip"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> list[Function]:
    """Every function and method, nested ones too."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def lines_of(function: Function) -> int:
    """Lines from `def` to the end, the docstring counted, decorators not."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def function_sizes(source: str) -> list[int]:
    """Lines of every function."""
    return [lines_of(function) for function in functions(ast.parse(source))]


def long_functions(source: str, most: int) -> list[str]:
    """Functions of more than `most` lines."""
    return [
        f"{function.lineno}: {function.name} has {lines_of(function)} lines, at most {most}"
        for function in functions(ast.parse(source))
        if lines_of(function) > most
    ]


def public_definitions(tree: ast.Module) -> Iterator[tuple[Function | ast.ClassDef, ast.ClassDef | None]]:
    """Public classes, functions and methods, each with the class it is in. `__init__` and the like are methods."""
    pending: list[tuple[ast.stmt, ast.ClassDef | None]] = [(node, None) for node in tree.body]
    for node, owner in pending:
        if isinstance(node, Function | ast.ClassDef) and _is_public(node.name):
            yield node, owner
            if isinstance(node, ast.ClassDef):
                pending.extend((inner, node) for inner in node.body)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def missing_docstrings(source: str) -> list[str]:
    """The module, and public classes, functions and methods, without a docstring.

    `__init__` may leave it to its class.
    """
    tree = ast.parse(source)
    missing = [
        f"{node.lineno}: {node.name} has no docstring"
        for node, _ in public_definitions(tree)
        if not ast.get_docstring(node) and node.name != "__init__"
    ]
    return missing if ast.get_docstring(tree) else ["1: the module has no docstring", *missing]


def undocumented_arguments(source: str) -> list[str]:
    """Arguments of public functions that the docstring does not name; those of `__init__` may be in the class's."""
    offences = []
    for node, owner in public_definitions(ast.parse(source)):
        if not isinstance(node, Function) or (node.name.startswith("__") and node.name != "__init__"):
            continue
        text = _documentation(node, owner)
        offences += [
            f"{node.lineno}: {node.name} does not document {argument}"
            for argument in _arguments(node)
            if not re.search(rf"^ +\*{{0,2}}{argument}( \([^)]*\))?:", text, re.MULTILINE)
        ]
    return offences


def _documentation(function: Function, owner: ast.ClassDef | None) -> str:
    """The docstring; for `__init__` the class's as well."""
    nodes = [function, owner] if owner is not None and function.name == "__init__" else [function]
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def _arguments(function: Function) -> list[str]:
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [argument.arg for argument in (given.vararg, given.kwarg) if argument is not None]
    return [name for name in names if name not in {"self", "cls"} and not name.startswith("_")]


def undocumented_raises(source: str) -> list[str]:
    """Public functions that raise and have no Raises section."""
    return [
        f"{node.lineno}: {node.name} raises and has no Raises section"
        for node, owner in public_definitions(ast.parse(source))
        if isinstance(node, Function)
        and any(isinstance(inner, ast.Raise) for inner in _own_statements(node))
        and "Raises:" not in _documentation(node, owner)
    ]


def _own_statements(function: Function) -> Iterator[ast.AST]:
    """What runs when the function runs: not what it defines."""
    pending: list[ast.AST] = list(function.body)
    for node in pending:
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            yield node
            pending.extend(ast.iter_child_nodes(node))


def tensors_without_shapes(source: str) -> list[str]:
    """Public functions that take or give tensors and whose docstring states no shape."""
    return [
        f"{node.lineno}: {node.name} takes or gives a Tensor and states no shape"
        for node, _ in public_definitions(ast.parse(source))
        if isinstance(node, Function)
        and re.search(r"\bTensor\b", " ".join(_annotations(node)))
        and not SHAPE.search(ast.get_docstring(node) or "")
    ]


def _annotations(function: Function) -> list[str]:
    given = [node.annotation for node in ast.walk(function.args) if isinstance(node, ast.arg)]
    return [ast.unparse(annotation) for annotation in (*given, function.returns) if annotation is not None]


def forbidden_statements(source: str) -> list[str]:
    """`print`, `assert`, and `except` of everything that does not raise again."""
    offences = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            offences.append(f"{node.lineno}: assert; raise a UserError or state the invariant in the types")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            offences.append(f"{node.lineno}: print; only jobs print")
        elif isinstance(node, ast.ExceptHandler) and _catches_everything(node):
            offences.append(f"{node.lineno}: except of everything; name what is expected")
    return offences


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    caught = [] if handler.type is None else [ast.unparse(node) for node in ast.walk(handler.type)]
    blanket = handler.type is None or not {"Exception", "BaseException"}.isdisjoint(caught)
    return blanket and not isinstance(handler.body[-1], ast.Raise)


def unexplained_ignores(source: str) -> list[str]:
    """Comments that silence mypy or ruff without naming the code."""
    return [
        f"{token.start[0]}: {token.string.strip()} names no code"
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and re.search(r"#\s*(type:\s*ignore(?!\[)|noqa(?!:))", token.string)
    ]


def vague_names(path: str) -> list[str]:
    """Parts of a file's path that say nothing about what is in it."""
    return [part for part in re.split(r"[/._]", path) if part in VAGUE_NAMES]


def imported(source: str) -> dict[str, int]:
    """Dotted name of everything imported, wherever in the file, and its line."""
    names: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {f"{base}.{alias.name}": node.lineno for alias in node.names}
    return names


def imports_outside(source: str, allowed: set[str]) -> list[str]:
    """Imports that are neither the standard library's nor under one of the `allowed` dotted names."""
    return [
        f"{line}: imports {name}"
        for name, line in imported(source).items()
        if name.split(".")[0] not in sys.stdlib_module_names and not _is_under(name, allowed)
    ]


def imports_under(source: str, forbidden: set[str], but: frozenset[str] = frozenset()) -> list[str]:
    """Imports under one of the `forbidden` dotted names, unless under one of `but`; and relative ones."""
    return [
        f"{line}: imports {name}"
        for name, line in imported(source).items()
        if name.startswith(".") or (_is_under(name, forbidden) and not _is_under(name, but))
    ]


def _is_under(name: str, parents: set[str] | frozenset[str]) -> bool:
    return any(f"{name}.".startswith(f"{parent}.") for parent in parents)


def machine_paths(text: str) -> list[str]:
    """Absolute paths that exist on one machine only; the user `ray` of Ray's own container images is not one."""
    pattern = re.compile(
        r"(?<![\w.:}/~-])/(?:work|root)/|/home/(?!ray\b)\w+/|file:/{3}(?:work|root|home|opt|tmp)/"
    )
    return [
        f"{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def sizes_of_tests(source: str) -> list[int]:
    """Lines of every test function."""
    return [lines_of(node) for node in functions(ast.parse(source)) if node.name.startswith("test_")]


def size_offences(sizes: list[int], usual: float, most: int) -> list[str]:
    """Why a set of test sizes is not short: the median above `usual`, or one above `most`."""
    offences = [f"a test has {size} lines, at most {most}" for size in sizes if size > most]
    if median(sizes) > usual:
        offences.append(f"the median test has {median(sizes)} lines, at most {usual}")
    return offences


def skips_without_reason(source: str) -> list[str]:
    """Uses of pytest's skips and expected failures that give no reason."""
    offences = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in SKIPS:
            named = {keyword.arg for keyword in node.keywords}
            if "reason" not in named and not (node.func.attr == "skip" and node.args):
                offences.append(f"{node.lineno}: {ast.unparse(node)} gives no reason")
        elif isinstance(node, Function) and any(
            isinstance(mark, ast.Attribute) and mark.attr in SKIPS for mark in node.decorator_list
        ):
            offences.append(f"{node.lineno}: {node.name} is skipped without a reason")
    return offences
