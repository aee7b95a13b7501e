"""Report of a search: the finding, and the self-contained page."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from records import SPACE, record_of_search

from perceiver_dist.display.progress import duration
from perceiver_dist.search.report.formatting import quantity, short_names, value_text, values_text
from perceiver_dist.search.report.write_report import finding, write_report
from perceiver_dist.search.study.search_config import SearchConfig
from perceiver_dist.search.study.search_record import SearchRecord, TrialState

CONFIG = SearchConfig(space=SPACE, trials=16, name="shapes")


class Elements(HTMLParser):
    """Parser of a page: tags still open at its end, and the text of each row of its first table."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tables = 0
        self.rows: list[list[str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002  # the signature is HTMLParser's
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


def test_the_finding_compares_the_best_trial_with_the_baseline() -> None:
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
def test_the_finding_for_incomplete_searches_and_other_outcomes(
    trials: int, baseline: bool, states: dict[int, TrialState], expected: str
) -> None:
    record = record_of_search(trials, baseline)
    for number, state in states.items():
        record.trials[number].state = state
    assert re.match(expected, finding(record))


def test_the_finding_for_an_equal_score_at_lower_cost() -> None:
    record = record_of_search(3)
    record.trials[2].evaluations = record.trials[0].evaluations
    assert finding(record).startswith(
        "trial-002 equals the baseline at lower cost: score 0.8171 at 10.6 MFLOPs"
    )


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = page_of(record_of_search(), tmp_path)
    assert Elements(page).open == []
    assert page.count("data:image/png;base64,") == 6
    assert re.findall(r"https?://|<script|<link|src=\"(?!data:)|url\(", page) == []


def test_all_files_are_returned_and_no_temporary_ones_are_left(tmp_path: Path) -> None:
    paths = write_report(record_of_search(), CONFIG, "", tmp_path / "new")
    assert sorted(paths) == sorted((tmp_path / "new").iterdir())
    assert paths[-1].name == "report.html"


def test_trials_are_ranked_by_score_with_completed_ones_first(tmp_path: Path) -> None:
    head, *rows = Elements(page_of(record_of_search(), tmp_path)).rows
    assert head[:4] == ["trial", "state", "score", "latents"]
    assert ",".join(row[0] for row in rows) == "6 best,2,11,4,0 baseline,8,5,12,10,9,1,7,13,3"
    assert rows[-1][:3] == ["3", "failed", "out of memory on a rank"]
    assert "85.3 MB" in rows[1]


def test_the_page_shows_rejected_candidates_options_and_the_best_configuration(tmp_path: Path) -> None:
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
    assert page.count("&lt;b&gt;&amp;&#34;&#39;") >= 4


def test_a_search_without_scores_has_no_figures(tmp_path: Path) -> None:
    assert [path.name for path in write_report(record_of_search(0), CONFIG, "", tmp_path)] == ["report.html"]


def test_a_cost_that_is_the_same_for_all_trials_has_no_figure(tmp_path: Path) -> None:
    record = record_of_search()
    for trial in record.trials:
        trial.cost = record.trials[0].cost
    assert not [path for path in write_report(record, CONFIG, "", tmp_path) if "pareto" in path.name]


def test_short_names_are_the_shortest_unique_suffixes() -> None:
    names = ["model.latents", "sources.a.weight", "sources.b.weight", "weight"]
    assert list(short_names(names).values()) == ["latents", "a.weight", "b.weight", "weight"]


def test_values_text_lists_what_differs_from_the_baseline() -> None:
    record = record_of_search()
    assert values_text(record.trials[0], record) == "baseline"
    assert (
        values_text(record.trials[11], record)
        == "latents 128, learning_rate 0.00095, share_cross_attends all"
    )
    alone = record_of_search(1, baseline=False)
    assert values_text(alone.trials[0], alone).startswith("latents 32, width 64, cross_attends 2, ")


def test_formats_of_quantities_values_and_durations() -> None:
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
