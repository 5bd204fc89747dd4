"""``report.html``: results as one page that needs nothing else, neither network nor script."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from services.evaluation import charts, figures
from services.evaluation.figures import CUTS, LESS_IS_BETTER, TITLES
from services.evaluation.journal import Row
from services.evaluation.metrics import language_of, percentile, recall
from services.evaluation.run import MODES

_WORST = 25
_STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5c6670; --rule: #d8dde2; --page: #fff; --mark: #f5f7f9;
  --bad: #b3261e; --good: #2e7d32; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #9aa4ae; --rule: #3a424a; --page: #14181c;
  --mark: #1d2329; --bad: #ff8a80; --good: #81c784; } }
body { font: 15px/1.55 system-ui, "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif;
  color: var(--ink); background: var(--page); max-width: 62rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { margin-top: 2.6rem; border-bottom: 2px solid var(--rule) }
h3 { margin-top: 1.8rem } .soft { color: var(--soft) } .bad { color: var(--bad) } .good { color: var(--good) }
.table { overflow-x: auto } table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top }
th { font-weight: 600 } td.n, th.n { text-align: right; white-space: nowrap }
td b { font-weight: inherit; white-space: nowrap }
td small { color: var(--soft) } .warn { background: var(--mark); border-left: 4px solid var(--bad); padding: .5rem .8rem }
svg { max-width: 100%; height: auto; display: block; margin: .6rem 0 } svg text { fill: var(--ink) }
svg .grid { stroke: var(--rule) } summary { cursor: pointer; font-weight: 600; margin: .8rem 0 }
td.text { max-width: 22rem; overflow-wrap: anywhere }
@media print { details { display: block } }
"""


