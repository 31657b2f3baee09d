"""The report of a fleet. Runs on the controller alone."""
