"""Commands and options by click, Typer and argparse: names alone, exactly those that were given; and ours mounted in theirs."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from click.testing import CliRunner

from profiler import ArgumentTypeError, Telemetry
from profiler.cli import mount
from profiler.storage.usage_ledger import UsageLedger
from support.package_author import OUTSIDE, choose, counted, facts, metrics, single_facts
from support.processes import at_terminal, epochmeter, python
from support.sinks import Sink

HERE = (__name__,)  # this file is the package, and what stands in it is its own


def taken(telemetry: Telemetry) -> tuple[dict[str, int], dict[str, list[str]], int]:
    """Return the counted commands, the options given with each, and the undeclared ones."""
    _, commands, options, _, undeclared = telemetry._counters.take()
    return commands, {command: sorted(given) for command, given in options.items()}, undeclared


def program_with_click() -> click.Group:
    @click.group()
    @click.option("--verbose", is_flag=True)
    def cli(verbose: bool) -> None:
        """Run the program."""

    @cli.command()
    @click.option("--epochs", default=3)
    @click.option("--learning-rate", default=0.1, envvar="DIGITS_RATE")
    @click.option("--data")
    @click.argument("path")
    def fit(**values: Any) -> None:
        """Train."""

    @cli.group()
    def model() -> None:
        """Manage models."""

    @model.command()
    @click.option("--force/--no-force")
    def save(force: bool) -> None:
        """Save."""

    @cli.command()
    def boom() -> None:
        """Fail."""
        raise RuntimeError("secret")

    return cli


@pytest.mark.parametrize(
    ("line", "commands", "options"),
    [
        (["fit", "canary"], {"fit": 1}, {}),
        (["fit", "canary", "--epochs", "3"], {"fit": 1}, {"fit": ["epochs"]}),  # its default, given
        (["--verbose", "fit", "--learning-rate=5", "--data", "canary", "x"], {"fit": 1}, {"fit": ["data", "learning_rate"]}),
        (["model", "save", "--no-force"], {"model.save": 1}, {"model.save": ["force"]}),
        (["fit"], {}, {}),  # wrong usage: it was not run
        (["fit", "--help"], {}, {}),
        (["canary"], {}, {}),
    ],
)
def test_click(line: list[str], commands: dict[str, int], options: dict[str, list[str]]) -> None:
    telemetry, cli = Telemetry("digits", "1"), program_with_click()
    for _ in range(2):
        assert telemetry.watch(cli) is cli  # the second time changes nothing
    CliRunner().invoke(cli, line, env={"DIGITS_RATE": "0.5"})
    assert taken(telemetry) == (commands, options, 0)
    assert "canary" not in json.dumps(telemetry.declared())


def test_what_click_runs_is_guarded(home: Path) -> None:
    cli = Telemetry("digits", "1").watch(program_with_click())
    found = CliRunner().invoke(cli, ["boom"])
    assert isinstance(found.exception, RuntimeError)
    CliRunner().invoke(cli, ["fit"])
    assert len(list((home / "crashes").iterdir())) == 1


def test_a_watched_program_says_itself_what_it_has() -> None:
    telemetry = Telemetry("digits", "1", modules=HERE)
    telemetry.watch(program_with_click())
    assert telemetry.declared()["commands"] == [
        ["fit", ["epochs", "learning_rate", "data"]],
        ["model.save", ["force"]],
        ["boom", []],
    ]


def test_of_a_declared_set_nothing_else_is_counted() -> None:
    telemetry = Telemetry("digits", "1", commands={"fit": ("epochs",)})
    fit = click.Command("fit", params=[click.Option(["--epochs"]), click.Option(["--x"])])
    group = click.Group("digits", commands={"fit": fit, "other": click.Command("other")})
    for command in (group, *group.commands.values()):
        command.callback = lambda **values: None
    telemetry.watch(group)
    CliRunner().invoke(group, ["fit", "--epochs", "1", "--x", "2"])
    CliRunner().invoke(group, ["other"])
    assert taken(telemetry) == ({"fit": 1}, {"fit": ["epochs"]}, 2)
    assert telemetry.declared()["commands"] == [["fit", ["epochs"]]]


def test_context_of_command_or_group() -> None:
    telemetry = Telemetry("digits", "1", commands=("fit", "model.save"))

    @click.group()
    @click.pass_context
    def program(context: click.Context) -> None:
        telemetry.command(context)

    @program.command("fit")
    @click.option("--epochs")
    @click.pass_context
    def run(context: click.Context, epochs: str) -> None:
        telemetry.command(context)

    CliRunner().invoke(program, ["fit", "--epochs", "canary"])
    assert taken(telemetry) == ({"fit": 1}, {"fit": ["epochs"]}, 0)  # one call, however many say so


def test_group_with_lazy_commands_is_counted(home: Path) -> None:
    telemetry = Telemetry("digits", "1", commands={"fit": ("epochs",)})

    class Lazy(click.Group):
        def list_commands(self, context: click.Context) -> list[str]:
            return ["fit", "canary"]

        def get_command(self, context: click.Context, name: str) -> click.Command | None:
            return click.Command(name, params=[click.Option(["--epochs"])], callback=lambda epochs: 1 / (epochs != "0"))

    cli = telemetry.watch(Lazy("digits"))
    CliRunner().invoke(cli, ["fit", "--epochs", "3"])
    CliRunner().invoke(cli, ["canary"])
    assert isinstance(CliRunner().invoke(cli, ["fit", "--epochs", "0"]).exception, ZeroDivisionError)
    assert taken(telemetry) == ({"fit": 2}, {"fit": ["epochs"]}, 1)
    assert "canary" not in json.dumps(telemetry.declared())
    assert len(list((home / "crashes").iterdir())) == 1


def test_the_context_of_a_group_above_groups() -> None:
    telemetry, cli = Telemetry("digits", "1", commands=("fit", "model.save")), program_with_click()
    cli.callback = click.pass_context(lambda context, verbose: telemetry.command(context))
    telemetry.watch(cli)
    CliRunner().invoke(cli, ["model", "save", "--force"])
    CliRunner().invoke(cli, ["fit", "x"])
    assert taken(telemetry) == ({"fit": 1, "model.save": 1}, {"model.save": ["force"]}, 0)


def test_typer() -> None:
    telemetry = Telemetry("digits", "1", modules=HERE)
    app = typer.Typer()

    @app.command()
    def train(path: str, epochs: int = 3, learning_rate: float = 0.1) -> None:
        """Train."""

    @app.command()
    def predict(ctx: typer.Context, verbose: bool = False) -> None:
        """Predicts."""
        telemetry.command(ctx)

    command = telemetry.watch(app)
    command(["train", "canary", "--learning-rate", "0.1"], standalone_mode=False)
    assert taken(telemetry) == ({"train": 1}, {"train": ["learning_rate"]}, 0)
    command(["predict", "--verbose"], standalone_mode=False)
    assert taken(telemetry) == ({"predict": 1}, {"predict": ["verbose"]}, 0)  # watched, and by its own context
    assert telemetry.declared()["commands"] == [["train", ["epochs", "learning_rate"]], ["predict", ["verbose"]]]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser("digits")
    found.add_argument("--verbose", action="store_true")
    found.add_argument("--version", action="version", version="1")
    commands = found.add_subparsers(dest="command")
    train = commands.add_parser("train", aliases=["t"])
    train.add_argument("path", nargs="?", default="canary")
    train.add_argument("--epochs", "-e", type=int, default=3)
    train.add_argument("--data", action="append")
    train.add_argument("--cache", action=argparse.BooleanOptionalAction, default=True)
    models = commands.add_parser("model").add_subparsers(dest="what")
    models.add_parser("save").add_argument("--force", action="store_true")
    return found


@pytest.mark.parametrize(
    ("line", "commands", "options"),
    [
        ([], {}, {}),
        (["train"], {"train": 1}, {}),
        (["train", "canary", "-e", "3"], {"train": 1}, {"train": ["epochs"]}),
        (["--verbose", "t", "--data=canary", "--no-cache"], {"train": 1}, {"train": ["cache", "data", "verbose"]}),
        (["model", "save", "--force"], {"model.save": 1}, {"model.save": ["force"]}),
    ],
)  # fmt: skip
def test_argparse(line: list[str], commands: dict[str, int], options: dict[str, list[str]]) -> None:
    telemetry, watched, plain = Telemetry("digits", "1", modules=HERE), parser(), parser()
    assert telemetry.watch(watched) is watched
    for _ in range(2):  # the second call begins anew
        arguments = watched.parse_args(line)
        assert vars(arguments) == vars(plain.parse_args(line))
        telemetry.command(arguments)
        assert taken(telemetry) == (commands, options, 0)
        with pytest.raises(SystemExit):
            watched.parse_args(["--verbose", "train", "--epochs", "many"])  # leaves nothing for the next one
    assert dict(telemetry.declared()["commands"]) == {
        "train": ["verbose", "epochs", "data", "cache"],
        "model.save": ["verbose", "force"],
    }


def test_a_program_with_one_command_calls_it_main() -> None:
    telemetry, one = Telemetry("digits", "1"), argparse.ArgumentParser("canary")
    one.add_argument("--epochs")
    telemetry.watch(one)
    telemetry.command(one.parse_args(["--epochs", "canary"]))
    assert taken(telemetry) == ({"main": 1}, {"main": ["epochs"]}, 0)


def test_unwatched_parser_counts_command_alone() -> None:
    telemetry = Telemetry("digits", "1", commands={"train": ("epochs",)})
    telemetry.command(argparse.Namespace(command="train", epochs=5, data="canary"))
    telemetry.command(argparse.Namespace(command="canary", data="canary"))
    assert taken(telemetry) == ({"train": 1}, {}, 1)


def test_unwatchable_raises_and_uncountable_does_not() -> None:
    telemetry = Telemetry("digits", "1", commands=("train",))
    with pytest.raises(ArgumentTypeError, match="a Typer app or an ArgumentParser was expected"):
        telemetry.watch(print)
    telemetry.command(object())
    telemetry.command(None)
    assert taken(telemetry)[:2] == ({}, {})
    assert Telemetry("digits", "1").watch(parser()).parse_args(["train"]).epochs == 3
    assert telemetry._shipper.notes == {"a command could not be counted: TypeError": 2}


# ---- ours in theirs ------------------------------------------------------------------------------------------------

PROGRAM = """
import sys, typer
from profiler import Telemetry
from profiler.cli import mount
telemetry = Telemetry("digits", "1.2.3", features=("export",), commands={"train": ("epochs",)}, exporter="otlp",
                      settings={"otlp_endpoint": URL})
