import typer


def sample() -> None:
    """soon"""
    typer.echo("x")
