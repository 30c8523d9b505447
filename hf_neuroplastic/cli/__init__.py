"""The command line, a file for each command: demo, train, evaluate, adapt, stream, ..."""

from typing import Annotated

import typer

from . import adapt, corpus, demo, evaluate, inspect, predict, report, stream, train

app = typer.Typer(
    help="Plasticity for fine-tuning Hugging Face audio models.", no_args_is_help=True, pretty_exceptions_enable=False
)
for command in (
    demo.demo,
    train.train,
    evaluate.evaluate,
    adapt.adapt,
    predict.predict,
    report.report,
    inspect.inspect,
    stream.stream,
):
    app.command()(command)
app.add_typer(corpus.corpus, name="corpus")


def tell_version(asked: bool) -> None:
    if asked:
        from hf_neuroplastic import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Plasticity for fine-tuning Hugging Face audio models."""
