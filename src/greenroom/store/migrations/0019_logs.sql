-- Logs: what replicas and tasks said, and what befell them, bounded by age and, for each agent and tenant, by number and size.

create table log_line (
    seq bigint not null primary key,        -- by log_head: the order of the commits
    at bigint not null,                     -- when its node heard it, by that node's clock
    tenant text not null,
    agent text not null,
    replica text not null,                  -- '' where it is of none
    task text,
    epoch integer,
    of_task boolean not null,               -- it is its task's; else its replica's, or its agent's
    level integer not null,                 -- as Python's logging numbers them
    source text not null,                   -- stdout, stderr, event, or greenroom: the node
    logger text not null,
    text {bytes} not null
) {clustered};
create index log_line_by_tenant on log_line (tenant, seq);
create index log_line_by_agent on log_line (tenant, agent, seq);
create index log_line_by_replica on log_line (tenant, replica, seq);
create index log_line_by_task on log_line (tenant, task, seq) where task is not null;

-- Who writes lines holds this row until the commit, so that who follows them misses none of another node's.
create table log_head (
    id integer not null primary key check (id = 1),
    seq bigint not null
);

-- How much there is, so that nobody has to count.
create table log_size (
    tenant text not null,
    agent text not null,
    lines bigint not null,
    bytes bigint not null,
    primary key (tenant, agent)
) {clustered};
