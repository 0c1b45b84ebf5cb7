import typer


def convert() -> None:
    """soon"""
    typer.echo("x")