app = typer.Typer(pretty_exceptions_enable=False)
mount.settings(app)
mount.telemetry(app, telemetry)
@app.command()
def train(epochs: int = 3):
    telemetry.feature("export")
telemetry.watch(app)(sys.argv[1:])
"""


def program(sink: Sink, *arguments: str, **environment: str) -> Any:
    script = PROGRAM.replace("URL", repr(sink.url))
    return at_terminal("-c", script, *arguments, **{**OUTSIDE, "COLUMNS": "120", **environment})


def test_settings_and_telemetry_mount_in_one_line(sink: Sink, home: Path) -> None:
    assert program(sink, "settings", "retention_days=7").code == 0
    assert json.loads((home / "settings.json").read_text())["retention_days"] == 7
    assert "retention_days" in program(sink, "settings").out
    wrong = program(sink, "settings", "sink=false")
    assert wrong.code == 2
    assert wrong.err.startswith("error: there is no setting 'sink'. Did you mean 'sync'") and "Traceback" not in wrong.err
    schema = program(sink, "telemetry", "schema", "--json").json
    (features,) = [entry for entry in schema["metrics"] if entry["name"] == "epochmeter.usage.features"]
    assert features["attributes"]["epochmeter.usage.feature"]["values"] == ["export"]
    assert "epochs" in schema["vocabulary"]
    section = program(sink, "telemetry", "schema", "--markdown").out
    for told in (
        "digits settings sync=false",
        "`epochmeter.usage.features` | export |",
        "digits:function",
        "digits can send the data",
    ):
        assert told.replace("digits:function", "module:function:+line for those of digits") in section
    assert program(sink, "telemetry", "log").code == 0
    assert program(sink, "telemetry", "preview").out == ""


def test_a_program_of_typers_end_to_end(sink: Sink, home: Path) -> None:
    first = program(sink, "train", "--epochs", "5")
    assert (first.code, sink.received) == (0, []) and "nothing of that is sent" in first.err
    assert program(sink, "train").err == ""
    (received,) = metrics(sink)
    assert counted(received) == {("features", "export"): 1, ("commands", "train"): 1}
    assert facts(received)["epochmeter.app.version"] == "1.2.3"
    assert program(sink, "train", "--epochs", "5").code == 0
    preview = program(sink, "telemetry", "preview", "--json").json
    assert {(one["what"], one["may_leave"]) for one in preview} == {("usage", True)}
    assert program(sink, "telemetry", "flush").code == 0
    assert counted(metrics(sink)[1])["options", "train", "epochs"] == 1
    assert program(sink, "telemetry", "log").out.count("HTTP 200") == len(sink.received)


def test_ours_are_mounted_in_typers_programs_alone() -> None:
    for mounting in (mount.settings, lambda app: mount.telemetry(app, Telemetry("digits", "1"))):
        with pytest.raises(ArgumentTypeError, match="mounted in a Typer app"):
            mounting(program_with_click())


def test_our_own_commands_are_not_counted(sink: Sink, home: Path) -> None:
    program(sink, "settings")
    assert not (home / "usage").exists()


def test_mounting_loads_no_other_command() -> None:
    script = (
        "import sys\nfrom profiler.cli import mount\nprint(*[name for name in sys.modules if name.startswith('profiler.cli')])"
    )
    loaded = set(python("-c", script).out.split())
    assert not loaded & {"profiler.cli.app", "profiler.cli.bench", "profiler.cli.demo", "profiler.cli.run"}
    assert mount.COMMANDS == ("schema", "preview", "log", "flush", "verify")


# ---- measured runs of a package ------------------------------------------------------------------------------------

APP = ("epochmeter.app.name", "epochmeter.app.version")
RUNS = """
import sys
from profiler import Telemetry
telemetry = Telemetry("digits", "1.2.3", exporter="otlp", settings={"otlp_endpoint": sys.argv[1]})
with telemetry.profiler("my name for it", epochs=2) as prof:
    for _ in prof.epochs():
        list(prof.train(range(3)))
