-- Scaling: what was decided about each agent's number of replicas and why, and the load that it can be replayed with.

create table scaling_decision (
    seq {key},
    agent text not null,
    at bigint not null,
    from_replicas integer not null,
    to_replicas integer not null,           -- the same: it is held, and the rule says by what
    rule text not null,
    reason text not null,                   -- the sentence
    inputs {bytes} not null,
    decided_by text not null
);
create index scaling_decision_by_agent on scaling_decision (agent, seq);
create index scaling_decision_by_time on scaling_decision (at);

create table load (
    agent text not null,
    at bigint not null,                     -- the begin of ten seconds
    arrivals integer not null,
    ends integer not null,                  -- attempts
    run_us bigint,                          -- the mean of those; null: none
    waiting integer not null,               -- the most
    busy double precision not null,         -- the mean
    replicas integer not null,              -- ready ones, at the end
    start_us bigint,                        -- the mean of the replicas that became ready; null: none
    primary key (agent, at)
) {clustered};
create index load_by_time on load (at);
