"""Writes the generated parts of the documentation: a page for each method and attack, and lists.

    python benchmarks/make_pages.py           writes them
    python benchmarks/make_pages.py --check   fails where one differs from the code or the results

The page of a method or attack has the facts of the registry, the docstring of its module, what
the runs of ``benchmarks/grid.toml`` measured, and the settings. In ``docs/methods/NAME.md`` a text
that is written by hand, between the generated parts, takes the docstring's place. The overviews get
their lists, the glossary the words of the report, and ``mkdocs.yml`` the pages. Generated parts
stand between marks; everything outside them is kept as it is.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from make_leaderboard import grid_summary
from page_tables import in_short, markdown
from registry_pages import Runs, attack_page, method_head, method_tail

from bezoar.attacks import Attack, attacks
from bezoar.bench.table import NONE
from bezoar.methods import Method, methods
from bezoar.pools import open_pool
from bezoar.records import write_text
from bezoar.report.glossary import ALL_WORDS

ROOT = Path(__file__).parents[1]
MARK = "<!-- {}: {} -->"
OURS = "bezoar."  # methods and attacks of other packages have pages of their own elsewhere
CONTROLS = {
    "images": "Attacks on the training images",
    "training": "Attacks on the training itself",
    "weights": "Attacks on a trained network",
}


def _block(name: str, text: str, mark: str = MARK) -> str:
    blank = "\n\n" if mark == MARK else "\n"  # Markdown wants a blank line beside a comment
    return blank.join([mark.format(name, "generated"), text, mark.format(name, "end")])


def _without_blocks(page: str) -> str:
    """What is written by hand."""
    block = MARK.format(r"(\w+)", "generated") + ".*?" + MARK.format(r"\1", "end")
    return re.sub(block, "", page, flags=re.DOTALL).strip()


def _with_block(page: str, name: str, text: str, mark: str = MARK) -> str:
    """The page with what stands between the marks of ``name`` replaced."""
    begin, end = (re.escape(mark.format(name, which)) for which in ("generated", "end"))
    block = _block(name, text, mark)
    new, count = re.subn(f"{begin}\n.*?{end}", lambda _: block, page, flags=re.DOTALL)
    if count != 1:
        sys.exit(f"the marks of the generated part {name!r} are there {count} times, not once")
    return new


def wanted(root: Path) -> dict[Path, str]:
    """File → what it has to hold."""
    docs = root / "docs"
    runs: Runs = grid_summary(root / "benchmarks" / "grid.toml")["runs"]
    both: Runs = [*runs, *grid_summary(root / "benchmarks" / "grid_development.toml")["runs"]]
    pool = open_pool(root / "benchmarks" / "pool")
    results = {
        file.name: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted((root / "benchmarks" / "results").glob("*.json"))
    }
    own_methods = [k for k in map(methods.get, methods.names()) if k.__module__.startswith(OURS)]
    own_attacks = [k for k in map(attacks.get, attacks.names()) if k.__module__.startswith(OURS)]
    pages = {}
    for kind in own_methods:
        file = docs / "methods" / f"{kind.name}.md"
        text = _without_blocks(file.read_text(encoding="utf-8")) if file.exists() else ""
        head = _block("facts", method_head(kind, described=bool(text)))
        tail = _block("tables", method_tail(kind, runs, results))
        pages[file] = "\n\n".join(filter(None, [head, text, tail])) + "\n"
    for one in own_attacks:
        entries = [entry for entry in pool.entries if entry.attack == one.name]
        pages[docs / "attacks" / f"{one.name}.md"] = attack_page(one, both, entries, results)
    return pages | {
        file: change(file.read_text(encoding="utf-8"))
        for file, change in {
            docs / "methods.md": partial(_method_list, kinds=own_methods, runs=runs),
            docs / "attacks.md": partial(_attack_list, kinds=own_attacks),
            docs / "glossary.md": _glossary,
            root / "mkdocs.yml": partial(_navigation, kinds=[*own_methods, *own_attacks]),
        }.items()
    }


def _method_list(page: str, kinds: Sequence[type[Method]], runs: Runs) -> str:
    rows = [
        {
            "method": f"[`{kind.name}`](methods/{kind.name}.md)",
            "what": kind.title,
            "finds the class": "yes" if kind.inspects else "no",
            "needs": kind.needs,
            "ASR left / points lost (models)": in_short(
                [r for r in runs if r["label"] == kind.name and r["half"] == "held-out"]
            ),
        }
        for kind in sorted(kinds, key=lambda kind: (not kind.inspects, kind.name))
    ]
    return _with_block(page, "list", markdown(rows))


def _attack_list(page: str, kinds: Sequence[type[Attack]]) -> str:
    for controls in CONTROLS:
        rows = [
            {
                "attack": f"[`{kind.name}`](attacks/{kind.name}.md)",
                "what": kind.title,
                "paper": kind.paper or NONE,
            }
            for kind in kinds
            if kind.controls == controls
        ]
        page = _with_block(page, controls, markdown(rows))
    return page


def _glossary(page: str) -> str:
    parts = []
    for topic, words in ALL_WORDS.items():
        entries = "\n".join(f"- **{word}**: {meaning}" for word, meaning in words.items())
        parts.append(f"### {topic}\n\n{entries}")
    return _with_block(page, "report", "\n\n".join(parts))


def _navigation(page: str, kinds: Sequence[type[Method | Attack]]) -> str:
    for folder, base in (("methods", Method), ("attacks", Attack)):
        names = [kind.name for kind in kinds if issubclass(kind, base)]
        lines = "\n".join(f"    - {name}: {folder}/{name}.md" for name in names)
        page = _with_block(page, folder, lines, "    # {}: {}")
    return page


def main(*, check: bool) -> None:
    """Writes every page, or compares them."""
    stale = {
        file: text
        for file, text in wanted(ROOT).items()
        if not file.exists() or file.read_text(encoding="utf-8") != text
    }
    if check and stale:
        names = ", ".join(file.relative_to(ROOT).as_posix() for file in stale)
        sys.exit(f"not what the code and the results say: {names}; run `make measured`")
    for file, text in stale.items():
        file.parent.mkdir(exist_ok=True)
        write_text(file, text)


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
