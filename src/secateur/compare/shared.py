"""Networks that several jobs would train alike from scratch: trained once, and every one of the jobs gets the result.

Methods that are given the same widths leave the same small network, and from scratch nothing of the method is left in
it: fresh weights, data order and recipe follow from the structure, the seed and the model part alone.
"""

from __future__ import annotations

import os
import shutil

from .jobs import Job
from .spec import digest_of
from .work import INHERITED, MODEL, RESULT, Place, write_json


def network_of(job: Job, place: Place) -> str | None:
    """Return a digest of all that decides what a job trains from scratch; None for any other job.

    Args:
        job: the cut that it needs is done.
        place: of the results.
    """
    if not job.recovery.startswith("scratch"):
        return None
    structure = (place.result(job.needs[0]) or {}).get("structure")
    if structure is None:
        return None  # single weights were removed: which, is the method's
    own = {name: getattr(job, name) for name in ("model", "seed", "hold_out", "recovery", "scratch_cap", "processes")}
    return digest_of({"structure": structure} | own)


def share(job: Job, twin: Job, place: Place) -> None:
    """Give a job the result of another that trained the same network.

    Args:
        job: not done; the cut that it needs is.
        twin: done, with the same `network_of`.
        place: of the results.
    """
    found, cut = place.result(twin.digest), place.result(job.needs[0])
    assert found is not None
    assert cut is not None
    with place.alone(job.digest) as folder:
        (folder / MODEL).unlink(missing_ok=True)
        try:
            os.link(place.of(twin.digest) / MODEL, folder / MODEL)
        except OSError:  # a file system without links
            shutil.copyfile(place.of(twin.digest) / MODEL, folder / MODEL)
        write_json(folder / RESULT, found | {key: cut[key] for key in INHERITED} | {"shared_with": twin.digest})
        place.tidy(job.digest)
