-- What supervision remembers: which tasks kill replicas, the last session state that is known to be good, how replicas
-- failed and what was done about it, how far each agent's recovery has come, and the alerts.

alter table task add column kills integer not null default 0;   -- replicas that died while it ran
create index task_suspect on task (agent, priority desc, seq) where state = 'queued' and kills >= 2;

alter table session add column good_state {bytes};              -- what the last task that succeeded was started with
alter table session add column good_revision integer;

alter table revision add column proven_at bigint;               -- the first success of one of its replicas

create table failure (
    seq {key},
    replica text not null unique,
    agent text not null,
    revision integer not null,
    node text not null,
    kind text not null,
    reason text not null,
    rung text not null,                     -- what was done about it
    at bigint not null,
    recovered_at bigint,                    -- a new incarnation passed readiness ...
    recovered_by text                       -- ... this one
);
create index failure_by_agent on failure (agent, seq);
create index failure_by_time on failure (at);

create table recovery (
    agent text not null primary key,
    record {bytes} not null,
    updated_at bigint not null
);

create table alert (
    id text not null primary key,
    kind text not null,
    agent text,
    severity text not null check (severity in ('warning', 'critical')),
    state text not null check (state in ('firing', 'resolved')),
    reason text not null,
    count bigint not null,                  -- how often it was raised while it fired
    first_at bigint not null,
    last_at bigint not null,
    acknowledged_at bigint,
    acknowledged_by text,
    resolved_at bigint
);
