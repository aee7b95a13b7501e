"""The report of a search: what it finds, and a page that needs nothing else."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from records import SPACE, record_of_search

from perceiver_dist.display.progress import duration
from perceiver_dist.search.report.formatting import quantity, short_names, value_text, values_text
from perceiver_dist.search.report.write_report import finding, write_report
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import SearchRecord

CONFIG = SearchConfig(space=SPACE, trials=16, name="shapes")


class Elements(HTMLParser):
    """What a browser would find: tags still open at the end, and the text of each row of the first table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables = 0
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002  # the parser hands it over
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.tables += tag == "table"
        if tag == "tr" and self.tables == 1:
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.tables == 1 and {"td", "th"} & set(self.open):
            self.rows[-1].append(data)


def page_of(record: SearchRecord, folder: Path, best_yaml: str = "") -> str:
    return write_report(record, CONFIG, best_yaml, folder)[-1].read_text()


def test_a_better_trial_is_held_against_the_baseline() -> None:
    assert finding(record_of_search(12)) == (
        "trial-006 beats the baseline by 0.0702: score 0.8873 at 23.2 MFLOPs per sample and 6.68 TFLOPs of training, "
        "against score 0.8171 at 16.3 MFLOPs per sample and 4.7 TFLOPs of training."
    )


@pytest.mark.parametrize(
    ("trials", "baseline", "states", "expected"),
    [
        (0, True, {}, "No trial has been trained to its end, and none has a score yet."),
        (
            2,
            True,
            {0: "failed"},
            "No trial has been trained to its end yet; the highest score so far is 0.8171, of",
        ),
        (
            2,
            True,
            {},
            "Nothing beats the baseline: score 0.8171 at 16.3 MFLOPs .* no other trial was trained",
        ),
        (
            9,
            True,
            dict.fromkeys([2, 4, 6], "stopped"),
            "Nothing beats the baseline: .* next is trial-008 with score",
        ),
        (
            3,
            True,
            {0: "stopped"},
            r"trial-002 is best: .*the baseline \(stopped, score 0.8171 at evaluation 3\) was",
        ),
        (3, False, {}, "trial-002 is best: score 0.8677 .*; there is no baseline to compare it with."),
        (14, True, {}, "So far trial-006 beats the baseline"),
        (13, True, dict.fromkeys([2, 4, 6, 11], "stopped"), "So far nothing beats the baseline"),
    ],
)
def test_the_headline_says_what_can_be_said(
    trials: int, baseline: bool, states: dict[int, str], expected: str
) -> None:
    record = record_of_search(trials, baseline)
    for number, state in states.items():
        record.trials[number].state = state
    assert re.match(expected, finding(record))


def test_an_equal_score_at_lower_cost_is_not_called_better() -> None:
    record = record_of_search(3)
    record.trials[2].evaluations = record.trials[0].evaluations
    assert finding(record).startswith(
        "trial-002 equals the baseline at lower cost: score 0.8171 at 10.6 MFLOPs"
    )


def test_the_page_needs_no_other_file_and_no_script(tmp_path: Path) -> None:
    page = page_of(record_of_search(), tmp_path)
    assert Elements(page).open == []
    assert page.count("data:image/png;base64,") == 6
    assert re.findall(r"https?://|<script|<link|src=\"(?!data:)|url\(", page) == []


def test_all_files_are_named_and_nothing_else_is_left(tmp_path: Path) -> None:
    paths = write_report(record_of_search(), CONFIG, "", tmp_path / "new")
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    assert paths[-1].name == "report.html"


def test_trials_are_listed_by_score_with_completed_ones_first(tmp_path: Path) -> None:
    head, *rows = Elements(page_of(record_of_search(), tmp_path)).rows
    assert head[:4] == ["trial", "state", "score", "latents"]
    assert ",".join(row[0] for row in rows) == "6 best,2,11,4,0 baseline,8,5,12,10,9,1,7,13,3"
    assert rows[-1][:3] == ["3", "failed", "out of memory on a rank"]
    assert "85.3 MB" in rows[1]


def test_the_page_says_what_was_rejected_and_what_the_best_is_made_of(tmp_path: Path) -> None:
    page = page_of(record_of_search(), tmp_path, "model:\n  latents: 128\n")
    assert "<td>max_parameters</td>" in page
    assert "<pre>model:\n  latents: 128\n</pre>" in page
    assert "model.latents: [16, 32, 64, 128]" in page


def test_all_text_is_escaped(tmp_path: Path) -> None:
    record = record_of_search(4)
    evil = "<b>&\"'"
    for trial in record.trials:
        trial.reason, trial.values[evil] = evil, evil
    record.rejected = {evil: 1}
    page = page_of(record, tmp_path, evil)
    assert "<b>" not in page
    assert page.count("&lt;b&gt;&amp;&quot;&#x27;") >= 4


def test_a_search_without_scores_has_a_page_without_figures(tmp_path: Path) -> None:
    assert [path.name for path in write_report(record_of_search(0), CONFIG, "", tmp_path)] == ["report.html"]


def test_a_cost_that_all_trials_share_is_not_drawn(tmp_path: Path) -> None:
    record = record_of_search()
    for trial in record.trials:
        trial.cost = record.trials[0].cost
    assert not [path for path in write_report(record, CONFIG, "", tmp_path) if "pareto" in path.name]


def test_names_are_as_short_as_they_can_be() -> None:
    names = ["model.latents", "sources.a.weight", "sources.b.weight", "weight"]
    assert list(short_names(names).values()) == ["latents", "a.weight", "b.weight", "weight"]


def test_a_trial_is_named_by_what_differs_from_the_baseline() -> None:
    record = record_of_search()
    assert values_text(record.trials[0], record) == "baseline"
    assert (
        values_text(record.trials[11], record)
        == "latents 128, learning_rate 0.00095, share_cross_attends all"
    )
    alone = record_of_search(1, baseline=False)
    assert values_text(alone.trials[0], alone).startswith("latents 32, width 64, cross_attends 2, ")


def test_amounts_values_and_times_are_short() -> None:
    assert [quantity(n) for n in (0, 7, 999.6, 45_100_000)] == ["0", "7", "1 k", "45.1 M"]
    assert quantity(1.234e12, "FLOPs") == "1.23 TFLOPs"
    assert [value_text(value) for value in (True, None, "gelu", 0.00123456, [1, 2])] == [
        "true",
        "null",
        "gelu",
        "0.001235",
        "[1, 2]",
    ]
    assert [duration(seconds) for seconds in (None, 187, 7387)] == ["-:--", "3:07", "2:03:07"]
