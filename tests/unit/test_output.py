"""What goes out: escapes, formats, columns."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtintrospect.cli.escape import printable
from virtintrospect.cli.output import FORMATS, human_size, show
from virtintrospect.errors import UsageError
from virtintrospect.insight.columns import Column, Table, Unit

TABLE = Table(
    "demo",
    (
        Column("pid", Unit.NUMBER),
        Column("name"),
        Column("size", Unit.BYTES),
        Column("started", Unit.EPOCH),
        Column("spent", Unit.MILLISECONDS),
        Column("address", Unit.ADDRESS, brief=False),
        Column("kernel", Unit.FLAG),
        Column("users", Unit.LIST),
        Column("id", Unit.HEX, brief=False),
    ),
)
ROW = {
    "pid": 1, "name": b"a\x1b[31mb", "size": 1536, "started": 1_700_000_000, "spent": 61_230,
    "address": 0xFFFF_FFFF_8100_0000, "kernel": False, "users": (b"x", b"y\n"), "id": b"\xab\x01",
}  # fmt: skip


def rendered(output: str, rows: list[dict[str, Any]], **options: Any) -> str:
    file = io.StringIO()
    show(TABLE, rows, output=output, file=file, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b"plain", "plain"), (b"", ""), ("Grüße".encode(), "Grüße"), (b"\x1b[31m", r"\x1b[31m"),
        (b"a\nb\tc\0", r"a\x0ab\x09c\x00"), (b"\xff\xfe", r"\xff\xfe"), (b"\x9b31m", r"\x9b31m"),
        ("\u202etxt".encode(), r"\xe2\x80\xaetxt"), ("\x9b31m".encode(), r"\xc2\x9b31m"),
        ("日本".encode(), "日本"),
        (b"back\\slash", "back\\slash"), ("\u2028".encode(), r"\xe2\x80\xa8"),
    ],
)  # fmt: skip
def test_printable(raw: bytes, shown: str) -> None:
    assert printable(raw) == shown


def test_the_name_of_a_file_is_bytes() -> None:
    assert printable(os.fsdecode(b"no\xffUTF-8")) == r"no\xffUTF-8"
    assert printable("\ud83d") == r"\xed\xa0\xbd"


@given(st.binary(max_size=64))
def test_nothing_but_printable_characters_comes_out(raw: bytes) -> None:
    assert printable(raw).isprintable()


@pytest.mark.parametrize("output", FORMATS)
@given(name=st.binary(max_size=40))
def test_no_format_lets_control_characters_through(output: str, name: bytes) -> None:
    text = rendered(output, [ROW | {"name": name, "users": (name,)}])
    assert all(character.isprintable() or character == "\n" for character in text)
    lines = {"table": 2, "json": 3, "jsonl": 1, "csv": 2}[output]
    assert text.count("\n") == lines


def test_json_types() -> None:
    assert json.loads(rendered("json", [ROW])) == [
        {
            "pid": 1, "name": r"a\x1b[31mb", "size": 1536, "started": 1_700_000_000,
            "spent": 61_230, "address": "0xffffffff81000000", "kernel": False,
            "users": ["x", r"y\x0a"], "id": "ab01",
        }
    ]  # fmt: skip


def test_json_of_nothing_and_of_a_single_record() -> None:
    assert json.loads(rendered("json", [])) == []
    assert json.loads(rendered("json", [ROW], single=True, columns="pid")) == {"pid": 1}


def test_unknown_fields_are_left_out_never_zero() -> None:
    row = {"pid": 0, "name": None}
    assert json.loads(rendered("jsonl", [row])) == {"pid": 0}
    assert rendered("csv", [row], columns="pid,name,size").splitlines()[1] == "0,,"


def test_csv_quotes() -> None:
    row = ROW | {"name": b'a,"b"'}
    parsed = list(csv.DictReader(io.StringIO(rendered("csv", [row]))))
    assert parsed[0]["name"] == 'a,"b"'
    assert parsed[0]["users"] == r"x y\x0a"


def test_table_for_people() -> None:
    heads, row = rendered("table", [ROW]).splitlines()
    assert heads.split() == ["pid", "name", "size", "started", "spent", "kernel", "users"]
    assert "1.5 KiB" in row
    assert "2023-11-14 22:13:20Z" in row
    assert "1:01.23" in row


def test_columns_are_chosen_by_name() -> None:
    assert rendered("csv", [ROW], columns="name,pid").splitlines()[0] == "name,pid"
    assert len(rendered("table", [ROW], columns="all").splitlines()[0].split()) == 9
    with pytest.raises(UsageError) as caught:
        rendered("csv", [ROW], columns="nmae")
    assert "name" in caught.value.hint


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (150 << 20, "150 MiB"),
        (1 << 70, "1024 EiB"),
    ],
)
def test_human_size(size: int, text: str) -> None:
    assert human_size(size) == text


def test_a_guest_clock_set_to_nonsense() -> None:
    assert str(1 << 62) in rendered("table", [ROW | {"started": 1 << 62}])


def test_terminal_table_takes_guest_strings_literally() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    file = Terminal()
    show(TABLE, [ROW | {"name": b"[bold red]x[/]"}], output="table", columns="name", file=file)
    assert "[bold red]x[/]" in file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_terminal_of_any_width_shows_every_column(width: int, monkeypatch: Any) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(width))
    table = Table("t", (Column("pid", Unit.NUMBER), Column("name"), Column("cmdline")))
    file = Terminal()
    rows = [{"pid": 12345, "name": b"sleeper", "cmdline": b"x" * 5000}]
    show(table, rows, output="table", file=file)
    text = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
    heads, row, *rest = text.splitlines()
    assert heads.split() == ["pid", "name", "cmdline"]
    assert row.split()[:2] == ["12345", "sleeper"]
    assert row.split()[2].startswith("xxxxxxxx")
    assert rest == []


def test_column_that_no_row_has_is_left_out() -> None:
    assert "size" not in rendered("table", [{"pid": 1, "name": b"a"}])
    assert "size" in rendered("table", [{"pid": 1, "name": b"a"}], columns="pid,size")
