"""Write docs/configuration.md, the reference of every option: `python -m jobs.write_reference_page`."""

from pathlib import Path

from perceiver_dist.config.options import Option, OptionGroup, option_groups
from perceiver_dist.display.markdown import markdown_table
from perceiver_dist.search.study.search_config import SearchRunConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

_INTRODUCTION = """\
# Configuration

Every option of a training run: its dotted name, type, default and meaning. This page is made from the dataclasses of
the code by `make docs`; change the docstrings there, not this page.

An option is given in a YAML file, as a dotted name on the command line, or both; the command line wins:

```bash
python jobs/train_multimodal.py --config jobs/configs/default.yaml --train.steps 200 --optim.learning_rate 1e-3
```

In YAML the dots are levels, so `train.steps` is

```yaml
train:
  steps: 200
```

An environment variable sets an option too, `PERCEIVER_TRAIN__STEPS` is `train.steps`. Files and the command line go
before it, but null and auto in a file leave an option to it: on a cluster whose environment says that there are GPUs,
a run's own `config.yaml` trains on them, although it says nothing about GPUs itself.

`--print_config` prints all options with the values they would have, as a file that `--config` reads. `--dry_run`
prints what the run would cost. A name or value that is not allowed ends the job in one line, before anything starts.
"""

_PLACES = {
    "always": "",
    "optional": " Left out unless one of these options is given.",
    "list": " A list: each entry has these options.",
}


def reference_page() -> str:
    """Return the page as Markdown."""
    parts = [part for part in option_groups(SearchRunConfig) if part.options]
    return "\n".join([_INTRODUCTION, *(_section(part) for part in parts)])


def _section(part: OptionGroup) -> str:
    return "\n".join(
        [
            f"## {part.name}",
            "",
            part.summary + _PLACES[part.place],
            "",
            *markdown_table(["option", "type", "default", "meaning"], map(_row, part.options), numbers=False),
            "",
        ]
    )


def _row(option: Option) -> list[str]:
    default = option.default if option.default == "required" else f"`{option.default}`"
    return [f"`{option.name}`", option.type, default, option.meaning]


if __name__ == "__main__":
    PAGE.write_text(reference_page())
