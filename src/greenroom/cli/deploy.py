"""`greenroom deploy`: this folder's agents as new revisions, planned before anything is done, and followed.

Where the node runs in this folder it takes the code by itself; where its code is another, it is brought this one.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from greenroom import errors
from greenroom.cli import config, following, options, pace, plan_report, render, rollout_report

if TYPE_CHECKING:
    from greenroom import settings
    from greenroom.sdk import client, models

Strategy = Literal["rolling", "blue-green", "canary"]
SURE_S = 5.0  # a replica that is drained takes its time to go
Watch = Annotated[bool | None, Parameter(negative="--no-watch", show_default=False)]


def deploy(
    *agents: str,
    manifest: config.Manifest = config.MANIFEST,
    strategy: Strategy | None = None,
    hold_s: float | None = None,
    dry_run: Annotated[bool, Parameter(show_default=False)] = False,
    sessions: Annotated[bool, Parameter(show_default=False)] = False,
    watch: Watch = None,
    given: options.Options = options.DEFAULT,
) -> int:
    """Deploy this folder's agents: print the plan, begin the rollouts, and follow them.

    Exits with 0 when the new revisions serve everything or wait for a promotion, and with 1 as soon as one is undone,
    or where there is no room for one although the others are through.

    Parameters
    ----------
    agents
        Which, else all of the manifest.
    strategy
        How, for this time.
    hold_s
        How long each stage is watched, in seconds, for this time.
    dry_run
        Only print the plan, and try whether the revision runs and whether stored sessions can be taken over.
    sessions
        Try that first, and begin nothing if it fails.
    watch
        Follow the rollouts to their end, which is the default; --watch=no returns as soon as they have begun.
    """
    from greenroom import settings

    found = settings.load(manifest, os.environ, is_for_node=False)
    names, is_watched = words(agents, watch=watch, known=found.agents)
    specs = {name: found.agents[name] for name in _chosen(names, found, manifest)}
    how = How(strategy, hold_s)
    how.check(specs)
    with given.connect() as node:
        planner = Planner(node, folder=manifest.resolve().parent, data_dir=given.data_dir, how=how)
        with render.spinner("planning"):
            planned = [planner.planned(name, spec, tries=dry_run or sessions) for name, spec in specs.items()]
        if not given.json:
            for each in planned:
                plan_report.show(each.plan)
        plans = [each.plan for each in planned]
        if faults := [fault for plan in plans for fault in plan_report.faults(plan)]:
            return _refused(faults, plans, given)
        if dry_run:
            _end_dry_run(plans, given)
            return 0
        rollouts, refusals = _carried_out(node, planned, how, is_watched=is_watched, is_shown=not given.json)
    if given.json:
        render.json({"plans": plans, "rollouts": rollouts})
    code = reported(rollouts, given)
    for refusal in refusals:
        render.failure(str(refusal))
    return 1 if refusals else code


def words(agents: Sequence[str], *, watch: bool | None, known: Mapping[str, object]) -> tuple[list[str], bool]:
    """Return the agents, and whether to follow.

    ``--watch no`` is two words, of which the parser takes the second for an agent; unless there is one, it is not.
    """
    said = {"no": False, "yes": True}
    value = next((word for word in agents if watch and word in said and word not in known), None)
    if value is None:
        return list(agents), watch is not False
    return [word for word in agents if word != value], said[value]


def reported(rollouts: Sequence[models.Rollout], given: options.Options) -> int:
    """Print how they ended, for programs only what went wrong; return the exit code."""
    for rollout in rollouts:
        if not given.json or rollout.has_failed:
            rollout_report.print_end(rollout)
    return 1 if any(rollout.has_failed for rollout in rollouts) else 0


@dataclass(frozen=True, slots=True)
class How:
    """What goes before the manifest's for this time; None: nothing does."""

    strategy: Strategy | None = None
    hold_s: float | None = None

    def check(self, specs: Mapping[str, settings.AgentSettings]) -> None:
        """Raise `settings.SettingsInvalid` where *specs* cannot be deployed so."""
        import msgspec

        from greenroom import settings

        for name, spec in specs.items():
            settings.rollout_for_once(name, msgspec.to_builtins(spec), strategy=self.strategy, hold_s=self.hold_s)


@dataclass(frozen=True, slots=True)
class Planned:
    """What the node would do with *table*, an agent as the manifest has it, and with the code of the plan's digest."""

    table: dict[str, Any]
    plan: models.Plan


