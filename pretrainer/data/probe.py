"""The probe of `quarantine`: reads and curates one unit as a data worker would and tells how far it is.

    python -m pretrainer.data.probe TASK PLACE
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

from pretrainer.data.plan import SourcePlan
from pretrainer.data.quarantine import CANNOT_TELL, FAILED, progress_to
from pretrainer.data.readers.reading import Stop
from pretrainer.data.stages import curate_chunk, raw_chunks
from pretrainer.errors import PretrainerError

Tell = Callable[[int, int, bool], None]


def main(task: str, place: str) -> int:
    plan, unit, stops = pickle.loads(Path(task).read_bytes())  # written by `quarantine` a moment ago
    try:
        probe(plan, unit, stops, progress_to(place))
    except PretrainerError as error:
        print(error)
        return CANNOT_TELL
    except Exception as error:  # whatever it is, the content raises it, and its name goes into the verdict
        print(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
        return FAILED
    return 0


def probe(plan: SourcePlan, unit: int, stops: tuple[Stop, ...], tell: Tell) -> None:
    """Read a unit record by record and curate it document by document."""
    pieces = {piece.shard: number for number, piece in enumerate(plan.unit_plan.pieces(unit))}
    chunks = raw_chunks(plan, unit, stops=stops, watch=lambda piece, row: tell(piece, row, True))
    for docs, report, _last in chunks:
        places = zip(docs.column("shard").to_pylist(), docs.column("row").to_pylist(), strict=True)
        for number, (shard, row) in enumerate(places):
            tell(pieces[shard], row, False)
            curate_chunk(plan, docs.slice(number, 1), report)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
