"""The command line: puts the commands of spoor/commands together and turns their errors into messages. A command
returns its exit code, or None for 0.

Exit codes: 0 done, 1 problems found, or confirmation declined, 2 wrong usage or settings, 3 a server, disk or folder is
not there, 70 a defect in Spoor (the traceback is written to a file), 130 interrupted, 141 stdout was closed.
"""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from spoor.base.errors import SpoorError, UsageError
from spoor.commands.batch.archive import archive
from spoor.commands.batch.backfill import backfill
from spoor.commands.batch.export import export
from spoor.commands.batch.forget import forget
from spoor.commands.batch.merge_users import merge_users
from spoor.commands.batch.verify import verify
from spoor.commands.config import show_config
from spoor.commands.demo import demo
from spoor.commands.encoder.evaluate import evaluate
from spoor.commands.encoder.pretrain import pretrain
from spoor.commands.invocation import Invocation
from spoor.commands.options import LocalPath
from spoor.commands.ranker.features_build import build_features
from spoor.commands.ranker.finetune import finetune
from spoor.commands.ranker.lift import lift
from spoor.commands.release.compare import compare
from spoor.commands.release.drift import drift
from spoor.commands.release.list import list_releases
from spoor.commands.release.promote import promote
from spoor.commands.release.retire import retire
from spoor.commands.release.show import show_release
from spoor.commands.release.tables_build import build_tables
from spoor.commands.release.tables_report import show_tables
from spoor.commands.services import show_services, start_services, stop_services
from spoor.commands.show import user
from spoor.commands.simulate import simulate
from spoor.commands.stream.dlq_list import list_letters
from spoor.commands.stream.dlq_replay import replay_letters
from spoor.commands.stream.orders import pause, reload, resume, show_workers
from spoor.commands.stream.stream import stream
from spoor.commands.topics import create
from spoor.console import ReaderGone, emit, set_up_logging, set_up_streams

DEFECT, INTERRUPTED, PIPE_CLOSED = 70, 130, 141

_EPILOG = (
    "Exit codes: 0 done, 1 problems found, or confirmation declined, 2 wrong usage or settings, 3 a server, disk or "
    "folder is not there, 70 a defect in Spoor, 130 interrupted. Errors end with a hint."
)


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--config", type=LocalPath(), metavar="FILE", help="Settings file; default ./spoor.toml.")
@click.option(
    "--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A setting for this call, e.g. kafka.port=9092."
)
@click.option("--verbose", is_flag=True, help="Log more, libraries included.")
@click.version_option(package_name="spoor")
@click.pass_context
def app(ctx: click.Context, config: Path | None, assignments: Sequence[str], verbose: bool) -> None:
    """User-sequence embeddings from Kafka events, kept fresh in Feast."""
    set_up_logging(verbose=verbose)
    invocation = ctx.ensure_object(Invocation)
    invocation.config = config
    invocation.flags = dict(_assignment(text) for text in assignments)


def _group(name: str, help: str, *commands: click.Command) -> click.Group:
    return click.Group(name, help=help, commands=commands)


for _command in (pause, resume, reload, show_workers):
    stream.add_command(_command)
for _command in (
    demo,
    pretrain,
    evaluate,
    finetune,
    lift,
    _group("features", "Build features that need no model.", build_features),
    archive,
    backfill,
    verify,
    export,
    forget,
    merge_users,
    stream,
    _group("dlq", "List and replay dead letters.", list_letters, replay_letters),
    _group(
        "release",
        "Releases: frozen models by name.",
        list_releases,
        show_release,
        promote,
        retire,
        compare,
        drift,
        _group("tables", "Item tables: pack them, look at them.", build_tables, show_tables),
    ),
    _group("show", "Show what is stored.", user),
    _group("services", "Start, stop and look at the local Kafka.", start_services, stop_services, show_services),
    _group("topics", "Create the Kafka topics.", create),
    simulate,
    _group("config", "The settings in force.", show_config),
):
    app.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one command and ends the process with its exit code."""
    set_up_streams()
    code = run(sys.argv[1:] if arguments is None else arguments)
    # DuckDB's binding prints pages about its own leaks while the interpreter shuts down. os._exit skips the shutdown,
    # so exit functions and flushes run here.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code. Every error becomes a message and a hint on stderr."""
    invocation = Invocation()
    try:
        result: Any = app.main(list(arguments), prog_name="spoor", standalone_mode=False, obj=invocation)
        return result if isinstance(result, int) else 0
    except SpoorError as error:
        return _report(invocation, error.message, error.hint, error.exit_code)
    except click.ClickException as error:
        return _report(invocation, *_usage(error), 2)
    except (click.Abort, KeyboardInterrupt):
        hint = "nothing is broken: run it again, with --resume where the command has it"
        return _report(invocation, "interrupted", hint, INTERRUPTED)
    except ReaderGone:
        # Python's last flush goes to /dev/null, so it cannot fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        message = f"a defect in Spoor: {type(error).__name__}: {' '.join(str(error).split())}"
        return _report(invocation, message, f"please report it with {_keep_traceback(invocation)}", DEFECT)


def _assignment(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key.strip():
        raise UsageError(f"--set {text}: found no `=`", hint="write --set kafka.port=9092")
    return key.strip(), value


def _usage(error: click.ClickException) -> tuple[str, str]:
    ctx = getattr(error, "ctx", None)
    return error.format_message(), f"`{ctx.command_path if ctx else 'spoor'} --help` shows what it takes"


def _report(invocation: Invocation, message: str, hint: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)
    if invocation.as_json:
        emit({"error": message, "hint": hint, "exit_code": exit_code}, as_json=True, text="")
    return exit_code


def _keep_traceback(invocation: Invocation) -> Path:
    """Writes the current traceback to a file in the state folder, else in the temporary folder, else to stderr. Returns
    its path."""
    folders = [Path(tempfile.gettempdir())]
    if invocation.loaded is not None:
        folders.insert(0, invocation.loaded.state_folder / "logs")
    name = f"spoor-error-{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}.log"
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
            return folder / name
        except OSError:
            continue
    traceback.print_exc()
    return Path("the traceback above")


if __name__ == "__main__":
    main()
