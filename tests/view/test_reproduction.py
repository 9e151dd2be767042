"""The page of findings: every row, its numbers, its commands, and nothing that would break a table."""

import io
import json
import re

import pytest
from rich.console import Console

from unmask.analyze.by_task import ByTask
from unmask.analyze.findings import FINDINGS, Evidence, outcome
from unmask.cli.reproduction import Cost
from unmask.view.reproduction import ModelFacts, Report, cost_table, here, page, table

COMMANDS = ("unmask evaluate 'a|b' --output x", "unmask analyze x")


def report(**changes: object) -> Report:
    values = {f"t{i}": 0.5 + 0.01 * i for i in range(8)}
    lower = {task: value - 0.2 for task, value in values.items()}
    evidence = Evidence(temperature={0.2: ByTask(local=values), 1.0: ByTask(local=lower)})
    given = {
        "tasks": "a|b",
        "command": "unmask reproduce",
        "models": (ModelFacts(role="before", name="tiny", parameters=6_955_264, weights="sha256 00ff"),),
        "outcomes": [outcome(finding, evidence, missing={"stages": "no run | given"}) for finding in FINDINGS],
        "commands": {finding.name: COMMANDS for finding in FINDINGS if finding.needs},
        **changes,
    }
    return Report(**given)  # type: ignore[arg-type]


def test_every_finding_has_a_row_a_section_and_its_commands() -> None:
    text = page(report())
    for finding in FINDINGS:
        (row,) = [line for line in text.splitlines() if line.startswith(f"| [{finding.name}](#{finding.name}):")]
        assert len(re.split(r"(?<!\\)\|", row)) == 6, row
        section = text.split(f"\n## {finding.name}\n")[1].split("\n## ")[0]
        assert finding.rule in section
        assert ("\n".join(COMMANDS) in section) == bool(finding.needs)
    assert text.count("```") == 2 * sum(bool(finding.needs) for finding in FINDINGS)


def test_numbers_and_models_are_told() -> None:
    text = page(report())
    assert "| local AR-ness@1 at T 1 less T 0.2 | −0.200 (−0.200 to −0.200) | 8 | below zero: reproduced |" in text
    assert "| `tiny` | before | 6,955,264 | sha256 00ff |" in text
    assert "**Reproduced**, by the rule: local AR-ness@1" in text
    assert "no run \\| given" in text


def test_the_same_numbers_make_the_same_page() -> None:
    assert page(report()) == page(report())


def test_figures_and_notes_stand_in_the_page_where_there_are_some() -> None:
    text = page(report(figures={"order": "figures/order.svg"}, notes=["3 samples are lost"]))
    assert "![order](figures/order.svg)" in text
    assert "Note: 3 samples are lost." in text
    assert "## Figures" not in page(report())


def test_the_table_of_the_terminal_has_all_findings() -> None:
    console = Console(width=120, record=True, file=None, quiet=True)
    console.quiet = False
    with console.capture() as captured:
        console.print(table(report()))
    text = captured.get()
    for finding in FINDINGS:
        assert finding.name in text
    assert "not measured" in text


@pytest.mark.parametrize("width", [40, 76])
def test_a_narrow_terminal_breaks_no_word(width: int) -> None:
    console = Console(file=io.StringIO(), width=width)
    cost = Cost(
        name="temperature",
        model="tiny",
        num_answers=1600,
        num_kept=12,
        seconds=90,
        serves=("neither-order", "pass-at-1"),
    )
    console.print(table(report()), cost_table([cost]))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in text.splitlines())
    words = text.split()
    for finding in FINDINGS:
        assert {finding.name, f"{finding.name}:"} & {*words}
    assert {"temperature", "1,600", "neither-order,"} <= {*words}


def test_json_has_numbers_and_null() -> None:
    record = json.loads(json.dumps(report().to_json(), allow_nan=False))
    found = {one["name"]: one for one in record["findings"]}
    assert found["temperature-local"]["verdict"] == "reproduced"
    assert found["temperature-local"]["differences"][0]["tasks"] == 8
    assert found["temperature-global"]["differences"][0]["value"] is None
    assert found["stages"]["why"] == "no run | given"
    assert found["stages"]["commands"] == list(COMMANDS)
    assert record["models"][0]["parameters"] == 6_955_264


def test_a_number_without_a_value_says_so() -> None:
    empty = Evidence(temperature={0.2: ByTask(), 1.0: ByTask()})
    (finding,) = [finding for finding in FINDINGS if finding.name == "temperature-local"]
    assert here(outcome(finding, empty)) == "local AR-ness@1 at T 1 less T 0.2: no value"
