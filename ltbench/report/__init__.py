"""Tables and figures from records: one table object, many views. Imports no torch; nothing here trains or measures."""
