"""Tests of the checks: each finds its planted offences and accepts good code."""

from collections.abc import Callable
from pathlib import Path

import code_checks
import doc_checks
import layer_checks
import pytest

SLASH = "/"  # keeps the planted paths out of the check that reads this very file

PLANTED_CODE: list[tuple[Callable[[str], list[str]], str, list[str]]] = [
    (
        lambda source: code_checks.long_functions(source, max_lines=2),
        "def f():\n    a = 1\n    return a\n",
        ["1: f has 3 lines, at most 2"],
    ),
    (
        code_checks.missing_docstrings,
        "class A:\n    def f(self): ...\n    def _g(self): ...\ndef _h(): ...\n",
        ["1: the module has no docstring", "1: A has no docstring", "2: f has no docstring"],
    ),
    (
        code_checks.undocumented_arguments,
        'def f(a, *, b, **c):\n    """F.\n\n    Args:\n        a: One.\n    """\n',
        ["1: f does not document b", "1: f does not document c"],
    ),
    (
        code_checks.undocumented_raises,
        'def f():\n    """F."""\n    if f:\n        raise ValueError\n',
        ["1: f raises and has no Raises section"],
    ),
    (
        code_checks.tensors_without_shapes,
        'def f(x: "Tensor") -> int:\n    """F (BN), good (or so, they say)."""\ndef g() -> Tensor:\n    """G."""\n',
        [
            "1: f takes or returns a Tensor and states no shape",
            "3: g takes or returns a Tensor and states no shape",
        ],
    ),
    (
        code_checks.forbidden_statements,
        "print(1)\nassert x\ntry: ...\nexcept (OSError, Exception): ...\ntry: ...\nexcept: ...\n",
        [
            "2: assert; raise a UserError or state the invariant in the types",
            "1: print; only jobs print",
            "4: blanket except; name the expected exceptions",
            "6: blanket except; name the expected exceptions",
        ],
    ),
    (
        code_checks.wall_clocks,
        "time.monotonic()\nbegan = time.time()\n",
        ["2: time.time; measure durations with time.monotonic or time.perf_counter"],
    ),
    (
        code_checks.unexplained_ignores,
        "a = 1  # type: ignore\nb = 2  # noqa\n",
        ["1: # type: ignore names no code", "2: # noqa names no code"],
    ),
    (code_checks.vague_names, "perceiver_dist/data_utils.py", ["utils"]),
    (
        lambda source: code_checks.imports_outside(source, {"torch", "perceiver_dist.errors"}),
        "import math\nimport torch.nn\nfrom perceiver_dist import errors, tracking\ndef f():\n    import ray\n",
        ["3: imports perceiver_dist.tracking", "5: imports ray"],
    ),
    (
        lambda source: code_checks.imports_under(source, {"jobs", "lib"}, but=frozenset({"lib.errors"})),
        "import jobs_of_mine\nimport jobs\nfrom lib.errors import E\nfrom lib import model\nfrom . import x\n",
        ["2: imports jobs", "4: imports lib.model", "5: imports ..x"],
    ),
    (
        code_checks.machine_paths,
        f"see ~/work/x, http://host/work/y, /home/ray/z\n{SLASH}work/x\n{SLASH}home/me/x\nfile:{SLASH * 3}opt/x",
        [f"2: {SLASH}work/x", f"3: {SLASH}home/me/x", f"4: file:{SLASH * 3}opt/x"],
    ),
    (
        code_checks.skips_without_reason,
        "@pytest.mark.skip\ndef test_a():\n    pytest.skip()\n@pytest.mark.skipif(True)\ndef test_b(): ...\n",
        [
            "2: test_a is skipped without a reason",
            "4: pytest.mark.skipif(True) gives no reason",
            "3: pytest.skip() gives no reason",
        ],
    ),
    (
        code_checks.question_openings,
        '"""What a module should not open with."""\n',
        ["1: the module docstring opens with What; state what the module is"],
    ),
    (
        code_checks.private_words_in_code,
        'def f():\n    """F goes\n\n    on."""\n    raise E(f"{f}: mend it")\n# The crew\n',
        ["2: 'goes on'; write resume or continue", "5: 'mend'; write fix", "6: 'crew'; write actors"],
    ),
    (
        lambda source: code_checks.private_words_in_code(source, messages=False),
        'a = "mend it"\n"""B:\nmend it."""\n',
        ["3: 'mend'; write fix"],
    ),
    (
        code_checks.private_words,
        "It tells of\nan outbox, not in words.\nGoing on with outbox.sqlite, a type in words.\n",
        [
            "3: 'Going on with'; write resume or continue",
            "1: 'tells of'; write report",
            "2: 'not in words'; write print or log",
            "2: 'outbox'; write record queue",
        ],
    ),
    (
        lambda source: code_checks.size_offences(
            code_checks.sizes_of_tests(source), max_median=1, max_lines=2
        ),
        "def test_a():\n    a = 1\n    return a\ndef other():\n    ...\n",
        ["a test has 3 lines, at most 2", "the median test has 3 lines, at most 1"],
    ),
]

