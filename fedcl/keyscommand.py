"""The command `fedcl keys`: makes the keys of a federation, and says who gets which."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def keys(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the keys.")],
    nodes: Annotated[int, typer.Option(help="Number of nodes to add.")] = 0,
    host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="A name or address of the server beside localhost; repeatable."
        ),
    ] = None,
    days: Annotated[
        int | None, typer.Option(help="Days that the server's certificate is valid. [365]")
    ] = None,
) -> None:
    """Makes a CA, a server certificate and node keys, or adds nodes; overwrites nothing."""
    from fedcl.keys import LOCAL, make_keys

    new, numbers = make_keys(folder, nodes, host or (), days)
    if new:
        typer.echo(f"server certificate for {', '.join(dict.fromkeys((*LOCAL, *(host or ()))))}")
        typer.echo(f"SuperLink gets {folder}/{{ca.pem,server.pem,server.key}}:")
        typer.echo(
            f"  flower-superlink --ssl-ca-certfile {folder}/ca.pem --ssl-certfile "
            f"{folder}/server.pem --ssl-keyfile {folder}/server.key --enable-supernode-auth "
            "--disable-runtime-dependency-installation"
        )
        typer.echo(f"ca.key signs certificates: keep {folder}/ca.key away from server and devices")
    if numbers:
        name = f"{{{numbers[0]}..{numbers[-1]}}}" if len(numbers) > 1 else str(numbers[0])
        typer.echo(f"each SuperNode gets ca.pem and a key of its own, {folder}/node-{name}.key:")
        typer.echo(
            "  flower-supernode --superlink HOST:8000 --root-certificates ca.pem "
            f"--auth-supernode-private-key node-{numbers[0]}.key --node-config ..."
        )
        typer.echo("the SuperLink learns each public key, from where its connection NAME is known:")
        typer.echo(f"  flwr supernode register {folder}/node-{numbers[0]}.pub NAME")
