"""A cluster from the laptop: `submit`, `watch`, `logs`, `cancel`, `fetch`, against a stand-in of Ray's dashboard."""

import io
import random
import re
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL_STUDY
from dashboards import TOKEN, Dashboard, serving
from invented import invent

from equitune import __version__, cli
from equitune.config.study import StudySpec
from equitune.errors import UserError
from equitune.records.archive import as_text, packed, study_files
from equitune.records.folder import StudyFolder
from equitune.records.place import place_of
from equitune.records.reader import StudyReader
from equitune.remote.jobs import Cluster, Job, Unreachable, read_token
from equitune.remote.submit import GONE_S, SILENT_S, followed, submit_study, verdict

Run = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "RAY_AUTH_TOKEN",
        "RAY_AUTH_TOKEN_PATH",
        "RAY_AUTH_MODE",
        "RAY_ADDRESS",
        "EQUITUNE_CLUSTER",
        "EQUITUNE_ROOT",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    with serving() as served:
        yield served


@pytest.fixture
def equitune(
    dashboard: Dashboard, study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> Run:
    """Calls the shell in this process, with the token in the environment; returns what it printed and said."""
    study_file(name="small.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("EQUITUNE_CLUSTER", dashboard.url)
    monkeypatch.setattr("equitune.remote.submit.POLL_S", 0.01)
    monkeypatch.setattr("equitune.cli.cluster.START_S", 0.05)

    def run(*arguments: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["equitune", *map(str, arguments)])
        ended = cli._exit_code()
        out, err = capfd.readouterr()
        assert ended == code, out + err
        assert TOKEN not in out + err
        assert not any(TOKEN in asked for asked in dashboard.asked), "only a header holds it"
        return out, err

    return run


# Reaching it


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:8265", "is http://HOST:PORT"),
        ("htp://127.0.0.1:8265", "is http://HOST:PORT"),
        ("http://127.0.0.1", "is http://HOST:PORT"),
        ("http://127.0.0.1:82x5", "is http://HOST:PORT"),
        ("http://127.0.0.1:8265/jobs", "is http://HOST:PORT"),
        ("http://me:secret@127.0.0.1:8265", "holds no user and no password"),
        ("http://127.0.0.1:1", "nobody answers at http://127.0.0.1:1 (Connection refused)"),
        ("http://nowhere.invalid:8265", "nobody answers at http://nowhere.invalid:8265"),
    ],
)
def test_an_address_that_leads_nowhere_is_said(url: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        Cluster(url, TOKEN)
    assert says in str(caught.value)
    assert "secret" not in str(caught.value)


def test_the_token_is_asked_for_refused_or_taken(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="asks for a token"):
        Cluster(dashboard.url, None)
    with pytest.raises(UserError, match="refuses the token") as caught:
        Cluster(dashboard.url, "wrong-token")
    assert "wrong-token" not in str(caught.value)
    assert Cluster(dashboard.url, TOKEN).jobs() == []
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")  # Ray would go there instead
    assert Cluster(dashboard.url, TOKEN).ray_version == dashboard.version


def test_where_the_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_token(None) is None
    (tmp_path / "one").write_text("one\n")
    (tmp_path / "two").write_text("two words")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "one"))
    assert read_token(None) == "one"
    monkeypatch.setenv("RAY_AUTH_TOKEN", " from-environment ")
    assert read_token(None) == "from-environment"
    assert read_token(tmp_path / "one") == "one"
    for path, says in (("two", "holds no token"), ("none", "cannot be read from")):
        with pytest.raises(UserError, match=says) as caught:
            read_token(tmp_path / path)
        assert "two words" not in str(caught.value)


def test_what_answers_is_not_ray(dashboard: Dashboard) -> None:
    dashboard.answer = lambda method, path, body: (200, "<html>")  # type: ignore[method-assign]
    with pytest.raises(UserError, match="is not the dashboard of a Ray cluster"):
        Cluster(dashboard.url, TOKEN)
    dashboard.answer = lambda method, path, body: (404, "<html>")  # type: ignore[method-assign]
    with pytest.raises(UserError, match="is not the dashboard of a Ray cluster"):
        Cluster(dashboard.url, TOKEN)


