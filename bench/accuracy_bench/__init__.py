"""The accuracy bench: tasks, models, cells of the table, and the table itself; run by `bench/accuracy.py`."""
