"""Checks of code habits that ruff does not have: functions from source text to offences.

An offence is one line that begins with the line number, so that a failed assertion `check(source) == []` shows what to
fix. ruff checks style, and docstrings that name arguments which do not exist (DOC102).
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
"""A tuple with a letter of the legend, a tuple that opens the text of an argument, "scalar", or "any shape"."""
SKIPS = {"skip", "skipif", "xfail", "importorskip"}
QUESTION_WORDS = {"What", "How", "Where", "Which", "Whether", "When", "Why"}
PRIVATE_WORDS = {
    r"goes\s+on|go(?:ing)?\s+on\s+(?:with|from)": "resume or continue",
    r"mend(?:s|ed|ing)?": "fix",
    r"patiently": "with retries",
    r"(?:tells?|telling|told)\s+of": "report",
    r"(?:for|not|said|told)\s+in\s+words": "print or log",
    r"crew": "actors",
    r"courier": "sender",
    r"outbox(?!\.sqlite)": "record queue",
}
"""Words that this project used for things that have a standard term -> the standard term."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> list[Function]:
    """Return all functions and methods, including nested ones."""
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def lines_of(function: Function) -> int:
    """Return the number of lines from `def` to the end, with the docstring, without decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def function_sizes(source: str) -> list[int]:
    """Return the number of lines of every function."""
    return [lines_of(function) for function in functions(ast.parse(source))]


def long_functions(source: str, max_lines: int) -> list[str]:
    """Return functions of more than `max_lines` lines."""
    return [
        f"{function.lineno}: {function.name} has {lines_of(function)} lines, at most {max_lines}"
        for function in functions(ast.parse(source))
        if lines_of(function) > max_lines
    ]


def public_definitions(tree: ast.Module) -> Iterator[tuple[Function | ast.ClassDef, ast.ClassDef | None]]:
    """Yield public classes, functions and methods, each with its class; `__init__` and the like are public."""
    pending: list[tuple[ast.stmt, ast.ClassDef | None]] = [(node, None) for node in tree.body]
    for node, owner in pending:
        if isinstance(node, Function | ast.ClassDef) and _is_public(node.name):
            yield node, owner
            if isinstance(node, ast.ClassDef):
                pending.extend((inner, node) for inner in node.body)


def _is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))


def missing_docstrings(source: str) -> list[str]:
    """Return the module and public classes, functions and methods without a docstring; `__init__` needs none."""
    tree = ast.parse(source)
    missing = [
        f"{node.lineno}: {node.name} has no docstring"
        for node, _ in public_definitions(tree)
        if not ast.get_docstring(node) and node.name != "__init__"
    ]
    return missing if ast.get_docstring(tree) else ["1: the module has no docstring", *missing]


def question_openings(source: str) -> list[str]:
    """Return the module docstring if it opens with a question word instead of stating what the module is."""
    opening = (ast.get_docstring(ast.parse(source)) or "").split(maxsplit=1)[:1]
    if QUESTION_WORDS.isdisjoint(opening):
        return []
    return [f"1: the module docstring opens with {opening[0]}; state what the module is"]


def private_words(text: str, first_line: int = 1) -> list[str]:
    """Return private words in prose, each with its standard term.

    Args:
        text: Prose, such as a page or a docstring.
        first_line: Number of its first line.
    """
    return [
        f"{text.count(chr(10), 0, match.start()) + first_line}: {' '.join(match[0].split())!r}; write {term}"
        for word, term in PRIVATE_WORDS.items()
        for match in re.finditer(rf"(?<![\w-])(?:{word})(?![\w-])", text, re.IGNORECASE)
    ]


def private_words_in_code(source: str, messages: bool = True) -> list[str]:
    """Return private words in the docstrings and comments of a module.

    Args:
        source: Source text.
        messages: Check all other string literals too, such as messages of errors.
    """
    tree = ast.parse(source)
    literals = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    standalone = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    texts = [
        (node.value, node.lineno)
        for node in (literals if messages else standalone)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    texts += [(token.string, token.start[0]) for token in tokens if token.type == tokenize.COMMENT]
    return [offence for text, line in texts for offence in private_words(text, line)]


def undocumented_arguments(source: str) -> list[str]:
    """Return arguments of public functions that are missing in the docstring; for `__init__` the class's counts too.

    Functions for Triton are left out: there are dozens, with the same arguments, listed in model/kernels/__init__.py.
    """
    offences = []
    for node, owner in public_definitions(ast.parse(source)):
        if not isinstance(node, Function) or (node.name.startswith("__") and node.name != "__init__"):
            continue
        if any(ast.unparse(decorator) == "triton.jit" for decorator in node.decorator_list):
            continue
        text = _documentation(node, owner)
        offences += [
            f"{node.lineno}: {node.name} does not document {argument}"
            for argument in _arguments(node)
            if not re.search(rf"^ +\*{{0,2}}{argument}( \([^)]*\))?:", text, re.MULTILINE)
        ]
    return offences


def _documentation(function: Function, owner: ast.ClassDef | None) -> str:
    """Return the docstring of a function; for `__init__`, the class's as well."""
    nodes = [function, owner] if owner is not None and function.name == "__init__" else [function]
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def _arguments(function: Function) -> list[str]:
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [argument.arg for argument in (given.vararg, given.kwarg) if argument is not None]
    return [name for name in names if name not in {"self", "cls"} and not name.startswith("_")]


