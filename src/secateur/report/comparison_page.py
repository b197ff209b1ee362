"""The page and the card of a comparison."""

from __future__ import annotations

from collections.abc import Iterator

from ..compare.analysis import sentence
from ._comparison_charts import charts_of
from ._comparison_tables import (
    budget_table,
    cuts_of,
    differences_table,
    effort_table,
    latency_table,
    reached_table,
    training_table,
    width_tables,
)
from ._sensitivity_of_groups import sensitivity_chart, sensitivity_tables
from .comparison import Findings, facts_of, name_of
from .page import Listing, Page, Section, Table

MOST_SENTENCES, MOST_FAILURES = 200, 50


def page_of(findings: Findings) -> Page:
    """Return the report as a page: the answer first, then what it rests on."""
    return Page(
        f"Was pruning worth it? {findings.experiment.name}",
        findings.verdict,
        [section for section in _sections(findings) if section.tables or section.charts or section.listings],
        facts_of(findings),
    )


def _sections(findings: Findings) -> Iterator[Section]:
    cuts = {case: own for case, own in cuts_of(findings.outcomes).items() if own}
    gaps = {case: [g for g in findings.differences if (g.one.model, g.one.data) == case] for case in cuts}
    yield Section("What each way reached", (), [reached_table(findings, case, own) for case, own in cuts.items()])
    yield Section(
        "What differs",
        (),
        [differences_table(case, own) for case, own in gaps.items() if own],
        listings=_in_words(findings),
    )
    yield Section("Accuracy and cost", (), (), charts_of(findings))
    yield Section(
        "Budgets and effort",
        (),
        [
            table
            for case, own in cuts.items()
            for table in (
                budget_table(findings, case, own),
                latency_table(findings, case, own),
                effort_table(findings, case, own),
            )
            if table.rows
        ],
    )
    yield Section("What is left of each group", (), width_tables(findings))
    chart = sensitivity_chart(findings)
    yield Section("How each group takes being cut", (), sensitivity_tables(findings), [] if chart is None else [chart])
    yield Section("What failed", (), (), (), _failures(findings))
    yield Section(
        "The experiment",
        ("The same file and the command at the foot of the page run it again, or go on with it.",),
        listings=[Listing("experiment.toml", findings.toml.splitlines(), is_code=True)],
    )


def _in_words(findings: Findings) -> list[Listing]:
    told = [sentence(gap) for gap in findings.differences[:MOST_SENTENCES]]
    if not told:
        return []
    left = len(findings.differences) - len(told)
    return [Listing("The same in words", [*told, *([f"and {left} more; --json has all"] if left else [])])]


def _failures(findings: Findings) -> list[Listing]:
    found = [
        Listing(f"{name_of(row)} failed", (row.error or "no message").splitlines(), is_code=True)
        for row in findings.failures[:MOST_FAILURES]
    ]
    left = len(findings.failures) - len(found)
    return [*found, *([Listing(f"and {left} more", ["secateur results --status failed shows them"])] if left else [])]


def card_of(findings: Findings) -> str:
    """Return the answer as Markdown: verdict, tables of everything that the page shows, how it came about."""
    cuts = {case: own for case, own in cuts_of(findings.outcomes).items() if own}
    blocks = [f"# Was pruning worth it? {findings.experiment.name}", *findings.verdict]
    for case, own in cuts.items():
        blocks.append(_markdown(reached_table(findings, case, own)))
        gaps = [g for g in findings.differences if (g.one.model, g.one.data) == case]
        if gaps:
            blocks.append(_markdown(differences_table(case, gaps)))
        more = (
            budget_table(findings, case, own),
            latency_table(findings, case, own),
            effort_table(findings, case, own),
        )
        blocks += [_markdown(table) for table in more if table.rows]
    tables = [*width_tables(findings), *sensitivity_tables(findings), training_table(findings)]
    blocks += [_markdown(table) for table in tables if table.rows]
    if findings.failures:
        blocks.append("## What failed\n\n" + "\n".join(f"- {name_of(row)}" for row in findings.failures))
    facts = "\n".join(f"- {name}: {value}" for name, value in facts_of(findings).items())
    blocks.append(f"## How this came about\n\n{facts}\n\n```toml\n{findings.toml}```")
    return "\n\n".join(blocks) + "\n"


def _markdown(table: Table) -> str:
    rows = [table.columns, ["---"] * len(table.columns), *table.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([f"**{table.caption}**", "", *lines, *(["", table.note] if table.note else [])])
