-- Rollouts: how one revision takes over from another, the revision that each session keeps to, and what a revision is.

create table rollout (
    id {key},
    agent text not null,
    strategy text not null,
    from_revision integer,                  -- null: nothing served before
    to_revision integer not null,
    phase text not null,
    reason text not null,
    record {bytes} not null,                -- as core.rollouts has it
    spec {bytes} not null,                  -- the agent's, when the new revision serves
    from_spec {bytes} not null,             -- ... and when it does not
    begun_by text not null,
    version bigint not null,                -- grows with each write
    created_at bigint not null,
    updated_at bigint not null,
    ended_at bigint
);
create unique index rollout_open on rollout (agent) where ended_at is null;
create index rollout_by_agent on rollout (agent, id);

alter table agent add column rollout bigint;        -- the last one; null: the agent is of a schema without
alter table revision add column identity text;      -- of its code and its part of the spec
alter table revision add column retired_at bigint;  -- since when it keeps no replicas and no sessions
create index revision_by_identity on revision (agent, identity, number);
update revision set retired_at = created_at
    where not exists (select 1 from agent where agent.name = revision.agent and agent.revision = revision.number);

alter table session add column pin integer;         -- the revision that it keeps to, until that one is retired
alter table task add column pin integer;            -- the same, of a task that may be claimed
create index task_pinned on task (agent, pin, priority desc, seq) where state = 'queued' and pin is not null;