GOOD_CODE = '''"""A module."""

from torch import Tensor


class Encoder:
    """Encodes.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        """Prepare."""
        self.width = width

    def forward(self, tokens: Tensor, *rest: Tensor) -> Tensor:
        """Encode.

        Args:
            tokens: (batch B, M, C) floats.
            *rest: The same.

        Raises:
            ValueError: Never.
        """
        try:
            return tokens  # type: ignore[return-value] # a reason
        except Exception:
            self.width = 0
            raise
'''


@pytest.mark.parametrize(("check", "source", "offences"), PLANTED_CODE)
def test_a_planted_offence_is_found(
    check: Callable[[str], list[str]], source: str, offences: list[str]
) -> None:
    assert check(source) == offences


@pytest.mark.parametrize("check", [check for check, _, _ in PLANTED_CODE[1:9]])
def test_good_code_passes(check: Callable[[str], list[str]]) -> None:
    assert check(GOOD_CODE) == []


@pytest.mark.parametrize(
    "text",
    [
        "Maps (B, M, C) floats.",
        "Of (N,).",
        "A scalar.",
        "(B * M, C)",
        "Of any shape.",
        "w: (out, in).",
        "    (E,) each.",
    ],
)
def test_shapes_are_recognised(text: str) -> None:
    assert code_checks.SHAPE.search(text)


PAGE = """# Title

[here](#the-data-1) [there](other.md#missing) [gone](gone.md) [web](https://x.org/y.md) ![f](figure.svg)
`lib/there.py`, `lib/there.py:found`, `lib/gone.py`, `runs/x/config.yaml`, `make test`, make sure, `make dance`

## The data, 1

```
make train && make jump
python jobs/train.py --known 3 \\
    --unknown 4 | grep --only
python jobs/absent.py
```

## The path of a batch
1. `lib/there.py:found`, `lib/there.py:Loader.next`
2. `lib/there.py:Loader.gone` and `lib/gone.py:f`

## Later
`lib/later.py:f`
"""


@pytest.fixture
def page(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "there.py").write_text("def found(): ...\nclass Loader:\n    def next(self): ...\n")
    (tmp_path / "other.md").write_text("# Other\n")
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path / "page.md"


def test_broken_links_are_found(page: Path) -> None:
    assert doc_checks.broken_links(PAGE, page) == [
        "page.md links to other.md#missing, which has no such heading",
        "page.md links to gone.md, which does not exist",
        "page.md links to figure.svg, which does not exist",
    ]


def test_missing_paths_are_found(page: Path) -> None:
    assert doc_checks.missing_paths(PAGE, page.parent) == [
        "lib/gone.py does not exist",
        "lib/later.py does not exist",
    ]


def test_unknown_commands_are_found() -> None:
    assert doc_checks.unknown_targets(PAGE, "test: x\ntrain:\n") == [
        "make dance is not a target",
        "make jump is not a target",
    ]


