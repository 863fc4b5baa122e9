"""Every shipped ablation, one after another, and its table: does what the configurations say help or not?

    python -m benchmarks.ablations                                # runs what is not finished yet, prints all tables
    python -m benchmarks.ablations --write docs/ablations.md      # puts the tables between that page's marks
    python -m benchmarks.ablations --only listops --minutes 8     # a part at a time; what was run is kept

Runs are kept under --output-dir; an interrupted one goes on from its last cell. CPU minutes are those of the cells.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).parent.parent / "configs"
BEGIN, END = "<!-- tables: python -m benchmarks.ablations --write docs/ablations.md -->", "<!-- end of tables -->"


def main() -> None:
    """Run what is missing, then print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path("experiments/ablations"))
    parser.add_argument("--only", action="append", default=[], help="names of configurations, without ablate-")
    parser.add_argument("--minutes", type=float, default=None, help="stop every run after so many; call again to go on")
    parser.add_argument("--tables", action="store_true", help="run nothing, only show what is finished")
    parser.add_argument("--write", type=Path, default=None, help="page that the tables are written into")
    wanted = parser.parse_args()
    names = [path.stem.removeprefix("ablate-") for path in sorted(CONFIGS.glob("ablate-*.yaml"))]
    chosen = [name for name in names if not wanted.only or name in wanted.only]
    if not wanted.tables:
        for name in chosen:
            _finish(name, wanted.output_dir / name, wanted.minutes)
    parts = [part for name in names for part in _section(name, wanted.output_dir / name)]
    text = "\n".join(parts).strip() + "\n"
    if wanted.write is None:
        print(text)
        return
    page = wanted.write.read_text(encoding="utf-8")
    head, rest = page.split(BEGIN)
    wanted.write.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{rest.split(END)[1]}", encoding="utf-8")


def _finish(name: str, folder: Path, minutes: float | None) -> None:
    """Run the configuration, or go on with it, unless a finished run lies there."""
    if (folder / "latest/results.json").exists():
        return
    begun = list(folder.glob(".partial/*/manifest.json"))
    how = ["--resume", "latest"] if begun else ["-c", str(CONFIGS / f"ablate-{name}.yaml")]
    how += ["--max-time", f"{60 * minutes:g}"] if minutes and not begun else []
    subprocess.run([sys.executable, "-m", "cohomcli", "train", *how, "--output-dir", str(folder)], check=False)


def _section(name: str, folder: Path) -> Iterator[str]:
    """The heading, the command, the sentences and the table of one configuration."""
    yield f"### {name}\n"
    yield f"`cohom train -c configs/ablate-{name}.yaml`\n"
    if not (folder / "latest/results.json").exists():
        yield "Not run yet.\n"
        return
    result = json.loads((folder / "latest/results.json").read_text(encoding="utf-8"))["training"]
    manifest = json.loads((folder / "latest/manifest.json").read_text(encoding="utf-8"))
    cells = [stage["seconds"] for stage in manifest["stages"] if stage["name"] != "report"]
    yield (
        f"{result['about'].capitalize()}. {result['n_parameters']:,} parameters; {len(cells)} runs, "
        f"{sum(cells) / 60:.1f} CPU minutes; a step with our losses costs {result['compute_ratio']:.2f} plain ones.\n"
    )
    yield from _table(result)
    yield from _rivals(result)


def _table(result: Mapping[str, Any]) -> Iterator[str]:
    metric = result["metric"]
    other = "accuracy" if metric == "loss" else "loss"
    yield f"| arm | weight | steps | {metric} | difference | interval | p | verdict | {other} |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for arm in result["ablation"]:
        compared = arm["difference"] is not None
        cells = [
            arm["arm"],
            "" if arm["weight"] is None else f"{arm['weight']:g}",
            f"{arm['steps']}",
            "diverged" if arm["mean"] is None else f"{arm['mean']:.4f}",
            f"{arm['difference']:+.4f}" if compared else "",
            f"{arm['interval'][0]:+.4f} to {arm['interval'][1]:+.4f}" if compared else "",
            f"{arm['p_value']:.2g}" if compared else "",
            arm["verdict"],
            "" if arm[other] is None else f"{arm[other]:.4f}",
        ]
        yield f"| {' | '.join(cells)} |"


def _rivals(result: Mapping[str, Any]) -> Iterator[str]:
    found = [
        f"against {one['against']} {one['difference']:+.4f} ({one['verdict']})"
        for one in result["comparisons"]
        if one["against"] != "none"
    ]
    known = [one for one in result["comparisons"] if (one["arm"], one["against"]) == ("ours", "none")]
    seen = f" A difference from none below {known[0]['detectable']:.2g} would not have been called." if known else ""
    yield f"\nOurs {', '.join(found)}.{seen}\n" if found else ""


if __name__ == "__main__":
    main()
