"""The shell: parses, calls, prints, exits. Each command imports what it needs, so that help is instant."""

import os
import sys
from typing import NoReturn

import click

from equitune import __version__, interrupts
from equitune.cli import cluster, failures, studies, tools, trials
from equitune.cli.analyze import analyze
from equitune.cli.fetch import fetch, pack
from equitune.cli.measure import measure
from equitune.cli.options import DONE, ENDED, INTERRUPTED, TYPED, USERS_MISTAKE
from equitune.cli.output import echo
from equitune.cli.report import report
from equitune.cli.watch import watch
from equitune.errors import StoreError, UserError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Which training choices make a network equivariant, and what does it cost in accuracy?"""


for command in (
    studies.search,
    studies.check,
    studies.show,
    trials.list_studies,
    trials.run_trial_again,
    trials.export,
    analyze,
    report,
    watch,
    cluster.submit,
    cluster.logs,
    cluster.cancel,
    fetch,
    pack,
    measure,
    tools.ui,
    tools.mlflow,
    tools.show_catalog,
    tools.download,
):
    cli.add_command(command)


def main() -> NoReturn:
    """Run the program: a user's mistake ends in its sentence and code 2; a bug keeps its traceback."""
    interrupts.install()
    code = _exit_code()
    interrupts.ending(code)
    if TYPED in os.environ:  # a job on a cluster: Ray forgets the code where it looks just while the driver leaves
        echo(ENDED.format(code=code))
    sys.exit(code)


def _exit_code() -> int:
    try:
        failures.require_text(sys.argv)
        cli.main(standalone_mode=False)
    except SystemExit as end:
        return int(end.code or DONE)
    except (UserError, StoreError) as error:
        return _refused(str(error))
    except click.ClickException as error:
        error.show()
        return USERS_MISTAKE
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except Exception as error:
        if interrupts.received():  # libraries turn what interrupts them into errors of their own
            return _interrupted()
        sentence = failures.sentence(error)
        if sentence is None:
            raise
        return _refused(sentence)
    return DONE


def _refused(sentence: str) -> int:
    echo(sentence, err=True)
    return USERS_MISTAKE


def _interrupted() -> int:
    echo(interrupts.last_words(), err=True)
    return INTERRUPTED
