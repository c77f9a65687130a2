"""The probe of `quarantine`: does a task as a data worker would and tells how far it is.

    python -m pretrainer.data.probe TASK PLACE
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from pretrainer.data.quarantine import CANNOT_TELL, FAILED, progress_to
from pretrainer.errors import PretrainerError


def main(task: str, place: str) -> int:
    try:
        attempt, stops = pickle.loads(Path(task).read_bytes())  # written by `quarantine` a moment ago
        attempt(stops, progress_to(place))
    except PretrainerError as error:
        print(error)
        return CANNOT_TELL
    except Exception as error:  # whatever it is, the content raises it, and its name goes into the verdict
        print(f"{type(error).__name__}: {' '.join(str(error).split())}"[:500])
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