"""


def test_a_packages_runs_go_where_its_counts_go(sink: Sink, home: Path) -> None:
    first = at_terminal("-c", RUNS, sink.url, **OUTSIDE)
    assert (first.code, sink.received) == (0, []) and first.err.startswith("digits wishes to send ")
    second = at_terminal("-c", RUNS, sink.url, **OUTSIDE)
    assert (second.code, second.err) == (0, "")
    (received,) = metrics(sink)
    assert facts(received)["epochmeter.app.name"] == "digits" and facts(received)["epochmeter.app.version"] == "1.2.3"
    assert b"epochmeter.epoch.count" in received.content and b"my name" not in received.content
    assert set(facts(received)) == {"service.name", "service.version", "service.instance.id", *APP}  # its machine's: apart
    assert single_facts(sink)
    preview = epochmeter("telemetry", "preview", "last", "--json", EPOCHMETER_EXPORTER="otlp").json
    assert len(preview["content"]["resourceMetrics"][0]["resource"]["attributes"]) > 5  # the user's own collector gets all
    for off in ({"DO_NOT_TRACK": "1"}, {"CI": "1"}, {"EPOCHMETER_EXPORTER": "none"}):
        assert at_terminal("-c", RUNS, sink.url, **{**OUTSIDE, **off}).err == ""
    choose(home, sync=False)
    at_terminal("-c", RUNS, sink.url, **OUTSIDE)
    assert len(metrics(sink)) == 1


def test_next_run_sends_killed_run_of_package(sink: Sink, home: Path) -> None:
    at_terminal("-c", RUNS, sink.url, **OUTSIDE)
    killed = RUNS.replace(
        "list(prof.train(range(3)))", "list(prof.train(range(3)))\n    import os, time; time.sleep(0.5); os._exit(9)"
    )
    assert at_terminal("-c", killed, sink.url, **OUTSIDE).code == 9
    assert sink.received == []
    import time

    time.sleep(2.1)  # a run's note in the outbox is left alone for two seconds
    at_terminal("-c", RUNS, sink.url, **OUTSIDE)
    assert [facts(received)["epochmeter.app.name"] for received in metrics(sink)] == ["digits", "digits"]


def test_package_run_goes_to_package_destination_only() -> None:
    from profiler import ArgumentValueError

    with pytest.raises(ArgumentValueError, match="settings of a run are those of its Telemetry"):
        Telemetry("digits", "1").profiler("x", settings={"sync": True})


def test_other_packages_data_is_not_shown(sink: Sink, home: Path) -> None:
    other = Telemetry("other", "1", features=("a",))
    other.feature("a")
    other.close()
    assert len(UsageLedger(home / "usage" / "other").kept()) == 1
    assert program(sink, "telemetry", "preview").out == ""
    assert "other, usage" in epochmeter("telemetry", "preview").out


# ---- names that may be the user's own ------------------------------------------------------------------------------

RECIPES = """
import argparse, sys, types
from profiler import Telemetry
if sys.argv[1] == "argparse":
    telemetry = Telemetry("recipes", "1.0", exporter="otlp", settings={"otlp_endpoint": sys.argv[2]})
    parser = argparse.ArgumentParser()
    inner = parser.add_subparsers(dest="cmd")
    inner.add_parser("deploy-acme-merger-2027").add_argument("--alice-salary", action="store_true")
    telemetry.watch(parser)
    telemetry.command(parser.parse_args(["deploy-acme-merger-2027", "--alice-salary"]))
