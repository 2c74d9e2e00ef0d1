"""A dossier as one HTML file: no script, nothing from outside, and it prints on A4."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from mansu.evidence.verdict import ABOUT
from mansu.report import changes, svg
from mansu.report import rows as tables
from mansu.report.dossier import (
    MODELS,
    Dossier,
    Histogram,
    about_table,
    accuracy_table,
    attacks_table,
    counts_table,
    failing,
    files_table,
    interval,
    moved,
    notes_table,
    remarks,
    thresholds_table,
)
from mansu.report.flips import Flip
from mansu.report.repeat import WHERE
from mansu.show.numbers import many, number, percent
from mansu.show.sentences import capitalised
from mansu.show.table import Table
from mansu.tasks.facts import CHANCE

STYLE = """
@page { size: A4; margin: 14mm; @bottom-right { font: 8pt system-ui, sans-serif;
  content: counter(page) " of " counter(pages); } } /* a signature is for every page */
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 720px; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 2rem; border-bottom: 1px solid #8888; }
h2, h3 { break-after: avoid; }
figure, tr, .property { break-inside: avoid; }
figure { margin: 1rem 0; } figcaption { font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; margin: .6rem 0; }
.wide td { white-space: pre-line; }
th, td { border-bottom: 1px solid #8885; padding: .25rem .5rem; vertical-align: top;
  overflow-wrap: anywhere; }
td { min-width: 5rem; } /* no word of a set's name is broken */
td:first-child, th { overflow-wrap: normal; }
@media print, (min-width: 600px) {
  td[style*="right"] { white-space: nowrap; } } /* a number stays with its unit */
.wide th[scope="row"] { white-space: nowrap; }
thead tr, tbody tr:first-child { break-after: avoid; } /* no head alone at a page's foot */
.wide { overflow-x: auto; }
.columns { columns: 2 20rem; column-gap: 2rem; }
.columns table { margin-top: 0; }
.facts { columns: 3 13rem; column-gap: 1.5rem; margin: .3rem 0 .8rem; padding: 0; font-size: 13px;
  list-style: none; }
.facts li { break-inside: avoid; white-space: pre-line; overflow-wrap: anywhere;
  padding-left: 1em; text-indent: -1em; }
.split { margin: .6rem 0 0; break-after: avoid; font-size: 13px; font-weight: 700; }
@media screen and (max-width: 599px) { table { font-size: 12px; }
  th, td { padding: .25rem .2rem; } td { min-width: 0; }
  td:not(:last-child) { overflow-wrap: normal; }
  .wide th[scope="row"] { white-space: normal; }
  .files th { overflow-wrap: anywhere; } }
