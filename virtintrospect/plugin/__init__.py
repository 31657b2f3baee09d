"""The plugin's place on the host: its hooks in libvirt, and what ``doctor`` looks at."""
