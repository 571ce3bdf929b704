"""`tapeout build` and `tapeout stage`: a walk over the plan in an opened checkout, and what is written down then."""

from __future__ import annotations

import time

from pipelines import gates, params, provenance, publish, record
from pipelines.checkout import opened
from pipelines.config import Config, RayConfig
from pipelines.display import Display
from pipelines.errors import ConfigError, GateError, StageError, TapeoutError, UnwritableError
from pipelines.history import Journal, check_free, history_of
from pipelines.plan import Plan
from pipelines.project import Project
from pipelines.run import Run
from pipelines.sharing import sharing_of
from pipelines.summary import Summary


def build(
    project: Project,
    config: Config,
    plan: Plan,
    display: Display,
    jobs: int | None = None,
    keep_going: bool = True,
    name: str | None = None,
) -> tuple[Summary, publish.Publisher | None]:
    """Build all of `plan`. Raises ConfigError (nothing ran) and StoreError.

    A failure stops only what needs it or, without keep_going, all that has not started. name: what the build is called
    if it passes. Also returns the process that is to publish the summary (see publish.finish), or None where nothing
    ran.
    """
    started = time.monotonic()
    if jobs is not None and isinstance(config.executor, RayConfig):
        raise ConfigError("executor=ray has no use for --jobs", hint="the cluster's machines say what cores they have")
    with opened(project, lambda: display.note("another build has this project; waiting for it")) as checkout:
        for node in plan.nodes.values():
            checkout.keys.known(node)  # raises before anything runs
        began = record.begin(checkout, config)
        if name is not None:
            check_free(history_of(project), name, config.overrides)
        checkout.clear()
        run = Run(project, config, plan, display, checkout, jobs, keep_going)
        run.summary.report, run.summary.shared = getattr(config.pipeline, "report", None), sharing_of(plan)
        run.summary.devices = dict(config.devices)
        run.journal = journal = Journal(run.history, plan.nodes, config.overrides)
        try:
            run.all()
        finally:
            run.close()
        run.withdraw()
        try:
            record.write(checkout, config, plan, run.summary, began)
        except UnwritableError:
            raise
        except TapeoutError as error:  # an input, a module or a file of conf/ was there when the build began
            run.summary.unrecorded = f"during the build, this happened: {error.message}"
            display.note(f"{run.summary.unrecorded}\n  it is not in dvc.yaml: put it back and build again")
        provenance.note(checkout, config, plan, run.summary)
        run.summary.seconds = round(time.monotonic() - started, 3)
        run.summary.build = journal.finish(run.summary, name).number
        publish.keep(project, run.summary)
        if name is not None and not run.summary.passed:
            display.note(f"the build did not pass, and is not called {name}")
    return run.summary, run.publisher


def run_stage(project: Project, config: Config, plan: Plan, name: str, display: Display) -> Summary:
    """Run one node on the inputs in the workspace, whether or not its result is known. What dvc.yaml calls.

    Raises StageError where an input is missing, GateError where one has failed its gates.
    """
    node = plan.node(name)
    with opened(project, lambda: display.note("another build has this project; waiting for it")) as checkout:
        run = Run(project, config, plan, display, checkout, 1)
        for need in map(plan.node, node.inputs.values()):
            shown = checkout.shown(need)
            if shown is None:
                raise StageError(
                    f"{name} needs {need.name}, and {need.folder} is not there",
                    hint=f"make it first: 'tapeout stage {need.name}', or all with 'tapeout build'",
                )
            run.digests[need.name] = shown.digest
            if need.stage.gates:
                for gate in gates.failed_gates(gates.read_metrics(project.root / need.folder, need)):
                    raise GateError(f"{name} does not run: {need.name}: {gates.describe(gate)}")
        if params.in_repro():
            record.refresh_params(checkout, config)
        try:
            run.pending.append(node)
            run.work_off()
        finally:
            run.close()
        made = checkout.last(node)
        if made is not None:
            params.share(project, made)
    return run.summary
