"""A run as one page that needs nothing else: no script, no request, light and dark; its pictures are in the file.

What was run, the tables, the plots, the answers that flipped, and the errors. Whatever a model or a file says is
escaped: an answer that looks like HTML is shown, not obeyed.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlmsteer.bench import flips
from vlmsteer.bench.behavior import margin
from vlmsteer.bench.benchmark import Answer, Item
from vlmsteer.bench.results import Run
from vlmsteer.bench.tables import LEGEND, Table
from vlmsteer.errors import VlmsteerError
from vlmsteer.images import open_image

SIDE = 160  # pixels of a thumbnail's longer side
LONGEST = 600  # characters of an answer
ERRORS = 50  # errors listed by task
NOTHING = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2027; --soft: #5d6571; --line: #d9dde3; --paper: #fff; --tint: #f4f6f9;
  --good: #1b7a46; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --soft: #a0a8b3; --line: #363c45; --paper: #14171b;
  --tint: #1d2127; --good: #6fd39b; --bad: #ff9d94; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; } .soft, figcaption { color: var(--soft); font-size: .875rem; }
a { color: inherit; } nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: .75rem 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; margin: 1rem 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem;
  font-variant-numeric: tabular-nums; }
.caption { margin: 1rem 0 .4rem; font-size: .875rem; } th, td { padding: .3rem .5rem; text-align: right;
  white-space: nowrap; border-bottom: 1px solid var(--line); vertical-align: top; }
thead th { border-bottom: 2px solid var(--soft); }
tbody th { text-align: left; font-weight: 600; position: sticky; left: 0; background: var(--paper); }
tr.control th { font-weight: 400; color: var(--soft); padding-left: 1.9rem; } tr.control td { color: var(--soft); }
td small { display: block; color: var(--soft); font-size: .8rem; } td.sure small { color: var(--ink);
  font-weight: 700; }
figure { margin: 1rem 0; background: #fff; border-radius: .4rem; padding: .5rem; width: fit-content; max-width: 100%;
  overflow-x: auto; }
figure img { max-width: max(100%, 44rem); height: auto; display: block; }
details { margin: .5rem 0; border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .8rem; }
summary { cursor: pointer; font-weight: 600; } .cards { display: grid; gap: .75rem; margin: .75rem 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 25rem), 1fr)); }
.card { display: grid; grid-template-columns: 7rem 1fr; gap: .8rem; background: var(--tint); border-radius: .4rem;
  padding: .7rem; font-size: .875rem; } .card > div { min-width: 0; }
.card img { width: 7rem; height: auto; border-radius: .25rem; }
.card p { margin: 0 0 .35rem; overflow-wrap: anywhere; white-space: pre-wrap; } .none { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
@media (max-width: 34rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
"""


def page(run: Run, found: Mapping[str, Any], tables: Sequence[Table], pictures: Mapping[str, bytes]) -> str:
    """The page.

    Args:
        run: as it was read.
        found: what `summary.summarize` returned.
        tables: what `tables.build` made of that.
        pictures: PNG files by name, as `plots.draw` names them.
    """
    title = f"{run.model}: {', '.join(run.items)}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_summary(run, found))}</p>',
        "<nav>" + "".join(f'<a href="#{_anchor(task)}">{escape(task)}</a>' for task in run.items) + "</nav>",
        f'<p class="soft">{escape(LEGEND)}</p>' if len(run.arms) > 1 else "",
        f"<details><summary>What was run</summary>{_facts(run)}</details>",
    ]
    thumbnails: dict[str, str] = {}
    for task, about in found["tasks"].items():
        body.append(f'<h2 id="{_anchor(task)}">{escape(task)}: {escape(about["title"])}</h2>')
        body.append(f'<p class="soft">{escape(about["notes"])}</p>' if about["notes"] else "")
        mine = [table for table in tables if table.task == task]
        body += [_table(table) for table in mine if table.main]
        for name in (f"changes-{task}.png", f"strength-{task}.png"):
            if name in pictures:
                alt = "Changes from the baseline" if name.startswith("changes") else "Metrics over strengths"
                body.append(f'<figure><img src="{_uri(pictures[name], "png")}" alt="{alt}, {escape(task)}"></figure>')
        further = "".join(_table(table) for table in mine if not table.main)
        body.append(f"<details><summary>Further metrics</summary>{further}</details>" if further else "")
        body += list(_flips(run, task, about, thumbnails))
        body.append(_errors(run, task))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="{NOTHING}">\n<style>{STYLE}</style>\n</head>\n<body>\n'
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _summary(run: Run, found: Mapping[str, Any]) -> str:
    items = sum(len(items) for items in run.items.values())
    answered = sum(len(arm) for arms in run.answers.values() for arm in arms.values())
    errors = sum(len(arm) for arms in run.errors.values() for arm in arms.values())
    spent = sum(sum(arm.values()) for arms in run.seconds.values() for arm in arms.values())
    text = f"{items} items, {len(run.arms)} arms; {answered} of {items * len(run.arms)} answers, "
    text += f"{errors} error{'s' * (errors != 1)}; {spent:.0f} s of answering."
    return text + (f" {run.unreadable} rows were cut off." if found["unreadable_rows"] else "")


