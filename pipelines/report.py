"""Write what a run is and was as one HTML page, from its folder alone: no cluster, no MLflow.

    python -m pipelines.report RUN [--to FILE_OR_FOLDER]

RUN is a run folder (path or URI) or the name of a run under run.storage; it may run, or have ended in any way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipelines.driver.cli import run_main
from pipelines.driver.gather import PAGE, gather
from pretrainer.config import RunConfig
from pretrainer.report.page import render
from pretrainer.storage import Store, resolve_run


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.report", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", help="run folder (path or URI) or the name of a run under --storage")
    parser.add_argument("--storage", default=RunConfig().storage, help="where named runs are (default: %(default)s)")
    parser.add_argument("--to", help="page.html, or a folder for report.html (path or URI); RUN/report by default")
    options = parser.parse_args(arguments)
    run = resolve_run(options.run, options.storage)
    page = render(gather(run))
    if options.to is None:
        place, name = run, PAGE
    elif options.to.endswith(".html"):
        folder, _slash, name = options.to.rpartition("/")
        place = Store(folder or ".")
    else:
        place, name = Store(options.to), "report.html"
    place.write(name, page)
    print(place.child(name).uri)
    return 0


if __name__ == "__main__":
    run_main(main)
