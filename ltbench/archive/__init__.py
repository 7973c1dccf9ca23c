"""Results in one file: what a benchmark has in a store, packed, and merged into another store.

An archive is a zip file that any tool opens. Its members lie as in a store, so that an unpacked one can be looked at:

    MANIFEST.json           format, benchmark, and of every other member its sha256 and bytes
    store/cells/..          cell.json, run.json, the records that count, facts, failures that stand
    store/evaluations/..    what the records' evaluations are
    spec/NAME.yaml          the benchmark, complete in itself
    lock/..                 a lock file (`export --lock`): which records are behind which printed number
    plugins/methods/..      the files of the methods and data sets of its cells; plugins/datasets/..
    images/KEY/..           generated images that were kept (`export --samples`), as they lie in the scratch folder

The same store gives the same bytes. Claims, heartbeats and checkpoints belong to a place and stay there.
"""

from __future__ import annotations

FORMAT = 1
MANIFEST = "MANIFEST.json"
