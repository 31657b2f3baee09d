"""Linux guests: one file for each kernel subsystem that a table needs."""
