"""`unmask data`: what the benchmarks need (list, fetch, setup, overlap), and what training needs (build, tokenizer,
synth; rl, select for reinforcement learning; questions, answers for what a model says itself).

Results go to stdout: a table on a terminal, tab-separated lines otherwise, JSON with `--json`. Progress and what was
done go to stderr. Only `answers` loads a model, and imports torch when it runs.
"""

import typer

from unmask.cli.data_answers import answers
from unmask.cli.data_benchmarks import fetch, list_, overlap, setup
from unmask.cli.data_build import build, synth, tokenizer
from unmask.cli.data_questions import questions
from unmask.cli.data_rl import rl, select

app = typer.Typer(help="Data of benchmarks and for training.", no_args_is_help=True)
app.command("list")(list_)
for verb in (fetch, setup, overlap, build, tokenizer, synth, rl, select, questions, answers):
    app.command()(verb)
