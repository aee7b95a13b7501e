"""Write docs/configuration.md, the reference of all options: `python -m jobs.write_reference_page`."""

from pathlib import Path

from perceiver_dist.config.options import Option, OptionGroup, option_groups
from perceiver_dist.display.markdown import markdown_table
from perceiver_dist.search.study.search_config import SearchRunConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

_INTRODUCTION = """\
# Configuration

Reference of all options of training runs and searches: dotted name, type, default and meaning. `make docs` generates
this page from the dataclasses in the code; edit their docstrings, not this page. The options of `search` are for
`jobs/tune_perceiver.py` only.

## Set options

Options are set in YAML files, on the command line, or both; the command line overrides files, and a later `--config`
overrides an earlier one:

```bash
python jobs/train_multimodal.py --config jobs/configs/default.yaml --train.steps 200 --optim.learning_rate 1e-3
```

In YAML, dots are levels of nesting. `train.steps` is

```yaml
train:
  steps: 200
```

Environment variables set options too: `PERCEIVER_TRAIN__STEPS` is `train.steps`. Files and the command line override
them, but an option that is null or auto in a file is taken from the environment. So on a cluster whose environment sets
`PERCEIVER_TRAIN__GPUS_PER_WORKER`, a run resumed from its own `config.yaml` trains on GPUs, although that file does not
set the option.

`--print_config` prints all options with the values they would have, as YAML that `--config` can read. `--dry_run`
prints the cost of the run: parameters, FLOPs, the memory of a rank, the largest micro-batch by GPU, and the duration of
the run on GPUs whose throughput was measured (`perceiver_dist/preflight/measured_throughput.yaml`). `--first_step`
prints loss, gradients and attention of the new model, on random samples. An unknown option or a value that is not
allowed ends the job with one line before anything starts.
"""

_PLACES = {
    "always": "",
    "optional": " Not used unless one of these options is set.",
    "list": " A list, each entry of which has these options.",
}


def reference_page() -> str:
    """Return the page as Markdown. It documents searches, whose options include those of a training run."""
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
