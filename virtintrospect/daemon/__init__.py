"""``virt-introspectd``: one session for each domain of the host, kept ready."""
