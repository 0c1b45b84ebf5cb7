import typer


def doctor() -> None:
    """soon"""
    typer.echo("x")
