"""Interfaces, sockets, routes and neighbours."""

from __future__ import annotations

from virtintrospect.insight.columns import Column, Table, Unit

_A, _B, _N = Unit.ADDRESS, Unit.BYTES, Unit.NUMBER

INTERFACES = Table(
    "interfaces",
    (
        Column("interface"),
        Column("mac"),
        Column("mtu", _N),
        Column("state"),
        Column("flags", Unit.LIST, brief=False),
        Column("address"),
        Column("prefix", _N),
        Column("family", brief=False),
        Column("scope", brief=False),
        Column("broadcast", brief=False),
        Column("peer", brief=False),
        Column("index", _N, brief=False),
        Column("kind", brief=False),
        Column("driver", brief=False),
        Column("master", brief=False),
        Column("rx_bytes", _B),
        Column("tx_bytes", _B),
        Column("rx_packets", _N, brief=False),
        Column("tx_packets", _N, brief=False),
        Column("rx_errors", _N, brief=False),
        Column("tx_errors", _N, brief=False),
        Column("rx_dropped", _N, brief=False),
        Column("tx_dropped", _N, brief=False),
        Column("net_namespace", _N, brief=False),
    ),
    source="interfaces",
    help="List the network interfaces of TARGET and their addresses, in all namespaces.",
    examples=("interfaces web01", "interfaces web01 --columns interface,flags,net_namespace"),
)

SOCKETS = Table(
    "sockets",
    (
        Column("pid", _N),
        Column("fd", _N),
        Column("socket", _N, brief=False),
        Column("family"),
        Column("protocol"),
        Column("local_address"),
        Column("local_port", _N),
        Column("remote_address"),
        Column("remote_port", _N),
        Column("state"),
        Column("path"),
        Column("recv_queue", _N, brief=False),
        Column("send_queue", _N, brief=False),
        Column("uid", _N, brief=False),
        Column("net_namespace", _N, brief=False),
        Column("address", _A, brief=False),
    ),
    source="sockets",
    help="List the sockets of TARGET and who has them open, in all namespaces.",
    examples=(
        "sockets web01 --listening",
        "sockets web01 --pid 1",
        "sockets web01 -o json | jq '.[] | select(.remote_port == 5432)'",
    ),
    by_pid=True,
    switches=(("listening", "Only those that wait for others to connect, or to send."),),
)

ROUTES = Table(
    "routes",
    (
        Column("destination"),
        Column("netmask", _N),
        Column("gateway"),
        Column("interface"),
        Column("source"),
        Column("metric", _N),
        Column("type"),
        Column("table"),
        Column("protocol"),
        Column("scope", brief=False),
        Column("flags", Unit.LIST, brief=False),
        Column("mtu", _B, brief=False),
        Column("weight", _N, brief=False),
        Column("tos", _N, brief=False),
        Column("source_prefix", brief=False),
        Column("nexthop", _N, brief=False),
        Column("family", brief=False),
        Column("net_namespace", _N, brief=False),
    ),
    source="routes",
    help="List the routes of TARGET: both IP versions, all tables and namespaces.",
    examples=(
        "routes web01",
        "routes web01 -o json | jq '.[] | select(.table == \"main\" and .netmask == 0)'",
    ),
)

NEIGHBOURS = Table(
    "neighbours",
    (
        Column("address"),
        Column("mac"),
        Column("interface"),
        Column("state"),
        Column("permanent", Unit.FLAG, brief=False),
        Column("flags", Unit.LIST),
        Column("family", brief=False),
        Column("net_namespace", _N, brief=False),
    ),
    source="neighbours",
    help="List the neighbours of TARGET on its links (ARP and NDISC), in all namespaces.",
    examples=("neighbours web01", "neighbours web01 -o csv --columns address,mac"),
)