def page(title: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def report(results: Mapping[str, Any]) -> str:
    """The page of one run."""
    names = ", ".join(s["name"] for s in results["sets"])
    body = ["<h1>docduet evaluation</h1>", f'<p class="soft">{escape(names)}</p>']
    if not results["complete"]:
        body.append('<p class="warn">The run was interrupted: the figures are those of the questions asked so far.</p>')
    body.append(_facts({**results["service"], **results["settings"]}))
    body += [_set(s) for s in results["sets"]]
    body.append(_reading())
    return page(f"Evaluation: {names}", "\n".join(body))


def comparison(a: str, b: str, sets: Sequence[Mapping[str, Any]]) -> str:
    """The page of two runs."""
    body = ["<h1>docduet evaluation: two runs</h1>", f"<p>A is {escape(a)}, B is {escape(b)}.</p>"]
    for s in sets:
        body.append(f"<h2>{escape(s['name'])}</h2>")
        if not s["same_file"]:
            body.append('<p class="warn">The two runs read different files of this name.</p>')
        rows = [
            [
                f"<b>{escape(name)}</b>",
                *(f"{f[x]:.3f}" for x in ("a", "b")),
                verdict(name, f),
                f"{f['p']:.3f}",
                str(f["n"]),
            ]
            for name, f in s["figures"].items()
        ]
        body.append(
            _table(["figure", "A", "B", "B - A, with its 95 % interval", "p", "questions"], rows, numbers=(1, 2, 4, 5))
        )
        times = [
            [escape(n), *(f"{t[x][q]:,.0f}" for q in ("p50", "p95") for x in ("a", "b"))]
            for n, t in s["milliseconds"].items()
        ]
        if times:
            body.append(_table(["milliseconds", "A p50", "B p50", "A p95", "B p95"], times, numbers=(1, 2, 3, 4)))
        moved = [[_said(c["question"]), escape(c["what"]), escape(c["a"]), escape(c["b"])] for c in s["changed"]]
        if moved:
            body.append("<h3>Questions that moved most</h3>")
            body.append(_table(["question", "what", "A", "B"], moved, numbers=(2, 3)))
    return page("Evaluation: two runs", "\n".join(body))


def verdict(name: str, found: Mapping[str, Any]) -> str:
    """``+0.021 (+0.008 to +0.034) better``."""
    told = f"{found['value']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f})"
    if not found["significant"]:
        return told
    better = (found["value"] > 0) != (name.rpartition(".")[2] in LESS_IS_BETTER)
    return f'{told} <span class="{"good" if better else "bad"}">{"better" if better else "worse"}</span>'


def _facts(of: Mapping[str, Any]) -> str:
    rows = [[escape(str(name)), _said(", ".join(v) if isinstance(v, list) else v)] for name, v in of.items()]
    return f"<details open><summary>What was measured</summary>{_table(['', ''], rows)}</details>"


def _set(of: Mapping[str, Any]) -> str:
    rows: list[Row] = of["rows"]
    counts = ", ".join(f"{number:,} {what}" for what, number in of["counts"].items())
    body = [
        f"<h2>{escape(of['name'])}</h2>",
        f'<p class="soft">{escape(counts)}; collection {escape(of["collection"])}</p>',
    ]
    if of["documents missing"]:
        told = "; ".join(f"{name}: {why}" for name, why in list(of["documents missing"].items())[:10])
        body.append(f'<p class="warn">Documents that are missing, and whose questions were left out: {_said(told)}</p>')
    modes = [m for m in MODES if f"search.{m}.ndcg@10" in of["figures"]]
    if modes:
        body.append(_retrieval(of, rows, modes))
    if any(name.startswith("answer.") for name in of["figures"]):
        body.append(_answers(of, rows))
    if failed := figures.errors(rows):
        table = _table(["question", "asked", "error"], [[_said(q), escape(how), _said(why)] for q, how, why in failed])
        body.append(f"<h3>Errors</h3><p>They count in no figure.</p>{table}")
    return "\n".join(body)


def _retrieval(of: Mapping[str, Any], rows: Sequence[Row], modes: Sequence[str]) -> str:
    found, times = of["figures"], of["milliseconds"]
    names = [*(f"recall@{k}" for k in CUTS), "mrr@10", "ndcg@10"]
    table = [
        [
            escape(m),
            *(_value(found[f"search.{m}.{n}"]) for n in names),
            *(f"{times[f'search.{m}'][q]:,.0f}" for q in ("p50", "p95")),
        ]
        for m in modes
    ]
    body = [
        "<h3>Retrieval</h3>",
        _table(["mode", *names, "p50 ms", "p95 ms"], table, numbers=range(1, 8)),
    ]
    if ratio := found.get("search.error ratio"):
        body.append(
            f"<p>Error of hybrid (1 - nDCG@10) over that of the better of its parts: <b>{ratio['value']:.2f}</b> "
            f"({ratio['low']:.2f} to {ratio['high']:.2f}); below 1, fusing pays.</p>"
        )
    body.append(
        charts.dots(
            [
                (f"{n}, {m}", f["value"], f["low"], f["high"], i)
                for n in ("recall@4", "ndcg@10")
                for i, m in enumerate(modes)
                if (f := found[f"search.{m}.{n}"])
            ]
        )
    )
    ranks = {m: [r["search"][m]["rank"] for r in rows if "rank" in r.get("search", {}).get(m, {})] for m in modes}
    curve = {
        m: [(float(k), sum(recall(r, k) for r in of_) / len(of_)) for k in range(1, 11)]
        for m, of_ in ranks.items()
        if of_
    }
    body.append(charts.lines(curve, x_label="pages looked at (k)", y_label="Recall@k"))
    taken = {m: [r["search"][m]["ms"] for r in rows if "ms" in r.get("search", {}).get(m, {})] for m in modes}
    spread = {m: [(percentile(ms, q / 50), q / 50) for q in range(51)] for m, ms in taken.items() if ms}
    body.append(charts.lines(spread, x_label="milliseconds of a search", y_label="share of searches done"))
    mode = modes[0]
    missed = [r for r in rows if "rank" in r.get("search", {}).get(mode, {}) and (r["search"][mode]["rank"] or 99) > 1]
    missed.sort(key=lambda r: -(r["search"][mode]["rank"] or 99))
    if missed:
        worst = [
            [
                _said(r["question"]),
                str(r["search"][mode]["rank"] or "not found"),
                _said(_place(r["document"], r["pages"])),
                _said(" · ".join(f"{d}, p.\u00a0{p} ({s:.2f})" for d, p, s in r["search"][mode]["found"][:3])),
            ]
            for r in missed[:_WORST]
        ]
        body.append(
            f"<details><summary>Worst questions of {escape(mode)} search: {len(missed)} of {len(ranks[mode])} do not have the gold "
            f"page first</summary>{_table(['question', 'rank', 'gold', 'found instead'], worst, numbers=(1,))}</details>"
        )
    return "\n".join(body)


def _answers(of: Mapping[str, Any], rows: Sequence[Row]) -> str:
    found, times = of["figures"], of["milliseconds"]
    names = [n for n in TITLES if f"answer.{n}" in found]
    table = [
        [escape(TITLES[n]), escape(figures.shown(f"answer.{n}", found[f"answer.{n}"])), str(found[f"answer.{n}"]["n"])]
        for n in names
    ]
    body = ["<h3>Answers</h3>", _table(["", "with its 95 % interval", "questions"], table, numbers=(1, 2))]
    if number := of["answered from another document"]:
        body.append(
            f"<p>{number} of the false answers hold the gold answer and cite a page of another document that bears it out.</p>"
        )
    shown = [
        (n, f["value"], f["low"], f["high"], int(n in LESS_IS_BETTER)) for n in names if (f := found[f"answer.{n}"])
    ]
    body.append(charts.dots(shown, percent=True))
    if "answer" in times:
        told = [[n, *(f"{times[n][q]:,.0f}" for q in ("p50", "p95", "n"))] for n in ("first token", "answer")]
        body.append(_table(["milliseconds", "p50", "p95", "answers"], told, numbers=(1, 2, 3)))
    asked = [r for r in rows if "answer" in r and "error" not in r["answer"]]
    body.append(
        charts.histogram(
            [r["answer"]["f1"] for r in asked if _scored(r)], x_label="token F1 of an answer (how many answers)"
        )
    )
    body.append(_worst("Worst answers", sorted((r for r in asked if _scored(r)), key=lambda r: r["answer"]["f1"])))
    body.append(
        _worst(
            "Unanswerable, but answered", [r for r in asked if r["kind"] != "answerable" and r["answer"]["answerable"]]
        )
    )
    wrong = [
        [
            _said(r["question"]),
            _said(c["quote"]),
            _said(_place(c["document"], [c["page"]])),
            "no support" if c["exact"] else "not on the page",
        ]
        for r in asked
        if r["kind"] == "answerable"
        for c in r["answer"]["citations"]
        if not (c["exact"] and c["supports"])
    ]
    if wrong:
        listed = _table(["question", "quote", "said to be in", "what is wrong"], wrong[:_WORST])
        body.append(f"<details><summary>Citations that do not hold: {len(wrong)}</summary>{listed}</details>")
    return "\n".join(body)


def _scored(row: Row) -> bool:
    return row["kind"] == "answerable" and "f1" in row["answer"]


def _worst(title: str, rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    table = [
        [
            _said(r["question"]),
            _said(r["answer"]["answer"]),
            _said(" / ".join(r["answers"][:3]) if r["kind"] == "answerable" else r["kind"]),
            f"{r['answer']['f1']:.2f}" if "f1" in r["answer"] else "",
            _said(", ".join(_place(c["document"], [c["page"]]) for c in r["answer"]["citations"])),
        ]
        for r in rows[:_WORST]
    ]
    listed = _table(["question", "answer", "gold", "F1", "cited"], table, numbers=(3,))
    return f"<details><summary>{escape(title)}: {min(len(rows), _WORST)} of {len(rows)}</summary>{listed}</details>"


def _reading() -> str:
    return (
        "<h2>How to read this</h2><p>An interval is the 95 % bootstrap interval over the questions: another sample of such questions "
        "would give a figure in it, nearly always. A page counts once, however many passages of it were found. Answers are compared "
        "after folding width, case and (where OpenCC is installed) traditional characters; F1 is over characters for Chinese, as "
        "CMRC 2018 counts, and over words for English, as SQuAD counts. Gold answers are short and answers are sentences, so F1 "
        "is far below 1 for a perfect system; compare it between runs.</p>"
    )


def _value(f: Mapping[str, float]) -> str:
    return f"{f['value']:.3f}<br><small>{f['low']:.3f} to {f['high']:.3f}</small>"


def _place(document: str, pages: Sequence[int]) -> str:
    return document + (f", p.\u00a0{', '.join(map(str, pages))}" if pages else "")


def _said(text: object) -> str:
    """Escaped, and with its language where it is Chinese: fonts differ by it."""
    told = escape(str(text))
    return f'<span lang="zh">{told}</span>' if language_of(told) == "zh" else told


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int] = ()) -> str:
    """Cells are HTML; ``numbers`` are the columns that stand at the right."""
    right = set(numbers)

    def row(cells: Sequence[str], tag: str) -> str:
        kinds = ["n" if i in right else "text" for i in range(len(cells))]
        return "<tr>" + "".join(f'<{tag} class="{k}">{c}</{tag}>' for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    top = f"<thead>{row([escape(h) for h in head], 'th')}</thead>" if any(head) else ""
    return f'<div class="table"><table>{top}<tbody>{"".join(row(r, "td") for r in rows)}</tbody></table></div>'