def test_unknown_options_are_found() -> None:
    def options_of(job: str) -> set[str]:
        if job != "jobs/train.py":
            raise FileNotFoundError(job)
        return {"--known"}

    assert doc_checks.unknown_options(PAGE, options_of) == [
        "jobs/absent.py does not exist",
        "jobs/train.py has no option --unknown",
    ]


def test_the_first_command_is_found() -> None:
    assert doc_checks.first_command_line(PAGE) == 8
    assert doc_checks.first_command_line("no command\n") == 2


def test_sections_that_the_table_of_contents_lacks_are_found() -> None:
    text = "# T\n- [Use](#use-it)\n## Use it\n[x](#more)\n## More\n## License\n"
    assert doc_checks.sections_missing_in_contents(text) == ["More is not in the contents"]
    text = "# T\n## Contents\n- [Use](#use-it), [more](#more)\n## Use it\n## More\n"
    assert doc_checks.sections_missing_in_contents(text) == []


def test_commands_of_targets_and_hooks_are_found() -> None:
    makefile = "test: x\n\t@run tests\nlint: x  ## check\n\t@a check\n\tb\n\nother:\n\t@c\n"
    assert doc_checks.recipe(makefile, "lint") == ["a check", "b"]
    assert doc_checks.recipe(makefile, "absent") == []
    hooks = "repos:\n- {repo: local, hooks: [{id: a, entry: a check}, {id: b, entry: b}]}\n"
    assert doc_checks.hook_commands(hooks) == ["a check", "b"]


def test_a_broken_path_of_a_batch_is_found(page: Path) -> None:
    assert doc_checks.trace_offences(PAGE, page.parent, max_files=1, max_lines=2) == [
        "lib/gone.py does not exist",
        "lib/there.py does not define Loader.gone",
        "2 files, at most 1",
        "3 lines, at most 2",
    ]
    assert doc_checks.trace_offences("# Nothing", page.parent, 8, 2500) != []


SOURCES = {
    "low.errors": "import os",
    "low.shapes": "from low import errors",
    "mid": "",
    "mid.table": "def f():\n    from high import page",
    "high.page": "from low.errors import E\nimport mid.table",
    "high.style": "from high import page\nfrom nowhere import x",
    "stray": "import high.style",
}


def test_imports_of_a_higher_layer_are_found() -> None:
    imports = layer_checks.imports_among(SOURCES)
    upward = "mid.table:2: imports high.page, from mid.* up to high.*"
    assert layer_checks.layer_offences(imports, ["low.*", "mid.*", "high.*", "stray"]) == [upward]
    assert layer_checks.layer_offences(imports, ["low.*", "mid.*", "high.*", "empty.*"]) == [
        "stray is in no layer",
        "empty.* has no module",
        upward,
    ]
    assert layer_checks.layer_offences(imports, ["low.*", "high.*", "mid.*", "stray"]) == [
        "high.page:2: imports mid.table, from high.* up to mid.*"
    ]


def test_import_cycles_of_modules_and_folders_are_found() -> None:
    imports = layer_checks.imports_among(SOURCES)
    assert layer_checks.cycles(imports) == [["high.page", "mid.table"]]
    assert layer_checks.cycles(layer_checks.folder_edges(imports)) == [["high", "mid"]]


def test_a_facade_makes_no_cycle_of_folders() -> None:
    sources = {"top": "import top.inner.part", "top.errors": "", "top.inner.part": "import top.errors"}
    imports = layer_checks.imports_among(sources)
    assert layer_checks.cycles(layer_checks.folder_edges(imports)) == [["top", "top.inner"]]
    assert layer_checks.cycles(layer_checks.folder_edges(imports, facades={"top"})) == []


def test_crowded_folders_and_repeated_file_names_are_found() -> None:
    paths = ["a/__init__.py", "a/x.py", "a/b/__init__.py", "a/b/x.py", "c/x.py"]
    crowded = layer_checks.crowded_folders(["a/x.py", "a/y.py", "a/b/z.py"], max_files=1)
    assert crowded == ["a has 2 files, at most 1"]
    assert layer_checks.repeated_names(paths) == ["x.py occurs 2 times in a"]
