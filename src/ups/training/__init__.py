"""The one training loop, what it stands on, and the stages that run in it."""
