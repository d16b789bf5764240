"""``python -m tests.bench NAME [--json]``.

Benches, each against its floor, in one run on one machine.

Absolute figures do not travel; ratios do, roughly. Each bench says what it measured, with which
load, and whether the measured process was saturated.
"""

import typer

from tests.bench import priority, start
from tests.bench.backlog import command as backlog
from tests.bench.decide import command as decide
from tests.bench.drain import command as drain
from tests.bench.kill import command as kill
from tests.bench.powercut import command as powercut
from tests.bench.spool import command as spool

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def _bench() -> None:
    """Benches against floors."""


app.command("backlog")(backlog.main)
app.command("decide")(decide.main)
app.command("drain")(drain.main)
app.command("kill")(kill.main)
app.command("powercut")(powercut.main)
app.command("priority")(priority.main)
app.command("spool")(spool.main)
app.command("start")(start.main)

if __name__ == "__main__":
    app(prog_name="python -m tests.bench")
