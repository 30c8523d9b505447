"""The command line, a file for each command: hf-neuroplastic demo | train | inspect."""

import transformers
import typer

from . import demo, inspect, train

app = typer.Typer(
    help="Plasticity for fine-tuning Hugging Face audio models.", no_args_is_help=True, pretty_exceptions_enable=False
)
for command in (demo.demo, train.train, inspect.inspect):
    app.command()(command)


@app.callback()
def _quiet() -> None:
    """Keeps the libraries' own progress bars and advice off the screen."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