else:
    import click, typer
    telemetry = Telemetry("recipes", "1.0", exporter="otlp", settings={"otlp_endpoint": sys.argv[2]})
    if sys.argv[1] == "click":
        app = click.Group()
        option = click.Option(["--alice-salary"], is_flag=True)
        app.add_command(click.Command("deploy-acme-merger-2027", callback=lambda alice_salary: None, params=[option]))
        app.add_command(click.Command("other-one", callback=lambda: None))
    else:
        app = typer.Typer()
        def f(x: bool = typer.Option(False, "--alice-salary")): pass
        app.command("deploy-acme-merger-2027")(f)
        app.command("other-one")(lambda: None)
    telemetry.watch(app)(["deploy-acme-merger-2027", "--alice-salary"], standalone_mode=False)
telemetry.close()
"""


@pytest.mark.parametrize("kind", ["click", "typer", "argparse"])
def test_commands_made_of_users_files_are_other(sink: Sink, home: Path, kind: str) -> None:
    for _ in range(2):
        assert at_terminal("-c", RECIPES, kind, sink.url, **OUTSIDE).code == 0
    (received,) = metrics(sink)
    assert counted(received) == {("commands", "other"): 1, ("options", "other", "other"): 1}
    kept = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    for name in (b"acme", b"alice", b"salary"):
        assert name not in received.content and name not in kept


def installed(folder: Path, files: dict[str, str]) -> str:
    """Install a package as pip does: its files, and a RECORD of them."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    info = folder / "plugpkg-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugpkg\nVersion: 1.0\n")
    (info / "RECORD").write_text("".join(f"{name},,\n" for name in files))
    return str(folder)


