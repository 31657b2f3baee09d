"""What is in ``inside`` runs in an emulated host: see test_host.py."""

import os

from tests.host.lab.machine import INSIDE

collect_ignore = [] if INSIDE in os.environ else ["inside"]
