"""The models of the committed pool as a table: writes ``results/pool.json`` from their records.

    python benchmarks/pool_table.py

Nothing is measured here; the records under ``benchmarks/pool`` say what was, when each model was
made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from result_file import result_head

from bezoar.pools import Pool, open_pool
from bezoar.pools.index import Entry
from bezoar.records import write_json

POOL = Path(__file__).parent / "pool"
RESULTS = Path(__file__).parent / "results" / "pool.json"


def row(pool: Pool, entry: Entry) -> dict[str, Any]:
    """One model."""
    record = pool.record(entry)
    scores, twin = record["scores"], record["clean twin"] or {}
    before = record["before rounding"]
    changes = [abs(scores[name]["value"] - before[name]["value"]) for name in scores]
    return {
        "data": entry.data,
        "network": entry.network,
        "attack": entry.attack or "none",
        "half": entry.half,
        "status": entry.status,
        "target": entry.target,
        "rate": f"{entry.rate:g}" if entry.attack else None,
        "acc": scores["acc"],
        "asr": scores.get("asr"),
        "twin acc": twin.get("acc"),
        "twin asr": twin.get("asr"),
        "change by half precision": max(changes),
        "seconds": record["seconds"]["training"],
    }


def main() -> None:
    """Writes the table."""
    pool = open_pool(POOL)
    if pool.waiting or pool.failed:
        raise SystemExit(f"the pool is not finished: {pool.waiting} {pool.failed}")
    rows = [row(pool, entry) for entry in pool.entries]
    files = [path for path in POOL.glob("*/*") if path.is_file()]
    head = result_head(
        __file__,
        "The pool of models",
        "one thread a model, other work beside it",
        command="bezoar attack pool benchmarks/pool/pool.toml --out benchmarks/pool "
        "--executor local:2 && python benchmarks/pool_table.py",
    )
    figures = {
        "models": rows,
        "clean": sum(entry.status == "clean" for entry in pool.entries),
        "backdoored": sum(entry.status == "backdoored" for entry in pool.entries),
        "weak": sum(entry.status == "weak" for entry in pool.entries),
        "natural": sum(entry.status == "natural" for entry in pool.entries),
        "attacks among the backdoored": len(
            {entry.attack for entry in pool.entries if entry.status == "backdoored"}
        ),
        "megabytes": sum(path.stat().st_size for path in files) / 1e6,
        "largest change by half precision": max(row["change by half precision"] for row in rows),
    }
    write_json(RESULTS, head | figures)


if __name__ == "__main__":
    main()
