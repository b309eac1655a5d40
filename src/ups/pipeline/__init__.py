"""Orchestration: from settings to a scored, reported run, and the commands on finished runs."""
