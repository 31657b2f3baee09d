"""A guest with many processes, files and sockets: none is missing, none is invented."""

from __future__ import annotations

from virtintrospect.guests.linux.guest import LinuxGuest
from virtintrospect.session import open_session

from .crowd import Load, loaded
from .lab.guest import Guest

#: What a guest of 512 MiB holds with ease; benchmarks/scale.py goes on from there.
_LOAD = Load(150, 2000, 200)
_COUNT = """
cd /proc
echo $(ls -d [0-9]* | wc -l) $(ls -d [0-9]*/task/[0-9]* | wc -l)
ls -d [0-9]*/fd/[0-9]* | wc -l
echo $(wc -l < net/tcp) $(wc -l < net/udp) $(wc -l < net/unix)
"""


def test_as_many_as_the_guest_says(one_guest: Guest) -> None:
    with loaded(one_guest, _LOAD) as group, open_session(one_guest.name) as session:
        linux = session.guest
        assert isinstance(linux, LinuxGuest)
        before = [int(word) for word in one_guest.run(_COUNT, 60).split()]
        files = before[2]
        rows = linux.files()
        assert abs(len(rows) - files) <= 40
        ours = len(linux.processes()), len(linux.processes(threads=True))
        mine = {row.pid for row in linux.processes() if row.pgroup is None and row.parent == group}
        assert len(mine) == _LOAD.processes
        names = [row.path for row in rows if row.pid in mine and row.type == "regular"]
        assert len(names) == len(set(names)) == _LOAD.files
        assert {b"/tmp/scale/%02d/file-%d" % (n % 16, n) for n in range(_LOAD.files)} == set(names)
        sockets = linux.sockets()
        kinds = [(row.family, row.protocol) for row in sockets if row.pid in mine]
        assert len(kinds) == _LOAD.sockets
        assert kinds.count(("inet", "tcp")) == kinds.count(("inet", "udp")) == _LOAD.sockets // 4
        # One line of each is its heading.
        first = next(row.net_namespace for row in sockets if row.pid in mine)
        here = [row for row in sockets if row.net_namespace == first]
        # A socket that another test left without a port is in no table of the guest's.
        ports = [row.protocol for row in here if row.family == "inet" and row.local_port]
        counts = [ports.count("tcp"), ports.count("udp"), sum(row.family == "unix" for row in here)]
        # One of another test that has been closed vanishes after a minute.
        after = [int(word) for word in one_guest.run(_COUNT, 60).split()]
        for count, low, high in zip(counts, after[3:], before[3:], strict=True):
            assert min(low, high) - 1 <= count <= max(low, high) - 1
        # The shell that counts, its ls and their like come and go; kernel threads end in herds.
        for count, *both in zip(ours, before, after, strict=False):
            assert min(both) - 6 <= count <= max(both) + 6
        assert linux.take_problems() == []