def undocumented_raises(source: str) -> list[str]:
    """Return public functions that raise and have no Raises section."""
    return [
        f"{node.lineno}: {node.name} raises and has no Raises section"
        for node, owner in public_definitions(ast.parse(source))
        if isinstance(node, Function)
        and any(isinstance(inner, ast.Raise) for inner in _own_statements(node))
        and "Raises:" not in _documentation(node, owner)
    ]


def _own_statements(function: Function) -> Iterator[ast.AST]:
    """Yield the nodes of a function's own body, without those of functions and classes defined in it."""
    pending: list[ast.AST] = list(function.body)
    for node in pending:
        if not isinstance(node, Function | ast.ClassDef | ast.Lambda):
            yield node
            pending.extend(ast.iter_child_nodes(node))


def tensors_without_shapes(source: str) -> list[str]:
    """Return public functions that take or return tensors and state no shape in the docstring."""
    return [
        f"{node.lineno}: {node.name} takes or returns a Tensor and states no shape"
        for node, _ in public_definitions(ast.parse(source))
        if isinstance(node, Function)
        and re.search(r"\bTensor\b", " ".join(_annotations(node)))
        and not SHAPE.search(ast.get_docstring(node) or "")
    ]


def _annotations(function: Function) -> list[str]:
    given = [node.annotation for node in ast.walk(function.args) if isinstance(node, ast.arg)]
    return [ast.unparse(annotation) for annotation in (*given, function.returns) if annotation is not None]


def wall_clocks(source: str) -> list[str]:
    """Return calls of `time.time`: a wall clock jumps, so that no duration may come from it."""
    return [
        f"{node.lineno}: time.{node.attr}; measure durations with time.monotonic or time.perf_counter"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute)
        and node.attr in ("time", "time_ns")
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    ]


def forbidden_statements(source: str) -> list[str]:
    """Return uses of `print` and `assert`, and handlers of all exceptions that do not end in `raise`."""
    offences = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assert):
            offences.append(f"{node.lineno}: assert; raise a UserError or state the invariant in the types")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            offences.append(f"{node.lineno}: print; only jobs print")
        elif isinstance(node, ast.ExceptHandler) and _catches_everything(node):
            offences.append(f"{node.lineno}: blanket except; name the expected exceptions")
    return offences


def _catches_everything(handler: ast.ExceptHandler) -> bool:
    caught = [] if handler.type is None else [ast.unparse(node) for node in ast.walk(handler.type)]
    blanket = handler.type is None or not {"Exception", "BaseException"}.isdisjoint(caught)
    return blanket and not isinstance(handler.body[-1], ast.Raise)


def unexplained_ignores(source: str) -> list[str]:
    """Return comments that silence mypy or ruff without an error code."""
    return [
        f"{token.start[0]}: {token.string.strip()} names no code"
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT and re.search(r"#\s*(type:\s*ignore(?!\[)|noqa(?!:))", token.string)
    ]


def vague_names(path: str) -> list[str]:
    """Return parts of a file's path that say nothing about its content."""
    return [part for part in re.split(r"[/._]", path) if part in VAGUE_NAMES]


def imported(source: str) -> dict[str, int]:
    """Return the dotted name of each import with its line, including imports inside functions."""
    names: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name: node.lineno for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {f"{base}.{alias.name}": node.lineno for alias in node.names}
    return names


def imports_outside(source: str, allowed: set[str]) -> list[str]:
    """Return imports that are neither from the standard library nor under one of the `allowed` dotted names."""
    return [
        f"{line}: imports {name}"
        for name, line in imported(source).items()
        if name.split(".")[0] not in sys.stdlib_module_names and not _is_under(name, allowed)
    ]


def imports_under(source: str, forbidden: set[str], but: frozenset[str] = frozenset()) -> list[str]:
    """Return imports under one of the `forbidden` dotted names and not under one of `but`, and relative imports."""
    return [
        f"{line}: imports {name}"
        for name, line in imported(source).items()
        if name.startswith(".") or (_is_under(name, forbidden) and not _is_under(name, but))
    ]


def _is_under(name: str, parents: set[str] | frozenset[str]) -> bool:
    return any(f"{name}.".startswith(f"{parent}.") for parent in parents)


def machine_paths(text: str) -> list[str]:
    """Return lines with absolute paths of one machine; the home of `ray` in Ray's container images is allowed."""
    pattern = re.compile(
        r"(?<![\w.:}/~-])/(?:work|root)/|/home/(?!ray\b)\w+/|file:/{3}(?:work|root|home|opt|tmp)/"
    )
    return [
        f"{number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def sizes_of_tests(source: str) -> list[int]:
    """Return the number of lines of every test function."""
    return [lines_of(node) for node in functions(ast.parse(source)) if node.name.startswith("test_")]


def size_offences(sizes: list[int], max_median: float, max_lines: int) -> list[str]:
    """Return test sizes above `max_lines`, and a median above `max_median`."""
    offences = [f"a test has {size} lines, at most {max_lines}" for size in sizes if size > max_lines]
    if median(sizes) > max_median:
        offences.append(f"the median test has {median(sizes)} lines, at most {max_median}")
    return offences


def skips_without_reason(source: str) -> list[str]:
    """Return skips and expected failures of pytest that give no reason."""
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
