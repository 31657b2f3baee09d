"""``hints --plot``: pictures that are pictures, whatever the guest calls its processes."""

from __future__ import annotations

import io
import struct
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from virtintrospect.cli.main import cli
from virtintrospect.errors import UsageError
from virtintrospect.insight import hintplot
from virtintrospect.insight.hints import Facts, hints
from virtintrospect.insight.history import Window
from virtintrospect.insight.policy import load_policy

from .test_hints import DOMAIN, GIB, MIB, figures

pytest.importorskip("matplotlib", reason="the extra 'plot'")

EVIL = "<script>&$\\frac{1}{0}$"


def facts(count: int = 12, **changes: Any) -> Facts:
    samples = []
    for number in range(count):
        at = 60 * (count - number)
        samples.append(
            figures(at)
            | {
                "cpu": {"user": 60_000 * number, "system": 0, "cpus": 2},
                "cache": {"used_again": 256 * MIB, "total": GIB},
                "pressure": {"cpu_some": {"total": 6_000_000 * number}},
                "tasks": {"busiest": [[7, EVIL, 60_000 * number]]},
            }
            | changes
        )
    return Facts(Window(samples), load_policy(), DOMAIN)


def draw(kind: str, **changes: Any) -> bytes:
    from virtintrospect.insight.hintplot import draw

    shown = facts(**changes)
    return draw(shown, hints(shown), f"web {EVIL}", kind)


def test_a_png_with_something_on_it() -> None:
    from PIL import Image

    content = draw("png")
    width, height = struct.unpack(">II", content[16:24])
    assert width >= 1000
    assert height >= 900
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    colours = {colour for _, colour in picture.getcolors(1 << 24) or ()}
    assert {(0, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colours  # what is used, what is recommended


def test_an_svg_keeps_strings_as_text() -> None:
    content = draw("svg")
    texts = [node.text or "" for node in ElementTree.fromstring(content).iter() if node.text]
    assert f"web {EVIL}" in texts
    assert any(f"process {EVIL} (pid 7) took 100 %" in text for text in texts)
    assert "recommended: 1408 MiB" in texts
    assert b"<script>" not in content


@pytest.mark.parametrize("part", ["memory", "pressure", "cpu", "events", "load", "cache"])
def test_what_is_not_known_has_no_line(part: str) -> None:
    assert len(draw("png", **{part: {}})) > 10_000


def test_one_sample_is_no_plot() -> None:
    with pytest.raises(UsageError, match="two samples"):
        draw("png", count=1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["web01", "--plot", "x.pdf"], "x.pdf: pictures are .png or .svg"),
        (["--all", "--plot", "x.png"], "--plot draws one TARGET"),
    ],
)
def test_refusals(words: list[str], says: str) -> None:
    done = CliRunner().invoke(cli, ["hints", *words])
    assert isinstance(done.exception, UsageError)
    assert says in done.exception.message


def test_what_is_missing_is_said_before_anything_is_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hintplot, "find_spec", lambda _: None)
    done = CliRunner().invoke(cli, ["hints", "no-such-guest", "--plot", "x.png"])
    assert isinstance(done.exception, UsageError)
    assert done.exception.message == "plots need matplotlib"