class Planner:
    """Asks *node* for plans, and brings it the code of *folder* where it would run another."""

    def __init__(self, node: client.Client, *, folder: Path, data_dir: Path | None, how: How) -> None:
        from greenroom.sdk import discovery

        self._node, self._folder, self._data_dir = node, folder, discovery.data_dir(data_dir)
        self._how = how
        self._brought: dict[str, str] = {}

    def planned(self, name: str, spec: settings.AgentSettings, *, tries: bool) -> Planned:
        """Return the plan for *spec*; *tries*: with a replica of the revision, and with the stored sessions."""
        import msgspec

        from greenroom.engine import snapshots

        table = msgspec.to_builtins(spec)
        digest = snapshots.digest_of(self._folder, include=spec.include, data_dir=self._data_dir)
        try:
            plan = self._plan(name, table)
        except errors.AgentInvalid as invalid:  # its folder may lack what this one has
            try:
                digest = self._bring(digest, spec.include)
            except errors.Forbidden:
                raise invalid from None
        else:
            if plan.digest != digest:
                digest = self._bring(digest, spec.include)
            elif not tries:
                return Planned(table, plan)
        return Planned(table, self._plan(name, table, code=digest, sessions=tries))

    def _plan(
        self, name: str, table: Mapping[str, Any], *, code: str | None = None, sessions: bool = False
    ) -> models.Plan:
        how = self._how
        return self._node.plan_agent(
            name, table, code=code, sessions=sessions, strategy=how.strategy, hold_s=how.hold_s
        )

    def _bring(self, digest: str, include: Sequence[str]) -> str:
        from greenroom.engine import snapshots

        if digest not in self._brought:
            archive = snapshots.pack(self._folder, include=include, data_dir=self._data_dir)
            try:
                self._brought[digest] = self._node.upload_code(archive).digest
            except errors.Forbidden as error:
                raise errors.Forbidden(
                    f"cannot deploy: the code in {self._folder} is not what the node at {self._node.url} would run, "
                    f"and it takes no other ({error}); start the node here, or set server.accept_code = true in its "
                    "manifest"
                ) from None
        return self._brought[digest]


def _chosen(names: Sequence[str], found: settings.Settings, manifest: Path) -> list[str]:
    if not found.agents:
        raise options.Usage(f"cannot deploy: {manifest} names no agents; next: add one")
    if unknown := [name for name in names if name not in found.agents]:
        known = ", ".join(found.agents)
        raise options.Usage(f"cannot deploy {', '.join(unknown)}: the agents of {manifest} are {known}")
    return list(dict.fromkeys(names)) or list(found.agents)


def _carried_out(
    node: client.Client, planned: Sequence[Planned], how: How, *, is_watched: bool, is_shown: bool
) -> tuple[list[models.Rollout], list[errors.Conflict]]:
    """Carry out the plans, those for which there is no room again when the others are through, if one waits for that;
    return the rollouts, and why others could not be had.
    """
    done: list[models.Rollout] = []
    left, deadline_s, is_said, paced = list(planned), 0.0, False, pace.Pace()
    while True:
        begun, refused = _begun(node, left, how, before=done)
        done += following.to_rest(node, begun, is_shown=is_shown) if is_watched and begun else begun
        if begun:
            deadline_s = time.monotonic() + _room_after_s(planned)
        is_hopeless = not done or not is_watched or time.monotonic() >= deadline_s
        if not refused or is_hopeless or any(each.has_failed for each in done):
            return done, list(refused.values())
        if is_shown and not is_said:
            render.say(
                f"{', '.join(refused)}: no room yet; it is tried again when what the others leave behind is gone"
            )
        is_said = True
        left = [each for each in left if each.plan.agent in refused]
        if not begun:
            time.sleep(paced.delay_s(len(left), least_s=following.LOOK_EVERY_S))


def _room_after_s(planned: Sequence[Planned]) -> float:
    """Return for how long after their end rollouts may keep what they leave behind."""
    return SURE_S + max(float(each.table["rollout"]["scale_down_delay_s"]) for each in planned)


def _begun(
    node: client.Client, planned: Sequence[Planned], how: How, *, before: Sequence[models.Rollout]
) -> tuple[list[models.Rollout], dict[str, errors.Conflict]]:
    """Carry out the plans; return the rollouts that they begin or join, and the agents for which there is no room."""
    begun: list[models.Rollout] = []
    refused: dict[str, errors.Conflict] = {}
    for each in planned:
        plan = each.plan
        try:
            agent = node.put_agent(
                plan.agent, each.table, code=plan.digest or None, strategy=how.strategy, hold_s=how.hold_s
            )
        except errors.Conflict as error:
            refused[plan.agent] = error
            continue
        except errors.GreenroomError as error:
            for rollout in (*before, *begun):
                if rollout.is_open:
                    error.add_note(f"{rollout_report.sentence(rollout)} of {rollout.agent} goes on")
            raise
        if plan.action != "stay" and agent.rollout is not None:
            begun.append(agent.rollout)
    return begun, refused


def _refused(faults: Sequence[str], plans: Sequence[models.Plan], given: options.Options) -> int:
    if given.json:
        render.json({"plans": plans})
    for fault in faults:
        render.failure(fault)
    if len(plans) > 1:
        render.say("nothing was begun, for none of the agents")
    return 1


def _end_dry_run(plans: Sequence[models.Plan], given: options.Options) -> None:
    if given.json:
        render.json({"plans": plans})
        return
    render.line("it can be deployed; nothing was changed")
    render.say("next: the same without --dry-run")
