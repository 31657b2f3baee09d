"""The man page, made from what ``--help`` is made from: the tree of click commands.

``make man`` writes docs/virt-introspect.1, which the wheel installs in share/man/man1.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import click

from virtintrospect import __version__
from virtintrospect.cli.imports import TargetOrCommand

#: What roff takes for typography, and what it must print instead (groff_char(7), man(7)).
_SPECIAL = {
    "\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "~": r"\(ti", "^": r"\(ha", '"': r"\(dq",
}  # fmt: skip

_ENVIRONMENT = (
    ("VIRSH_DEFAULT_CONNECT_URI", "The libvirt connection, when there is no -c."),
    ("LIBVIRT_DEFAULT_URI", "The same, when VIRSH_DEFAULT_CONNECT_URI is not set either."),
    ("VIRTINTROSPECT_CACHE", "Folder of the cache, instead of those under FILES."),
    ("VIRTINTROSPECT_SOCKET", "Socket of the daemon, instead of the one under FILES."),
    ("XDG_CACHE_HOME", "Where the cache of users other than root is, instead of ~/.cache."),
)
_FILES = (
    ("/var/cache/virtintrospect", "Symbols and types of the kernels seen by root."),
    ("~/.cache/virtintrospect", "The same, of other users. Both can be deleted at any time."),
    ("/run/virtintrospect/daemon.sock", "Where virt-introspectd listens."),
    ("/etc/virtintrospect/config.toml", "Its configuration."),
)


def render(root: click.Group, name: str) -> str:
    """The page of a program with subcommands.

    :param root: the program.
    :param name: what it is called.
    """
    summary, *rest = _paragraphs(root)
    shared = {option.name for option in _options(root)}
    everywhere = {p.name for command in root.commands.values() for p in command.params} & shared
    behind = ", ".join(option.opts[0] for option in _options(root) if option.name in everywhere)
    lines = [
        r'.\" Made by virtintrospect.cli.manpage: "make man" makes it anew.',
        f'.TH {_text(name.upper())} 1 "" "virtintrospect {__version__}"',
        ".nh\n.ad l",  # names of options and variables are not to be hyphenated
        ".SH NAME",
        rf"{_text(name)} \- {_text(summary[:1].lower() + summary[1:].rstrip('.'))}",
        ".SH SYNOPSIS",
        _synopsis(name, ["[OPTION...]", "COMMAND", "[ARGUMENT...]"]),
        ".SH DESCRIPTION",
        *_body(part for part in rest if not _is_example(part) and not _is_exit_codes(part)),
        ".SH OPTIONS",
        _text(f"They stand in front of the command; {behind} can stand behind it as well."),
        *_listed(map(_option, _options(root))),
    ]
    of_target = _target_options(root)
    if of_target:
        lines += [".PP", "Behind every command that takes a TARGET:"]
        lines += _listed(map(_option, of_target))
    lines.append(".SH COMMANDS")
    shared |= {option.name for option in of_target}
    for words, command in _tree(root):
        lines += _command(command, words, shared)
    codes = next(filter(_is_exit_codes, rest), "")
    lines += [".SH EXIT STATUS", *_listed(_bold(re.findall(r"(\d) ([^,.]+)", codes)))]
    lines += [".SH ENVIRONMENT", *_listed(_bold(_ENVIRONMENT))]
    lines += [".SH FILES", *_listed(_bold(_FILES))]
    lines += [".SH EXAMPLES", *_body(filter(_is_example, rest))]
    lines += [".SH SEE ALSO", r".BR virsh (1),", r".BR proc (5)"]
    return "\n".join(lines) + "\n"


def _target_options(root: click.Group) -> list[click.Option]:
    """Options that all commands with a TARGET have and that cannot stand in front of them."""
    commands = [c for c in root.commands.values() if any(p.name == "target" for p in c.params)]
    if not commands:
        return []
    known = {option.name for option in _options(root)}
    common = set.intersection(*({p.name for p in c.params} for c in commands))
    return [o for o in _options(commands[0]) if o.name in common - known]


def _tree(group: click.Group, above: str = "") -> Iterator[tuple[str, click.Command]]:
    """Commands with the words that call them; below a group those of the group."""
    for name, command in group.commands.items():
        yield above + name, command
        if isinstance(command, click.Group):
            yield from _tree(command, f"{above}{name} ")


def _command(command: click.Command, called: str, shared: Container[str | None]) -> Iterator[str]:
    """The section of one subcommand; the options that all have are not repeated."""
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [option for option in _options(command) if option.name not in shared]
    words = ["[OPTION...]"] if options else []
    words += [_choices(argument) or (argument.name or "").upper() for argument in arguments]
    words += ["COMMAND", "[ARGUMENT...]"] if isinstance(command, click.Group) else []
    yield f".SS {_text(called)}"
    if isinstance(command, TargetOrCommand):
        target = [parameter.name or "" for parameter in command.default.params[:2]]
        yield _synopsis(called, [word.upper() for word in target])
        yield ".br"
    yield _synopsis(called, words)
    parts = _paragraphs(command)
    yield from _body((part for part in parts if not _is_example(part)), first=".PP")
    yield from _listed(map(_option, options))
    yield from _body((part for part in parts if _is_example(part)), first=".PP")


def _paragraphs(command: click.Command) -> list[str]:
    return re.split(r"\n\s*\n", inspect.cleandoc(command.help or "").strip())


def _is_example(paragraph: str) -> bool:
    r"""Whether click is told (by ``\b``, perhaps of a raw docstring) to leave the lines alone."""
    return paragraph.startswith(("\b\n", "\\b\n"))


def _is_exit_codes(paragraph: str) -> bool:
    return paragraph.startswith("Exit codes:")


def _options(command: click.Command) -> list[click.Option]:
    found = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    help_option = command.get_help_option(click.Context(command, **command.context_settings))
    known = {option.name for option in found}
    return found + ([help_option] if help_option and help_option.name not in known else [])


def _option(option: click.Option) -> tuple[str, str]:
    names = ", ".join(rf"\fB{_text(name)}\fR" for name in option.opts)
    value = ""
    if not option.is_flag and not option.is_eager:
        value = option.metavar or _choices(option) or option.type.name.upper()
    return names + (rf" \fI{_text(value)}\fR" if value else ""), option.help or ""


def _choices(parameter: click.Parameter) -> str:
    choices = parameter.type.choices if isinstance(parameter.type, click.Choice) else ()
    return "|".join(map(str, choices))


def _bold(items: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    return ((rf"\fB{_text(term)}\fR", " ".join(text.split())) for term, text in items)


def _synopsis(name: str, words: Iterable[str]) -> str:
    return " ".join([rf"\fB{_text(name)}\fR", *(rf"\fI{_text(word)}\fR" for word in words)])


def _listed(items: Iterable[tuple[str, str]]) -> Iterator[str]:
    """A list of terms, which are roff already, with their explanation."""
    for term, text in items:
        yield from (".TP", term, _text(text))


def _body(paragraphs: Iterable[str], first: str = "") -> Iterator[str]:
    before = first
    for paragraph in paragraphs:
        if before:
            yield before
        before = ".PP"
        if _is_example(paragraph):
            yield from (".EX", *map(_text, paragraph.splitlines()[1:]), ".EE")
        else:
            yield _text(" ".join(paragraph.split()))


def _text(text: str) -> str:
    """Text that roff prints as it is."""
    safe = "".join(_SPECIAL.get(c, c if c.isascii() else rf"\[u{ord(c):04X}]") for c in text)
    return rf"\&{safe}" if safe.startswith(".") else safe


def main() -> None:
    """Write the page to the file named on the command line."""
    from virtintrospect.cli.main import cli

    Path(sys.argv[1]).write_text(render(cli, "virt-introspect"), encoding="utf-8")


if __name__ == "__main__":
    main()
