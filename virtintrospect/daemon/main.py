"""``virt-introspectd``: the daemon's command line, and its start and end."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click

from virtintrospect import __version__
from virtintrospect.cli.escape import printable
from virtintrospect.daemon.config import Config, load
from virtintrospect.daemon.log import event, to_stderr
from virtintrospect.daemon.notify import notify, watchdog_seconds
from virtintrospect.errors import UsageError, VirtIntrospectError

if TYPE_CHECKING:
    from virtintrospect.daemon.hub import Hub
    from virtintrospect.daemon.sessions import Observer

_log = logging.getLogger("virtintrospect.daemon")  # not by __name__, which may be __main__

#: As in cli/main.py: numpy's threads cost memory and do nothing for us.
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
#: A guest takes some seven descriptors.
_DESCRIPTORS = 65_536
#: Seconds between two lines of status for systemd.
_STATUS_SECONDS = 10.0


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="virt-introspectd")
@click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Configuration, instead of /etc/virtintrospect/config.toml.",
)
@click.option("--check-config", is_flag=True, help="Say whether the configuration is right; end.")
def command(path: Path | None, *, check_config: bool) -> None:
    """Keep a session on each running domain of this host, for virt-introspect to ask.

    Runs in the foreground and logs to standard error. docs/operations.md lists the settings.

    \b
    virt-introspectd --check-config
    virt-introspectd --config ./test.toml
    """
    config = load(path)
    if check_config:
        click.echo(f"{path or 'the configuration'} is right")
        return
    to_stderr(config.daemon.log_level)
    with _locked(config.run_dir):
        _prepare(config)
        asyncio.run(_serve(config))


def main() -> None:
    """Entry point."""
    for name, value in _NO_THREADS.items():
        os.environ.setdefault(name, value)
    try:
        command.main(prog_name="virt-introspectd", standalone_mode=False)
        code = 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = 130
    except VirtIntrospectError as error:
        text = error.message + (f"; {error.hint}" if error.hint else "")
        click.echo(f"virt-introspectd: {printable(text)}", err=True)
        code = error.exit_code
    sys.stderr.flush()
    sys.stdout.flush()
    # A thread may still be reading a guest; nothing of it needs to be finished.
    os._exit(code)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[IO[str]]:
    """Be the only daemon in this folder."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        file = (folder / "daemon.lock").open("a+")
    except OSError as error:
        raise VirtIntrospectError(
            f"{folder}: {error.strerror}", hint="run as root, or set daemon.run_dir"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise VirtIntrospectError(
                f"another virt-introspectd runs (PID {file.read(20).strip() or 'unknown'})",
                hint="systemctl status virt-introspectd",
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield file


def _prepare(config: Config) -> None:
    """Folders, and descriptors enough for many guests."""
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (config.state_dir / "spool").mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise VirtIntrospectError(
            f"{config.state_dir}: {error.strerror}", hint="run as root, or set daemon.state_dir"
        ) from error
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _serve(config: Config) -> None:
    """Run until a signal says that it is enough."""
    from virtintrospect.daemon.api import Api
    from virtintrospect.daemon.inbox import Inbox
    from virtintrospect.daemon.server import Server

    loop = asyncio.get_running_loop()
    enough = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, enough.set)
    hub, extras = _hub(config)
    inbox = Inbox(config.run_dir / "hook.sock")

    def hinted() -> None:
        for hint in inbox.read():
            hub.hint(hint)

    loop.add_reader(inbox.socket, hinted)
    server = Server(config.run_dir / "daemon.sock", config.socket, Api(hub))
    await server.start()
    tasks = [asyncio.create_task(one) for one in (hub.run(), _tell_systemd(hub), *extras)]
    ended = asyncio.create_task(enough.wait())
    # What is there now stays: collections need not look at it again.
    gc.freeze()
    event(_log, logging.INFO, "started", version=__version__, run_dir=config.run_dir)
    try:
        await asyncio.wait([*tasks, ended], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # a mistake of ours: end, and let systemd start us anew
    finally:
        notify("STOPPING=1")
        event(_log, logging.INFO, "stopping")
        for task in tasks:
            task.cancel()
        await server.close()
        loop.remove_reader(inbox.socket)
        inbox.close()
        await hub.close()


def _hub(config: Config) -> tuple[Hub, list[Coroutine[Any, Any, None]]]:
    """The sessions and what they do on their own; and what else is to be kept running."""
    from virtintrospect.daemon.figures import Sampler
    from virtintrospect.daemon.guestlog import GuestLog
    from virtintrospect.daemon.hub import Hub
    from virtintrospect.daemon.triage import Reports, watch_crashes

    reports = Reports(config.state_dir / "triage", config.triage)
    sampler = Sampler(config.state_dir / "history", config.history)
    observers: list[Observer] = [GuestLog(reports.write)]
    if config.history.enabled or config.metrics.enabled or config.metadata.publish:
        observers.append(sampler)
    hub = Hub(config, observers)
    watch_crashes(hub, reports)
    extras: list[Coroutine[Any, Any, None]] = []
    if config.metrics.enabled:
        from virtintrospect.daemon.hintmetrics import HintMetrics
        from virtintrospect.daemon.metrics import Collector, serve

        advice = HintMetrics(config.state_dir / "history", config.govern.policy)
        serve(config.metrics, Collector(hub.sessions, sampler.latest, advice))
    if config.metadata.publish:
        from virtintrospect.daemon.metadata import Publisher

        extras.append(Publisher(hub, sampler.latest, config.metadata.interval_seconds).run())
    if config.govern.enabled:
        from virtintrospect.daemon.govern import Governor

        if not config.history.enabled:
            raise UsageError("govern.enabled needs history.enabled", hint="set both to true")
        extras.append(Governor(hub, config.govern, config.state_dir).run())
    return hub, extras


async def _tell_systemd(hub: Hub) -> None:
    """READY=1 at once, then signs of life and a line of status."""
    every = min(watchdog_seconds() or _STATUS_SECONDS, _STATUS_SECONDS)
    notify("READY=1")
    while True:
        states = [session.state.value for session in hub.sessions.values()]
        count = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        libvirt = "" if hub.connected else "; waiting for libvirt"
        notify("WATCHDOG=1", f"STATUS={count or 'no sessions'}{libvirt}")
        await asyncio.sleep(every)


if __name__ == "__main__":
    main()