def _facts(run: Run) -> str:
    rows = [("arms", "; ".join(arm.name for arm in run.arms))]
    for name, value in run.about.items():
        if name not in ("arms", "tasks"):
            rows.append((name.replace("_", " "), _words(value) or "–"))
    for row in run.about.get("tasks", ()):
        rows.append((row["name"], _words({key: value for key, value in row.items() if key != "name"})))
    return "<dl>" + "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows) + "</dl>"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        parts = ((name, _words(one)) for name, one in value.items())
        return "; ".join(f"{str(name).replace('_', ' ')} {text}" for name, text in parts if text)
    if isinstance(value, list):
        return " ".join(map(_words, value))
    return "" if value is None else str(value)


def _table(table: Table) -> str:
    heads = "".join(f'<th scope="col">{escape(head)}</th>' for head in table.heads)
    rows = []
    for row in table.rows:
        cells = "".join(
            f'<td class="sure">{escape(cell.value)}<small>{escape(cell.change)}</small></td>' if cell.bold
            else f"<td>{escape(cell.value)}{f'<small>{escape(cell.change)}</small>' if cell.change else ''}</td>"
            for cell in row.cells
        )  # fmt: skip
        kind = ' class="control"' if row.control else ""
        rows.append(f'<tr{kind}><th scope="row">{escape(row.name)}</th>{cells}</tr>')
    note = f'<p class="soft">{escape(table.note)}</p>' if table.note else ""
    title = escape(table.title)  # outside of what scrolls, so that a narrow window wraps it
    return (
        f'<p class="caption">{title}</p><div class="wide"><table aria-label="{title}">'
        f"<thead><tr><td></td>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>{note}"
    )


def _flips(run: Run, task: str, about: Mapping[str, Any], thumbnails: dict[str, str]) -> Iterator[str]:
    scorer = next(iter(about["scorers"]), None)
    known = {one.name: one for one in run.benchmarks[task].scorers}
    if run.baseline is None or scorer not in known:
        return
    answers, items = run.answers[task], run.items[task]
    named = _telling(items)
    for arm in run.arms:
        if arm.kind != "recipe":
            continue
        broken, repaired = flips.worst(items, answers[run.baseline], answers[arm.name], known[scorer])
        for words, found, after in (("worse", broken, "bad"), ("better", repaired, "good")):
            if found:
                head = f"{arm.name}: items that it answers {words}, the clearest first ({len(found)})"
                cards = "".join(_card(flip, after, named, thumbnails) for flip in found)
                yield f'<details><summary>{escape(head)}</summary><div class="cards">{cards}</div></details>'


def _telling(items: Sequence[Item]) -> list[str]:
    """What gold says of one item: what it says of all alike (their file, a vocabulary) is left out."""
    names = dict.fromkeys(name for item in items for name in item.gold)
    return [name for name in names if len({json.dumps(item.gold.get(name)) for item in items}) > 1 or len(items) == 1]


def _card(flip: flips.Flip, after: str, named: Sequence[str], thumbnails: dict[str, str]) -> str:
    before = "good" if after == "bad" else "bad"
    gold = "; ".join(f"{name}: {text}" for name in named if (text := _told(flip.item, name)))
    return (
        f'<div class="card"><div>{_thumbnail(flip.item, thumbnails)}</div><div>'
        f'<p>{escape(_cut(flip.item.prompt))}</p><p class="soft">{escape(flip.item.id)} · {escape(_cut(gold))}</p>'
        f'<p>baseline: <span class="{before}">{_said(flip.before)}</span></p>'
        f'<p>steered: <span class="{after}">{_said(flip.after)}</span></p></div></div>'
    )


def _told(item: Item, name: str) -> str:
    """A value of an item's gold as text; empty if there is none, or the question or the picture's name says it."""
    value = item.gold.get(name)
    text = ", ".join(map(_words, value)) if isinstance(value, list) else _words(value)
    return "" if (" " in text and text in item.prompt) or text == Path(item.image or "").name else text


def _said(answer: Answer) -> str:
    text = escape(_cut(answer.text)) if answer.text.strip() else "" if answer.logprobs else "<em>empty</em>"
    found = margin(answer)
    if not math.isnan(found):
        return f'{text} <span class="soft">(yes−no {found:+.2f} nats)</span>'
    numbers = ", ".join(f"{name} {value:.2f}" for name, value in answer.logprobs.items())
    return f'{text} <span class="soft">{escape(_cut(numbers))}</span>' if numbers else text


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _thumbnail(item: Item, made: dict[str, str]) -> str:
    if item.image is None:
        return '<span class="none">no image</span>'
    if item.image not in made:
        try:
            picture = open_image(item.image)
        except VlmsteerError:
            made[item.image] = ""
        else:
            picture.thumbnail((SIDE, SIDE))
            out = io.BytesIO()
            picture.save(out, "JPEG", quality=82)
            made[item.image] = _uri(out.getvalue(), "jpeg")
    found = made[item.image]
    return (
        f'<img src="{found}" alt="" loading="lazy">' if found else '<span class="none">image not readable here</span>'
    )


def _errors(run: Run, task: str) -> str:
    found = [(arm, item, text) for arm, rows in run.errors[task].items() for item, text in rows.items()]
    if not found:
        return ""
    rows = "".join(f"<li>{escape(f'{arm}, {item}: {_cut(text)}')}</li>" for arm, item, text in found[:ERRORS])
    more = f"<p>… and {len(found) - ERRORS} more in samples.jsonl.</p>" if len(found) > ERRORS else ""
    count = f"{len(found)} error{'s' if len(found) > 1 else ''}, scored as missing"
    return f"<details open><summary>{count}</summary><ul>{rows}</ul>{more}</details>"


def _anchor(task: str) -> str:
    return "task-" + escape(task, quote=True).replace(" ", "-")


def _uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
