"""Look at curation before a run: the whole chain on a sample of every source, as one HTML page and a table.

    python -m pipelines.inspect_data
    python -m pipelines.inspect_data --documents 200 --to /tmp/inspect.html       # the smallest, seconds on a laptop
    python -m pipelines.inspect_data --config configs/125m.yaml data.dedup.threshold=0.7

It needs no cluster and writes nothing but the page, which opens in any browser and loads nothing. Limits can be moved
in it; it counts again what would be dropped and shows the lines of a config that would do the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipelines.driver.cli import config_parser, read_config, run_main
from pretrainer.data.inspect.look import look, table
from pretrainer.data.inspect.page import model, render
from pretrainer.errors import UserError


def main(arguments: Sequence[str]) -> int:
    parser = config_parser("inspect_data", "Look at what curation does to a sample of every source.")
    parser.add_argument(
        "--documents", metavar="N", type=int, default=2000, help="documents sampled per source (default: %(default)s)"
    )
    parser.add_argument("--to", metavar="FILE", default="inspect.html", help="the page (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.documents < 1:
        raise UserError(f"--documents={options.documents} is not possible: use 1 or more")
    page, config = _checked(options.to), read_config(options)
    looked = look(config, options.documents)
    content = render(model(config, looked))
    page.write_bytes(content)
    print(table(looked))
    print(f"page: {page.resolve()} ({len(content) / 1e6:,.1f} MB)")
    return 0


def _checked(to: str) -> Path:
    """The path of the page, before anything expensive is done for it."""
    page = Path(to).expanduser()
    if page.is_dir() or not page.absolute().parent.is_dir():
        raise UserError(f"--to={to!r} is not possible: name a file in a folder that exists")
    return page


if __name__ == "__main__":
    run_main(main)
