"""What is in ``inside`` runs in a dom0: see test_dom0.py."""

import os

from tests.xen.lab.parts import PARTS

collect_ignore = [] if PARTS in os.environ else ["inside"]
