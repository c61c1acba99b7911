-- The first schema. One text for both databases: {key} is a growing integer primary key, {bytes} a byte string.
-- Instants are microseconds since 1970 UTC, by the database's clock.

create table task (
    seq {key},
    id text not null unique,
    tenant text not null,
    agent text not null,
    session text,
    state text not null,
    priority integer not null,
    blocked boolean not null,               -- an earlier task of its session is still open
    due_at bigint,                          -- null: due now; cleared when it comes
    not_before bigint,                      -- as the caller asked
    deadline_at bigint,                     -- of the whole task, as the caller asked or the parent has it
    run_timeout_us bigint not null,         -- of one attempt
    epoch integer not null default 0,
    event_seq integer not null default 1,   -- the last event's number; 1 is the acceptance
    attempts_charged integer not null default 0,
    max_attempts integer not null,
    on_replica_loss text not null,
    retry_backoff_us bigint not null,
    owner text,
    lease_until bigint,
    revision integer,
    replica text,                           -- of the attempt that runs, or that ended the task; so the next two
    claimed_at bigint,
    claim_seq integer,                      -- the number of the event that its begin is
    parent text,
    depth integer not null default 0,       -- calls above it
    submitted_by text not null,
    idempotency_key text,
    fingerprint {bytes},
    input {bytes} not null,
    output {bytes},
    error {bytes},
    reason text,                            -- why it ended
    metadata {bytes},
    routing {bytes},
    input_tokens bigint not null default 0,
    output_tokens bigint not null default 0,
    created_at bigint not null,
    started_at bigint,
    finished_at bigint,
    -- Conditions are told by what is null where they can be: for lists of words, SQLite makes a table at each statement.
    check (case state
        when 'queued' then finished_at is null and lease_until is null
        when 'running' then finished_at is null and lease_until is not null
        when 'waiting' then finished_at is null and lease_until is not null
        when 'succeeded' then finished_at is not null and lease_until is null
        when 'failed' then finished_at is not null and lease_until is null
        when 'cancelled' then finished_at is not null and lease_until is null
        when 'expired' then finished_at is not null and lease_until is null
        else false end)
);
create index task_ready on task (agent, priority desc, seq) where state = 'queued' and due_at is null and not blocked;
create index task_due on task (due_at) where state = 'queued' and due_at is not null;
create index task_deadline on task (deadline_at) where state = 'queued' and deadline_at is not null;
create unique index task_session_running on task (tenant, agent, session) where state = 'running' and session is not null;
create index task_session_open on task (tenant, agent, session, seq) where session is not null and finished_at is null;
create unique index task_idempotency on task (tenant, idempotency_key) where idempotency_key is not null;
create index task_parent on task (parent) where parent is not null;
-- What is listed, newest first. Those that succeeded are found among all of their tenant: they are most.
create index task_by_tenant on task (tenant, seq, agent);
create index task_by_session on task (tenant, session, seq) where session is not null;
create index task_open on task (state, tenant, seq, agent) where finished_at is null;
create index task_unsuccessful on task (tenant, state, seq, agent)
    where finished_at is not null and state <> 'succeeded';

create table ended_count (
    tenant text not null,
    agent text not null,
    state text not null,
    tasks bigint not null,
    primary key (tenant, agent, state)
);

create table task_event (
    task text not null,
    seq integer not null,
    epoch integer not null,
    type text not null,
    at bigint not null,
    data {bytes} not null,
    primary key (task, seq)
) {clustered};

create table session (
    tenant text not null,
    agent text not null,
    id text not null,
    state {bytes},
    revision integer,
    tasks bigint not null default 0,
    created_at bigint not null,
    updated_at bigint not null,
    primary key (tenant, agent, id)
);
create index session_by_use on session (tenant, updated_at);

create table agent (
    name text not null primary key,
    generation bigint not null,
    revision integer not null,              -- the serving one
    replicas integer not null,              -- how many there should be
    state text not null,
    reason text not null,
    adapter text,
    spec {bytes} not null,
    updated_at bigint not null
);

create table revision (
    agent text not null,
    number integer not null,
    digest text not null,                   -- of the code snapshot
    spec {bytes} not null,
    created_at bigint not null,
    primary key (agent, number)
);

create table replica (
    id text not null primary key,
    agent text not null,
    revision integer not null,
    node text not null,
    pid integer,
    state text not null check (state in ('starting', 'ready', 'draining', 'stopped', 'failed')),
    grade text not null,
    reason text not null,
    slots integer not null,
    memory_mb double precision,
    restarts integer not null,
    started_at bigint not null,
    ended_at bigint
);
create index replica_live on replica (agent) where state in ('starting', 'ready', 'draining');

create table principal (
    key_id text not null primary key,
    tenant text not null,
    name text not null,
    role text not null,
    secret_hash {bytes} not null,
    created_at bigint not null,
    expires_at bigint,
    revoked_at bigint
);