code, pre { font: 12.5px/1.5 ui-monospace, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.status { font-weight: 700; } .moved { border: 2px solid #c25400; padding: .4rem .8rem; }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 9.5pt; line-height: 1.4; }
  h1 { font-size: 17pt; margin: 0; } h2 { font-size: 13pt; margin: 14pt 0 6pt; }
  h3 { font-size: 10.5pt; margin: 9pt 0 3pt; } p, ul { margin: 3pt 0; }
  table, figcaption, .facts, .split { font-size: 8pt; line-height: 1.3; }
  th, td { padding: 1.5pt 5pt; } code, pre { font-size: 8pt; } pre { margin: 3pt 0; }
  figure { margin: 3pt 0; } figure svg { max-height: 120mm; } .circuit svg { max-height: 155mm; }
  p:has(+ figure) { break-after: avoid; } td:empty { height: 14mm; } /* to write in by hand */
  .columns { columns: 2; } .facts { columns: 3; } summary { break-after: avoid; }
  details > * { display: block; } .wide { overflow: visible; }
  details::details-content { content-visibility: visible; } } /* paper has what is folded, too */
"""


def page(found: Dossier) -> str:
    """The whole file as text. Everything that came from a file or a person is escaped."""
    about = found.about
    title = f"Dossier: {about.title}, {about.method}, {about.subject}"
    sections = [
        ("Verdict", _verdict(found)),
        ("Decision of the reviewer", _review(found)),
        ("What was asked", _asked(found)),
        ("Accuracy", accuracies(found) + _wide(accuracy_table(found))),
        ("Update and bin", _bins(found.histogram)),
        ("What is left of the circuit", _circuit(found)),
        ("Facts that fail or flip", _facts(found)),
        ("Recovery attacks", _attacks(found)),
        ("Limits", _list(map(_markdown, found.limits))),
        ("How to repeat it", _repeat(found)),
    ]
    body = "\n".join(f"<section><h2>{name}</h2>\n{text}</section>" for name, text in sections)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{svg.CSS}</style></head>\n<body><main>"
        f"<h1>{escape(title)}</h1>\n{body}</main></body></html>\n"
    )


def _verdict(found: Dossier) -> str:
    verdict = found.judged
    parts = [
        f'<p>Together: <span class="status">{verdict.status}</span> ({verdict.counts}). Passed '
        "only if all four properties are.</p>"
    ]
    if found.original is not None:
        parts.append(
            '<p class="moved"><strong>Judged by moved thresholds.</strong> By the original ones: '
            f"{escape(str(found.original['status']))}. Moved: "
            f"{escape(moved(found.thresholds, found.originals))}.</p>"
        )
    for p in verdict.properties:
        parts.append(
            f'<div class="property"><h3>{escape(capitalised(p.title))}: '
            f'<span class="status">{p.status}</span></h3><p>{escape(p.evidence)}</p></div>'
        )
        if p.checks:
            parts.append(_wide(tables.checks(p)))
    parts.append(
        "<p>✓ passed: the whole 95 % interval lies on the right side of the threshold; ✗ failed: "
        "on the wrong side; ~ undecided: it reaches across; unknown: something was not measured, "
        "or no edit could pass; vacuous: nothing was forgotten that could come back.</p>"
    )
    return "\n".join([*parts, "<h3>Thresholds</h3>", _wide(thresholds_table(found))])


def _review(found: Dossier) -> str:
    signed = found.signed
    if signed is None:
        blank = [(capitalised(title), "") for title in ABOUT.values()]
        return (
            f"<p>Not signed.</p>{_wide(Table(('Property', 'Note'), blank, align='<<'))}"
            "<p>Decision: ____________________ Name: ____________________ Date: ____________</p>"
        )
    text = (
        f'<p><span class="status">{escape(signed.decision.capitalize())}</span>, '
        f"{escape(signed.name)}, {escape(signed.date)}; the verdict was then: {signed.seen}.</p>"
    )
    text += "".join(f'<p class="moved">{escape(said)}</p>' for said in remarks(found))
    return text + (_wide(notes_table(signed)) if signed.notes else "")


def _asked(found: Dossier) -> str:
    of = {"Run": found.about.run_settings, "Method": found.about.settings}  # both may have "steps"
    settings = "".join(
        f"<h3>{title}</h3>{_wide(tables.settings(values), 'columns')}"
        for title, values in of.items()
        if values
    )
    return _wide(about_table(found)) + f"<details><summary>Settings</summary>{settings}</details>"


def accuracies(found: Dossier) -> str:
    """The picture of every set's accuracy before and after the edit."""
    rows = {title: [interval(v) for v in values] for title, values in found.accuracies.items()}
    return svg.intervals(rows, MODELS, chance=CHANCE)


def bins(found: Histogram) -> str:
    """The picture of the updates against their bins."""
    return svg.histogram(found.before, found.after, found.edges)


def told(found: Histogram) -> str:
    """What that picture says, a sentence."""
    return (
        f"The median update is {number(found.median)} of its bin; {percent(found.codes, 2)} of the "
        "codes of moved weights change in NF4."
    )


def _bins(found: Histogram | None) -> str:
    return "<p>Not measured.</p>" if found is None else f"<p>{told(found)}</p>{bins(found)}"


def _circuit(found: Dossier) -> str:
    if found.circuit is None:
        return "<p>Not measured.</p>"
    return (
        f"<p>{escape(changes.sentence(found.circuit))}</p>"
        f'<div class="circuit">{svg.circuit(found.circuit)}</div>'
        "<h3>The strongest edges of each kind, with their scores</h3>"
        f"{_wide(changes.edges_table(found.circuit))}<p>{escape(changes.NAMED)}</p>"
    )


def _facts(found: Dossier) -> str:
    """All that fail or flip, under what became of them, in columns of print."""
    kinds = failing(found)
    groups: dict[tuple[int, str], dict[str, list[Flip]]] = {}
    for one in found.facts:
        if one.kind in kinds:
            became = groups.setdefault((kinds.index(one.kind), one.path), {})
            became.setdefault(one.split, []).append(one)
    said = "Each with its right answer; in brackets: before the edit → after it → after NF4."
    parts = [_wide(counts_table(found))]
    parts.append(f"<p>{said if groups else 'No fact fails or flips.'}</p>")
    for (i, path), splits in sorted(groups.items()):
        n = sum(map(len, splits.values()))
        parts.append(f"<h3>{capitalised(kinds[i])}: {many(n, 'fact')} ({path})</h3>")
        for split, ones in splits.items():
            lines = (escape(f"{f.prompt} →{f.answer}").replace("→ ", "→&nbsp;") for f in ones)
            title = f"{capitalised(escape(split))} ({len(ones)})"
            parts.append(f'<p class="split">{title}</p>{_list(lines, "facts")}')
    return "".join(parts)


def _attacks(found: Dossier) -> str:
    table = attacks_table(found)
    if table is None:
        return "<p>Not tried: nothing is known of what brings the forgotten back.</p>"
    return _wide(table)


def _repeat(found: Dossier) -> str:
    versions = ", ".join(f"{name} {v}" for name, v in found.packages.items())
    lines = "\n".join(escape(command) for command in found.commands)
    return (
        f"<pre>{lines}</pre><p>MANSU {escape(found.mansu)}, Python {escape(found.python)}, "
        f"{escape(versions)}; seed {found.about.seed}. {escape(WHERE)}</p>"
        "<details open><summary>Files and their hashes</summary>"
        f"{_wide(files_table(found), 'files')}</details>"
    )


def _wide(table: Table, more: str = "") -> str:
    return f'<div class="wide {more}">{table.html()}</div>'


def _list(items: Iterable[str], style: str = "") -> str:
    return f'<ul class="{style}">' + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _markdown(text: str) -> str:
    """A sentence whose bold is Markdown's."""
    parts = escape(text).split("**")
    return "".join(f"<strong>{p}</strong>" if i % 2 else p for i, p in enumerate(parts))
