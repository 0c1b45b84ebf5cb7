import typer


def evaluate() -> None:
    """soon"""
    typer.echo("x")
