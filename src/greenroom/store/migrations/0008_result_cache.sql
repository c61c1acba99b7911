-- The result cache: which task's result answers the same input. The result itself is in that task's row only.

create table result_cache (
    tenant text not null,
    agent text not null,
    key text not null,                      -- the revision and a digest of the input
    task text,                              -- whose result it is; null: there was none yet, or no success
    expires_at bigint not null,
    primary key (tenant, agent, key)
) {clustered};
create index result_cache_by_age on result_cache (tenant, agent, expires_at, key);
create index result_cache_expiry on result_cache (expires_at);

-- Of an agent that caches, and not of a session: the oldest open task of a key runs, the others are blocked.
alter table task add column cache_key text;
alter table task add column cached_from text;       -- the task whose result this one was given
create index task_cache_key on task (tenant, agent, cache_key, seq)
    where cache_key is not null and finished_at is null and parent is null;