def test_ray_without_its_dashboard_is_named(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UserError, match=r"pip install 'equitune\[cluster\]'"):
        Cluster(dashboard.url, TOKEN)


def test_versions_that_differ_are_both_named_and_nothing_is_sent(equitune: Run, dashboard: Dashboard) -> None:
    dashboard.version = "2.58.1"
    _, err = equitune("submit", "small.yaml", code=2)
    assert "runs Ray 2.58.1, this machine has 2.60" in err
    assert dashboard.sent() == []
    assert not dashboard.packages
    dashboard.add("small@1", "small")
    equitune("logs", "small")  # to look and to stop any version will do


# Submitting


def test_a_study_is_sent_with_nothing_else(equitune: Run, dashboard: Dashboard, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not yours")
    out, _ = equitune("submit", "small.yaml", "--set", "search.trials=6", "--root", "/mnt/studies", "--no-register")
    (sent,) = dashboard.sent()
    assert sent["submission_id"] == "small@1"
    assert sent["entrypoint"] == (
        "exec equitune search small.yaml --address auto --set search.trials=6 --root /mnt/studies --no-register"
    )
    assert (sent["entrypoint_num_cpus"], sent["entrypoint_resources"]) == (1, {"driver": 1.0})
    assert sent["metadata"]["equitune.study"] == "small"
    assert sent["metadata"]["equitune.version"] == __version__
    assert set(sent["metadata"]) == {"equitune.study", "equitune.version", "equitune.by", "equitune.root"}
    environment = sent["runtime_env"]["env_vars"]
    assert int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > 30  # what a driver needs after SIGTERM
    assert environment["EQUITUNE_TYPED"].startswith("equitune submit small.yaml --set search.trials=6")
    (package,) = dashboard.packages
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert archive.namelist() == ["small.yaml"]
        assert archive.read("small.yaml").decode() == SMALL_STUDY
    assert "small@1: 6 trials" in out
    assert "equitune watch small@1" in out


def test_more_is_shipped_where_asked(equitune: Run, dashboard: Dashboard, tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.png").write_bytes(b"1")
    equitune(
        "submit",
        "small.yaml",
        "--ship",
        "images",
        "--program",
        "/opt/venv/bin/python -m equitune",
        "--driver-on",
        "any",
    )
    (sent,) = dashboard.sent()
    assert sent["entrypoint"].startswith("exec /opt/venv/bin/python -m equitune search small.yaml")
    assert "entrypoint_resources" not in sent
    with zipfile.ZipFile(io.BytesIO(dashboard.packages[0])) as archive:
        assert sorted(archive.namelist()) == ["images/a/1.png", "small.yaml"]
    _, err = equitune("submit", "small.yaml", "--ship", "nothing", "--force", code=2)
    assert "--ship: nothing does not exist" in err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--set", "model.depth=9"], "depth"),
        (["--root", "studies"], "a job's own folder goes with the job"),
        (["--storage", "postgresql://me:secret@host/db"], "a password is not taken from there"),
        (["--storage", "postgres//host/db"], "--storage"),
        (["--tracking-uri", "http://me:secret@mlflow:5000"], "a password is not taken from there"),
        (["--driver-on", "drivers"], "no machine of .* has the resource 'drivers' \\(they have CPU, driver\\)"),
        (["--token-file", "none"], "Ray's token cannot be read from none"),
        (["--cluster", "127.0.0.1:8265"], "--cluster: the address"),
    ],
)
def test_a_mistake_is_found_before_anything_is_sent(
    options: list[str], says: str, equitune: Run, dashboard: Dashboard
) -> None:
    _, err = equitune("submit", "small.yaml", *options, code=2)
    assert re.search(says, err)
    assert "secret" not in err
    assert dashboard.sent() == []
    assert not dashboard.packages


