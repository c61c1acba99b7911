-- History: what became of each agent's attempts and how long they took, in buckets; see `core.history`.

create table history (
    agent text not null,
    step_s integer not null,                -- how long the bucket is: a minute or an hour
    at bigint not null,                     -- its begin
    part text not null,                     -- whose counts these are: one life of one node; parts are added when read
    record {bytes} not null,
    primary key (agent, step_s, at, part)
) {clustered};
create index history_by_time on history (step_s, at);
