"""`vitrine callers`: makes a caller's token, and checks a file of callers before a server reads it."""

import hashlib
import json
import secrets
from pathlib import Path
from typing import Annotated

import typer

from vitrine.api.ann.v1 import ann_pb2
from vitrine.api.ctr.v1 import ctr_pb2
from vitrine.api.matching.v1 import matching_pb2
from vitrine.runtime import audit, callers
from vitrine.runtime.files import FileError

app = typer.Typer(no_args_is_help=True, help="Who may call: tokens, methods and rates (docs/security.md).")

_REFLECTION = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def known_methods() -> list[str]:
    """What this version's servers and console ask about."""
    services = [s for file in (ann_pb2, matching_pb2, ctr_pb2) for s in file.DESCRIPTOR.services_by_name.values()]
    own = [f"{service.full_name}/{method.name}" for service in services for method in service.methods]
    return [*own, "console/read", "console/events", _REFLECTION]


def new_entry(
    name: str, methods: list[str], *, rate_per_s: float | None = None, burst: int | None = None
) -> tuple[str, str]:
    """A fresh token, and its entry for the file of callers."""
    token = f"vitrine_{secrets.token_urlsafe(32)}"
    lines = [
        "[[callers]]",
        f"name = {json.dumps(name)}",
        f'token_sha256 = "{hashlib.sha256(token.encode()).hexdigest()}"',
        f"methods = {json.dumps(methods)}",
    ]
    if rate_per_s is not None:
        lines.append(f"rate_per_s = {rate_per_s}")
    if burst is not None:
        lines.append(f"burst = {burst}")
    return token, "\n".join(lines) + "\n"


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="the caller's name: in metrics and audit lines")],
    method: Annotated[list[str], typer.Option(help='"package.Service/Method" or "package.Service/*"; repeatable')],
    rate_per_s: Annotated[float | None, typer.Option(help="calls a second, of each server process")] = None,
    burst: Annotated[int | None, typer.Option(help="calls at once (default: one second's worth)")] = None,
    file: Annotated[Path | None, typer.Option(help="append the entry to this file of callers")] = None,
) -> None:
    """Make a token. It is printed once, on stdout; its entry for the file of callers, which holds only its hash,
    goes to stderr or to the end of `--file`.

    Examples:

        vitrine callers new ad-frontend --method 'vitrine.api.matching.v1.MatchingService/GetMatches' \\
            --method 'vitrine.api.ctr.v1.CtrService/*' --rate-per-s 500 --file callers.toml > ad-frontend.token

        vitrine callers new colleagues --method console/read
    """
    token, entry = new_entry(name, method, rate_per_s=rate_per_s, burst=burst)
    try:
        before = file.read_text() if file is not None and file.exists() else ""
        whole = before + ("\n" if before else "") + entry
        table = callers.parse(whole.encode(), "this entry" if file is None else str(file))
    except (OSError, UnicodeDecodeError, FileError) as error:
        typer.echo(f"vitrine callers new: {error}", err=True)
        raise typer.Exit(2) from error
    _warn(list(table.values())[-1:])
    if file is None:
        typer.echo(entry, err=True)
    else:
        with audit.recorded("callers.new", name, file=str(file), methods=method), file.open("a") as end:
            end.write(whole.removeprefix(before))
    typer.echo(token)


@app.command()
def check(file: Annotated[Path, typer.Argument(help="file of callers, as VITRINE_CALLERS names it")]) -> None:
    """Check a file of callers as a server does, and show who may call what. Status 1 where a server refused it.

    A method that this version does not know is shown as such: it may be a slip, or another version's.
    """
    try:
        table = callers.check(file)
    except FileError as error:
        typer.echo(f"vitrine callers check: {error}", err=True)
        raise typer.Exit(1) from error
    found = {caller.name: caller for caller in table.values()}
    for caller in found.values():
        bucket = caller.bucket
        limit = "no limit" if bucket is None else f"{bucket.rate_per_s:g}/s, {bucket.burst:g} at once"
        typer.echo(f"{caller.name}: {limit}: {', '.join(caller.methods)}")
    _warn(list(found.values()))


def _warn(found: list[callers.Caller]) -> None:
    known = known_methods()
    services = {method.rpartition("/")[0] for method in known}
    for caller in found:
        for method in caller.methods:
            service, _, name = method.rpartition("/")
            if method not in known and (name != "*" or service not in services):
                typer.echo(f"{caller.name}: this version knows no method {method}", err=True)
