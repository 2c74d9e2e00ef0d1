"""What commands share: arguments, opening a run, and working on it."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mansu.errors import BadInputError, MismatchError
from mansu.interrupts import Cancelled
from mansu.job.settings import Settings
from mansu.progress import Step
from mansu.settings import configure, settings_of, typed_in

if TYPE_CHECKING:
    from mansu.job.lock import Lock
    from mansu.job.pipeline import Stage
    from mansu.job.runs import Run
    from mansu.subjects.subject import Subject

DEFAULT_SUBJECT = "smollm2-135m-instruct"
DEFAULT_TASK = "chemical-symbols"
HEED = 0.25
"""Seconds between two looks at whether the job was asked to stop."""


def add_what(parser: argparse.ArgumentParser) -> None:
    """What a run is about. None is the default of each, so that what was given is known."""
    parser.add_argument(
        "--subject", help=f"{DEFAULT_SUBJECT} (the default), tiny, a folder or a hub id"
    )
    parser.add_argument(
        "--task",
        help=f"a shipped task, a .jsonl or .csv file (the subject's own, else {DEFAULT_TASK})",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to put the run (default: runs/…); an existing run goes on",
    )
    for name, about in settings_of(Settings).items():
        default = "" if about.default is None else f" ({about.default})"
        text = about.help.replace("%", "%%").rstrip(".") + f"{default}."
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="N", help=text)


def add_folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="a run folder")


def add_method(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """What makes an edit."""
    from mansu.methods import ALL

    _add_method(parser, ", ".join(ALL), several)


def add_edit(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """Which edits of a run a command is about."""
    _add_method(parser, "the edit's name, which is its method's if none was given", several)


def _add_method(parser: argparse.ArgumentParser, text: str, several: bool) -> None:
    parser.add_argument(
        "--method",
        action="append" if several else "store",
        default=None if several else "mansu",
        help=text + ("; may be given several times" if several else ""),
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the method, e.g. rate=0.03; may be given several times",
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="throw away the edit that is there, and make it anew",
    )
    parser.add_argument(
        "--name",
        help="what the edit is called (the method's name; a further edit by it, its settings)",
    )


def add_choices(parser: argparse.ArgumentParser) -> None:
    """How multiple choice is asked."""
    parser.add_argument("--form", default="letters", help="letters or cloze (%(default)s)")
    parser.add_argument(
        "--shots",
        type=int,
        choices=range(21),
        default=0,
        metavar="N",
        help="worked examples, the set's last rows, up to 20 (%(default)s)",
    )


def count(text: str) -> int:
    """The type of an argument that counts something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def refuse_place(path: Path) -> None:
    """Refuse a place for a file that a command is asked to write, before its work.

    Raises:
        BadInputError: it is in a run folder. StorageError: no file can be written there.
    """
    from mansu.files import refuse_unwritable
    from mansu.job.runs import Run

    Run.refuse_in_any(path)
    refuse_unwritable(path)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The run's settings that were given, checked.

    Raises:
        BadInputError: one is no number or out of range.
    """
    texts = {name: getattr(options, name) for name in settings_of(Settings)}
    values = {name: typed_in(text) for name, text in texts.items() if text is not None}
    checked = configure(Settings, values, "a run")
    return {name: getattr(checked, name) for name in values}


def open_run(options: argparse.Namespace, asked: Sequence[str]) -> tuple[Run, Subject | None]:
    """The run that ``run`` and ``attribute`` are about: an existing folder's, or a new one.

    Args:
        asked: the methods that a new run is for.

    Returns:
        the run, and its subject, where it was loaded to make the run.

    Raises:
        MismatchError: what was given differs from what the existing run has.
        BadInputError: a bad setting, task or subject, or a folder in another run's.
    """
    from mansu import subjects, tasks
    from mansu.job.pipeline import check_usable, refuse_unmakeable
    from mansu.job.runs import Run
    from mansu.subjects import shipped

    settings = given_settings(options)
    if options.folder is not None and Run.is_at(options.folder):
        run = Run.open(options.folder)
        _refuse_other(run, options, settings)
        return run, None
    if options.folder is not None:
        Run.refuse_in_any(options.folder)
    name = options.subject or DEFAULT_SUBJECT
    own = shipped.TABLE[name].task if name in shipped.TABLE else DEFAULT_TASK
    task = tasks.load(options.task or own)
    for method in asked:
        refuse_unmakeable(method, name, task)
    subject = subjects.load(name)
    check_usable(task, subject, Settings(**settings))
    made = Run.create(subject, task, Settings(**settings), options.folder, asked=asked)
    return made, subject


def _refuse_other(run: Run, options: argparse.Namespace, settings: dict[str, Any]) -> None:
    from mansu import tasks

    def refuse(option: str, given: Any, had: Any) -> None:
        raise MismatchError(
            f"The run {run.path} was made with {option} {had}, not {given}: leave {option} out to "
            "go on with it, or give another --folder."
        )

    if options.subject is not None and not _same(options.subject, run.subject):
        refuse("--subject", options.subject, run.subject)
    if options.task is not None:
        task, about = tasks.load(options.task), run.about
        if task.name != about["name"] and task.digest != about["digest"]:
            refuse("--task", options.task, about["name"])
        names = ("digest", "margin", "tolerance")  # the digest is of the facts alone
        for what in (name for name in names if getattr(task, name) != about[name]):
            raise MismatchError(
                f"The task {options.task} has changed since the run {run.path} was made: its "
                f"{what} was {about[what]} and is {getattr(task, what)} now. Leave --task out to "
                "go on with the task as it was, or give another --folder."
            )
    for name, value in settings.items():
        had = getattr(run.settings, name)
        if value != had:
            refuse(f"--{name.replace('_', '-')}", value, had)


def _same(subject: str, other: str) -> bool:
    """Whether two names are of one subject; a folder may be spelled in several ways."""
    from mansu.subjects.shipped import absolute

    return absolute(subject) == absolute(other)


@dataclass(frozen=True)
class Wanted:
    """An edit that a command makes, unless it is there.

    Attributes:
        name: None for the one that ``names.new`` gives. method: that makes it.
        given: settings of the method that are not its defaults.
    """

    name: str | None
    method: str
    given: Mapping[str, Any]


def wanted(options: argparse.Namespace, asked: Sequence[str]) -> list[Wanted]:
    """The edits that the options ask for, checked; before a run folder is made.

    Args:
        asked: methods.

    Raises:
        BadInputError: an unknown method, a bad setting, or a name that the edit cannot have.
    """
    from mansu import methods
    from mansu.job import names

    if options.name and len(set(asked)) > 1:
        raise BadInputError("--name is of one edit: give one --method with it.")
    found = []
    for method in dict.fromkeys(asked):
        given = methods.parse_settings(methods.named(method), options.set)
        if options.name:
            names.check(options.name, method)
        found.append(Wanted(options.name, method, given))
    return found


def going_on(run: Run) -> list[Wanted]:
    """The edits of a run by the methods that it is for; those that are not there yet, too."""
    from mansu.job import names

    found = []
    for method in run.asked:
        there = names.by(run, method)
        found += [Wanted(name, method, run.history(name)["given"]) for name in there]
        found += [] if there else [Wanted(method, method, {})]
    return found


def edits_of(run: Run, options: argparse.Namespace, asked: list[Wanted]) -> dict[str, Wanted]:
    """The edits that are asked for, by the name that each has or gets in the run.

    Raises:
        MismatchError: the run holds another edit of a name that was given.
        BadInputError: one is to be made that cannot be.
    """
    from mansu.job import names
    from mansu.job.pipeline import refuse_unmakeable

    found = {}
    for one in asked:
        again = one.method if options.again else names.new(run, one.method, one.given)
        name = one.name or again
        if not options.again:
            names.refuse_other(run, name, one.method, one.given)
        if options.again or name not in run.edits():
            refuse_unmakeable(one.method, run.subject, run.task())
        found[name] = one
    return found


def measured(options: argparse.Namespace) -> tuple[Run, Sequence[str]]:
    """The run and the names of the edits asked for, which must have been measured.

    Raises:
        BadInputError: no run folder.
        NotMeasuredError: there is no such edit, or it was not measured yet.
    """
    from mansu.job.runs import Run

    run, names = Run.open(options.folder), options.method or ["mansu"]
    for name in names:
        run.require("nf4", name)
    return run, names


def perform(
    run: Run,
    work: Sequence[tuple[str | None, Sequence[Stage]]],
    subject: Subject | None = None,
    *,
    edits: Mapping[str, Wanted] | None = None,
    again: bool = False,
) -> None:
    """Do stages, an edit at a time, keeping the run's status true whatever happens.

    Args:
        work: an edit's name, and the stages. subject: the run's, where it is loaded already.
        edits: those that are made, by name. again: throw away those that are there first.

    Raises:
        TakenError: another job is at work on the run.
        MismatchError: an edit that is there was made with other settings.
    """
    from mansu.job import names, pipeline

    def do(job: Job) -> None:
        for name, one in (edits or {}).items():  # now that nobody else can change it
            if again:
                run.discard(name)
            else:
                names.refuse_other(run, name, one.method, one.given)
        job.work.plan = pipeline.Plan.of(job.session, work)
        for method, stages in work:
            pipeline.perform(job.session, stages, method, job.on_step)

    Job(run, subject).do(do)


class Job:
    """Work on a run in this process, whose steps are said on stderr, too.

    Attributes:
        session: the run and its subject. work: its status, and its plan for the overall share.
    """

    def __init__(self, run: Run, subject: Subject | None = None) -> None:
        from mansu.job.working import Work

        self.run, self.subject, self.work = run, subject, Work(run)

    def on_step(self, step: Step) -> None:
        """Keep a step and print it.

        Raises:
            Cancelled: somebody asked for it. MismatchError: the run folder is gone.
        """
        from mansu.show.sentences import sentence

        self.work.on_step(step)
        print(f"{self.work.share:4.0%}  {sentence(step)}", file=sys.stderr, flush=True)

    def do(self, work: Callable[[Job], None]) -> None:
        """Load the subject and do ``work(self)``; SIGTERM raises ``Cancelled`` in it.

        Raises:
            TakenError: another job is at work on the run.
        """
        from mansu import subjects
        from mansu.job.machine import sentence
        from mansu.job.session import Session

        signal.signal(signal.SIGTERM, cancel)
        with self.work.held(), _heeding(self.work.lock):
            print(f"run folder: {self.run.path}", flush=True)
            self.on_step(Step("load", 0, 1, part=self.run.subject))
            self.session = Session(self.run, self.subject or subjects.load(self.run.subject))
            elsewhere = filter(None, [sentence(self.run.manifest)])
            for note in (*elsewhere, *self.session.notes):
                print(f"note: {note}", file=sys.stderr, flush=True)
            work(self)


_cancelled = threading.Event()
"""The signal came."""


def cancel(*_: object) -> None:
    _cancelled.set()
    raise Cancelled


@contextmanager
def _heeding(lock: Lock) -> Iterator[None]:
    """Be cancelled by the flag, too, where no signal comes (who asked is on another machine), and
    not only between two steps, which may be a minute apart."""
    ended = threading.Event()
    _cancelled.clear()

    def heed() -> None:
        while not ended.wait(HEED):
            # A second signal would interrupt what the first one's exception puts back.
            if lock.cancelled and not ended.wait(HEED) and not _cancelled.is_set():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    watcher = threading.Thread(target=heed, name="cancel", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
