"""Scenario files, the loop of a run, and the command line."""
