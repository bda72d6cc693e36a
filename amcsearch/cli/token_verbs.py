"""The verbs of ``amcsearch token``: make, list and revoke the tokens of a service, in its database."""

import argparse
import getpass
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from amcsearch.cli.arguments import add_verb, count, names, path
from amcsearch.cli.service_verbs import RUNS, add_database, database_address
from amcsearch.cli.text import columns
from amcsearch.cli.verbs import show
from amcsearch.core import BadInputError

if TYPE_CHECKING:
    from amcsearch.cli.arguments import Commands
    from amcsearch.reporting import ProgressBar
    from amcsearch.service import TokenRecord, TokenTable

__all__ = ["add_token_verbs", "token_create", "token_list", "token_revoke"]


def add_token_verbs(commands: "Commands") -> None:
    """Add the verbs of tokens to the parser."""
    token = commands.add_parser("token", help="tokens of a service", description="Bearer tokens of a service.")
    parts = token.add_subparsers(title="verbs", metavar="VERB", required=True)
    example = "amcsearch token create --name ci --scopes read,submit --expires 90d"
    create = add_verb(parts, "create", token_create, "make a token and print it, once", example)
    create.add_argument("--name", required=True, help="of who uses it, who owns the jobs submitted with it")
    create.add_argument(
        "--scopes",
        type=names,
        default=["read", "submit"],
        help="read, submit, measure (jobs that measure devices), admin (all of it), with commas between (read,submit)",
    )
    create.add_argument("--expires", default="90d", help="in hours, days or weeks, such as 12h; never (90d)")
    create.add_argument("--most-jobs", type=count, help="that may wait or run at once (the service's limit)")
    listed = add_verb(
        parts, "list", token_list, "list tokens, without their secrets", "amcsearch token list --runs runs"
    )
    revoke = add_verb(parts, "revoke", token_revoke, "end a token at once", "amcsearch token revoke ci")
    revoke.add_argument("token", help="its name or id")
    for command in (create, listed, revoke):
        command.add_argument("--runs", type=path, default=RUNS, help="folder of all jobs, that of the service (runs)")
        add_database(command)


@contextmanager
def _tokens(args: argparse.Namespace, console: "ProgressBar") -> Iterator["TokenTable"]:
    """The tokens of a service; says so where there was none, because a first token is made before the service."""
    from amcsearch.service import open_tokens

    with open_tokens(args.runs, database_address(args)) as tokens:
        if tokens.database.is_new:
            console.phase(f"Made a new job table, {tokens.database.address}; for another service name its --runs")
        yield tokens


def _note(tokens: "TokenTable", action: str, record: "TokenRecord") -> None:
    from amcsearch.service import AuditEntry

    target = f"token {record.id} {record.name}: {','.join(record.scopes)}"
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user without a name, as in a container
        user = "unknown"
    tokens.note(AuditEntry(f"{user} on the command line", action, target, 0, socket.gethostname()))


def token_create(args: argparse.Namespace, console: "ProgressBar") -> None:
    """Make a token and print it."""
    from amcsearch.service import Scope, read_lifetime

    unknown = next((scope for scope in args.scopes if scope not in set(Scope)), None)
    if unknown is not None:
        raise BadInputError(f"--scopes {unknown[:40]}: expected some of {', '.join(Scope)}, with commas between")
    lifetime_s = None if args.expires == "never" else read_lifetime(args.expires)
    with _tokens(args, console) as tokens:
        made = tokens.create(args.name, [Scope(scope) for scope in args.scopes], lifetime_s, args.most_jobs)
        _note(tokens, "create", made.record)
    console.phase("Keep the token now: it is not shown again, and the database holds its SHA-256 alone")
    show(args, {**made.record.to_json(), "token": made.text}, made.text)


def token_list(args: argparse.Namespace, console: "ProgressBar") -> None:
    """List tokens."""
    with _tokens(args, console) as tokens:
        records = tokens.every()
    head = ["id", "name", "scopes", "state", "made", "expires", "most jobs"]
    rows = [
        [
            *(record.id, record.name, ",".join(record.scopes), _state(record), _date(record.created_s)),
            *("never" if record.expires_s is None else _date(record.expires_s), str(record.most_jobs or "")),
        ]
        for record in records
    ]
    text = "\n".join(columns([head, *rows])) if rows else "no tokens; make one with amcsearch token create"
    show(args, {"tokens": [record.to_json() for record in records]}, text)


def _state(record: "TokenRecord") -> str:
    if record.is_valid:
        return "valid"
    return "expired" if record.revoked_s is None else "revoked"


def _date(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%d %H:%M")


def token_revoke(args: argparse.Namespace, console: "ProgressBar") -> None:
    """End a token."""
    with _tokens(args, console) as tokens:
        record = tokens.revoke(args.token)
        _note(tokens, "revoke", record)
    show(
        args,
        record.to_json(),
        f"token {record.id} of {record.name} is revoked; requests with it are refused from now on",
    )
