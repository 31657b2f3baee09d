"""virtintrospect's driver for Xen guests."""