PLUGIN = """
import importlib.util, sys
import plugpkg
spec = importlib.util.spec_from_file_location("plugpkg.recipes.acme_merger_2027", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
telemetry = plugpkg.telemetry()
try:
    with telemetry.guard():
        plugpkg.run(module.alice_salary_step)
except ValueError:
    pass
import click
app = click.Group()
app.add_command(click.Command("fit", callback=lambda: None))
app.add_command(click.Command("acme-merger", callback=lambda: None))
app = telemetry.watch(app)
for name in ("fit", "acme-merger"):
    app([name], standalone_mode=False)
telemetry.close()
"""
PACKAGE = """
from profiler import Telemetry
def telemetry(): return Telemetry("plugpkg", "1.0")
def run(step): step()
COMMANDS = ["fit"]
"""


@pytest.mark.parametrize("beside", [False, True])
def test_users_plugin_is_named_nowhere(home: Path, tmp_path: Path, beside: bool) -> None:
    """A user's file that the package loads under its own name; also one that lies in the package's own folder."""
    site = installed(tmp_path / "site", {"plugpkg/__init__.py": PACKAGE})
    plugin = tmp_path / ("site/plugpkg/recipes" if beside else "mine") / "acme_merger_2027.py"
    plugin.parent.mkdir(parents=True)
    plugin.write_text("def alice_salary_step():\n    raise ValueError('x')\n")
    answer = at_terminal(
        "-c", PLUGIN, str(plugin), **{**OUTSIDE, "PYTHONPATH": os.pathsep.join([site, os.environ.get("PYTHONPATH", "")])}
    )
    assert answer.code == 0, answer.err
    (crash,) = (json.loads(path.read_text()) for path in (home / "crashes").iterdir())
    assert crash["frames"] == ["other", "plugpkg:run:+0", "other"]
    (kept,) = UsageLedger(home / "usage" / "plugpkg").kept()
    assert kept.counts.commands == {"fit": 1, "other": 1}
    kept_bytes = b"".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    assert b"acme" not in kept_bytes and b"alice" not in kept_bytes
