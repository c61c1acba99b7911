-- The begin of a task's last attempt and its end are told by its row, no longer by events of their own; how many tasks
-- have ended is counted as they end; and fewer indexes are kept up with every move.

alter table task add column replica text;
alter table task add column claimed_at bigint;
alter table task add column claim_seq integer;  -- the number of the event that the begin of its attempt is
alter table task add column reason text;        -- why it ended

drop index task_leased;
drop index task_open;
drop index task_ended;
create index task_open on task (state, tenant, seq, agent) where state in ('queued', 'running', 'waiting');
-- Those that succeeded are found among all of their tenant: they are most.
create index task_unsuccessful on task (tenant, state, seq, agent) where state in ('failed', 'cancelled', 'expired');

create table ended_count (
    tenant text not null,
    agent text not null,
    state text not null,
    tasks bigint not null,
    primary key (tenant, agent, state)
);
insert into ended_count (tenant, agent, state, tasks)
    select tenant, agent, state, count(*) from task where finished_at is not null group by tenant, agent, state;
