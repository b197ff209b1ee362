"""`secateur compare`: was pruning worth it? Run an experiment, or what is left of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._options import TRACK_DIR, DryRun, Json, Quiet, TrackDir, Verbose, numbers, pairs
from ._session import USER_ERROR, Session, session

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..compare.estimate import Estimate
    from ..compare.run import Summary, Workers
    from ..compare.spec import Experiment
    from ..compare.store import ResultStore

SHOWN_ERRORS = 3
Words = list[str] | None
Spec = Annotated[
    str | None, typer.Argument(help="The experiment as TOML; without it the options below say it.", metavar="SPEC.toml")
]
Folder = Annotated[str, typer.Option("--out", help="Folder of the results; made, or gone on with.", metavar="DIR")]
Models = Annotated[Words, typer.Option("--model", help="A network; may be repeated.", metavar="NAME")]
DataName = Annotated[
    str | None, typer.Option("--data", help="What it learns: digits, cifar10, cifar10:PATH …", metavar="NAME")
]
RecipeOf = Annotated[
    str | None, typer.Option("--recipe", help="How the dense network is trained. [cifar]", metavar="NAME")
]
Changes = Annotated[Words, typer.Option("--with", help="Change a value of the recipe.", metavar="KEY=VALUE")]
Tuning = Annotated[int | None, typer.Option("--finetune", min=1, help="Epochs after the cut. [40]")]
Methods = Annotated[Words, typer.Option("--method", help="A method; may be repeated.", metavar="NAME")]
Removes = Annotated[
    list[float] | None, typer.Option("--remove", help="Fraction to remove; may be repeated.", metavar="FRACTION")
]
OfWhat = Annotated[str | None, typer.Option("--of", help="What the fraction counts. [macs]")]
Recoveries = Annotated[
    Words,
    typer.Option(
        "--recovery",
        help="none, finetune, lr_rewind, weight_rewind, distill, scratch_e or scratch_b; may be repeated. "
        "[finetune, scratch_e, scratch_b]",
        metavar="NAME",
    ),
]
Seeds = Annotated[str | None, typer.Option("--seeds", help="Whole numbers with commas. [0,1,2]", metavar="LIST")]
Title = Annotated[str | None, typer.Option("--name", help="Of the experiment. [comparison]")]
Processes = Annotated[
    int | None,
    typer.Option(
        "--processes",
        min=1,
        help="Processes that share each training run, under accelerate launch, and the threads of a job. [1]",
    ),
]
Latency = Annotated[
    bool, typer.Option("--latency", help="Time each cut network against its dense one, once all else is done.")
]
Sensitivity = Annotated[
    bool, typer.Option("--sensitivity", help="Cut one group at a time of the first seed's dense networks, and measure.")
]
Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Processes that work at the same time.")]
ThreadsOfEach = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads of each process. [the cores shared out]")
]
Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Run on a Ray cluster: its address, or local to start one; --threads are the CPUs of a job.",
        metavar="ADDRESS",
    ),
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")]
Track = Annotated[
    Words,
    typer.Option(
        "--track",
        help="Show each result as it comes: tensorboard, mlflow or trackio; may be repeated.",
        metavar="NAME",
    ),
]
Wait = Annotated[bool, typer.Option("--wait", help="Where another run holds the folder, wait for it.")]


def compare(
    out: Folder,
    spec: Spec = None,
    model: Models = None,
    data: DataName = None,
    recipe: RecipeOf = None,
    changes: Changes = None,
    finetune: Tuning = None,
    method: Methods = None,
    remove: Removes = None,
    of: OfWhat = None,
    recovery: Recoveries = None,
    seeds: Seeds = None,
    name: Title = None,
    latency: Latency = False,
    sensitivity: Sensitivity = False,
    processes: Processes = None,
    jobs: Jobs = 1,
    threads: ThreadsOfEach = None,
    ray: Ray = None,
    dry_run: DryRun = False,
    retry_failed: Retry = False,
    wait: Wait = False,
    track: Track = None,
    track_dir: TrackDir = TRACK_DIR,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Hold pruning against training the small network from scratch, a random control and the dense network.

    The same command goes on where a killed one stopped; nothing that is done runs twice. Settings of methods, repairs
    and budgets of their own are said in a TOML file.
    """
    flags: dict[str, Any] = {
        "model": [{"name": one, "data": data} for one in model or ()] or None,
        "part": {"recipe": recipe, "changes": pairs(changes, "--with") or None, "finetune_epochs": finetune},
        "methods": [{"name": one} for one in method or ()] or None,
        "budgets": [{"remove": one, **({} if of is None else {"of": of})} for one in remove or ()] or None,
        "recoveries": recovery,
        "seeds": None if seeds is None else list(numbers(seeds, "--seeds")),
        "name": name,
        "latency": latency or None,
        "sensitivity": sensitivity or None,
        "processes": processes,
    }
    _check_flags(spec, flags, data, of)
    with session(as_json=as_json, verbose=verbose, quiet=quiet) as run:
        from ..compare.spec import read_experiment

        experiment = read_experiment(spec) if spec is not None else _from_flags(flags)
        how = {"retry_failed": retry_failed, "wait": wait, "watch": _watch(experiment, track, track_dir)}
        if dry_run:
            _foresee(run, experiment, Path(out), jobs, threads)
            return
        workers = _workers(Path(out), jobs, threads, ray)
        summary = _work(run, experiment, Path(out), workers, how)
        if not summary.is_complete:
            raise typer.Exit(USER_ERROR)


