# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the documentation of several modules has in common."""

from __future__ import annotations


class ModuleDocFragment:
    """Options and attributes."""

    DOCUMENTATION = r"""
options:
  executable:
    description:
      - The command C(virt-introspect) on the managed host, by name or path.
      - A name is looked for in E(PATH), in C(/usr/local/bin) and in C(/opt/virtintrospect/bin).
    type: path
    default: virt-introspect
  uri:
    description:
      - The libvirt connection, such as V(qemu:///system).
      - Without it C(virt-introspect) chooses as C(virsh) does. For root that is V(qemu:///system),
        where QEMU is there.
    type: str
  timeout:
    description: Seconds that one call of C(virt-introspect) may take.
    type: int
    default: 120
requirements:
  - virtintrospect on the managed host (the role P(virtintrospect.fleet.host#role) installs it)
  - Python 3.9 or later on the managed host, for the module itself
"""

    GUESTS = r"""
options:
  domains:
    description:
      - The guests to look into, by name, id, UUID, or shell pattern of the name.
      - Without it all guests that run.
      - A guest that is named and does not run is in RV(ignore:failed_guests); a pattern that fits
        none is no failure.
    type: list
    elements: str
  exclude:
    description: Guests to leave alone, in the same form.
    type: list
    elements: str
    default: []
  parallel:
    description: How many guests of one host are looked into at the same time; tables and rules of
      no more than it has CPUs.
    type: int
    default: 4
notes:
  - Strings that a guest chose (names of processes, paths, host names) are data. They are never
    taken for templates, and what is not printable in them appears as C(\x1b).
  - A guest that cannot be looked into does not fail the task. It is in
    RV(ignore:failed_guests). Where C(virt-introspect) is missing, too old, or cannot reach libvirt,
    the task fails with a RV(ignore:reason) of V(missing), V(old_version) or another.
"""

    READER = r"""
attributes:
  check_mode:
    description: Changes nothing, and so does the same in check mode.
    support: full
  diff_mode:
    description: Changes nothing, and so has no difference to show.
    support: none
  platform:
    description: Hosts with libvirt.
    support: full
    platforms: posix
"""
