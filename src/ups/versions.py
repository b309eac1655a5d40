"""Numbers that go up when what an earlier version of the package left behind is no longer what this one would leave.

They are in the keys of what is made, so that running again makes it anew.
"""

MODEL_FORMAT = 7
"""Of a model's files: goes up when those of before cannot be loaded, or would mean another model."""

SCORES = 1
"""Of the scores' definitions: goes up when the same predictions would have another value of any of them."""
