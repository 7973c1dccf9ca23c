"""The results store: cells, runs, records, claims. Files only; any number of writers; no torch.

store = Store.open()
store.put_cell(cell_id, identity, settings)
run = store.run(cell_id, provenance.run_id(code, settings))
run.create(code, settings)
claim = run.claim("train")                    # Claim, or a falsy Held that says who has it
with claim: ...; run.put_record("train", step, body, envelope)
"""

from ltbench.store.claims import Claim, Held
from ltbench.store.core import Store
from ltbench.store.failures import CAUSES
from ltbench.store.frame import load_records
from ltbench.store.records import Damaged, Record, Records
from ltbench.store.run import Run
from ltbench.store.states import StageState

__all__ = [
    "CAUSES",
    "Claim",
    "Damaged",
    "Held",
    "Record",
    "Records",
    "Run",
    "StageState",
    "Store",
    "load_records",
]
