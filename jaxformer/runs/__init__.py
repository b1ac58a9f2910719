"""Runs side by side: what is in a folder of runs, how some of them differ, and runs over combinations of values."""
