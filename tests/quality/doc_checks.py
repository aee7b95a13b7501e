"""Checks of the documentation: links, paths, commands, options, the path of a batch.

Functions from the text of a page to offences, as in `code_checks`.
"""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import yaml

FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
PATH_SUFFIXES = "py|md|yaml|yml|toml|sh|txt|png|svg"
TRACE_HEADING = "## The path of a batch"


def code_in(text: str) -> list[str]:
    """Return code blocks and code spans; lines that end in a backslash are joined with the next."""
    blocks = [block.replace("\\\n", " ") for block in FENCE.findall(text)]
    return blocks + SPAN.findall(FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub derives from the headings of a page, and explicit ones."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", text), re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"(?:id|name)=\"([^\"]+)\"", text))


def broken_links(text: str, page: Path) -> list[str]:
    """Return relative links to files or headings that do not exist."""
    offences = []
    for first, second in LINK.findall(FENCE.sub("", text)):
        target, _, anchor = (first or second).partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = page.parent / target if target else page
        if not file.exists():
            offences.append(f"{page.name} links to {target}, which does not exist")
        elif anchor and anchor not in anchors(file.read_text()):
            offences.append(f"{page.name} links to {target}#{anchor}, which has no such heading")
    return offences


def missing_paths(text: str, root: Path) -> list[str]:
    """Return paths in code spans that do not exist in the repository, apart from those under runs/."""
    pattern = re.compile(rf"(?<![\w/.:-])((?!runs/)[\w.-]+/[\w./-]+\.(?:{PATH_SUFFIXES}))\b")
    named = {path for span in SPAN.findall(FENCE.sub("", text)) for path in pattern.findall(span)}
    return [f"{path} does not exist" for path in sorted(named) if not (root / path).exists()]


def unknown_targets(text: str, makefile: str) -> list[str]:
    """Return commands `make x` in code for which the Makefile has no target."""
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    used = {
        target
        for code in code_in(text)
        for target in re.findall(r"(?:^|&& *|\$ *)make +([a-z][\w-]*)", code, re.MULTILINE)
    }
    return [f"make {target} is not a target" for target in sorted(used - targets)]


def unknown_options(text: str, options_of: Callable[[str], set[str]]) -> list[str]:
    """Return options of jobs in code that do not exist, and jobs that do not exist.

    Args:
        text: Of the page.
        options_of: Returns the option strings of a job such as `jobs/x.py`, or raises FileNotFoundError.
    """
    offences = set()
    for code in code_in(text):
        for job, arguments in re.findall(r"\b(jobs/\w+\.py)([^\n|#]*)", code):
            try:
                known = options_of(job)
            except FileNotFoundError:
                offences.add(f"{job} does not exist")
                continue
            given = re.findall(r"(?<!\S)(--[A-Za-z][\w.-]*)", arguments)
            offences |= {f"{job} has no option {option}" for option in given if option not in known}
    return sorted(offences)


def first_command_line(text: str) -> int:
    """Return the line number of the first code block, or one past the end if there is none."""
    lines = text.splitlines()
    return next((number for number, line in enumerate(lines, 1) if line.startswith("```")), len(lines) + 1)


def sections_missing_in_contents(text: str) -> list[str]:
    """Return sections (`## `) that are not linked before the first one, or below a first section `## Contents`.

    The license needs no link: readers find it at the end.
    """
    before, *sections = re.split(r"^## +", FENCE.sub("", text), flags=re.MULTILINE)
    if sections and "contents" in sections[0].partition("\n")[0].lower():
        before += sections.pop(0)
    linked = {anchor for _, _, anchor in (first.partition("#") for first, _ in LINK.findall(before))}
    headings = [section.partition("\n")[0] for section in sections if not section.startswith("Licen")]
    return [
        f"{heading} is not in the contents" for heading in headings if not anchors(f"# {heading}") & linked
    ]


def recipe(makefile: str, target: str) -> list[str]:
    """Return the commands of a target in a Makefile."""
    found = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)
    return [line.strip().removeprefix("@") for line in found[1].splitlines()] if found else []


def hook_commands(config: str) -> list[str]:
    """Return the commands of the hooks in a configuration of pre-commit."""
    repositories = yaml.safe_load(config)["repos"]
    return [hook["entry"] for repository in repositories for hook in repository["hooks"]]


def traced_functions(text: str) -> list[tuple[str, str]]:
    """Return (file, function) of every `file.py:function` in the section about the path of a batch."""
    _, _, after = text.partition(TRACE_HEADING + "\n")
    section = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"([\w./-]+\.py):([A-Za-z_][\w.]*)", section)


def defines(source: str, name: str) -> bool:
    """Return whether the source defines a function, class or `Class.method` of this name at its top level."""
    body: list[ast.stmt] = ast.parse(source).body
    for part in name.split("."):
        found = [
            node
            for node in body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == part
        ]
        if not found:
            return False
        body = found[0].body
    return True


def trace_offences(text: str, root: Path, max_files: int, max_lines: int) -> list[str]:
    """Return why the path of a batch cannot be followed: files or functions are missing, or it is too long."""
    traced = traced_functions(text)
    if not traced:
        return [f"no `file.py:function` under {TRACE_HEADING!r}"]
    files = sorted({file for file, _ in traced})
    sources = {file: (root / file).read_text() for file in files if (root / file).exists()}
    offences = [f"{file} does not exist" for file in files if file not in sources]
    offences += [
        f"{file} does not define {name}"
        for file, name in traced
        if file in sources and not defines(sources[file], name)
    ]
    lines = sum(len(source.splitlines()) for source in sources.values())
    if len(files) > max_files:
        offences.append(f"{len(files)} files, at most {max_files}")
    if lines > max_lines:
        offences.append(f"{lines} lines, at most {max_lines}")
    return offences
