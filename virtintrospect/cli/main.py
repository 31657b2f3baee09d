"""The command ``virt-introspect``: the group of commands, and what an error looks like."""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from pathlib import Path

import click

from virtintrospect import __version__
from virtintrospect.cli.batch import batch
from virtintrospect.cli.check import check
from virtintrospect.cli.doctor import doctor
from virtintrospect.cli.dump import dump
from virtintrospect.cli.escape import printable
from virtintrospect.cli.hints import hints
from virtintrospect.cli.hooks import hooks
from virtintrospect.cli.info import info
from virtintrospect.cli.listing import list_
from virtintrospect.cli.map import map_
from virtintrospect.cli.mount import mount
from virtintrospect.cli.options import Settings, common, log_to_stderr
from virtintrospect.cli.primitives import read, registers, symbols, translate, types
from virtintrospect.cli.search import search
from virtintrospect.cli.sessions import attach, detach, sessions
from virtintrospect.cli.tables import columns_of, ps, summary, table_commands
from virtintrospect.cli.top import top
from virtintrospect.cli.triage import crash, hung
from virtintrospect.cli.virsh import dommemstat, guestinfo
from virtintrospect.cli.write import write
from virtintrospect.errors import UsageError, VirtIntrospectError

#: numpy's linear algebra starts a thread for each core on import, which costs more CPU than
#: all that we do; nothing here multiplies matrices.
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}

#: A group without a command: its help is no error's text. Before click 8.2 it is none at all.
_NO_COMMAND: type[click.UsageError] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="virt-introspect")
@common
@click.pass_context
def cli(context: click.Context) -> None:
    """Show what runs inside the guests of this libvirt host, from the outside.

    No agent in the guest, no debug symbols, no pause. TARGET is a domain's name, id or UUID,
    the path of a memory image (with a slash in it: ./guest.core), or, without libvirt,
    qmp:/path/to/socket of a QEMU, or xen:NAME of a guest of Xen.

    \b
    virt-introspect list
    virt-introspect ps web01
    virt-introspect dmesg ./crashed.core
    virt-introspect -o json info web01

    `virt-introspect COMMAND --help` has examples of each command, and names its columns. A PID
    is one of the guest's own, as `ps` shows it.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 no such domain or image, 4 memory cannot be
    reached, 5 guest not recognised, 6 done with findings.
    """
    settings = context.ensure_object(Settings)
    if context.invoked_subcommand in ("batch", "dump", "mount", "top"):
        settings.not_in_batch(context.invoked_subcommand)


for command in (
    list_,
    ps,
    info,
    *table_commands(),
    guestinfo,
    dommemstat,
    hints,
    top,
    check,
    hung,
    crash,
    symbols,
    types,
    translate,
    read,
    write,
    registers,
    dump,
    map_,
    search,
    mount,
    hooks,
    doctor,
    sessions,
    attach,
    detach,
    batch,
):
    command.short_help, command.epilog = summary(command), columns_of(command)
    cli.add_command(command)


@cli.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a SHELL.

    \b
    source <(virt-introspect completion bash)
    virt-introspect completion fish > ~/.config/fish/completions/virt-introspect.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None  # the choices are those that click has
    click.echo(found(cli, {}, "virt-introspect", "_VIRT_INTROSPECT_COMPLETE").source())


def main() -> None:
    """Entry point: run a command; every error is one line and an exit code.

    A command is short: nothing it allocates is worth collecting, and taking the interpreter
    apart at its end costs as much CPU time as the command itself. The kernel frees it all.
    """
    gc.disable()
    for name, value in _NO_THREADS.items():
        os.environ.setdefault(name, value)
    if hasattr(signal, "SIGPIPE"):
        # `virt-introspect dmesg web01 | head` ends quietly.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _prepare_streams()
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:  # what run() has printed may be written only now
            code = code or _failed(error)
    os._exit(code)


def _prepare_streams() -> None:
    """What is closed is nobody's, and no character is a reason to fail.

    What the encoding of a locale lacks appears as an escape. In the order of their descriptors:
    no file of ours gets the number of one that libraries in C complain on.
    """
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        mode = "r" if name == "stdin" else "w"
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - until the end
        elif isinstance(stream, io.TextIOWrapper) and name != "stdin":
            stream.reconfigure(errors="backslashreplace")


def run(arguments: list[str], settings: Settings | None = None) -> int:
    """Run a command line and give its exit code.

    :param settings: of a command that is one of many, and must come to an end.
    """
    settings = settings or Settings()
    debug = "--debug" in arguments
    log_to_stderr(debug=debug)
    try:
        code = cli.main(arguments, prog_name="virt-introspect", standalone_mode=False, obj=settings)
    except _NO_COMMAND as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        settings.error = _of_click(error)
        _complain(settings.error, verbose=False)
        return error.exit_code
    except click.Abort as error:
        if settings.kept is not None and isinstance(error.__cause__, KeyboardInterrupt):
            raise  # Ctrl-C is for all commands of a batch
        return 130
    except VirtIntrospectError as error:
        settings.error = error
        if debug and settings.kept is None:
            raise
        _complain(error, verbose="-v" in arguments or "--verbose" in arguments)
        return error.exit_code
    except OSError as error:
        if debug and settings.kept is None:
            raise
        return _failed(error)
    return code if isinstance(code, int) else 0


def _of_click(error: click.ClickException) -> UsageError:
    """What click says in several lines: what is wrong, and where to read more."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = " ".join(f"see {context.command_path} --help".split()) if context else ""
    return UsageError(" ".join(error.format_message().split()).rstrip("."), hint=hint)


def _failed(error: OSError) -> int:
    """The system refuses something that is no guest's: the output, mostly."""
    where = printable(str(error.filename)) if error.filename else "the output or a file"
    what = VirtIntrospectError(f"{where}: {error.strerror or error}", hint="--debug shows more")
    _complain(what, verbose=False)
    return what.exit_code


def _complain(error: VirtIntrospectError, *, verbose: bool) -> None:
    """One line: what failed, where, and what to do; with -v what was behind it."""
    text = printable(error.message) + (f"; {printable(error.hint)}" if error.hint else "")
    click.echo(f"virt-introspect: {text}", err=True)
    cause = error.__cause__
    while verbose and cause is not None:
        click.echo(f"  because: {printable(str(cause))}", err=True)
        cause = cause.__cause__