def test_without_a_cluster_there_is_a_question(equitune: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EQUITUNE_CLUSTER")
    _, err = equitune("submit", "small.yaml", code=2)
    assert "which cluster: give --cluster http://HOST:PORT, or set EQUITUNE_CLUSTER" in err


def test_a_study_that_is_searched_already_is_named(equitune: Run, dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small", "FAILED", driver_exit_code=1)
    dashboard.add("other@7", "other")
    dashboard.add("small@2", "small", "RUNNING")
    _, err = equitune("submit", "small.yaml", code=2)
    assert "study small is being searched already: job small@2 of ada on laptop is RUNNING" in err
    assert dashboard.sent() == []
    equitune("submit", "small.yaml", "--force")
    dashboard.end("small@2", 0)
    dashboard.end("small@3", 0)
    equitune("submit", "small.yaml")
    assert [sent["submission_id"] for sent in dashboard.sent()] == ["small@3", "small@4"]


def test_of_two_who_submit_at_once_one_is_told(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(dashboard.url, TOKEN)
    listed = cluster.jobs()
    dashboard.add("small@1", "small")  # somebody else, between the look and the leap
    answers = iter([listed])
    monkeypatch.setattr(cluster, "jobs", lambda: next(answers, None) or Cluster.jobs(cluster))
    with pytest.raises(UserError, match="job small@1 of ada on laptop is RUNNING"):
        submit_study(cluster, "small", ["equitune"], driver_on="driver", ship=[], environment={})


@pytest.mark.parametrize("has_arrived", [True, False])
def test_a_connection_that_breaks_while_a_study_is_sent_leaves_no_doubt(
    has_arrived: bool, equitune: Run, dashboard: Dashboard
) -> None:
    def drop(asked: str) -> bool:
        if not asked.startswith("POST /api/jobs/"):
            return False
        if has_arrived:
            dashboard.answer("POST", "/api/jobs/", asked.partition("\n")[2].encode())
        return True

    dashboard.drop = drop
    out, err = equitune("submit", "small.yaml", code=0 if has_arrived else 2)
    assert ("small@1: 4 trials" in out) == has_arrived
    assert ("nothing was submitted: try again" in err) != has_arrived
    assert len(dashboard.sent()) == 1


# Following


class Script:
    """A job that goes on by a step each time somebody waits, on a clock of its own."""

    def __init__(self, dashboard: Dashboard, steps: list[Callable[[], None]]) -> None:
        self.cluster = Cluster(dashboard.url, TOKEN)
        self.job = self.cluster.job("small")
        self.steps, self.now, self.shown, self.said = iter(steps), 0.0, "", list[str]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        next(self.steps, lambda: None)()

    def follow(self) -> Job:
        def show(text: str) -> None:
            self.shown += text

        return followed(self.cluster, self.job, show, self.said.append, clock=lambda: self.now, sleep=self.sleep)


LINES = [f"{number}/40 trial {number} COMPLETE: accuracy 0.5 ± 0.1\n" for number in range(40)]


@pytest.mark.parametrize("seed", range(3))
def test_no_line_is_lost_or_doubled_over_a_connection_that_drops(seed: int, dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small")

    def step(line: str) -> Callable[[], None]:
        def print_half() -> None:
            dashboard.logs["small@1"] += line

        return print_half

    halves = [half for line in LINES for half in (line[:9], line[9:])]  # a log is read in the middle of a line, too
    script = Script(dashboard, [*map(step, halves), lambda: dashboard.end("small@1", 1)])
    draw = random.Random(seed)
    dashboard.drop = lambda asked: draw.random() < 0.3
    assert script.follow().exit_code == 1
    assert script.shown == "".join(LINES)
    assert any("broke the connection: trying again in 1 s" in said for said in script.said)
    assert any("answers again" in said for said in script.said)


def test_the_end_of_a_log_is_waited_for_where_its_reading_fails(dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small", "SUCCEEDED", driver_exit_code=0)
    dashboard.logs["small@1"] = "the last line\n"
    failures = iter([True] * 3)
    dashboard.fail = lambda asked: "/logs" in asked and next(failures, False)
    script = Script(dashboard, [])
    script.follow()
    assert script.shown == "the last line\n"
    assert "the log of small@1 cannot be read: the machine it ran on does not answer" in script.said[0]


def test_a_log_that_went_with_its_machine_is_given_up(dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small", "FAILED", message="Job supervisor actor died: node is dead")
    dashboard.fail = lambda asked: "/logs" in asked
    script = Script(dashboard, [])
    code, sentence = verdict(script.follow())
    assert code == 2
    assert "lost its driver (Job supervisor actor died: node is dead)" in (sentence or "")
    assert "is lost; the study's folder has all that counts" in script.said[-1]


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks every 20 s instead of every one."""
    monkeypatch.setattr("equitune.remote.submit.POLL_S", 20.0)


@pytest.mark.usefixtures("seldom")
def test_a_driver_that_is_silent_is_taken_for_gone(dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small")
    script = Script(dashboard, [])
    with pytest.raises(UserError, match="equitune cancel small@1"):
        script.follow()
    assert len(script.said) == 1
    assert "has printed nothing for 2 minutes" in script.said[0]
    assert GONE_S < script.now < GONE_S + 60


@pytest.mark.usefixtures("seldom")
def test_a_driver_that_beats_is_believed_and_one_that_waits_is_no_zombie(dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small", "PENDING")

    def run() -> None:
        dashboard.jobs["small@1"]["status"] = "RUNNING"

    def beat() -> None:
        dashboard.logs["small@1"] += "small: 0 of 4 trials ended\n"

    quiet: list[Callable[[], None]] = [lambda: None] * int(SILENT_S // 20 - 1)
    script = Script(dashboard, [*quiet, *quiet, run, *quiet, beat, *quiet, beat, lambda: dashboard.end("small@1", 0)])
    assert script.follow().exit_code == 0
    assert script.said == ["small@1 waits for a machine that may hold its driver"]


def test_a_job_that_the_cluster_has_forgotten(dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small")
    with pytest.raises(UserError, match="knows nothing of small@1 any more: its head was lost"):
        Script(dashboard, [lambda: dashboard.jobs.pop("small@1") and None]).follow()


@pytest.mark.parametrize(
    ("status", "exit_code", "message", "code", "says"),
    [
        ("SUCCEEDED", 0, "", 0, None),
        ("FAILED", 1, "", 1, None),
        ("FAILED", 2, "", 2, None),
        ("FAILED", 130, "", 130, None),
        ("STOPPED", None, "", 130, "was stopped: the same `equitune submit` goes on"),
        ("FAILED", 127, "sh: 1: exec: equitune: not found", 2, "image has no equitune"),
        ("FAILED", 1, "/usr/bin/python: No module named equitune", 2, "image has no equitune"),
        ("FAILED", -9, "", 2, "killed by signal 9, as a machine does that has no memory left"),
        ("FAILED", 143, "", 2, "killed by signal 15"),
        ("FAILED", None, "Job supervisor actor died", 2, "lost its driver"),
    ],
)
def test_the_exit_code_is_the_studys(
    status: str, exit_code: int | None, message: str, code: int, says: str | None, equitune: Run, dashboard: Dashboard
) -> None:
    dashboard.add("small@1", "small", status, driver_exit_code=exit_code, message=message)
    _, err = equitune("watch", "small", code=code)
    assert (says in err) if says else not err


def test_a_code_that_ray_has_lost_is_in_the_log(equitune: Run, dashboard: Dashboard) -> None:
    lost = "Unexpected error occurred: failed to get job supervisor."
    dashboard.add("small@1", "small", "FAILED", message=lost)
    dashboard.logs["small@1"] = "equitune ends with code 130, said a trial\nequitune ends with code 1\n"
    equitune("watch", "small", code=1)
    dashboard.logs["small@1"] += "more\n"
    _, err = equitune("watch", "small", code=2)
    assert "lost its driver" in err


def test_a_job_prints_its_code_last(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def ended(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(sys, "argv", ["equitune", "show", "none"])
    monkeypatch.setattr(sys, "exit", ended)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for in_job in (True, False):
        if in_job:
            monkeypatch.setenv("EQUITUNE_TYPED", "equitune submit small.yaml")
        else:
            monkeypatch.delenv("EQUITUNE_TYPED")
        with pytest.raises(SystemExit):
            cli.main()
        assert capsys.readouterr().out == ("equitune ends with code 2\n" if in_job else "")


def test_submit_waits_where_asked_and_else_says_at_once_what_went_wrong(equitune: Run, dashboard: Dashboard) -> None:
    def end(job: dict[str, Any]) -> None:
        dashboard.logs[job["submission_id"]] = "no front\n"
        dashboard.end(job["submission_id"], 127 if job["submission_id"] == "small@2" else 1)

    dashboard.on_submit = end
    out, _ = equitune("submit", "small.yaml", "--wait", code=1)
    assert out.endswith("no front\n")
    _, err = equitune("submit", "small.yaml", code=2)
    assert "image has no equitune" in err


# Looking and stopping


def test_logs_and_the_nearest_names(equitune: Run, dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small", "FAILED", driver_exit_code=1)
    dashboard.add("small@2", "small")
    dashboard.logs |= {"small@1": "first\n", "small@2": "second\n"}
    assert equitune("logs", "small")[0] == "second\n"
    assert equitune("logs", "small@1")[0] == "first\n"
    assert equitune("logs", "small@1", "--follow", code=1)[0] == "first\n"
    _, err = equitune("logs", "smal", code=2)
    assert "unknown job or study 'smal': did you mean 'small'? known: small (at http" in err


def test_cancel_says_what_was_kept(equitune: Run, dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small")
    dashboard.logs["small@1"] = "1/4 trial 0 COMPLETE\n"
    out, _ = equitune("cancel", "small")
    assert "small: interrupted, 1 of 4 trials (1 COMPLETE)" in out
    assert "trial 0" not in out
    assert "`equitune submit` goes on with the rest" in out
    assert "has ended before: STOPPED" in equitune("cancel", "small")[0]


def test_cancel_of_a_job_whose_driver_is_gone(equitune: Run, dashboard: Dashboard) -> None:
    dashboard.add("small@1", "small")
    dashboard.stops = False
    dashboard.fail = lambda asked: "/logs" in asked
    _, err = equitune("cancel", "small", code=2)
    assert "small@1 has no driver any more, though Ray says RUNNING" in err
    assert "--force: it goes on" in err


def test_watch_looks_at_this_machine_where_a_root_is_named(equitune: Run, tmp_path: Path) -> None:
    _, err = equitune("watch", "small", "--root", tmp_path, code=2)
    assert f"(in {tmp_path})" in err


# Fetching


@pytest.fixture
def on_cluster(dashboard: Dashboard, tmp_path: Path, small_spec: StudySpec) -> StudyFolder:
    """A study that lies on the cluster, and a job that packs it."""
    folder = invent(tmp_path / "remote" / "small", small_spec, 3)

    def pack(job: dict[str, Any]) -> None:
        files = study_files(folder, weights="--weights" in job["entrypoint"])
        text = "\n".join(as_text("small", packed(files)))
        dashboard.logs[job["submission_id"]] = f"Running entrypoint\n{text}\n"
        dashboard.end(job["submission_id"], 0)

    dashboard.on_submit = pack
    return folder


def test_a_study_comes_home_and_reads_as_it_did(
    equitune: Run, dashboard: Dashboard, on_cluster: StudyFolder, tmp_path: Path
) -> None:
    dashboard.add("small@1", "small")["metadata"]["equitune.root"] = "/mnt/studies"
    out, _ = equitune("fetch", "small", "--root", tmp_path / "home")
    assert "files are new, 0 changed, 0 as before" in out
    (sent,) = dashboard.sent()
    assert sent["entrypoint"] == "exec equitune pack small --root /mnt/studies"
    assert list(dashboard.jobs) == ["small@1"]  # the small job is cleared away
    there, here = StudyReader(on_cluster).read(), StudyReader(StudyFolder(tmp_path / "home" / "small")).read()
    assert [trial.metrics for trial in here.trials] == [trial.metrics for trial in there.trials]
    assert "3 of 4 trials" in equitune("show", "small", "--root", tmp_path / "home")[0]


def test_a_study_in_an_object_store_is_read_from_there_where_this_machine_can(
    equitune: Run, dashboard: Dashboard, on_cluster: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = place_of("memory://bucket/studies")
    for name, data in study_files(on_cluster):
        (store / "small" / name).write_bytes(data)
    job = dashboard.add("small@1", "small")
    job["metadata"]["equitune.root"] = str(store)
    _, err = equitune("fetch", "small", "--root", tmp_path / "home", code=2)  # whoever added the job chose the store
    assert f"says that study small lies in {store}" in err
    assert f"fetch with --from {store}" in err
    assert not (tmp_path / "home").exists()
    equitune("fetch", "small", "--root", tmp_path / "home", "--from", store)
    equitune("fetch", "small", "--root", tmp_path / "home")  # as before
    monkeypatch.setenv("EQUITUNE_ROOT", str(store))
    equitune("fetch", "small", "--root", tmp_path / "again")
    assert dashboard.sent() == []
    for home in ("home", "again"):
        got = dict(study_files(StudyFolder(tmp_path / home / "small")))
        assert got == dict(study_files(on_cluster))
    job["metadata"]["equitune.root"] = "memory://bucket/elsewhere"
    monkeypatch.setenv("EQUITUNE_ROOT", "memory://bucket/elsewhere")
    _, err = equitune("fetch", "small", "--root", tmp_path / "third")
    assert "fetching through the cluster" in err
    assert len(dashboard.sent()) == 1
    _, err = equitune("fetch", "small", "--root", store, code=2)
    assert "is no folder of this machine" in err


def test_what_is_not_there_cannot_be_fetched(equitune: Run, dashboard: Dashboard, tmp_path: Path) -> None:
    def fail(job: dict[str, Any]) -> None:
        dashboard.logs[job["submission_id"]] = "Running entrypoint\nunknown study 'smell': did you mean 'small'?\n"
        dashboard.end(job["submission_id"], 2)

    dashboard.on_submit = fail
    _, err = equitune("fetch", "smell", "--root", tmp_path / "home", code=2)
    assert err.strip() == "unknown study 'smell': did you mean 'small'?"
    assert not (tmp_path / "home").exists()


# On the cluster's side


def test_a_job_does_not_leave_its_study_in_its_own_folder(
    equitune: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    _, err = equitune("search", "small.yaml", code=2)
    assert "a job's own folder goes with the job: say where studies lie" in err
    assert not (tmp_path / "studies").exists()


def test_unreachable_is_a_users_sentence_too() -> None:
    assert issubclass(Unreachable, UserError)


def test_a_driver_without_a_terminal_prints_a_line_when_nothing_ends(
    tmp_path: Path, small_spec: StudySpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rich.console import Console

    from equitune.report import terminal

    folder = invent(tmp_path / "small", small_spec, 3, states={1: "RUNNING", 2: "RUNNING"})
    folder.trial(1).claim()

    def lines(beat_s: float) -> list[str]:
        monkeypatch.setattr(terminal, "BEAT_S", beat_s)
        monkeypatch.setattr(terminal, "REFRESH_S", 0.02)
        printed = io.StringIO()
        with terminal.StudyView(folder, Console(file=printed)).showing():
            time.sleep(0.3)
        return printed.getvalue().splitlines()

    assert terminal.BEAT_S < SILENT_S / 2
    beats = lines(beat_s=0.1)
    assert beats
    assert beats[0] == "small: 1 of 4 trials ended, 1 at work, 2 epochs so far, 1 waiting for a worker"
    assert len(beats) < 5
    assert lines(beat_s=60) == []
    folder.trial(1).release()
    assert lines(beat_s=0.1)[0] == "small: 1 of 4 trials ended, 2 waiting for a worker; starting"
