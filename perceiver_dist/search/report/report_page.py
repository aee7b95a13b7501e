"""The page of a report: HTML that holds its own style and figures and escapes all text it is given."""

import base64
from collections.abc import Iterable, Mapping
from dataclasses import fields
from html import escape
from pathlib import Path

from perceiver_dist.display.progress import duration
from perceiver_dist.search.report.formatting import quantity, ranked, short_names, value_text
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial

_STYLE = """
:root { color-scheme: light dark; --text: #1c2128; --faint: #5c6570; --page: #ffffff; --card: #f4f6f8;
  --line: #d8dde3; --best: #dbe8fb; --baseline: #fbe8d3; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ed; --faint: #9aa4b0; --page: #14181d; --card: #1d232a;
  --line: #343c46; --best: #1c3558; --baseline: #4d3217; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1520px; padding: 32px 24px 64px; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 40px 0 12px; }
.finding { font-size: 18px; margin: 12px 0 6px; } .faint { color: var(--faint); margin: 4px 0; }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; width: 100%; }
th { text-align: left; font-weight: 600; background: var(--card); white-space: nowrap; }
th, td { padding: 6px 9px; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; } td.number, th.number { text-align: right; white-space: nowrap; }
tr.best { background: var(--best); } tr.baseline { background: var(--baseline); }
tr.incomplete { color: var(--faint); } td:first-child { white-space: nowrap; }
td.state { min-width: 170px; } .reason { font-size: 12px; }
.figures { display: grid; gap: 20px; grid-template-columns: repeat(auto-fit, minmax(min(520px, 100%), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
figure.whole-row { grid-column: 1 / -1; }
figure img { display: block; width: 100%; background: #ffffff; padding: 10px; }
figcaption { padding: 10px 14px; font-size: 13px; color: var(--faint); }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px; overflow-x: auto;
  font-size: 12.5px; line-height: 1.45; }
"""
_CAVEATS = (
    "Scores of trials that were not trained to their end are from an earlier evaluation than those of completed ones; "
    "every trial has one seed, and scores on n held-out samples that differ by less than about 1/sqrt(n) do not "
    "tell trials apart."
)
_WIDE_FIGURES = {"parallel_coordinates.png"}
_MEASURES = ("parameters", "FLOPs/sample", "training FLOPs", "memory/rank", "steps", "time")


def report_page(
    record: SearchRecord, config: SearchConfig, finding: str, captions: Mapping[Path, str], best_yaml: str
) -> str:
    """Build the page.

    Args:
        record: The search.
        config: Its options.
        finding: What was found, one sentence.
        captions: PNG of each figure, and a sentence on how to read it.
        best_yaml: Configuration of the best trial; "" if there is none.

    Returns:
        HTML that needs no other file.
    """
    title = escape(f"Search {config.name}")
    parts = [
        f"<h1>{title}</h1>",
        f'<p class="finding">{escape(finding)}</p>',
        f'<p class="faint">{escape(_summary(record))}</p>',
        f'<p class="faint">{escape(_CAVEATS)}</p>',
        f"<h2>Trials</h2>{_trials_table(record)}",
        _figures(captions),
        _rejected(record),
        f"<h2>Options of the search</h2>{_options_table(config)}",
        f"<h2>Configuration of the best trial</h2><pre>{escape(best_yaml)}</pre>" if best_yaml else "",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def _summary(record: SearchRecord) -> str:
    states = [trial.state for trial in record.trials]
    counts = [
        f"{states.count(state)} {state}"
        for state in ("completed", "stopped", "failed", "running")
        if state in states
    ]
    spent = sum(trial.training_flops for trial in record.trials)
    return f"{len(states)} trials ({', '.join(counts)}), {quantity(spent, 'FLOPs')} of training spent, " + (
        f"{duration(record.seconds)} in all."
    )


def _trials_table(record: SearchRecord) -> str:
    names = short_names(record.trials[0].values if record.trials else [])
    head = [
        _cell("th", "trial"),
        _cell("th", "state"),
        _cell("th", "score", number=True),
        *(f'<th class="number" title="{escape(name)}">{escape(short)}</th>' for name, short in names.items()),
        *(_cell("th", column, number=True) for column in _MEASURES),
    ]
    return _table(head, [_trial_row(trial, record, list(names)) for trial in ranked(record.trials)])


def _trial_row(trial: Trial, record: SearchRecord, names: list[str]) -> str:
    role = "best" if trial is record.best else "baseline" if trial is record.baseline else ""
    kind = role or ("" if trial.state == "completed" else "incomplete")
    cells = [
        _cell("td", f"{trial.number} {role}".strip()),
        f'<td class="state">{escape(trial.state)}<div class="reason">{escape(trial.reason)}</div></td>',
        _cell("td", "" if trial.score is None else f"{trial.score:.4f}", number=True),
        *(_cell("td", value_text(trial.values[name]), number=True) for name in names),
        *(
            _cell("td", text, number=True)
            for text in (
                quantity(trial.cost.parameters),
                quantity(trial.cost.flops_per_sample),
                quantity(trial.training_flops),
                quantity(trial.cost.memory_per_rank, "B"),
                f"{trial.step:,} of {trial.cost.steps:,}",
                duration(trial.seconds),
            )
        ),
    ]
    return f'<tr class="{kind}">{"".join(cells)}</tr>'


def _figures(captions: Mapping[Path, str]) -> str:
    if not captions:
        return ""
    figures = "".join(_figure(path, caption) for path, caption in captions.items())
    return f'<h2>Figures</h2><div class="figures">{figures}</div>'


def _figure(path: Path, caption: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    kind = ' class="whole-row"' if path.name in _WIDE_FIGURES else ""
    return (
        f'<figure{kind}><img src="data:image/png;base64,{data}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _rejected(record: SearchRecord) -> str:
    if not record.rejected:
        return ""
    head = [_cell("th", "reason"), _cell("th", "candidates", number=True)]
    rows = [
        f"<tr>{_cell('td', reason)}{_cell('td', f'{count:,}', number=True)}</tr>"
        for reason, count in record.rejected.items()
    ]
    return f"<h2>Candidates drawn and not tried</h2>{_table(head, rows)}"


def _options_table(config: SearchConfig) -> str:
    rows = []
    for field in fields(config):
        value = getattr(config, field.name)
        lines = (
            [f"{name}: {value_text(choices)}" for name, choices in value.items()]
            if isinstance(value, dict)
            else [value_text(value)]
        )
        text = "<br>".join(escape(line) for line in lines)
        rows.append(f"<tr>{_cell('td', f'search.{field.name}')}<td>{text}</td></tr>")
    return _table([_cell("th", "option"), _cell("th", "value")], rows)


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    return (
        f'<div class="wide"><table><thead><tr>{"".join(head)}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cell(tag: str, text: str, number: bool = False) -> str:
    kind = ' class="number"' if number else ""
    return f"<{tag}{kind}>{escape(text)}</{tag}>"
