# Copyright: the virtintrospect project
# GNU Lesser General Public License v2.1 or later (see LICENSE), which allows use under the
# GNU General Public License v3.0+, too (https://www.gnu.org/licenses/gpl-3.0.txt)
"""Running guests as hosts of an inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
name: guests
short_description: The running guests of libvirt hosts, with what runs in them
version_added: 0.1.0
author: The virtintrospect project (@virtintrospect)
description:
  - Each guest that runs becomes a host of the inventory, in groups by operating system
    (C(os_linux)), kernel (C(kernel_6_12_117_amd64)), host (C(hypervisor_hv1)) and session
    (C(session_ready)).
  - The configuration is a file whose name ends with C(virtintrospect.yml) or
    C(virtintrospect.yaml).
  - A name that a guest or a domain gives itself is never used for C(ansible_host). Whoever composes
    C(ansible_host) from RV(ignore:virtintrospect_addresses) lets the guest say where Ansible
    connects to.
notes:
  - The variables of a guest are C(virtintrospect_name), C(virtintrospect_uuid),
    C(virtintrospect_id), C(virtintrospect_state), C(virtintrospect_os), C(virtintrospect_kernel),
    C(virtintrospect_session), C(virtintrospect_hypervisor), C(virtintrospect_tables), and with the
    table V(interfaces) C(virtintrospect_addresses). What is not known is left out.
  - All of them are data; none is taken for a template.
  - Groups are as Ansible wants them, letters, digits and underscores. What else there is becomes an
    underscore.
extends_documentation_fragment:
  - ansible.builtin.constructed
  - ansible.builtin.inventory_cache
options:
  plugin:
    description: V(virtintrospect.fleet.guests).
    type: str
    required: true
    choices: [virtintrospect.fleet.guests]
  hypervisors:
    description: The libvirt hosts.
    type: list
    elements: dict
    default: [{host: localhost}]
    suboptions:
      host:
        description: What C(ssh) is given, such as V(hv1.example.com) or V(root@hv1). V(localhost)
          is this machine, without C(ssh).
        type: str
        required: true
      name:
        description: How it is called in the inventory; O(hypervisors[].host) without the user by
          default.
        type: str
      uri:
        description: The libvirt connection on that host.
        type: str
      executable:
        description: C(virt-introspect) on that host.
        type: str
        default: virt-introspect
      become:
        description: Run it by C(sudo -n).
        type: bool
        default: false
  domains:
    description: Only guests whose names fit one of these shell patterns.
    type: list
    elements: str
    default: ["*"]
  exclude:
    description: Not guests whose names fit one of these shell patterns.
    type: list
    elements: str
    default: []
  tables:
    description:
      - Tables of C(virt-introspect) to read of each guest, such as V(info), V(interfaces) or
        V(guestinfo). They are in C(virtintrospect_tables).
    type: list
    elements: str
    default: []
  hostnames:
    description:
      - How the guests are called in the inventory.
      - V(auto) is V(name) where there is one hypervisor, and V(qualified) where there are more, so
        that equal names do not collide.
      - V(qualified) is the name and the hypervisor's, C(web01.hv1).
      - A guest whose name is more than letters, digits and C(_ . + -), or means something else to
        Ansible (C(localhost), C(all)), gets its UUID.
      - So does one whose name here would be an address, the controller's name, or that of a
        hypervisor or of a host that the inventory has already, with a warning. A task for the guest
        would go there. Sources that are read before this one are seen, so name this one last.
    type: str
    choices: [auto, name, qualified, uuid]
    default: auto
  unreachable:
    description: Whether a hypervisor that does not answer is a warning, and the others are used
      (nothing is cached then), or an error.
    type: str
    choices: [warn, fail]
    default: warn
  ssh_arguments:
    description: More arguments for C(ssh).
    type: list
    elements: str
    default: []
  timeout:
    description: Seconds that one call may take.
    type: int
    default: 60
  groups_by:
    description: Which groups are made.
    type: list
    elements: str
    choices: [os, kernel, hypervisor, session]
    default: [os, kernel, hypervisor, session]
requirements:
  - virtintrospect on the hypervisors
  - ssh on the controller, where hypervisors are not local
"""

EXAMPLES = r"""
# fleet.virtintrospect.yml
plugin: virtintrospect.fleet.guests
hypervisors:
  - host: root@hv1.example.com
  - host: audit@hv2.example.com
    name: hv2
    become: true
    uri: qemu:///system
exclude: ["tmp-*"]
tables: [info, interfaces]
keyed_groups:
  - prefix: machine
    key: virtintrospect_tables.info.machine
groups:
  old: virtintrospect_kernel is version('6.1', '<')
compose:
  cpus: virtintrospect_tables.info.cpus
cache: true
cache_plugin: ansible.builtin.jsonfile
cache_connection: /var/cache/ansible-guests
cache_timeout: 600
"""

import contextlib
import json
import re
import shlex
import socket
import subprocess
import tempfile
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase

from ansible.errors import AnsibleParserError
from ansible.plugins.inventory import BaseInventoryPlugin, Cacheable, Constructable
from ansible.utils.unsafe_proxy import wrap_var
from ansible_collections.virtintrospect.fleet.plugins.plugin_utils.report.pack import printable

_LOCAL = ("localhost", "127.0.0.1", "::1")
#: Names of this machine: of one label, and those that the resolver takes for it.
_HERE = re.compile(r"localhost[46]?(\..*)?|.*\.localhost|ip6-(localhost|loopback)")
#: Names that are no template, no pattern of hosts and no option of a command.
_PLAIN = re.compile(r"\w[\w.+-]*")
_GUEST_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_VARIABLES = (
    "name", "uuid", "id", "state", "os", "kernel", "session", "hypervisor", "tables",
)  # fmt: skip
_PARALLEL = 8
_LONGEST = 100


class HypervisorError(Exception):
    """A hypervisor did not answer."""


class Hypervisor:
    """Runs ``virt-introspect`` on a host, here or over ssh.

    :param config: an entry of ``hypervisors``.
    :param folder: where ssh keeps the socket of a connection that several calls share.
    """

    def __init__(self, config, arguments, timeout, folder):
        self.host = config["host"]
        self.name = config.get("name") or self.host.rpartition("@")[2]
        self._config = config
        self._timeout = timeout
        self._ssh = [
            "ssh", "-o", "BatchMode=yes", "-o", f"ConnectTimeout={timeout}",
            "-o", "ControlMaster=auto", "-o", f"ControlPath={folder}/%C",
            "-o", "ControlPersist=10", *arguments, "--", self.host,
        ]  # fmt: skip

    def ask(self, words):
        """What a command printed, decoded.

        :raises HypervisorError: nothing that could be used.
        """
        line = ["sudo", "-n", "--"] if self._config.get("become") else []
        line += [self._config.get("executable") or "virt-introspect", "-o", "json"]
        if self._config.get("uri"):
            line += ["-c", self._config["uri"]]
        line += words
        if self.host not in _LOCAL:
            line = [*self._ssh, shlex.join(line)]
        try:
            done = subprocess.run(
                line,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self._timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise HypervisorError(f"{self.name}: no answer in {self._timeout} s") from error
        except OSError as error:
            raise HypervisorError(f"{self.name}: {line[0]}: {error.strerror}") from error
        if done.returncode not in (0, 6):
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            last = said[-1] if said else f"exit code {done.returncode}"
            raise HypervisorError(f"{self.name}: {last}")
        try:
            return json.loads(done.stdout.decode("utf-8"))
        except ValueError as error:
            raise HypervisorError(f"{self.name}: its output is not JSON") from error

    def guests(self, wanted, tables):
        """The guests that run, with tables, and what could not be read of them.

        :param wanted: says by its name whether a guest is.
        """
        problems = []

        def read(row, table):
            try:
                return {table: self.ask([table, row["uuid"]])}
            except HypervisorError as error:
                problems.append(f"{row['name']}: {table}: {error}")
                return {}

        rows = self.ask(["list"])
        if not isinstance(rows, list) or not all(map(is_guest, rows)):
            raise HypervisorError(f"{self.name}: its list of guests makes no sense")
        found = []
        for row in rows:
            if wanted(row["name"]):
                guest = dict(row, hypervisor=self.name, tables={})
                for table in tables:
                    guest["tables"].update(read(row, table))
                found.append(guest)
        return found, problems


def is_guest(row):
    """Whether a row of ``list`` can be a guest's; its UUID may become its name in the inventory."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("name"), str)
        and _GUEST_UUID.fullmatch(str(row.get("uuid"))) is not None
    )


def addresses(guest):
    """Addresses of a guest that others can reach, as it says itself; not those of containers."""
    table = guest["tables"]["interfaces"]
    rows = [row for row in table if isinstance(row, dict)] if isinstance(table, list) else []
    first = [row for row in rows if row.get("net_namespace") == rows[0].get("net_namespace")]
    return [row["address"] for row in first if row.get("scope") == "global" and "address" in row]


def group_name(kind, value):
    """A group's name: nothing in it but letters, digits and underscores."""
    return f"{kind}_{re.sub(r'[^A-Za-z0-9]+', '_', str(value).lower()).strip('_')[:_LONGEST]}"


def same(name):
    """A name as the resolver has it: no case, no dot at the end, no letters in disguise."""
    return unicodedata.normalize("NFKC", name).casefold().rstrip(".")


def is_address(name):
    """Whether a name is an IPv4 address, in any of the ways in which a resolver takes one."""
    try:
        socket.inet_aton(name)
    except (OSError, ValueError):
        return False
    return True


class Taken:
    """Names that lead somewhere else than to a guest.

    :param inventory: what is there already.
    :param hypervisors: those of the configuration.
    """

    def __init__(self, inventory, hypervisors):
        self._names = {same(name): "that of a group" for name in inventory.groups}
        self._uuids = {}
        for name, host in inventory.hosts.items():
            self.add(name, host.vars.get("virtintrospect_uuid"))
            for variable in ("ansible_host", "ansible_ssh_host"):
                if variable in host.vars:
                    self.add(str(host.vars[variable]), None)
        for config in hypervisors:
            for name in (config.get("name"), config["host"].rpartition("@")[2]):
                self._names[same(str(name or ""))] = "that of a hypervisor"
        own = socket.gethostname()
        self._names.update({same(n): "the controller's" for n in (own, own.partition(".")[0])})

    def why(self, name, uuid):
        """What is wrong with a guest's name; ``None`` where nothing is."""
        name = same(name)
        if is_address(name):
            return "an address"
        if _HERE.fullmatch(name):
            return "the controller's"
        if _GUEST_UUID.fullmatch(name) and name != uuid.lower():
            return "the UUID of another"
        if self._uuids.get(name) == uuid:
            return None  # the same guest, out of the same source
        return self._names.get(name)

    def add(self, name, uuid):
        """A host has this name; where it is a guest, of this UUID."""
        self._names[same(name)] = "that of another host"
        self._uuids[same(name)] = uuid


class InventoryModule(BaseInventoryPlugin, Constructable, Cacheable):
    """The plugin."""

    NAME = "virtintrospect.fleet.guests"

    def verify_file(self, path):
        """Whether a file is a configuration of ours."""
        ours = ("virtintrospect.yml", "virtintrospect.yaml")
        return super().verify_file(path) and path.endswith(ours)

    def parse(self, inventory, loader, path, cache=True):
        """Fill the inventory."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        key = self.get_cache_key(path)
        uses = self.get_option("cache")
        guests = None
        if uses and cache:
            with contextlib.suppress(KeyError):
                guests = self._cache[key]
        if guests is None:
            guests, whole = self._look()
            if uses and whole:
                self._cache[key] = guests
        taken = Taken(self.inventory, self.get_option("hypervisors"))
        for guest in guests:
            self._add(guest, taken)

    def _look(self):
        """The guests of all hypervisors, and whether all of these answered."""
        patterns, excluded = self.get_option("domains"), self.get_option("exclude")

        def wanted(name):
            fits = any(fnmatchcase(name, pattern) for pattern in patterns)
            return fits and not any(fnmatchcase(name, pattern) for pattern in excluded)

        def look(hypervisor):
            try:
                return *hypervisor.guests(wanted, self.get_option("tables")), None
            except HypervisorError as error:
                return [], [], str(error)

        with tempfile.TemporaryDirectory(prefix="vi-") as folder:
            hypervisors = self._hypervisors(folder)
            with ThreadPoolExecutor(max_workers=_PARALLEL) as pool:
                results = list(pool.map(look, hypervisors))
        errors = [error for _guests, _problems, error in results if error]
        if errors and self.get_option("unreachable") == "fail":
            raise AnsibleParserError(printable("; ".join(errors)))
        for text in errors + [text for _guests, found, _error in results for text in found]:
            self.display.warning(printable(text))  # hosts and domains wrote much of it
        return [guest for guests, _problems, _error in results for guest in guests], not errors

    def _hypervisors(self, folder):
        found, names = [], set()
        for config in self.get_option("hypervisors"):
            if not isinstance(config, dict) or not config.get("host"):
                raise AnsibleParserError("hypervisors: each entry needs a host")
            one = Hypervisor(
                config, self.get_option("ssh_arguments"), self.get_option("timeout"), folder
            )
            if one.name in names:
                raise AnsibleParserError(f"hypervisors: {one.name} is there twice; give it a name")
            names.add(one.name)
            found.append(one)
        return found

    def _add(self, guest, taken):
        """Put a guest into the inventory."""
        name = self._host_name(guest)
        why = None if name == guest["uuid"] else taken.why(name, guest["uuid"])
        if why:
            text = f"the name of the guest {name} is {why}: it gets its UUID here"
            self.display.warning(printable(text))
            name = guest["uuid"]
        taken.add(name, guest["uuid"])
        host = self.inventory.add_host(name)
        known = {key: guest[key] for key in _VARIABLES if key in guest}
        if "interfaces" in guest["tables"]:
            known["addresses"] = addresses(guest)
        variables = {f"virtintrospect_{key}": wrap_var(value) for key, value in known.items()}
        for key, value in variables.items():
            self.inventory.set_variable(host, key, value)
        for kind in self.get_option("groups_by"):
            if guest.get(kind):
                group = self.inventory.add_group(group_name(kind, guest[kind]))
                self.inventory.add_child(group, host)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), variables, host, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), variables, host, strict=strict)
        self._add_host_to_keyed_groups(
            self.get_option("keyed_groups"), variables, host, strict=strict
        )

    def _host_name(self, guest):
        form = self.get_option("hostnames")
        if form == "auto":
            form = "name" if len(self.get_option("hypervisors")) == 1 else "qualified"
        name = guest["name"]
        if form == "uuid" or not _PLAIN.fullmatch(name):
            return guest["uuid"]
        return name if form == "name" else f"{name}.{guest['hypervisor']}"
