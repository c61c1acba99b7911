-- Queues: each tenant has its own part of an agent's queue, and the sessions of a tenant take turns.

alter table task add column rank bigint;            -- its place, given when its session let it go; null: that of its seq

drop index task_ready;
create index task_ready on task (agent, tenant, priority desc, (coalesce(rank, seq * 1048576)))
    where state = 'queued' and due_at is null and not blocked;
drop index task_pinned;
create index task_pinned on task (agent, tenant, pin, priority desc, (coalesce(rank, seq * 1048576)))
    where state = 'queued' and pin is not null;
drop index task_suspect;
create index task_suspect on task (agent, tenant, priority desc, (coalesce(rank, seq * 1048576)))
    where state = 'queued' and kills >= 2;