def _check_flags(spec: str | None, flags: dict[str, Any], data: str | None, of: str | None) -> None:
    """Refuse a file together with flags that say the same, and flags that do not make an experiment."""
    part = {key: value for key, value in flags["part"].items() if value is not None}
    said = [key for key, value in flags.items() if key != "part" and value is not None]
    if spec is not None and (said or part or data or of):
        raise typer.BadParameter("the file says what is run; leave the options for it out.", param_hint=spec)
    if spec is None:
        wanted = {"--model": flags["model"], "--data": data, "--method": flags["methods"], "--remove": flags["budgets"]}
        if missing := [option for option, value in wanted.items() if not value]:
            raise typer.BadParameter(f"missing; or give a SPEC.toml. Missing: {', '.join(missing)}.")


def _from_flags(flags: dict[str, Any]) -> Experiment:
    from ..compare.spec import made

    part = {key: value for key, value in flags["part"].items() if value is not None}
    raw = {key: value for key, value in flags.items() if key not in ("part", "model") and value is not None}
    return made(raw | {"models": [own | part for own in flags["model"]]}, where="the options")


def _foresee(run: Session, experiment: Experiment, out: Path, jobs: int, threads: int | None) -> None:
    from ..compare.estimate import estimates, totals
    from ..threads import cores_shared

    told = estimates(experiment, out, threads=threads or cores_shared(jobs))
    total = totals(told, jobs=jobs)
    lines = ["status         train MACs      time  job", *(_line(one) for one in told)]
    about = "" if total["is_exact"] else "~"
    lines.append(
        f"{total['left']} of {total['jobs']} jobs to do: {about}{total['train_macs']:.3g} MACs of training, "
        f"about {_duration(total['wall_seconds'])} with {jobs} job{'s' if jobs > 1 else ''} at a time"
    )
    if not total["is_exact"]:
        lines.append("~ hangs on a cut that is not made yet, or on a method that does not say how long it trains")
    facts = [
        {
            "digest": one.job.digest,
            "job": str(one.job),
            "status": one.status,
            "train_macs": one.train_macs,
            "is_exact": one.is_exact,
            "seconds": round(one.seconds, 3),
        }
        for one in told
    ]
    run.result("\n".join(lines), {"dry_run": True, "experiment": experiment.digest, **total, "estimates": facts})


def _line(one: Estimate) -> str:
    macs = f"{'' if one.is_exact else '~'}{one.train_macs:.3g}"
    return f"{one.status:10}{macs:>15}{_duration(one.seconds):>10}  {one.job}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _workers(out: Path, jobs: int, threads: int | None, ray: str | None) -> Workers:
    from ..compare.local import LocalWorkers

    if ray is None:
        return LocalWorkers(out, jobs, threads)
    from ..compare.ray_workers import RayWorkers

    return RayWorkers(out, ray, threads or 1)


def _watch(experiment: Experiment, trackers: Words, folder: str) -> Callable[[ResultStore], int] | None:
    """Return what passes results on to trackers; None where there are none."""
    from ..source import tracking_of

    tracking = tracking_of(trackers, folder, experiment.name)
    if tracking is None:
        return None
    from ..compare.trackers import show

    return partial(show, tracking=tracking, experiment=experiment.digest)


def _work(run: Session, experiment: Experiment, out: Path, workers: Workers, how: dict[str, Any]) -> Summary:
    from ..compare.analysis import comparisons, outcomes, sentence
    from ..compare.jobs import jobs_of
    from ..compare.run import run as run_all
    from ..compare.store import ResultStore

    summary = run_all(experiment, out, workers, progress=run.progress, **how)
    with ResultStore(out) as store:
        rows = store.rows(summary.experiment)
    better = all(row.higher_is_better in (None, 1) for row in rows)
    answers = [sentence(gap) for gap in comparisons(outcomes(rows), higher_is_better=better)]
    names = {job.digest: str(job) for job in jobs_of(experiment)}
    failed = [{"digest": d, "job": names[d], "error": error} for d, error in summary.failed.items()]
    lines = [*answers, _summed_up(summary), f"report: secateur report {out} --experiment {summary.experiment}"]
    for one in failed[:SHOWN_ERRORS]:
        typer.echo(f"failed: {one['job']}: {(one['error'].strip().splitlines() or ['no message'])[-1]}", err=True)
    if len(failed) > SHOWN_ERRORS:
        typer.echo(f"and {len(failed) - SHOWN_ERRORS} more: secateur results {out} --status failed", err=True)
    facts = {
        "experiment": summary.experiment,
        "out": str(out),
        "done": summary.done,
        "ran": summary.ran,
        "failed": failed,
        "blocked": summary.blocked,
        "seconds": round(summary.seconds, 2),
        "answers": answers,
    }
    run.result("\n".join(lines), facts)
    return summary


def _summed_up(summary: Summary) -> str:
    total = summary.done + len(summary.failed) + summary.blocked
    told = f"{summary.done} of {total} jobs done, {summary.ran} of them now, in {_duration(summary.seconds)}"
    if summary.is_complete:
        return told
    return f"{told}; {len(summary.failed)} failed (--retry-failed tries again), {summary.blocked} need one of those"
