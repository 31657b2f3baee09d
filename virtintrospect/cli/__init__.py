"""The command `virt-introspect`."""
