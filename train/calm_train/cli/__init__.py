"""`calm train`: its subcommands."""

from __future__ import annotations

import logging

import click

from calm_train.cli.evaluate import evaluate
from calm_train.cli.fetch import fetch
from calm_train.cli.mending import mending
from calm_train.cli.preview import preview
from calm_train.cli.stages import language, pretrain, tune
from calm_train.cli.teacher import teacher


@click.group()
def train() -> None:
    """Train and evaluate CALM. Needs `pip install calm-edge[train]`.

    \b
    From nothing:
      calm train pretrain --recipe nano --photos DIR -o runs/pretrain
      calm train tune     --recipe nano --photos DIR --init runs/pretrain -o runs/tune
    Your own photos and ratings, from the shipped model:
      calm train pretrain --photos DIR --init calm-nano -o runs/mine
      calm train tune --ratings ratings.csv --init runs/mine -o runs/taste
    Then:
      calm train evaluate --checkpoint runs/tune --photos HELD_OUT_DIR
      calm export runs/tune -o BUNDLE --target cpu

    See what a run would do with --dry-run, and what the model is shown with `calm train preview`.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")


for _command in (language, pretrain, tune, evaluate, preview, mending, fetch, teacher):
    train.add_command(_command)
