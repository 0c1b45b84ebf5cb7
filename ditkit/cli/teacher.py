import typer


def teacher() -> None:
    """soon"""
    typer.echo("x")
